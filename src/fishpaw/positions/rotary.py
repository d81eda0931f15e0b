"""Rotary positions on adjacent pairs: turn units (2i, 2i+1) of q and k by position * theta^(-2i/d), so that scores depend on the
difference of positions only (RoFormer, arXiv:2104.09864). Files of GPT-NeoX or Llama hold the other layout: rotary_half."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fishpaw.config import ModelConfig
from fishpaw.contracts import Position
from fishpaw.errors import ConfigError
from fishpaw.positions.sinusoidal import check_theta

__all__ = ["Rotary", "angles", "build", "turn_pairs"]

Turn = Callable[[Tensor, Tensor, Tensor], Tensor]
Tables = tuple[Tensor, Tensor, Tensor, Tensor]


class Rotary(Position):
    """q, k [b h t d] -> the same shapes and norms. Angles in fp64, cast last: at position 10^5 the error in fp32 would be 1e-3."""

    def __init__(self, size: int, theta: float, turn: Turn) -> None:
        super().__init__()
        check_theta(theta)
        if size % 2:
            raise ConfigError(f"head_size {size} is odd, but rotary positions turn pairs.", fix="Make it even, or choose another position.")
        self.size = size
        self.theta = theta
        self.turn = turn

    def at(self, q_pos: Tensor, k_pos: Tensor, new_pos: Tensor, dtype: torch.dtype) -> Tables:
        """cos and sin of the queries' and of the new keys' angles, each [b 1 t d/2]."""
        cos, sin = angles(q_pos, self.size, self.theta, dtype)
        return (cos, sin, cos, sin) if new_pos is q_pos else (cos, sin, *angles(new_pos, self.size, self.theta, dtype))

    def rotate(self, q: Tensor, k: Tensor | None, at: Tables) -> tuple[Tensor, Tensor | None]:
        return self.turn(q, at[0], at[1]), None if k is None else self.turn(k, at[2], at[3])


def angles(pos: Tensor, size: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """pos [b t] -> cos, sin of pos * theta^(-2i/size), [b 1 t size/2], computed in fp64."""
    even = torch.arange(0, size, 2, device=pos.device, dtype=torch.float64)
    angle = pos[:, None, :, None].double() * theta ** (-even / size)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def turn_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [b h t d], cos and sin [b 1 t d/2]: the pairs (2i, 2i+1) turned."""
    one, two = x[..., 0::2], x[..., 1::2]
    return torch.stack((one * cos - two * sin, two * cos + one * sin), dim=-1).flatten(-2)


def build(config: ModelConfig, *, theta: float = 10_000.0) -> Rotary:
    """Adjacent pairs; theta is the base of the wavelengths."""
    return Rotary(config.width, theta, turn_pairs)
