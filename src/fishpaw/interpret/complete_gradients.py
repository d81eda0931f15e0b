"""Integrated gradients with as many points as they need: the line is cut where its parts don't add up (completeness on each part; adaptive
quadrature).

For a part of the line from a to b the values must sum to F(b) - F(a), as they must for the whole (arXiv:1703.01365, proposition 1). F at
the cuts costs a forward each, less than half of a gradient, and says where points are missing. A fixed number of them is too many where F
is smooth, and too few where it bends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fishpaw import checks
from fishpaw.interpret.integrated_gradients import Attribution, Scores, evaluated, gauss_legendre, gradients, like

__all__ = ["LEAST", "complete_gradients"]

PARTS = 2
"""The line is cut in two before anything is judged: one sum alone may be right by chance."""

NODES = 6
"""Points of Gauss and Legendre a part: exact up to degree 11."""

LEAST = PARTS * NODES
"""Gradients that are taken at least."""


@dataclass(frozen=True)
class _Part:
    """From `start` to `end` on [0, 1]: the integral of the gradient, like x, and what its values miss of F(end) - F(start)."""

    start: float
    end: float
    integral: Tensor
    error: float


def complete_gradients(
    f: Scores, x: Tensor, *, baseline: Tensor | None = None, within: float = 1e-3, most: int = 1000, rows: int = 8
) -> Attribution:
    """As `integrated_gradients`, until the values of the line's parts miss their sums by no more than `within` of |F(x) - F(baseline)|.

    within: no less is asked than the rounding of F allows. most: gradients taken at most; where they don't do, `relative` of what is
    returned is above `within`. Other arguments and errors: those of integrated_gradients.
    """
    checks.number("within", within, below=1)
    checks.whole("most", most, least=LEAST)
    checks.whole("rows", rows, least=1)
    start, given = like(x, baseline), x.detach()
    cuts = [index / PARTS for index in range(PARTS + 1)]
    known = dict(zip(cuts, _on_the_line(f, start, given, cuts, rows), strict=True))
    wanted = max(within * abs(known[1.0] - known[0.0]), 16 * torch.finfo(x.dtype).eps * max(map(abs, known.values())))
    parts: list[_Part] = []
    open_parts, taken = list(zip(cuts, cuts[1:], strict=False)), 0
    while open_parts:
        parts += _integrated(f, start, given, known, open_parts, rows)
        taken += NODES * len(open_parts)
        worst = _worst(parts, wanted)[: max(0, most - taken) // (2 * NODES)]
        kept = {id(part) for part in worst}
        parts = [part for part in parts if id(part) not in kept]
        middles = [(part.start + part.end) / 2 for part in worst]
        known |= dict(zip(middles, _on_the_line(f, start, given, middles, rows), strict=True))
        open_parts = [ends for part, middle in zip(worst, middles, strict=True) for ends in ((part.start, middle), (middle, part.end))]
    total = torch.stack([part.integral for part in parts]).sum(0)
    return Attribution(total * (given - start), known[1.0], known[0.0], taken)


def _integrated(
    f: Scores, start: Tensor, x: Tensor, known: dict[float, float], open_parts: list[tuple[float, float]], rows: int
) -> list[_Part]:
    nodes, weights = gauss_legendre(NODES)
    ends = torch.tensor(open_parts, dtype=torch.float64)                                                      # [p 2]
    length = ends[:, 1:] - ends[:, :1]
    shares, weighed = (ends[:, :1] + length * nodes).flatten(), (length * weights).flatten()                  # [p nodes] -> [m]
    totals = torch.zeros(len(ends), *x.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    for places in torch.arange(len(shares)).tensor_split(math.ceil(len(shares) / rows)):                       # of even size: less memory
        at, weight = (one[places].to(totals).view(-1, *[1] * x.dim()) for one in (shares, weighed))
        found = gradients(f, torch.lerp(start, x, at.to(x)))                                                  # [r ...]
        totals.index_add_(0, places.to(x.device) // NODES, weight * found)
    sums = (totals * (x - start)).flatten(1).double().sum(1).tolist()
    return [_Part(low, high, total, total_of - (known[high] - known[low]))
            for (low, high), total, total_of in zip(open_parts, totals, sums, strict=True)]


def _worst(parts: list[_Part], wanted: float) -> list[_Part]:
    """The fewest parts without which the errors of the rest sum to no more than half of what is wanted; none where all of them do."""
    left = sum(abs(part.error) for part in parts)
    if left <= wanted:
        return []
    chosen = []
    for part in sorted(parts, key=lambda part: -abs(part.error)):
        if left <= wanted / 2:
            break
        chosen.append(part)
        left -= abs(part.error)
    return chosen


def _on_the_line(f: Scores, start: Tensor, x: Tensor, at: list[float], rows: int) -> list[float]:
    """F at these shares of the way."""
    found: list[float] = []
    for first in range(0, len(at), rows):
        shares = torch.tensor(at[first : first + rows], dtype=torch.float64).to(x).view(-1, *[1] * x.dim())
        found += evaluated(f, torch.lerp(start, x, shares), rows=rows).tolist()
    return found
