"""Learned absolute positions: one row of a table a position, added to the embedding (BERT, arXiv:1810.04805; GPT-2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fishpaw import checks
from fishpaw.config import ModelConfig
from fishpaw.contracts import Position
from fishpaw.errors import ConfigError

__all__ = ["Learned", "build"]


class Learned(Position):
    """x [n e], pos [n] -> x + table[pos + offset]. `rows` rows; a longer text is refused by the model before it comes here."""

    def __init__(self, rows: int, size: int, std: float, *, offset: int = 0) -> None:
        super().__init__()
        checks.whole("The position's offset", offset, least=0)
        if offset >= rows:
            raise ConfigError(f"The position's offset is {offset}, but its table has {rows} rows.", fix="Give a smaller one.")
        self.length = rows - offset
        self.offset = offset
        self.table = nn.Embedding.from_pretrained(torch.empty(rows, size), freeze=False)                # not initialised twice
        if not self.table.weight.is_meta:
            nn.init.normal_(self.table.weight, std=std)

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        rows: Tensor = self.table(pos + self.offset if self.offset else pos)
        return x + rows


def build(config: ModelConfig, *, offset: int = 0) -> Learned:
    """A table of `max_positions` rows, as wide as the embedding. offset: rows before that of position 0 (RoBERTa, XLM-R: 2)."""
    return Learned(config.max_positions, config.embedding, config.init_std, offset=offset)
