"""Integrated gradients: (x - x') times the mean gradient on the line from a baseline x' to x (arXiv:1703.01365; kexue.fm/archives/7533).

    value_i = (x_i - x'_i) * int_0^1 dF/dx_i (x' + a (x - x')) da,        sum of all values = F(x) - F(x')        (completeness)

The integral is a weighted sum over points of Gauss-Legendre, exact for polynomials of degree 2n - 1; the sum misses F(x) - F(x') by the
error of the quadrature, and that error is part of the result. Each gradient is taken at x' + a (x - x') and multiplied by x - x': the demo
of the article multiplies by a (x - x') instead, which gives 2/3 of the right value for F = sum x^2.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from fishpaw import checks
from fishpaw.errors import ConfigError, FishpawError

__all__ = ["MOST", "Attribution", "Rule", "Scores", "evaluated", "gauss_legendre", "gradients", "integrated_gradients", "like", "normed",
           "summed"]  # fmt: skip

MOST = 2000
"""Points of Gauss and Legendre: they are eigenvalues of a matrix of that size, 3 seconds of one core; complete_gradients needs fewer."""

Scores = Callable[[Tensor], Tensor]
"""F: x [b …] -> a score a row, [b]. Rows must not see each other: a model in evaluation mode."""

Rule = Callable[[int], tuple[Tensor, Tensor]]
"""n -> where on [0, 1] the gradient is taken, and its weight there, both fp64 [n]."""


@dataclass(frozen=True)
class Attribution:
    """values, like x: what each number of x adds to the score, negative where it takes away. at_input, at_baseline: F there. points:
    gradients that were taken."""

    values: Tensor
    at_input: float
    at_baseline: float
    points: int

    @property
    def error(self) -> float:
        """By how much the values miss completeness: their sum - (F(x) - F(x'))."""
        return float(self.values.double().sum()) - (self.at_input - self.at_baseline)

    @property
    def relative(self) -> float:
        """|error| / |F(x) - F(x')|; infinite where F doesn't change and the values don't sum to 0."""
        change, error = abs(self.at_input - self.at_baseline), abs(self.error)
        return error / change if change else math.inf if error else 0.0


@functools.cache
def gauss_legendre(points: int) -> tuple[Tensor, Tensor]:
    """The nodes and weights of Gauss and Legendre on [0, 1], fp64 [points] each. ConfigError for more than MOST."""
    checks.whole("points", points, least=1, most=MOST)
    nodes, weights = numpy.polynomial.legendre.leggauss(points)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


def integrated_gradients(
    f: Scores, x: Tensor, *, baseline: Tensor | None = None, points: int = 50, rows: int = 8, rule: Rule = gauss_legendre
) -> Attribution:
    """What each number of x [...] adds to f, compared with a baseline [...] (None: zeros): values like x, their sum F(x) - F(baseline).

    f: any function of rows, x [b ...] -> [b]. points: gradients taken. rows: of them at once; memory grows with it, not with points. rule:
    where they are taken. Sums are made in fp32 at least. Errors: ConfigError for an x that isn't of floats (give embeddings, not ids),
    for another shape, and for an f without gradients; FishpawError for scores or gradients that are no numbers.
    """
    checks.whole("points", points, least=1)
    checks.whole("rows", rows, least=1)
    start = like(x, baseline)
    nodes, weights = rule(points)
    total = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
    parts = math.ceil(len(nodes) / rows)
    for at, weight in zip(nodes.tensor_split(parts), weights.tensor_split(parts), strict=True):
        share = at.to(device=x.device, dtype=x.dtype).view(-1, *[1] * x.dim())
        found = gradients(f, torch.lerp(start, x.detach(), share))                                            # [r ...]
        total += torch.tensordot(weight.to(total), found.to(total.dtype), dims=1)
    at_input, at_baseline = evaluated(f, torch.stack([x.detach(), start]), rows=rows).tolist()
    return Attribution(total * (x.detach() - start), at_input, at_baseline, len(nodes))


def gradients(f: Scores, x: Tensor) -> Tensor:
    """The gradient of each row's score, x [b ...] -> [b ...]; towards x alone, also where f has parameters that learn. FishpawError for
    gradients that are no numbers, which finite scores may have: of x.sqrt() at 0, for example."""
    with torch.inference_mode(False), torch.enable_grad():
        point = (x.clone() if x.is_inference() else x.detach()).requires_grad_()                      # autograd wants no inference tensor
        scores = _scores(f, point)
        if not scores.requires_grad:
            raise ConfigError("The scores have no gradient.", fix="Compute them without no_grad, detach or weights packed by prepare().")
        found, = torch.autograd.grad(scores.sum(), point, allow_unused=True)
    if found is None:
        return torch.zeros_like(x)
    if not bool(found.isfinite().all()):
        raise FishpawError("The gradients are not finite.", fix="Look for roots and logarithms at 0, or give another baseline.")
    return found


def evaluated(f: Scores, x: Tensor, *, rows: int) -> Tensor:
    """The score of each row, x [b ...] -> fp64 [b] on the CPU, `rows` at once, without gradients."""
    with torch.no_grad():
        found = torch.cat([_scores(f, part).double().cpu() for part in x.split(rows)])
    if not bool(found.isfinite().all()):
        raise FishpawError("The scores are not finite.", fix="Look for NaN in the weights, and compute in fp32.")
    return found


def summed(values: Tensor) -> Tensor:
    """values [t d] of embedded tokens -> [t]: their sum, signed; over all tokens it is still F(x) - F(baseline)."""
    return values.sum(-1)


def normed(values: Tensor) -> Tensor:
    """values [t d] of embedded tokens -> [t]: their length, never negative: how much a token matters, not which way (the article's)."""
    lengths: Tensor = torch.linalg.vector_norm(values, dim=-1)
    return lengths


def like(x: Tensor, baseline: Tensor | None) -> Tensor:
    """The baseline as x is, zeros for None. ConfigError for an x without gradients and for another shape."""
    if not x.is_floating_point() or not x.numel():
        raise ConfigError(f"x is {x.dtype} of shape {list(x.shape)}.", fix="Give floats: the embedded tokens, not their ids.")
    if baseline is None:
        return torch.zeros_like(x, requires_grad=False)
    if baseline.shape != x.shape:
        raise ConfigError(f"The baseline has shape {list(baseline.shape)}, x {list(x.shape)}.", fix="Give equal shapes.")
    return baseline.detach().to(device=x.device, dtype=x.dtype)


def _scores(f: Scores, x: Tensor) -> Tensor:
    scores = f(x)
    if scores.shape != x.shape[:1]:
        raise ConfigError(f"f gives shape {list(scores.shape)} for {len(x)} rows.", fix="Give one score a row: choose a label.")
    return scores
