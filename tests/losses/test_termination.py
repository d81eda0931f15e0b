"""The parallel losses are the step-wise formulas, their gradients finite differences, and they sum over batches as all losses do."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from fishpaw.errors import DataError
from fishpaw.losses.termination import non_monotone, self_terminating

torch.set_num_threads(1)
END = 3
BOTH = (self_terminating, non_monotone)


def batch(rows=5, length=13, vocabulary=7, dtype=torch.float64, spread=2.0):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, length, vocabulary, generator=generator, dtype=torch.float64) * spread
    targets = torch.randint(0, vocabulary - 1, (rows, length), generator=generator)
    targets = torch.where(targets >= END, targets + 1, targets)      # no end yet
    generated = torch.arange(length).expand(rows, -1) >= torch.tensor([4, 0, 1, 4, 2])[:, None]
    targets[0, -1] = targets[1, 7] = targets[2, 1] = END
    targets[1, 8:] = -100                                            # padding
    targets[3, :2] = -100                                            # a context that isn't scored
    return logits.to(dtype), targets, generated


def naive(loss, logits, targets, generated, epsilon) -> float:
    """-log p of each target, a row and a step at a time, by the formulas, in plain Python."""
    total = []
    for row, chosen, runs in zip(logits.tolist(), targets.tolist(), generated.tolist(), strict=True):
        alive, step = 1.0, 0
        for scores, target, run in zip(row, chosen, runs, strict=True):
            gate, step = 1 / (1 + math.exp(-scores[END])), step + run
            if loss is self_terminating:
                alive *= (1 - epsilon) * gate if run else 1.0
            else:
                bound = 1 - (1 - epsilon) ** step
                alive = 1 - (bound * (1 - gate) + gate) if run else 1.0
            if target == END:
                total.append(-math.log(1 - alive))
            elif target != -100:
                others = math.fsum(math.exp(score) for token, score in enumerate(scores) if token != END)
                total.append(-math.log(alive * math.exp(scores[target]) / others))
    return math.fsum(total)


@pytest.mark.parametrize("epsilon", [1e-4, 0.1, 0.5])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("loss", BOTH)
def test_the_parallel_loss_is_the_recursion(loss, dtype, near, epsilon):
    logits, targets, generated = batch(dtype=dtype)
    total, count = loss(logits, targets, generated, end=END, epsilon=epsilon)
    assert total.dtype == count.dtype == dtype and int(count) == int((targets != -100).sum())
    assert float(total) == pytest.approx(naive(loss, logits, targets, generated, epsilon), rel=near)


@pytest.mark.parametrize("loss", BOTH)
def test_half_precision_is_promoted(loss):
    logits, targets, generated = batch(dtype=torch.bfloat16)
    total, _ = loss(logits, targets, generated, end=END, epsilon=0.1)
    assert total.dtype == torch.float32
    assert float(total) == pytest.approx(naive(loss, logits.double(), targets, generated, 0.1), rel=1e-5)


@pytest.mark.parametrize("loss", BOTH)
def test_gradients_are_finite_differences(loss):
    logits, targets, generated = batch(length=9, spread=1.0)
    assert torch.autograd.gradcheck(lambda x: loss(x, targets, generated, end=END, epsilon=0.05)[0], logits.requires_grad_())


@pytest.mark.parametrize("loss", BOTH)
def test_gradients_stay_finite_at_the_limits(loss):
    """A gate that is shut or open to the last bit, in fp32, over hundreds of steps."""
    for score in (-200.0, 0.0, 200.0):
        logits = torch.zeros(2, 301, 7)
        logits[..., END] = score
        targets = torch.zeros(2, 301, dtype=torch.long)
        targets[0, -1] = END
        total, _ = loss(logits.requires_grad_(), targets, torch.ones_like(targets, dtype=torch.bool), end=END, epsilon=1e-4)
        total.backward()
        assert bool(torch.isfinite(total)) and bool(torch.isfinite(logits.grad).all())


@pytest.mark.parametrize("loss", BOTH)
def test_batches_add_up_and_nothing_is_nothing(loss):
    logits, targets, generated = batch()
    whole = loss(logits, targets, generated, end=END, epsilon=0.1)
    parts = [loss(logits[row : row + 1], targets[row : row + 1], generated[row : row + 1], end=END, epsilon=0.1) for row in range(5)]
    for one, several in zip(whole, zip(*parts, strict=True), strict=True):
        assert float(one) == pytest.approx(float(sum(several)), rel=1e-12)
    total, count = loss(logits.requires_grad_(), torch.full_like(targets, -100), generated, end=END, epsilon=0.1)
    total.backward()
    assert float(total.detach()) == float(count) == 0 and float(logits.grad.abs().max()) == 0
    assert [float(x.detach()) for x in loss(logits[:0], targets[:0], generated[:0], end=END, epsilon=0.1)] == [0, 0]


@pytest.mark.parametrize("loss", BOTH)
def test_a_context_is_scored_by_the_softmax_without_the_end(loss):
    logits, targets, _ = batch()
    targets[targets == END] = 0
    others = logits.index_fill(-1, torch.tensor([END]), float("-inf"))
    total, _ = loss(logits, targets, torch.zeros_like(targets, dtype=torch.bool), end=END, epsilon=0.5)
    assert float(total) == pytest.approx(float(cross_entropy(others.flatten(0, 1), targets.flatten(), reduction="sum")), rel=1e-12)
    targets[4, 5] = END
    with pytest.raises(DataError, match="Row 4 of a batch ends in its context, at target 5"):
        loss(logits, targets, torch.zeros_like(targets, dtype=torch.bool), end=END, epsilon=0.5)


def test_left_padding_changes_nothing():
    logits, targets, generated = batch()
    pad = torch.nn.functional.pad
    for loss in BOTH:
        here = loss(logits, targets, generated, end=END, epsilon=0.1)
        there = loss(pad(logits, (0, 0, 3, 0), value=1.7), pad(targets, (3, 0), value=-100), pad(generated, (3, 0)), end=END, epsilon=0.1)
        assert float(here[0]) == pytest.approx(float(there[0]), rel=1e-12) and here[1] == there[1]


def forgets(logits: Tensor, targets: Tensor, generated: Tensor, *, end: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """The planted fault: each step's own gate, without those before it."""
    log_alive = (logsigmoid(logits[..., end]) + math.log1p(-epsilon)).masked_fill(~generated, 0.0)
    others = logits.index_fill(-1, torch.tensor([end]), float("-inf")).log_softmax(-1) + log_alive[..., None]
    scores = others.index_copy(-1, torch.tensor([end]), (-log_alive.expm1()).log()[..., None])
    return cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="sum"), (targets != -100).sum()


def test_a_planted_fault_is_found():
    logits, targets, generated = batch()
    total, _ = forgets(logits, targets, generated, end=END, epsilon=0.1)
    assert abs(float(total) - naive(self_terminating, logits, targets, generated, 0.1)) > 1
    first = generated & (generated.cumsum(1) == 1)                   # with one generated token a row nothing could be forgotten
    single = targets.masked_fill(~first, -100)
    total, _ = forgets(logits, single, generated, end=END, epsilon=0.1)
    assert float(total) == pytest.approx(naive(self_terminating, logits, single, generated, 0.1), rel=1e-10)
