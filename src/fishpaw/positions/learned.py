"""Learned absolute positions: a row of a table is added to each token's embedding (BERT, GPT-2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fishpaw.config import ModelConfig
from fishpaw.contracts import Position

__all__ = ["Learned", "build"]


class Learned(Position):
    """x [n e], pos [n] -> x + table[pos]. `length` rows; a longer text is refused by the model before it comes here."""

    def __init__(self, length: int, size: int, std: float) -> None:
        super().__init__()
        self.length = length
        self.table = nn.Embedding.from_pretrained(torch.empty(length, size), freeze=False)              # not initialised twice
        if not self.table.weight.is_meta:
            nn.init.normal_(self.table.weight, std=std)

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        rows: Tensor = self.table(pos)
        return x + rows


def build(config: ModelConfig) -> Learned:
    """A table of `max_positions` rows, as wide as the embedding."""
    return Learned(config.max_positions, config.embedding, config.init_std)
