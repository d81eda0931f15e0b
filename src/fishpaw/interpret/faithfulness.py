"""Whether scores of parts tell what a model reads: F while the highest parts are taken away, and while they are put back (deletion and
insertion, arXiv:1806.07421)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fishpaw import checks
from fishpaw.errors import ConfigError, FishpawError
from fishpaw.interpret.integrated_gradients import Scores, evaluated, like

__all__ = ["Curve", "deletion", "insertion"]


@dataclass(frozen=True)
class Curve:
    """F (`scores`) where these shares of the parts, 0 to 1, have been changed, the highest first."""

    shares: tuple[float, ...]
    scores: tuple[float, ...]

    @property
    def area(self) -> float:
        """Below the curve: the mean of F on the way. Of a deletion less is better, of an insertion more."""
        pairs = zip(self.shares, self.shares[1:], self.scores, self.scores[1:], strict=False)
        return math.fsum((right - left) * (a + b) / 2 for left, right, a, b in pairs)


def deletion(
    f: Scores, x: Tensor, scores: Tensor, *, baseline: Tensor | None = None, steps: int | None = None, rows: int = 8
) -> Curve:
    """Parts of x are replaced by the baseline's (None: zeros), those that speak most for f first: what was named falls at once.

    x [t ...], with scores [t] of its parts, or x [...] with a score a number. Equal scores: the first part first. steps: how many changes
    are measured, evenly spread; None: one a part. rows: how many at once. Errors: ConfigError for shapes that don't fit,
    FishpawError for scores that are no numbers.
    """
    start = like(x, baseline)
    return _curve(f, x.detach(), start, scores, steps, rows)


def insertion(
    f: Scores, x: Tensor, scores: Tensor, *, baseline: Tensor | None = None, steps: int | None = None, rows: int = 8
) -> Curve:
    """The baseline's parts are replaced by those of x, those that speak most for f first: what was named rises at once. As `deletion`."""
    start = like(x, baseline)
    return _curve(f, start, x.detach(), scores, steps, rows)


def _curve(f: Scores, before: Tensor, after: Tensor, scores: Tensor, steps: int | None, rows: int) -> Curve:
    checks.whole("steps", steps, least=1, optional=True)
    checks.whole("rows", rows, least=1)
    if not scores.dim() or scores.shape != before.shape[: scores.dim()]:
        raise ConfigError(f"The scores have shape {list(scores.shape)}, x {list(before.shape)}.", fix="Give a score a part of x.")
    if not bool(scores.isfinite().all()):
        raise FishpawError("The scores of the parts are not finite.", fix="Look for NaN in what they were computed from.")
    order = scores.detach().flatten().argsort(descending=True, stable=True).to(before.device)
    count = len(order)
    place = torch.empty_like(order)
    place[order] = torch.arange(count, device=order.device)          # 0 for the part that is changed first
    changed = _counts(count, count if steps is None else min(steps, count))
    found: list[float] = []
    for first in range(0, len(changed), rows):
        most = torch.tensor(changed[first : first + rows], device=order.device)
        new = (place < most[:, None]).view(len(most), *scores.shape, *[1] * (before.dim() - scores.dim()))    # [r t …]
        found += evaluated(f, torch.where(new, after, before), rows=rows).tolist()
    return Curve(tuple(number / count for number in changed), tuple(found))


def _counts(count: int, steps: int) -> Sequence[int]:
    """0 … count in `steps` steps."""
    return [round(count * step / steps) for step in range(steps + 1)]
