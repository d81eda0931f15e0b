"""Losses of classifiers: cross entropy over c classes, and c independent yes-or-no questions (doi:10.1111/j.2517-6161.1958.tb00292.x).

Where classes are of very different sizes: losses/imbalance. Where labels of one text compete: losses/zlpr.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.functional import cross_entropy as _cross_entropy

from fishpaw.errors import DataError

__all__ = ["counted", "cross_entropy", "multi_label"]


def cross_entropy(logits: Tensor, labels: Tensor, *, smoothing: float = 0.0, ignore: int = -100) -> tuple[Tensor, Tensor]:
    """sum over rows of -log softmax(logits)[label], and the number of rows that count.

    logits [b c], labels [b] int64 (`ignore`: the row doesn't count) -> sum [], count [] (fp32 at least). Divide one by the other for
    the mean; over several batches divide the sums. No row: (0, 0), gradients 0. smoothing: share of the target spread over all
    classes (arXiv:1512.00567). One label a row; for several labels a row see `multi_label`, for tokens generation.masked_cross_entropy.
    Raises DataError for a label outside 0 … c-1 (on the CPU; a GPU would have to wait for the look).
    """
    rows = counted(logits, labels, ignore=ignore)
    logits = _promoted(logits)
    total = _cross_entropy(logits, labels, ignore_index=ignore, reduction="sum", label_smoothing=smoothing)
    return total, rows.sum().to(logits.dtype)


def counted(logits: Tensor, labels: Tensor, *, ignore: int = -100) -> Tensor:
    """Which rows count, bool [b], of logits [b c] and labels [b]. DataError for a label outside 0 … c-1 (on the CPU), and for labels [b
    c]."""
    if labels.shape != logits.shape[:-1]:
        raise DataError(f"Labels of shape {list(labels.shape)} for logits {list(logits.shape)}.", fix="Give one label a row of logits.")
    rows = labels != ignore                                                            # [b]
    if labels.device.type == "cpu":
        bad = rows & ((labels < 0) | (labels >= logits.shape[-1]))
        if bad.any():
            row = int(bad.nonzero()[0])
            raise DataError(f"Row {row} of a batch has label {int(labels[row])}.", fix=f"Labels are 0 … {logits.shape[-1] - 1}.")
    return rows


def multi_label(logits: Tensor, labels: Tensor, *, smoothing: float = 0.0, ignore: int = -100) -> tuple[Tensor, Tensor]:
    """sum over entries of -[y log s + (1 - y) log(1 - s)], s = sigmoid(logits), and the number of entries that count.

    logits, labels [b c], labels 0 or 1 (or a share between; `ignore`: not known, doesn't count) -> sum [], count [] (fp32 at least).
    Each class is asked on its own: any number of them may be right. smoothing: share of each target that is moved to 1/2
    (arXiv:1512.00567, for two classes). Nothing counts: (0, 0), gradients 0.
    """
    logits = _promoted(logits)
    counts = labels != ignore                                                          # [b c]
    targets = torch.where(counts, labels, 0).to(logits.dtype) * (1 - smoothing) + smoothing / 2
    each = binary_cross_entropy_with_logits(logits, targets, reduction="none")         # [b c]
    return torch.where(counts, each, 0.0).sum(), counts.sum().to(logits.dtype)


def _promoted(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
