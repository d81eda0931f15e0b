"""In-batch softmax of cosines: a naive loop, its laws, gradients by finite differences, the same under autocast."""

from __future__ import annotations

import math

import pytest
import torch

from fishpaw.errors import ConfigError
from fishpaw.losses.contrastive import in_batch

torch.set_num_threads(1)


def vectors(pairs=7, width=11, seed=0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(pairs, width, generator=draw, dtype=dtype) * scale for scale in (1, 3)]


def cosine(a, b):
    dot, size = sum(x * y for x, y in zip(a, b, strict=True)), [math.sqrt(sum(x * x for x in one)) for one in (a, b)]
    return dot / size[0] / size[1]


def naive(one, other, temperature):
    """A plain loop over numbers: each of `one` finds its own among all of `other`, and the other way round."""
    one, other = one.tolist(), other.tolist()
    total = 0.0
    for here, there in ((one, other), (other, one)):
        for i, vector in enumerate(here):
            scores = [cosine(vector, candidate) / temperature for candidate in there]
            total -= (scores[i] - math.log(sum(map(math.exp, scores)))) / 2
    return total


@pytest.mark.parametrize("pairs", [1, 2, 7])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_it_is_the_naive_loop(pairs, temperature):
    one, other = vectors(pairs)
    total, count = in_batch(one, other, temperature=temperature)
    assert float(total) == pytest.approx(naive(one, other, temperature), abs=1e-10) and float(count) == pairs
    if pairs > 1:                                                    # the planted fault: one direction only
        scores = torch.nn.functional.normalize(one) @ torch.nn.functional.normalize(other).T / temperature
        alone = torch.nn.functional.cross_entropy(scores, torch.arange(pairs), reduction="sum")
        assert abs(float(alone) - float(total)) > 1e-3


def test_lengths_of_vectors_and_the_order_of_pairs_do_not_matter():
    one, other = vectors()
    total = in_batch(one, other)[0]
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    torch.testing.assert_close(in_batch(one * 5, other / 7)[0], total)
    torch.testing.assert_close(in_batch(one[order], other[order])[0], total)
    torch.testing.assert_close(in_batch(other, one)[0], total)
    assert abs(float(in_batch(one[order], other)[0] - total)) > 1


def test_a_lone_pair_teaches_nothing_and_no_pair_is_nothing():
    one, other = (part.requires_grad_() for part in vectors(1))
    total, count = in_batch(one, other)
    total.backward()
    assert float(total.detach()) == 0 and float(count) == 1 and float(one.grad.abs().max()) == 0
    total, count = in_batch(one[:0], other[:0])
    assert float(total.detach()) == float(count) == 0


def test_gradients_are_those_of_finite_differences():
    one, other = (part.requires_grad_() for part in vectors(3, 5))
    assert torch.autograd.gradcheck(lambda a, b: in_batch(a, b, temperature=0.3)[0], (one, other))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_and_halves_change_nothing_in_the_scores(dtype):
    """A product under autocast is one of bf16, whatever comes in; cosines over 0.05 would be rounded to eighths."""
    one, other = (part.to(dtype) for part in vectors(61, 67))
    expected, _ = in_batch(one.float(), other.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, count = in_batch(one, other)
        planted = torch.nn.functional.normalize(one.float()) @ torch.nn.functional.normalize(other.float()).T
    assert torch.equal(total, expected) and total.dtype == count.dtype == torch.float32 and planted.dtype == torch.bfloat16


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_none_is_refused(temperature):
    with pytest.raises(ConfigError, match="temperature"):
        in_batch(*vectors(), temperature=temperature)
