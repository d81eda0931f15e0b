"""The losses of language models: their formulas, zeros and precision, each token weighing the same however the batches are cut; and which
tokens a batch asks for and speaks against, by a walk over its sequences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fishpaw.contracts import Batch
from fishpaw.errors import ConfigError, DataError
from fishpaw.losses.generation import masked_cross_entropy, next_tokens, previous_tokens, sparse_cross_entropy, unlikelihood

torch.set_num_threads(1)


def test_it_is_its_formula_over_the_tokens_that_count() -> None:
    logits, targets = torch.randn(11, 13, dtype=torch.float64) * 3, torch.randint(13, (11,))
    targets[[2, 7]] = -100
    by_hand = sum(math.log(sum(map(math.exp, row))) - row[y] for row, y in zip(logits.tolist(), targets.tolist(), strict=True) if y >= 0)
    total, count = masked_cross_entropy(logits, targets)
    torch.testing.assert_close(total.item(), by_hand, atol=1e-12, rtol=0)
    assert count.item() == 9


@pytest.mark.parametrize("tokens", [0, 5])
def test_no_target_gives_zero_and_zero_gradients(tokens: int) -> None:
    logits = torch.randn(tokens, 7, requires_grad=True)
    total, count = masked_cross_entropy(logits, torch.full((tokens,), -100))
    total.backward()
    assert (total.item(), count.item()) == (0.0, 0.0)
    assert logits.grad is not None and not logits.grad.any()


def test_the_softmax_is_at_least_fp32_and_fp64_stays() -> None:
    logits, targets = torch.randn(3, 21128).bfloat16(), torch.tensor([1, 2, 3])
    total, _ = masked_cross_entropy(logits, targets)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, masked_cross_entropy(logits.double(), targets)[0].float(), atol=1e-4, rtol=0)
    assert masked_cross_entropy(logits.double(), targets)[0].dtype == torch.float64
    planted = cross_entropy(logits, targets, reduction="sum").float()    # a softmax that stays in bf16
    assert abs(planted - total) > 1e-3


def test_sums_over_parts_are_the_whole_and_means_are_not() -> None:
    logits, targets = torch.randn(11, 13, dtype=torch.float64), torch.randint(13, (11,))
    targets[:3] = -100
    total, count = masked_cross_entropy(logits, targets)
    parts = [masked_cross_entropy(logits[at], targets[at]) for at in (slice(0, 4), slice(4, 11))]
    torch.testing.assert_close(sum(a for a, _ in parts) / sum(b for _, b in parts), total / count, atol=1e-12, rtol=0)
    planted = sum(a / b for a, b in parts) / 2
    assert abs(planted - total / count) > 1e-2


# What is asked for

TEXTS = [[2, 3, 5, 7, 3, 3], [11], [13, 2, 13, 17, 19, 2, 23]]
SEGMENTS = [[0, 0, 0, 1, 1, 1], [0], [0, 0, 1, 1, 1, 1, 0]]


def batch_of(layout: str) -> tuple[Batch, list[int]]:
    """The texts as a batch, and the flat index of each token, text after text."""
    width, places = max(map(len, TEXTS)) + 2, []
    if layout == "packed":
        batch = Batch.packed([torch.tensor(one) for one in TEXTS], segments=[torch.tensor(one) for one in SEGMENTS])
        return batch, [int(first) + i for first, text in zip(batch.first, TEXTS, strict=True) for i in range(len(text))]
    ids, segments, keep = torch.zeros(3, width).long(), torch.ones(3, width).long(), torch.zeros(3, width).bool()
    for row, (text, flag) in enumerate(zip(TEXTS, SEGMENTS, strict=True)):
        at = slice(0, len(text)) if layout == "right" else slice(width - len(text), width)
        ids[row, at], segments[row, at], keep[row, at] = torch.tensor(text), torch.tensor(flag), True
        places += [row * width + at.start + i for i in range(len(text))]
    return Batch.padded(ids, keep=keep, segments=segments), places


def walked(places: list[int], segment: int | None) -> list[tuple[int, int, list[int]]]:
    """(flat index, successor, different earlier tokens but for it) of each pair, text after text."""
    found, start = [], 0
    for text, flags in zip(TEXTS, SEGMENTS, strict=True):
        for i in range(len(text) - 1):
            if segment is None or flags[i + 1] == segment:
                before = {text[j] for j in range(i + 1) if segment is None or flags[j] == segment} - {text[i + 1]}
                found.append((places[start + i], text[i + 1], sorted(before)))
        start += len(text)
    return sorted(found)


@pytest.mark.parametrize("segment", [None, 1, 0])
@pytest.mark.parametrize("layout", ["right", "left", "packed"])
def test_next_and_previous_tokens_are_those_of_a_walk_over_the_texts(layout: str, segment: int | None) -> None:
    batch, places = batch_of(layout)
    at, targets = next_tokens(batch, segment=segment)
    negatives = previous_tokens(batch, at, targets, segment=segment)
    got = [(a, b, [c for c in row if c != -100]) for a, b, row in zip(at.tolist(), targets.tolist(), negatives.tolist(), strict=True)]
    assert got == walked(places, segment)
    planted = list(zip(range(len(batch.ids) - 1), batch.ids[1:].tolist(), strict=True))      # a shift that crosses texts and padding
    assert [pair[:2] for pair in got] != planted


def test_a_sequence_of_one_token_and_a_batch_of_them_ask_for_nothing() -> None:
    batch = Batch.padded(torch.tensor([[5], [7]]))
    at, targets = next_tokens(batch)
    assert at.shape == targets.shape == (0,) and at.dtype == targets.dtype == torch.int64
    assert previous_tokens(batch, at, targets).shape == (0, 1)


def test_a_segment_of_a_batch_without_segments_is_refused() -> None:
    batch = Batch.padded(torch.tensor([[5, 7, 11]]))
    with pytest.raises(DataError, match="segment 1 .* has no segments. Give segments"):
        next_tokens(batch, segment=1)
    with pytest.raises(DataError, match="segment 2"):
        previous_tokens(batch, torch.tensor([0]), torch.tensor([7]), segment=2)


# Sparse softmax

def scores(scale: float = 3.0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(5)
    return scale * torch.randn(41, 13, dtype=torch.float64, generator=draw), torch.randint(13, (41,), generator=draw)


@pytest.mark.parametrize("k", [1, 2, 5, 13, 99])
def test_sparse_cross_entropy_is_its_formula_with_the_laws_of_its_bounds(k: int) -> None:
    logits, targets = scores()
    outside = 0
    for row, target in zip(logits, targets, strict=True):
        value = float(sparse_cross_entropy(row[None], target[None], k=k)[0])
        best = sorted(row.tolist(), reverse=True)[:k]
        assert abs(value - (math.log(sum(map(math.exp, best))) - float(row[target]))) < 1e-12
        full = float(masked_cross_entropy(row[None], target[None])[0])
        assert value <= full + 1e-12 and (k < 13 or abs(value - full) < 1e-12)
        if k == 1 and int(row.argmax()) == int(target):
            assert value == 0.0
        if float(row[target]) < best[-1]:
            outside += 1
            assert value >= math.log(k)
    assert outside or k >= 13                                        # the last law was looked at
    total, count = sparse_cross_entropy(logits, targets, k=k)
    assert count.item() == 41 and total.dtype == torch.float64


def test_its_gradient_is_zero_outside_the_best_and_the_target() -> None:
    logits, targets = scores()
    logits.requires_grad_()
    sparse_cross_entropy(logits, targets, k=3)[0].backward()
    allowed = torch.zeros_like(logits, dtype=torch.bool).scatter(1, logits.topk(3).indices, True).scatter(1, targets[:, None], True)
    assert logits.grad is not None and bool((logits.grad[~allowed] == 0).all()) and bool((logits.grad[allowed] != 0).all())
    (planted,) = torch.autograd.grad(masked_cross_entropy(logits, targets)[0], logits)
    assert bool((planted[~allowed] != 0).all())                      # the full loss would fail


@pytest.mark.parametrize("k", [2, 5, 13])
def test_a_small_loss_forces_scores_apart_among_the_best_alone(k: int) -> None:
    """e is the loss of n scores, the target among them: largest - smallest >= log(n - 1) - log(exp(e) - 1)."""
    logits, targets = scores(scale=6.0)
    checked = 0
    for row, target in zip(logits, targets, strict=True):
        best = row.topk(k).values
        if float(row[target]) >= float(best[-1]):
            value = float(sparse_cross_entropy(row[None], target[None], k=k)[0])
            bound = math.log(k - 1) - math.log(math.expm1(value))
            assert float(best[0] - best[-1]) >= bound - 1e-9
            checked += 1
    assert checked >= 3
    tight = torch.tensor([[2.0] + [-1.0] * (k - 1)], dtype=torch.float64)                # equality where all others are equal
    value = float(sparse_cross_entropy(tight, torch.tensor([0]), k=k)[0])
    assert abs(math.log(k - 1) - math.log(math.expm1(value)) - 3.0) < 1e-9


def test_k_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="k is 0"):
        sparse_cross_entropy(*scores(), k=0)


# Unlikelihood

def test_unlikelihood_is_its_formula_over_the_negatives_that_count() -> None:
    logits, targets = scores()
    targets[3] = -100
    negatives = torch.randint(13, (41, 4), generator=torch.Generator().manual_seed(7))
    negatives[::2, 1], negatives[5, :] = -100, -100
    by_hand = 0.0
    for row, target, against in zip(logits.tolist(), targets.tolist(), negatives.tolist(), strict=True):
        norm = sum(map(math.exp, row))
        by_hand -= sum(math.log(1 - math.exp(row[c]) / norm) for c in against if c not in (-100, target) and target != -100)
    total, count = unlikelihood(logits, targets, negatives)
    torch.testing.assert_close(total.item(), by_hand, atol=1e-10, rtol=0)
    assert count.item() == 40
    planted = -(1 - logits.softmax(1)).log().gather(1, negatives.clamp_min(0)).sum()      # nothing is passed over
    assert abs(planted - total) > 1e-2


def test_unlikelihood_of_a_token_of_probability_one_is_finite_with_bounded_gradients() -> None:
    logits = torch.zeros(2, 5)
    logits[0, 3], logits[1, 3] = 200.0, 1e30
    logits.requires_grad_()
    total, _ = unlikelihood(logits, torch.tensor([1, 1]), torch.tensor([[3, 2], [2, -100]]))
    total.backward()
    torch.testing.assert_close(total.item(), 200.0 - math.log(4), atol=1e-3, rtol=0)
    assert logits.grad is not None and bool(logits.grad.isfinite().all()) and float(logits.grad.abs().max()) <= 1
    assert bool((1 - logits.softmax(1)).log().isinf().any())          # the plain formula has no value there


@pytest.mark.parametrize("loss", ["sparse", "unlikelihood"])
def test_the_gradients_are_those_of_finite_differences(loss: str) -> None:
    logits, targets = scores(scale=1.0)
    negatives = torch.randint(13, (41, 3), generator=torch.Generator().manual_seed(7))

    def of(given: Tensor) -> Tensor:
        return sparse_cross_entropy(given, targets, k=4)[0] if loss == "sparse" else unlikelihood(given, targets, negatives)[0]

    assert torch.autograd.gradcheck(of, (logits.requires_grad_(),), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("tokens", [0, 5])
def test_where_nothing_counts_both_are_zero_with_zero_gradients(tokens: int) -> None:
    logits, targets = torch.randn(tokens, 7, requires_grad=True), torch.full((tokens,), -100)
    for total, count in (sparse_cross_entropy(logits, targets), unlikelihood(logits, targets, torch.ones(tokens, 2).long())):
        (gradient,) = torch.autograd.grad(total, logits)
        assert (total.item(), count.item()) == (0.0, 0.0) and not gradient.any()


def test_both_are_summed_in_fp32_at_least() -> None:
    logits, targets = scores()
    half, negatives = logits.bfloat16(), targets[:, None].roll(1, 0)
    for narrow, wide in (
        (sparse_cross_entropy(half, targets), sparse_cross_entropy(half.float(), targets)),
        (unlikelihood(half, targets, negatives), unlikelihood(half.float(), targets, negatives)),
    ):
        assert narrow[0].dtype == narrow[1].dtype == torch.float32
        torch.testing.assert_close(narrow, wide, atol=0, rtol=0)
