"""Neighbours of integrated gradients, to compare it with: gradient x input (arXiv:1605.01713), SmoothGrad (arXiv:1706.03825) and expected
gradients, the mean over many baselines (arXiv:1906.10670).

All are called as `integrated_gradients` is and answer alike. Only expected gradients is complete, and that in expectation: the `error` of
the others says how far their values are from adding up to F(x) - F(baseline).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fishpaw import checks
from fishpaw.errors import ConfigError
from fishpaw.interpret.integrated_gradients import Attribution, Scores, evaluated, gradients, like

__all__ = ["expected_gradients", "gradient_times_input", "smooth_gradients"]


def gradient_times_input(f: Scores, x: Tensor, *, baseline: Tensor | None = None, rows: int = 8) -> Attribution:
    """dF/dx(x) * (x - baseline), values like x: one gradient, exact where f is linear; 0 where f is saturated. Arguments and errors: those
    of integrated_gradients."""
    start = like(x, baseline)
    return _attribution(f, x, start, gradients(f, x.detach()[None])[0], 1, rows)


def smooth_gradients(
    f: Scores, x: Tensor, *, baseline: Tensor | None = None, points: int = 50, noise: float = 0.15, seed: int = 0, rows: int = 8
) -> Attribution:
    """The mean of `points` gradients at x + normal noise, times x - baseline, values like x.

    noise: standard deviation, in shares of max(x) - min(x). Other arguments and errors: those of integrated_gradients.
    """
    checks.whole("points", points, least=1)
    checks.whole("rows", rows, least=1)
    checks.number("noise", noise, least=0)
    start, given = like(x, baseline), x.detach()
    spread = noise * float(given.max() - given.min())
    draw = torch.Generator().manual_seed(seed)
    total = torch.zeros_like(given, dtype=torch.promote_types(x.dtype, torch.float32))
    for first in range(0, points, rows):
        size = min(rows, points - first)
        shift = torch.stack([torch.randn(x.shape, generator=draw) for _ in range(size)]).to(given)            # the same for any `rows`
        total += gradients(f, given + spread * shift).to(total.dtype).sum(0)
    return _attribution(f, x, start, total / points, points, rows)


def expected_gradients(
    f: Scores, x: Tensor, *, baseline: Tensor | None = None, points: int = 50, seed: int = 0, rows: int = 8
) -> Attribution:
    """The mean of dF/dx(b + a (x - b)) * (x - b) over baselines b and a in [0, 1], values like x; at_baseline: the mean of F over those b.

    baseline: several, [m ...], or one like x; None: zeros. Each is used as often as any other (or once more). Its a's are drawn from as
    many equal parts of [0, 1], one of each, and their places in these parts so, too, over the baselines: no bias, less chance. Other
    arguments and errors: those of integrated_gradients.
    """
    checks.whole("points", points, least=1)
    checks.whole("rows", rows, least=1)
    given = x.detach()
    several = like(x, baseline)[None] if baseline is None or baseline.dim() == x.dim() else baseline
    if several.shape[1:] != x.shape or not len(several):
        raise ConfigError(f"The baselines have shape {list(several.shape)}, x {list(x.shape)}.", fix="Give [several, *x.shape].")
    starts = torch.stack([like(x, one) for one in several])                                                   # [m ...]
    draw = torch.Generator().manual_seed(seed)
    order, shares = _drawn(len(starts), points, draw)
    total = torch.zeros_like(given, dtype=torch.promote_types(x.dtype, torch.float32))
    for chosen, at in zip(order.split(rows), shares.split(rows), strict=True):
        start = starts[chosen.to(x.device)]
        share = at.to(given).view(-1, *[1] * x.dim())
        found = gradients(f, torch.lerp(start, given, share))                                                 # [r ...]
        total += (found * (given - start)).to(total.dtype).sum(0)
    used, times = order.unique(return_counts=True)
    before = evaluated(f, starts[used.to(x.device)], rows=rows)
    at_baseline = float((before * times).sum() / points)
    return Attribution(total / points, float(evaluated(f, given[None], rows=rows)[0]), at_baseline, points)


def _drawn(count: int, points: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which of `count` baselines each point uses, and where between it and x: whole, fp64, [points] both."""
    rounds = math.ceil(points / count)
    use = torch.arange(rounds * count)[:points]
    order = torch.randperm(count, generator=draw)
    uses = 1 + (points - 1 - use % count) // count                                                            # of this point's baseline
    places = torch.cat([torch.randperm(count, generator=draw) for _ in range(rounds)])[:points]
    inside = (places + torch.rand(points, generator=draw, dtype=torch.float64)) / count
    return order[use % count], (use // count + inside) / uses


def _attribution(f: Scores, x: Tensor, start: Tensor, slope: Tensor, points: int, rows: int) -> Attribution:
    at_input, at_baseline = evaluated(f, torch.stack([x.detach(), start]), rows=rows).tolist()
    return Attribution(slope * (x.detach() - start), at_input, at_baseline, points)
