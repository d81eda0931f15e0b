"""ZLPR: its formula, its sparse form, what it equals with one label, and where the article's sparse form loses its digits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fishpaw.errors import DataError
from fishpaw.losses.classification import cross_entropy
from fishpaw.losses.zlpr import zlpr, zlpr_sparse

torch.set_num_threads(1)
POSITIVES = [[3, 0], [], [6], [1, 2, 3, 4, 5, 6, 0]]


def data(scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, dense labels, and the same labels as indices in several orders, with gaps and repeats."""
    logits = scale * torch.randn(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    dense, sparse = torch.zeros(4, 7).long(), torch.full((4, 9), -100)
    for row, labels in enumerate(POSITIVES):
        dense[row, labels] = 1
        sparse[row, [one + 1 for one in range(len(labels))]] = torch.tensor(labels).long()
    sparse[0, 8] = 3                                                  # again
    return logits, dense, sparse


def by_hand(logits: Tensor, labels: Tensor) -> float:
    total = 0.0
    for row, answers in zip(logits.tolist(), labels.tolist(), strict=True):
        total += math.log(1 + sum(y * math.exp(-s) for s, y in zip(row, answers, strict=True)))
        total += math.log(1 + sum((1 - y) * math.exp(s) for s, y in zip(row, answers, strict=True)))
    return total


def test_it_is_its_formula_for_hard_and_for_soft_labels() -> None:
    logits, dense, _ = data()
    soft = torch.rand(4, 7, dtype=torch.float64)
    for labels in (dense, dense.bool(), soft):
        total, count = zlpr(logits, labels.long() if labels.dtype == torch.bool else labels)
        assert (total.item(), count.item()) == (pytest.approx(by_hand(logits, labels), abs=1e-12), 4)


def test_the_sparse_form_is_the_dense_one_gradients_included() -> None:
    logits, dense, sparse = data()
    logits.requires_grad_()
    one, other = zlpr(logits, dense), zlpr_sparse(logits, sparse)
    torch.testing.assert_close(one, other, atol=1e-12, rtol=0)
    torch.testing.assert_close(*(torch.autograd.grad(total, logits)[0] for total, _ in (one, other)), atol=1e-12, rtol=0)
    planted = zlpr_sparse(logits, sparse.clamp_min(0))                # padding taken for label 0
    assert abs(planted[0] - one[0]) > 1e-2


def test_gradients_are_finite_differences() -> None:
    logits, dense, sparse = data(scale=1.0)
    dense[2, 3] = -100
    for loss, labels in ((zlpr, dense), (zlpr, torch.rand(4, 7, dtype=torch.float64)), (zlpr_sparse, sparse)):
        assert torch.autograd.gradcheck(lambda given, loss=loss, labels=labels: loss(given, labels)[0], (logits.requires_grad_(),))


def test_labels_not_known_are_left_out() -> None:
    logits, dense, _ = data()
    kept = torch.tensor([0, 2, 3, 4, 5])
    dense[:, [1, 6]] = -100
    torch.testing.assert_close(zlpr(logits, dense), zlpr(logits[:, kept], dense[:, kept]), atol=1e-12, rtol=0)
    dense[1] = -100
    rest = torch.tensor([0, 2, 3])
    torch.testing.assert_close(zlpr(logits, dense), zlpr(logits[rest], dense[rest]), atol=1e-12, rtol=0)


def test_with_one_label_whose_logit_is_far_up_it_is_a_softmax_against_zero() -> None:
    """The label's own part is the softmax of [s, 0], the other that of 0 against the rest."""
    logits, _, _ = data()
    labels = torch.eye(7)[[2, 0, 5, 3]].long()
    total, _ = zlpr(logits, labels)
    own = logits[labels == 1]
    zero = torch.zeros(4, 1, dtype=torch.float64)
    others = torch.cat([zero, logits[labels == 0].view(4, 6)], 1)
    against, _ = cross_entropy(others, torch.zeros(4).long())
    with_zero, _ = cross_entropy(torch.cat([own[:, None], zero], 1), torch.zeros(4).long())
    torch.testing.assert_close(total, with_zero + against, atol=1e-12, rtol=0)


def test_trained_to_the_end_it_puts_what_holds_above_zero_and_the_rest_below() -> None:
    logits, dense, _ = data()
    logits.requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        (zlpr(logits, dense)[0]).backward()
        optimizer.step()
    assert torch.equal(logits > 0, dense == 1)


def test_the_struck_out_form_keeps_digits_that_the_difference_of_sums_loses() -> None:
    logits = torch.tensor([[30.0, 29.0, -3.0, -4.0]])
    positives = torch.tensor([[0, 1]])
    exact = math.log1p(math.exp(-30) + math.exp(-29)) + math.log1p(math.exp(-3) + math.exp(-4))
    assert zlpr_sparse(logits, positives)[0].item() == pytest.approx(exact, rel=1e-5)
    everything = torch.cat([logits, torch.zeros(1, 1)], 1).logsumexp(1)
    shared = logits[:, :2].logsumexp(1) - everything
    planted = everything + (1 - shared.exp()).clamp_min(1e-7).log()   # the article's way, in fp32
    assert abs(planted.item() - exact) > 1


@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_that_counts_is_zero_with_zero_gradients(rows: int) -> None:
    logits = torch.full((rows, 5), 1e30, requires_grad=True)
    total, count = zlpr(logits, torch.full((rows, 5), -100))
    total.backward()
    assert (total.item(), count.item()) == (0.0, 0.0) and logits.grad is not None and not logits.grad.any()
    empty = zlpr_sparse(torch.zeros(rows, 5), torch.full((rows, 2), -100))
    assert (empty[0].item(), empty[1].item()) == (pytest.approx(rows * math.log(6)), rows)      # a row may have no label: that is an answer


def test_it_is_summed_in_fp32_at_least_and_huge_logits_stay_finite() -> None:
    logits, dense, sparse = data()
    for loss, labels in ((zlpr, dense), (zlpr_sparse, sparse)):
        narrow, wide = loss(logits.bfloat16(), labels), loss(logits.bfloat16().float(), labels)
        assert narrow[0].dtype == torch.float32
        torch.testing.assert_close(narrow, wide, atol=0, rtol=0)
        given = (logits * 1e4).requires_grad_()
        total, _ = loss(given, labels)
        total.backward()
        assert total.isfinite() and given.grad is not None and bool(given.grad.isfinite().all())


def test_wrong_labels_are_named() -> None:
    logits, dense, sparse = data()
    sparse[2, 1] = 7
    with pytest.raises(DataError, match="Row 2 of a batch has label 7. Labels are 0 … 6"):
        zlpr_sparse(logits, sparse)
    with pytest.raises(DataError, match="Labels of shape"):
        zlpr(logits, dense[:, :-1])
    with pytest.raises(DataError, match="Positives of shape"):
        zlpr_sparse(logits, sparse[:-1])


@pytest.mark.parity
def test_it_is_that_of_bert4torch(published: Callable[..., Any]) -> None:
    losses = published("bert4torch", "losses.py")
    logits, dense, _ = data(scale=1.0)
    total, count = zlpr(logits, dense)
    theirs = losses.MultilabelCategoricalCrossentropy()(logits, dense.double())
    torch.testing.assert_close(total / count, theirs.mean(), atol=1e-9, rtol=0)
    positives = torch.tensor([[3, 0], [1, 2], [6, 4], [1, 5]])
    theirs = losses.SparseMultilabelCategoricalCrossentropy()(logits, positives)
    torch.testing.assert_close(zlpr_sparse(logits, positives)[0], theirs.sum(), atol=1e-9, rtol=0)
