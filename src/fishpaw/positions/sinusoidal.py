"""Sinusoidal absolute positions, added to the embedding: sin on even units, cos on odd ones (arXiv:1706.03762, section 3.5)."""

from __future__ import annotations

import torch
from torch import Tensor

from fishpaw import checks
from fishpaw.config import ModelConfig
from fishpaw.contracts import Position

__all__ = ["Sinusoidal", "build", "sinusoids"]


class Sinusoidal(Position):
    """x [n e], pos [n] -> x + sinusoids(pos). Any length."""

    def __init__(self, size: int, theta: float) -> None:
        super().__init__()
        checks.number("The position's theta", theta)
        self.size = size
        self.theta = theta

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        return x + sinusoids(pos, self.size, self.theta).to(x.dtype)


def sinusoids(pos: Tensor, size: int, theta: float = 10_000.0) -> Tensor:
    """pos […] -> […, size] in fp64: sin(pos / theta^(2i/size)) at 2i, cos of the same at 2i + 1."""
    even = torch.arange(0, size, 2, device=pos.device, dtype=torch.float64)
    angles = pos[..., None].double() * theta ** (-even / size)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[..., :size]


def build(config: ModelConfig, *, theta: float = 10_000.0) -> Sinusoidal:
    """As wide as the embedding; theta is the base of the wavelengths."""
    return Sinusoidal(config.embedding, theta)
