"""Relative positions of NEZHA (arXiv:1909.00204): one frozen table of sinusoids, a row a distance from -reach to reach, shared by heads and
layers. A key's row is added to it in the score, before the scale, and to its value; distances beyond the reach take the last row. Where
values are wider than keys (gated attention units) the rows for them are sinusoids of that width."""

from __future__ import annotations

import torch
from torch import Tensor

from fishpaw import checks
from fishpaw.config import ModelConfig
from fishpaw.contracts import Position
from fishpaw.positions.distances import distances
from fishpaw.positions.sinusoidal import sinusoids

__all__ = ["Nezha", "build"]

FARTHEST = 2**16
"""The reach, at most: two rows of the table a position."""


class Nezha(Position):
    """score: q (k + row), [b h q k]; mix: sum of weights * row, [b h q e]. size: d, units of a head's keys; values: e, of its values.

    No [b q k d] is made: a query meets each of the 2 reach + 1 rows once, and weights of one row are summed before it is added, in fp32 or
    better, because hundreds of keys may share the last rows.
    """

    table: Tensor
    mixed: Tensor | None

    def __init__(self, size: int, reach: int, *, values: int | None = None) -> None:
        super().__init__()
        checks.whole("The position's reach", reach, least=1, most=FARTHEST)
        self.reach = reach
        rows = torch.arange(2 * reach + 1)
        self.register_buffer("table", sinusoids(rows, size), persistent=False)
        self.register_buffer("mixed", None if values in (None, size) else sinusoids(rows, values or size), persistent=False)

    def at(self, q_pos: Tensor, k_pos: Tensor, new_pos: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """The row of each pair, [1|b 1 q k], and the rows, [n d] and [n e]."""
        table = self.table.to(dtype)
        index = distances(q_pos, k_pos).clip(-self.reach, self.reach)[:, None] + self.reach
        return index, table, table if self.mixed is None else self.mixed.to(dtype)

    def score(self, q: Tensor, k: Tensor, at: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        index, table, _ = at
        every = q @ table.mT                                                                        # [b h q n]
        return q @ k.mT + every.gather(-1, index.expand(*every.shape[:-1], -1))

    def mix(self, weights: Tensor, at: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        index, _, table = at
        exact = weights.to(torch.promote_types(weights.dtype, torch.float32))
        summed = exact.new_zeros(*weights.shape[:-1], len(table)).scatter_add(-1, index.expand(weights.shape), exact)   # [b h q n]
        return summed.to(table.dtype) @ table


def build(config: ModelConfig, *, reach: int = 64) -> Nezha:
    """As wide as a head, of a gated attention unit also as its values; reach in positions."""
    return Nezha(config.width, reach, values=config.intermediate_size // config.attention_heads if config.block == "gau" else None)
