"""Taylor softmax: f_n(x_i) / sum_j f_n(x_j) with f_n(x) = sum over k <= n of x^k / k!, n even (arXiv:2011.11538).

f_n is positive: f_n' = f_(n-1), so at its only minimum x* f_n(x*) = x*^n / n! > 0. Below x* it rises again, and a very bad key counts as a
good one; the "flat" tail stays at the minimum instead. Tails are polynomial: less confident than the softmax. Adding a constant to all
scores changes the shares, unlike the softmax's: a bias must not be moved by one, and scores may not be shifted for the sake of overflow.
The idea is older: the spherical losses of arXiv:1511.05042. Even orders and their minima: https://kexue.fm/archives/7919.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fishpaw import checks
from fishpaw.attention.softmax import Softmax, visible
from fishpaw.config import ModelConfig
from fishpaw.contracts import View
from fishpaw.errors import ConfigError

__all__ = ["Taylor", "build", "lowest", "polynomial"]

MOST = 40
"""Of this order the alternating sum keeps seven digits of fp64 around the minimum, of higher ones fewer."""

PLAIN = 8
"""Up to this order fp32 is exact to 1e-5 there; higher orders are summed in fp64."""

TAILS = ("polynomial", "flat")


class Taylor(Softmax):
    """As Softmax but for the shares; always the explicit path. order: n; tail: "polynomial", f_n as it is, or "flat", never below x*.

    Errors: ConfigError for an order that is odd, below 2 or above 40, and for an unknown tail.
    """

    fused = False

    def __init__(
        self,
        size: int,
        *,
        order: int = 2,
        tail: str = "polynomial",
        scale: float | None = None,
        dropout: float = 0.0,
        residual: bool = False,
    ) -> None:
        super().__init__(size, scale=scale, dropout=dropout, residual=residual)
        checks.one_of("The Taylor attention's tail", tail, TAILS)
        _even(order)
        self.order = order
        self.least = lowest(order) if tail == "flat" else None

    def shares(self, scores: Tensor, view: View) -> Tensor:
        """f_n(scores) / their sum over the keys seen, [b h q k]."""
        seen = visible(view)
        wide = scores if seen is None else scores.masked_fill(~seen, 0)
        wide = wide if self.order <= PLAIN else wide.double()
        wide = wide if self.least is None else wide.clamp_min(self.least)
        size = wide.detach().abs().amax(-1, keepdim=True).clamp_min(1)                              # divides out: no gradient is lost
        parts = polynomial(wide, self.order, size)
        parts = parts if seen is None else parts * seen
        total = parts.sum(-1, keepdim=True)
        return (parts / total.masked_fill(total == 0, 1)).to(scores.dtype)                          # 0 / 1 for those that see nothing


def polynomial(x: Tensor, order: int, size: Tensor | None = None) -> Tensor:
    """f_n(x) by Horner's rule, in the type of x; any order from 0. With size > 0 (it broadcasts) f_n(x) / size^n, which doesn't overflow
    where |x| <= size."""
    total = torch.full_like(x, 1 / math.factorial(order))
    y, less = (x, 1.0) if size is None else (x / size, 1 / size)
    power = less
    for k in range(order - 1, -1, -1):
        total = total * y + power / float(math.factorial(k))         # f_n(x) / s^n = sum of y^k s^(k-n) / k!, y = x / s
        power = power * less
    return total


def lowest(order: int) -> float:
    """x*, where f_n of an even n is least: the only root of f_(n-1), to the last digits of fp64. f_n(x*) = x*^n / n!."""
    _even(order)
    low, high = -float(order), 0.0
    for _ in range(100):                                             # f_(n-1) rises: halving can't miss
        middle = (low + high) / 2
        below = math.fsum(middle**k / math.factorial(k) for k in range(order)) < 0
        low, high = (middle, high) if below else (low, middle)
    return high


def build(config: ModelConfig, *, order: int = 2, tail: str = "polynomial", scale: float | None = None) -> Taylor:
    """order: even, 2 to 40; tail: "polynomial" or "flat"; scale: None for 1/sqrt(head_size); attention_dropout; residual_scores."""
    return Taylor(config.width, order=order, tail=tail, scale=scale, dropout=config.attention_dropout, residual=config.residual_scores)


def _even(order: int) -> None:
    if isinstance(order, bool) or not isinstance(order, int) or order % 2 or not 2 <= order <= MOST:
        what = f"The order of a Taylor softmax is {checks.shown(order)}."
        raise ConfigError(what, fix=f"Give an even number, 2 to {MOST}: an odd polynomial has a root.")
