"""Hierarchical positions: a learned table of n rows reads n^2 positions without training, by two digits in base n (kexue.fm/archives/7947).

With u_i = (p_i - alpha p_0) / (1 - alpha), counted from 0, position i n + j gets alpha u_i + (1 - alpha) u_j, which is
p_j + alpha / (1 - alpha) (p_i - p_0): the first n stay as they are, and (i, j) differs from (j, i) unless alpha is 1/2.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from fishpaw import checks
from fishpaw.config import ModelConfig
from fishpaw.contracts import Position
from fishpaw.errors import ConfigError
from fishpaw.positions.learned import Learned

__all__ = ["Hierarchical", "build"]


class Hierarchical(Position):
    """x [n e], pos [n] -> x + the row that the table extends to. Its one weight has the name and shape of a learned position's."""

    def __init__(self, learned: Learned, alpha: float) -> None:
        super().__init__()
        checks.number("The position's alpha", alpha, below=1)
        if alpha == 0.5:
            raise ConfigError("The position's alpha is 0.5, with which places (i, j) and (j, i) are one.", fix="Give 0.4.")
        self.alpha = alpha
        self.base = learned.table.num_embeddings - learned.offset
        self.offset = learned.offset
        self.length = self.base**2
        self.table = learned.table

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        table: Tensor = self.table.weight[self.offset :]
        low, high = functional.embedding(pos % self.base, table), functional.embedding(pos // self.base, table)
        return x + low + self.alpha / (1 - self.alpha) * (high - table[0])


def build(config: ModelConfig, *, alpha: float = 0.4, offset: int = 0) -> Hierarchical:
    """A table of `max_positions` rows, as wide as the embedding, of which `offset` stand before position 0. alpha above 0 and below 1,
    not 0.5: below it, neighbours differ more than blocks do."""
    return Hierarchical(Learned(config.max_positions, config.embedding, config.init_std, offset=offset), alpha)
