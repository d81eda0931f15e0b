"""Classifier losses against their formulas, at the edges, and cut into batches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fishpaw.errors import DataError
from fishpaw.losses.classification import cross_entropy, multi_label

torch.set_num_threads(1)


def data(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(7, 5, dtype=torch.float64, generator=draw)
    labels = torch.randint(5, (7,), generator=draw)
    return logits.to(dtype), labels, (torch.rand(7, 5, generator=draw) < 0.4).long()


def test_cross_entropy_is_its_formula() -> None:
    logits, labels, _ = data()
    labels[4] = -100
    rows = zip(logits.tolist(), labels.tolist(), strict=True)
    by_hand = sum(math.log(sum(map(math.exp, row))) - row[y] for row, y in rows if y >= 0)
    total, count = cross_entropy(logits, labels)
    torch.testing.assert_close(total.item(), by_hand, atol=1e-12, rtol=0)
    assert count.item() == 6


def test_smoothing_mixes_in_the_mean_over_classes() -> None:
    logits, labels, _ = data()
    logp = logits.log_softmax(-1)
    by_hand = -(0.9 * logp.gather(1, labels[:, None])[:, 0] + 0.1 * logp.mean(-1)).sum()
    torch.testing.assert_close(cross_entropy(logits, labels, smoothing=0.1)[0], by_hand, atol=1e-12, rtol=0)


def test_multi_label_is_its_formula() -> None:
    logits, _, labels = data()
    labels[2, 3] = -100
    by_hand = 0.0
    for row, answers in zip(logits.tolist(), labels.tolist(), strict=True):
        for x, y in zip(row, answers, strict=True):
            by_hand += 0.0 if y == -100 else -math.log(1 / (1 + math.exp(-x if y else x)))
    total, count = multi_label(logits, labels)
    torch.testing.assert_close(total.item(), by_hand, atol=1e-12, rtol=0)
    assert count.item() == 34


@pytest.mark.parametrize("loss", [cross_entropy, multi_label])
def test_nothing_that_counts_is_zero_with_zero_gradients(loss: object) -> None:
    for rows in (0, 3):
        logits = torch.full((rows, 5), math.inf if rows else 0.0).nan_to_num(1e30).requires_grad_()
        labels = torch.full((rows,) if loss is cross_entropy else (rows, 5), -100)
        total, count = loss(logits, labels)  # type: ignore[operator]
        total.backward()
        assert (total.item(), count.item()) == (0.0, 0.0)
        assert logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("loss", [cross_entropy, multi_label])
def test_huge_logits_stay_finite_and_half_precision_is_summed_in_fp32(loss: object) -> None:
    logits, labels, several = data(torch.bfloat16)
    targets = labels if loss is cross_entropy else several
    total, count = loss(logits * 1e4, targets)  # type: ignore[operator]
    assert total.isfinite() and total.dtype == count.dtype == torch.float32
    wide, _ = loss(logits.float(), targets)  # type: ignore[operator]
    torch.testing.assert_close(loss(logits, targets)[0], wide, atol=0, rtol=0)  # type: ignore[operator]


@pytest.mark.parametrize("bad", [5, -1, 21128])
def test_a_label_outside_the_classes_is_named(bad: int) -> None:
    logits, labels, _ = data()
    labels[3] = bad
    with pytest.raises(DataError, match=rf"Row 3 of a batch has label {bad}.*0 … 4"):
        cross_entropy(logits, labels)
