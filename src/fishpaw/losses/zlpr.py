"""Softmax for several labels at once: those that hold above 0, all others below it (ZLPR, arXiv:2208.02955; kexue.fm/archives/7359)."""

from __future__ import annotations

import torch
from torch import Tensor

from fishpaw.errors import DataError

__all__ = ["zlpr", "zlpr_sparse"]


def zlpr(logits: Tensor, labels: Tensor, *, ignore: int = -100) -> tuple[Tensor, Tensor]:
    """sum over rows of log(1 + sum over labels that hold of exp(-s)) + log(1 + sum over the others of exp(s)), and the number of rows.

    logits, labels [b c] -> sum [], count [] (fp32 at least). labels: 0 or 1, or a share y between (soft labels, kexue.fm/archives/9064: y
    weighs exp(-s), 1 - y the other); `ignore`: not known, left out; a row of nothing else doesn't count. Predict the labels with s > 0,
    any number of them, as with `classification.multi_label`; that one asks c questions, of which a rare label's drowns; here a row's few
    labels and its many others weigh alike, whatever c is, and there is nothing to choose. With one label a row, and its score's
    counterpart fixed at 0, a softmax. `zlpr_sparse`: labels as indices.
    """
    if logits.shape != labels.shape:
        raise DataError(f"Labels of shape {list(labels.shape)} for logits {list(logits.shape)}.", fix="Give a 0 or 1 a logit.")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    counts = labels != ignore                                                           # [b c]
    share = torch.where(counts, labels, 0).to(logits.dtype)
    absent = torch.where(counts, 1 - share, 0.0)
    known = counts.any(-1)                                                              # [b]
    rows = _above_zero(-logits + share.log()) + _above_zero(logits + absent.log())
    return rows.masked_fill(~known, 0.0).sum(), known.sum().to(logits.dtype)


def zlpr_sparse(logits: Tensor, positives: Tensor, *, ignore: int = -100) -> tuple[Tensor, Tensor]:
    """`zlpr` with the labels that hold given as indices: positives [b k] int64, `ignore` where a row has fewer -> sum [], count [] = b.

    For c in the ten thousands, or pairs of places: k numbers a row are moved instead of c. The sum over the others is taken over logits
    whose positives are struck out; the article's log(sum of all - sum of positives) loses its digits where the positives dominate, as they
    do once training works. An index that stands twice in a row counts once. DataError for one outside 0 … c-1 (on the CPU).
    """
    if positives.dim() != 2 or len(positives) != len(logits):
        raise DataError(f"Positives of shape {list(positives.shape)} for logits {list(logits.shape)}.", fix="Give a row of indices a row.")
    none = positives == ignore                                                          # [b k]
    if positives.device.type == "cpu" and bool((bad := ~none & ((positives < 0) | (positives >= logits.shape[1]))).any()):
        row, column = bad.nonzero()[0].tolist()
        what = f"Row {row} of a batch has label {int(positives[row, column])}."
        raise DataError(what, fix=f"Labels are 0 … {logits.shape[1] - 1}, and {ignore} where there is none.")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # An extra column takes what is none, so that no index is out of range and no real label is struck out.
    at = positives.masked_fill(none, logits.shape[1])
    wide = torch.cat([logits, logits.new_zeros(len(logits), 1)], 1)                     # [b c+1]
    twice = (at[:, :, None] == at[:, None, :]).tril(-1).any(-1)                         # [b k]
    held = wide.gather(1, at).neg().masked_fill(none | twice, float("-inf"))
    others = wide.scatter(1, at, float("-inf"))[:, :-1]                                 # [b c]
    return (_above_zero(held) + _above_zero(others)).sum(), logits.new_tensor(float(len(logits)))


def _above_zero(scores: Tensor) -> Tensor:
    """log(1 + sum of exp(scores)) of each row, [b]."""
    return torch.cat([scores, scores.new_zeros(*scores.shape[:-1], 1)], -1).logsumexp(-1)
