"""One Transformer that becomes BERT, RoFormer, GPT, UniLM, T-TA … by the switches of its configuration (arXiv:1706.03762)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fishpaw import switch
from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch, Output, Position, Rows, View
from fishpaw.errors import ConfigError, DataError
from fishpaw.masks import Mask
from fishpaw.model.block import Block, Surroundings
from fishpaw.model.cache import Cache
from fishpaw.model.embedding import Embedding

__all__ = ["Transformer"]


class Transformer(nn.Module):
    """A stack of blocks between an embedding and the heads that its configuration names.

    `recompute`: keep only each layer's input during training and compute the rest again in the backward pass (arXiv:1604.06174);
    slower by about a third, memory no longer grows with what a layer makes. `origin`: the hub id and commit that the weights are from.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.origin: str | None = None
        self.mask: Mask = switch.build("masks", config.mask, config)
        self.position: Position = switch.build("positions", config.position, config)
        self.embedding = Embedding(config)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm: nn.Module = switch.build("norms", config.norm, config.hidden_size) if config.norm_at == "pre" else nn.Identity()
        self.heads = nn.ModuleDict({_head_name(head, config): switch.build("model.heads", head, config) for head in config.heads})
        self.own_position = Position()
        _refuse(self)

    def forward(
        self,
        ids: Tensor | Batch,
        *,
        segments: Tensor | None = None,
        padding: Tensor | None = None,
        positions: Tensor | None = None,
        condition: Tensor | None = None,
        cache: Cache | None = None,
        encoded: Tensor | None = None,
        encoder_batch: Batch | None = None,
        embedded: Tensor | None = None,
        logits_at: Tensor | None = None,
        all_hidden: bool = False,
        attentions: bool = False,
    ) -> Output:
        """ids [b t] (or a Batch, which then holds the facts) -> Output, shaped like ids.

        segments, positions [b t]; padding bool [b t], True where there is a token, None if nothing is padded. cache: an empty one is
        filled by the prompts, a filled one is continued with ids [r] or [r u]. encoded [m d] with encoder_batch: what a decoder reads;
        left out once a cache holds it. embedded [n e]: instead of token vectors. logits_at [m]: flat indices, logits only there.
        all_hidden: embeddings and each layer, the last with the final norm. attentions: every layer's weights; the explicit path.
        With a cache, sequence heads (pooler, nsp, classifier) are left out. Errors: ValueError for shapes, DataError for ids and lengths.
        """
        batch = self._batch(ids, segments, padding, positions, condition, cache)
        self._check(batch, cache)
        around, stream = self._surroundings(batch, cache, encoded, encoder_batch, embedded, attentions)
        hidden, maps = [stream], []
        carry: tuple[Any, Any] = (None, None)
        for index, block in enumerate(self.layers):
            memory = (None, None) if cache is None else cache.memories[index]
            if self.recompute and cache is None and self.training and torch.is_grad_enabled():      # again would append to a memory twice
                stream, carry, weights = checkpoint(block, stream, around, carry, memory, use_reentrant=False)
            else:
                stream, carry, weights = block(stream, around, carry, memory)
            hidden.append(stream)
            maps.append(weights)
        stream = self.final_norm(stream)
        hidden[-1] = stream
        output = Output(hidden=batch.restore(stream), cache=cache)
        if all_hidden:
            output.all_hidden = tuple(batch.restore(one) for one in hidden)
        if attentions:
            output.attentions = tuple(_maps(pair, whole=batch.shape is not None) for pair in maps)
        self._head(output, stream, batch, logits_at, cache)
        return output

    def new_cache(self) -> Cache:
        """An empty cache for `forward`. ConfigError for a mask that looks ahead: what was computed would change with each step."""
        if self.mask.clock == "full" or self.config.stream == "positions":
            raise ConfigError(
                f"A model with the mask {self.mask.clock!r} can't decode step by step.", fix='Load it with mask="causal" or mask="unilm".'
            )
        pairs = [(block.attention.kernel.memory(), block.cross.kernel.memory() if block.cross else None) for block in self._blocks()]
        return Cache(pairs, self.mask)

    def set_heads(self, heads: Sequence[switch.Spec]) -> None:
        """Keep the heads that are held already and named the same, build the others from random values, drop the rest."""
        config = self.config.change({"heads": tuple(heads)})
        held = {_head_name(head, self.config): head for head in self.config.heads}
        device, dtype = self.embedding.tokens.weight.device, self.embedding.tokens.weight.dtype
        made = nn.ModuleDict()
        for head in config.heads:
            name = _head_name(head, config)
            kept = name in self.heads and held.get(name) == head
            made[name] = self.heads[name] if kept else switch.build("model.heads", head, config).to(device=device, dtype=dtype)
        before = self.config, self.heads
        self.config, self.heads = config, made
        try:
            _refuse(self)
        except ConfigError:
            self.config, self.heads = before
            raise
        self.train(self.training)

    def _blocks(self) -> list[Block]:
        return [block for block in self.layers if isinstance(block, Block)]

    def _batch(
        self,
        ids: Tensor | Batch,
        segments: Tensor | None,
        padding: Tensor | None,
        positions: Tensor | None,
        condition: Tensor | None,
        cache: Cache | None,
    ) -> Batch:
        facts = {"segments": segments, "padding": padding, "positions": positions, "condition": condition}
        given = [name for name, fact in facts.items() if fact is not None]
        if isinstance(ids, Batch):
            if given:
                raise ValueError(f"{', '.join(given)} beside a Batch, which holds its own: give them where the Batch is made")
            return ids
        if cache is not None and cache.length:
            if given not in ([], ["segments"]):
                raise ValueError(f"{', '.join(given)} in a step of a filled cache, which counts on from what it holds: leave them out")
            return cache.batch(ids, segments)
        return Batch.padded(ids, keep=padding, segments=segments, positions=positions, condition=condition)

    def _check(self, batch: Batch, cache: Cache | None) -> None:
        longest = max(grid.t for grid in batch.grids)
        if cache is not None and cache.length:
            longest = cache.reach + longest // cache.lanes
        limit = getattr(self.position, "length", None)
        if limit is not None and longest > limit:
            said = f"A text of {longest} tokens, but the model has {limit} positions."
            raise DataError(said, fix="Truncate it, or load another position.")
        if batch.ids.is_floating_point():
            raise DataError(f"The token ids are {batch.ids.dtype}.", fix="Give whole numbers.")
        if batch.condition is not None:
            raise ConfigError("No layer of this model reads a condition.", fix="Leave it out, or choose a norm that is conditional.")
        if batch.ids.device.type != "cpu":                                       # elsewhere it would wait for the device
            return
        _within("token ids", batch.ids, self.config.vocab_size, "the vocabulary has")
        if batch.segments is not None and self.config.segments:
            _within("segments", batch.segments, self.config.segments, "the model has")
        if limit is not None:
            _within("positions", batch.positions, limit, "the model has")

    def _surroundings(
        self,
        batch: Batch,
        cache: Cache | None,
        encoded: Tensor | None,
        encoder_batch: Batch | None,
        embedded: Tensor | None,
        attentions: bool,
    ) -> tuple[Surroundings, Tensor]:
        wanted = (len(batch.ids), self.config.embedding)
        if embedded is not None and embedded.shape != wanted:
            raise ValueError(f"embedded has shape {tuple(embedded.shape)}: give {wanted}, a row a token")
        tokens = self.embedding(batch, self.position, embedded)
        encoder = None if encoder_batch is None else encoder_batch.rows[0]
        if self.config.encoder is not None and (encoder_batch is None or encoded is None) and (cache is None or cache.encoder is None):
            raise ValueError("this decoder reads an encoder: give encoded and encoder_batch")
        if encoded is not None or encoder_batch is not None:
            if self.config.encoder is None:
                raise ValueError("this model reads no encoder: leave out encoded and encoder_batch, or give its config an encoder")
            if cache is not None and cache.encoder is not None:
                raise ValueError("the cache already holds what the encoder made: leave out encoded and encoder_batch")
            if encoded is not None and encoder_batch is not None and encoded.shape[:-1] != encoder_batch.ids.shape:
                raise ValueError(f"encoded has shape {tuple(encoded.shape)} for {len(encoder_batch.ids)} tokens: give [tokens, width]")
        views = self._views(batch, cache, encoder, tokens.dtype)
        cross: Sequence[View] = ()
        if self.config.encoder is not None:
            known = encoder if encoder is not None else cache.encoder if cache is not None else None
            assert known is not None
            cross = [self._cross_view(batch, views[0], known, encoder_batch)]
        around = Surroundings(views, cross, tokens if self.config.stream == "positions" else None, encoded, attentions)
        return around, self.embedding.queries(batch, self.position) if self.config.stream == "positions" else tokens

    def _views(self, batch: Batch, cache: Cache | None, encoder: Rows | None, dtype: torch.dtype) -> list[View]:
        if cache is not None and batch.shape is None:                    # a packed one may stand in another order
            raise ValueError("a cache reads a padded batch, not a packed one")
        if cache is None or not cache.length:                # a step's batch comes with its times
            rows = []
            for grid, facts in zip(batch.grids, batch.rows, strict=True):
                segments = None if batch.segments is None else grid.lay(batch.segments)
                rows.append(replace(facts, time=self.mask.times(facts.order, segments)))
            batch = replace(batch, rows=tuple(rows))
        stored = cache is not None and cache.length > 0
        line: Tensor | None = None
        views = []
        for grid, q in zip(batch.grids, batch.rows, strict=True):
            k, dense = q, grid.cells is None and (batch.dense or batch.shape is None)               # a packed group without cells is full
            if cache is not None:
                k, line = cache.extend(batch, encoder)
                dense = cache.dense
            single = grid.t == 1
            bias = self.position.bias(q.position, k.position)
            ahead = {"full": False, "causal": stored or bias is not None, "unilm": batch.segments is not None}[self.mask.clock]
            mask = None
            if not dense or self.mask.rules or line is not None or (ahead and not single):
                mask = self.mask.allowed(q, k)
                mask = (mask if line is None else mask & line)[:, None]                             # [b 1 1|q k]
            views.append(
                View(
                    grid=grid,
                    source=grid,
                    q=q,
                    k=k,
                    position=self.position,
                    at=self.position.at(q.position, k.position, q.position, dtype),
                    clock=self.mask.clock,
                    rules=self.mask.rules,
                    mask=mask,
                    bias=None if bias is None else bias.to(dtype),
                    lanes=1 if cache is None else cache.lanes,
                )
            )
        return views

    def _cross_view(self, batch: Batch, own: View, encoder: Rows, encoder_batch: Batch | None) -> View:
        source = own.grid if encoder_batch is None else encoder_batch.grids[0]
        if batch.shape is None or (encoder_batch is not None and encoder_batch.shape is None):
            raise ValueError("cross-attention reads padded batches, not packed ones")
        if own.grid.b != len(encoder.keep):
            raise ValueError(f"{own.grid.b} rows read {len(encoder.keep)} encoded rows: give as many of both")
        mask = None if encoder_batch is not None and encoder_batch.dense else encoder.keep[:, None, None, :]
        return View(grid=own.grid, source=source, q=own.q, k=encoder, position=self.own_position, mask=mask, lanes=own.lanes)

    def _head(self, output: Output, stream: Tensor, batch: Batch, logits_at: Tensor | None, cache: Cache | None) -> None:
        table = self.embedding.tokens.weight
        for name in ("mlm", "lm"):
            if name in self.heads:
                chosen = self.heads[name](stream if logits_at is None else stream[logits_at], table)
                output.logits = batch.restore(chosen) if logits_at is None else chosen
        if cache is not None or "pooler" not in self.heads:
            return
        pool = self.heads["pooler"]
        output.pooled = pool(stream[batch.first if pool.at == "first" else batch.last()])
        if "nsp" in self.heads:
            output.nsp = self.heads["nsp"](output.pooled)
        if "classifier" in self.heads:
            output.classes = self.heads["classifier"](output.pooled)


def _within(what: str, values: Tensor, count: int, has: str) -> None:
    least, most = int(values.min()), int(values.max())
    if not 0 <= least <= most < count:
        raise DataError(f"The {what} go from {least} to {most}, but {has} {count}.", fix=f"Give 0 to {count - 1}.")


def _maps(pair: tuple[Any, Any], *, whole: bool) -> Any:
    """A padded batch has one view: its map; a packed one a map a group."""
    own, cross = ((None if one is None else one[0] if whole else tuple(one)) for one in pair)
    return own if cross is None else (own, cross)


def _head_name(head: switch.Spec, config: ModelConfig) -> str:
    name = switch.spec_name(head)
    if [switch.spec_name(other) for other in config.heads].count(name) > 1:
        raise ConfigError(f"heads names {name!r} twice.", fix="Keep one of them.")
    if callable(head) or ":" in name:
        raise ConfigError(f"heads holds {name!r}, a part of your own.", fix="Put it on the hidden states yourself: output.hidden.")
    return name


def _refuse(model: Transformer) -> None:
    """Pairs of switches that can't be, each with its reason."""
    config = model.config
    kernel = model._blocks()[0].attention.kernel
    name = switch.spec_name(config.attention)
    lacking = sorted(model.position.hooks() - kernel.honours)
    if lacking:
        raise ConfigError(
            f"attention {name!r} can't take position {switch.spec_name(config.position)!r}: it has no place for {', '.join(lacking)}.",
            fix="Use attention 'softmax', or another position.",
        )
    if model.mask.clock not in kernel.clocks or not set(model.mask.rules) <= kernel.rules:
        raise ConfigError(
            f"attention {name!r} can't keep the mask {model.mask.clock!r} with the rules {list(model.mask.rules)}.",
            fix="Use attention 'softmax', or another mask.",
        )
    if config.residual_scores and not kernel.has_scores:
        raise ConfigError(f"attention {name!r} has no scores to carry: residual_scores can't be.", fix="Use attention 'softmax'.")
    known = set(model.heads)
    if known & {"nsp", "classifier"} and "pooler" not in known:
        raise ConfigError("The heads nsp and classifier read the pooler, which heads lacks.", fix='Add "pooler".')
    if {"mlm", "lm"} <= known:
        raise ConfigError("The heads mlm and lm both make logits.", fix="Keep one of them.")
