"""Ids to vectors: tokens + segments + position, then norm, dropout and, where the tables are narrower, a projection (ALBERT's factorised
embedding, arXiv:1909.11942)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fishpaw import switch
from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch, Position
from fishpaw.model.dropout import Dropout
from fishpaw.model.linear import Linear

__all__ = ["Embedding"]


class Embedding(nn.Module):
    """Batch -> [n d]. With stream "positions" it makes T-TA's query stream, too: one learned vector in the place of every token. Without a
    table of its own (`lent`), it reads vectors that a decoder's table made."""

    def __init__(self, config: ModelConfig, *, lent: bool = False) -> None:
        super().__init__()
        size, std = config.embedding, config.init_std
        table = None if lent else nn.Embedding.from_pretrained(torch.empty(config.vocab_size, size), freeze=False)
        self.tokens = table                                                                             # not initialised twice
        self.segments = nn.Embedding.from_pretrained(torch.empty(config.segments, size), freeze=False) if config.segments else None
        self.norm: nn.Module | None = switch.build("norms", config.norm, size) if config.embedding_norm else None
        self.dropout = Dropout(config.dropout)
        self.project = Linear(size, config.hidden_size, std=std) if size != config.hidden_size else None
        self.query = nn.Parameter(torch.randn(size) * std) if config.stream == "positions" else None
        for table in (self.tokens, self.segments):
            if table is not None and not table.weight.is_meta:
                nn.init.normal_(table.weight, std=std)

    def forward(
        self, batch: Batch, positions: Iterable[Position], embedded: Tensor | None = None, condition: Tensor | None = None
    ) -> Tensor:
        """embedded [n e]: instead of the token vectors (integrated gradients, TeaForN). condition [n c]: for a conditional norm."""
        if embedded is None:
            if self.tokens is None:
                raise ValueError("this embedding shares its decoder's table: give embedded")
            embedded = self.tokens(batch.ids)
        return self._finish(embedded, batch, positions, condition)

    def queries(self, batch: Batch, positions: Iterable[Position], condition: Tensor | None = None) -> Tensor:
        """T-TA's stream, which knows where it stands but not what stands there, [n d]."""
        if self.query is None:
            raise ValueError("this embedding was built without a query stream: set stream='positions'")
        return self._finish(self.query.expand(len(batch.ids), -1), batch, positions, condition)

    def _finish(self, x: Tensor, batch: Batch, positions: Iterable[Position], condition: Tensor | None) -> Tensor:
        if self.segments is not None:                                # of a single kind, segments are only the mask's
            single = batch.segments is None or self.segments.num_embeddings == 1
            x = x + (self.segments.weight[0] if single else self.segments(batch.segments))
        places = batch.positions
        for position in positions:
            x = position.embed(x, places)
        x = self.dropout(x if self.norm is None else self.norm(x, condition))
        return x if self.project is None else self.project(x)
