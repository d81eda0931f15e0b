"""Relative positions of T5 (arXiv:1910.10683, section 2.1): a learned bias a head for each bucket of distances, near ones exact, far
ones in logarithmic steps; one table for all layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fishpaw import checks
from fishpaw.config import ModelConfig
from fishpaw.contracts import Position
from fishpaw.errors import ConfigError
from fishpaw.positions.distances import distances, looks_ahead

__all__ = ["Buckets", "bucket", "build"]

MOST = 2**12
"""Buckets, at most."""


class Buckets(Position):
    """q_pos [b q], k_pos [b k] -> bias [1|b h q k]."""

    def __init__(self, heads: int, buckets: int, distance: int, *, bidirectional: bool, std: float) -> None:
        super().__init__()
        checks.whole("The position's buckets", buckets, least=4 if bidirectional else 2, most=MOST)
        exact = buckets // (4 if bidirectional else 2)
        checks.whole("The position's distance", distance, least=exact + 1)
        if bidirectional and buckets % 2:
            raise ConfigError(f"The position's buckets is {buckets}, but each direction gets half.", fix="Give an even number.")
        self.buckets = buckets
        self.distance = distance
        self.bidirectional = bidirectional
        self.bias_table = nn.Embedding.from_pretrained(torch.empty(buckets, heads), freeze=False)   # not initialised twice
        if not self.bias_table.weight.is_meta:
            nn.init.normal_(self.bias_table.weight, std=std)

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        rows = bucket(distances(q_pos, k_pos), self.buckets, self.distance, bidirectional=self.bidirectional)
        found: Tensor = self.bias_table(rows)                                                       # [1|b q k h]
        return found.permute(0, 3, 1, 2)


def bucket(distance: Tensor, buckets: int, farthest: int, *, bidirectional: bool) -> Tensor:
    """Key minus query […] -> 0 to buckets - 1. Bidirectional: keys ahead take the second half of the buckets; else they count as at
    distance 0. Half of a direction's buckets hold one distance each, the others share those up to `farthest` in logarithmic steps; what
    is farther is in the last."""
    count = buckets // 2 if bidirectional else buckets
    first = (distance > 0) * count if bidirectional else torch.zeros_like(distance)
    far = distance.abs() if bidirectional else (-distance).clamp_min(0)
    exact = count // 2
    step = (far.clamp_min(exact).double() / exact).log() / math.log(farthest / exact) * (count - exact)
    step = (step + 1e-6).long()                                      # on a border it is the next bucket, however a log is rounded
    return first + torch.where(far < exact, far, (exact + step).clamp_max(count - 1))


def build(config: ModelConfig, *, buckets: int = 32, distance: int = 128, bidirectional: bool | None = None) -> Buckets:
    """distance: from which on all share a bucket. bidirectional None: unless the mask is causal."""
    checks.truth("The position's bidirectional", bidirectional, optional=True)
    both = looks_ahead(config) if bidirectional is None else bidirectional
    return Buckets(config.attention_heads, buckets, distance, bidirectional=both, std=config.init_std)
