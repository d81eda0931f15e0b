"""Rotary positions: turn pairs of units of q and k by position * theta^(-2i/d), so that scores depend on the difference of positions only
(RoFormer, arXiv:2104.09864). The pairs are (2i, 2i+1), layout "pairs" (RoFormer, GPT-J), or (i, i + d/2), layout "half" (GPT-NeoX, Llama):
the same function after a fixed permutation of the rows of the query and key matrices, and a common porting fault without it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fishpaw import checks
from fishpaw.config import ModelConfig
from fishpaw.contracts import Position
from fishpaw.errors import ConfigError
from fishpaw.positions.distances import shared

__all__ = ["Rescale", "Rotary", "Tables", "angles", "build", "growth", "turn_halves", "turn_pairs"]

Rescale = Callable[[Tensor], Tensor]
"""Frequencies [d/2], radians a position, in fp64 -> others: how the scaled variants differ."""


class Tables(NamedTuple):
    """cos and sin of the queries' angles, then of the new keys', [1|b 1 t d/2]; growth [1|b 1 q 1] | None multiplies the queries."""

    q_cos: Tensor
    q_sin: Tensor
    k_cos: Tensor
    k_sin: Tensor
    growth: Tensor | None


class Rotary(Position):
    """q, k [b h t d] -> the same shapes. Angles in fp64, cast last: at position 10^5 the error in fp32 would be 1e-3.

    size: d, units of a head, of which the first share * d turn (the attribute `size`) and the others stay. rescale: other frequencies.
    temperature multiplies what turned of q and of k (YaRN). log_n: the length of training; a query at position p is multiplied by
    max(1, log(p + 1) / log(log_n)), so that attention stays as sharp over more keys than were trained on (arXiv:2202.12172).
    `sharpens`: one of the two is on, and norms are not kept. A kernel that normalises by another product (linear attention turns no
    denominator) would answer with larger outputs, not with sharper attention.
    """

    def __init__(
        self,
        size: int,
        theta: float = 10_000.0,
        *,
        layout: str = "pairs",
        share: float = 1.0,
        log_n: int | None = None,
        rescale: Rescale | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        checks.number("The position's theta", theta)
        checks.one_of("The position's layout", layout, list(_TURNS))
        checks.number("The position's share", share)
        checks.number("The position's temperature", temperature)
        checks.whole("The position's log_n", log_n, least=2, optional=True)
        self.size = int(size * share)
        if self.size % 2 or not 0 < self.size <= size:
            raise ConfigError(
                f"Rotary positions turn pairs, but share {share:g} of head_size {size} is {self.size}.",
                fix="Make it even, from 2 to head_size, or choose another position.",
            )
        self.theta = theta
        self.turn = _TURNS[layout]
        self.log_n = log_n
        self.rescale = rescale
        self.temperature = temperature
        self.sharpens = log_n is not None or temperature != 1

    def at(self, q_pos: Tensor, k_pos: Tensor, new_pos: Tensor, dtype: torch.dtype) -> Tables:
        q_cos, q_sin = self._angles(q_pos, dtype)
        k_cos, k_sin = (q_cos, q_sin) if new_pos is q_pos else self._angles(new_pos, dtype)
        return Tables(q_cos, q_sin, k_cos, k_sin, None if self.log_n is None else growth(q_pos, self.log_n, dtype))

    def rotate(self, q: Tensor, k: Tensor | None, at: Tables) -> tuple[Tensor, Tensor | None]:
        q = q if at.growth is None else q * at.growth
        return self._turned(q, at.q_cos, at.q_sin), None if k is None else self._turned(k, at.k_cos, at.k_sin)

    def frequencies(self, device: torch.device | str = "cpu") -> Tensor:
        """Radians a position of each pair, [size/2] in fp64."""
        even = torch.arange(0, self.size, 2, device=device, dtype=torch.float64)
        plain = self.theta ** (-even / self.size)
        return plain if self.rescale is None else self.rescale(plain)

    def _angles(self, pos: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        cos, sin = angles(shared(pos), self.frequencies(pos.device))
        if self.temperature != 1:
            cos, sin = cos * self.temperature, sin * self.temperature
        return cos.to(dtype), sin.to(dtype)

    def _turned(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if x.shape[-1] == self.size:
            return self.turn(x, cos, sin)
        return torch.cat((self.turn(x[..., : self.size], cos, sin), x[..., self.size :]), dim=-1)


def angles(pos: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """pos [b t], frequencies [d/2] -> cos, sin of their products, [b 1 t d/2], in fp64."""
    angle = pos[:, None, :, None].double() * frequencies.double()
    return angle.cos(), angle.sin()


def growth(pos: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """pos [b t] -> max(1, log(pos + 1) / log(length)), [1|b 1 t 1]: 1 within the length of training."""
    return (shared(pos).double().log1p() / math.log(length)).clamp_min(1)[:, None, :, None].to(dtype)


def turn_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [b h t d], cos and sin [b 1 t d/2]: the pairs (2i, 2i+1) turned."""
    one, two = x[..., 0::2], x[..., 1::2]
    return torch.stack((one * cos - two * sin, two * cos + one * sin), dim=-1).flatten(-2)


def turn_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [b h t d], cos and sin [b 1 t d/2]: the pairs (i, i + d/2) turned."""
    one, two = x.chunk(2, dim=-1)
    return torch.cat((one * cos - two * sin, two * cos + one * sin), dim=-1)


_TURNS = {"pairs": turn_pairs, "half": turn_halves}


def build(config: ModelConfig, *, theta: float = 10_000.0, layout: str = "pairs", share: float = 1.0, log_n: int | None = None) -> Rotary:
    """theta: base of the wavelengths; layout "pairs" or "half"; share: of a head's units that turn; log_n: see Rotary."""
    return Rotary(config.width, theta, layout=layout, share=share, log_n=log_n)
