"""Multi-head attention around a kernel: project, lay the tokens in rows, attend, project back (arXiv:1706.03762, section 3.2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fishpaw import switch
from fishpaw.config import ModelConfig
from fishpaw.contracts import Attention, Memory, View
from fishpaw.model.linear import Linear

__all__ = ["MultiHead"]


class MultiHead(nn.Module):
    """x [n d] -> [n d]. Queries, keys and values of x come from one product. With `source_size`, keys and values come from elsewhere
    (an encoder; T-TA's tokens) through a product of their own. `key_value_heads` may be fewer than the query heads; `qk_norm` norms each
    head's queries and keys (arXiv:2010.04245)."""

    def __init__(self, config: ModelConfig, *, source_size: int | None = None) -> None:
        super().__init__()
        self.heads, self.keys = config.attention_heads, config.keys
        size, width, std, bias = config.hidden_size, config.width, config.init_std, "qkv" in config.biases
        self.project = Linear(size, (self.heads + 2 * self.keys) * width, std=std, bias=bias) if source_size is None else None
        self.query = None if source_size is None else Linear(size, self.heads * width, std=std, bias=bias)
        self.key_value = None if source_size is None else Linear(source_size, 2 * self.keys * width, std=std, bias=bias)
        self.query_norm: nn.Module | None = switch.build("norms", config.norm, width) if config.qk_norm else None
        self.key_norm: nn.Module | None = switch.build("norms", config.norm, width) if config.qk_norm else None
        self.output = Linear(self.heads * width, size, std=std, bias="output" in config.biases)
        self.kernel: Attention = switch.build("attention", config.turns("attention")[0], config)

    def forward(
        self,
        x: Tensor,
        views: Sequence[View],
        *,
        source: Tensor | None = None,
        carry: Sequence[Any] | None = None,
        memory: Memory | None = None,
        weights: bool = False,
    ) -> tuple[Tensor, list[Any], list[Tensor | None]]:
        """-> output [n d], carry a view, weights [b h q k] a view. source [m d], for a module built with `source_size`; None there
        means that the memory already holds its keys."""
        flat = self._flat(x, source)
        attended = []
        for index, view in enumerate(views):
            q, k, v = self._laid(flat, view)
            attended.append(self.kernel(q, k, v, view, None if carry is None else carry[index], memory, weights))
        merged = [view.grid.merge(one.out) for view, one in zip(views, attended, strict=True)]
        out = self.output(merged[0] if len(merged) == 1 else torch.cat(merged))
        return out, [one.carry for one in attended], [one.weights for one in attended]

    def _flat(self, x: Tensor, source: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.project is not None:
            return self.project(x), None
        assert self.query is not None and self.key_value is not None
        return self.query(x), None if source is None else self.key_value(source)

    def _laid(self, flat: tuple[Tensor, Tensor | None], view: View) -> tuple[Tensor, Tensor | None, Tensor | None]:
        first, second = flat
        if self.project is not None:
            q, k, v = view.grid.split(first, self.heads + 2 * self.keys).split((self.heads, self.keys, self.keys), dim=1)
            return *self._normed(q, k), v
        q = view.grid.split(first, self.heads)
        if second is None:
            return *self._normed(q, None), None
        k, v = view.source.split(second, 2 * self.keys).chunk(2, dim=1)
        return *self._normed(q, k), v

    def _normed(self, q: Tensor, k: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.query_norm is None or self.key_norm is None:
            return q, k
        return self.query_norm(q), None if k is None else self.key_norm(k)
