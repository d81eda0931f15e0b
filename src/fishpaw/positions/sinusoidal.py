"""Sinusoidal absolute positions, added to the embedding: sin on even units, cos on odd ones (arXiv:1706.03762, section 3.5)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fishpaw.config import ModelConfig
from fishpaw.contracts import Position
from fishpaw.errors import ConfigError

__all__ = ["Sinusoidal", "build", "check_theta", "sinusoids"]


class Sinusoidal(Position):
    """x [n e], pos [n] -> x + sinusoids(pos). Any length."""

    def __init__(self, size: int, theta: float) -> None:
        super().__init__()
        check_theta(theta)
        self.size = size
        self.theta = theta

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        return x + sinusoids(pos, self.size, self.theta).to(x.dtype)


def sinusoids(pos: Tensor, size: int, theta: float = 10_000.0) -> Tensor:
    """pos […] -> […, size] in fp64: sin(pos / theta^(2i/size)) at 2i, cos of the same at 2i + 1."""
    even = torch.arange(0, size, 2, device=pos.device, dtype=torch.float64)
    angles = pos[..., None].double() * theta ** (-even / size)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[..., :size]


def check_theta(theta: object) -> None:
    """ConfigError unless the base of the wavelengths is a finite number above 0."""
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not 0 < theta < math.inf:
        raise ConfigError(f"The position's theta is {theta!r}.", fix="Give a number above 0; 10000 is usual.")


def build(config: ModelConfig, *, theta: float = 10_000.0) -> Sinusoidal:
    """As wide as the embedding; theta is the base of the wavelengths."""
    return Sinusoidal(config.embedding, theta)
