"""Rotary positions on split halves: turn units (i, i + d/2) of q and k (GPT-NeoX, Llama). The same function as rotary after a fixed
permutation of the rows of the query and key matrices; swapping the two layouts is the most common porting fault."""

from __future__ import annotations

import torch
from torch import Tensor

from fishpaw.config import ModelConfig
from fishpaw.positions.rotary import Rotary

__all__ = ["build", "turn_halves"]


def turn_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [b h t d], cos and sin [b 1 t d/2]: the pairs (i, i + d/2) turned."""
    one, two = x.chunk(2, dim=-1)
    return torch.cat((one * cos - two * sin, two * cos + one * sin), dim=-1)


def build(config: ModelConfig, *, theta: float = 10_000.0) -> Rotary:
    """Split halves; theta is the base of the wavelengths."""
    return Rotary(config.width, theta, turn_halves)
