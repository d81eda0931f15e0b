"""One Transformer that becomes BERT, RoFormer, GPT, UniLM, T-TA … by the switches of its configuration (arXiv:1706.03762)."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fishpaw import switch
from fishpaw.config import ModelConfig
from fishpaw.contracts import Attention, Batch, Output, Position, Rows, View
from fishpaw.errors import ConfigError, DataError
from fishpaw.masks import Mask
from fishpaw.model.block import Surroundings
from fishpaw.model.cache import Cache
from fishpaw.model.embedding import Embedding
from fishpaw.model.heads import LanguageModel, MaskedLanguageModel
from fishpaw.model.linear import Linear, Packed
from fishpaw.model.refusals import refuse_attention, refused
from fishpaw.model.step import Step, bind

__all__ = ["Transformer", "distinct"]


Kind = tuple[int, int]
"""Which mask and which position a layer has, of the distinct ones."""


class Transformer(nn.Module):
    """A stack of blocks between an embedding and the heads that its configuration names.

    `recompute`: keep only each layer's input during training and compute the rest again in the backward pass (arXiv:1604.06174);
    slower by about a third, memory no longer grows with what a layer makes. `origin`: the hub id and commit that the weights are from.
    `generation`: the ids "bos_token_id" (int) and "eos_token_id" (int or a list) that its files name, None where they say there is none.
    `compute`: the type that `prepare` chose, None if it wasn't called. `lent`: of an encoder that reads its decoder's token table.
    """

    def __init__(self, config: ModelConfig, *, lent: bool = False) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.compute: torch.dtype | None = None
        self.steps: list[Step | None] = []
        self.origin: str | None = None
        self.generation: dict[str, int | list[int] | None] = {}
        self.masks: list[Mask] = [switch.build("masks", spec, config) for spec in distinct(config.turns("mask"))]
        self.positions = nn.ModuleList(switch.build("positions", spec, config) for spec in distinct(config.turns("position")))
        self.kinds: list[Kind] = list(zip(_places(config, "mask"), _places(config, "position"), strict=True))
        self.embedding = Embedding(config, lent=lent)
        self.layers = nn.ModuleList(_block(config, index) for index in range(config.blocks))
        self.final_norm: nn.Module = switch.build("norms", config.norm, config.hidden_size) if config.norm_at == "pre" else nn.Identity()
        heads = {_head_name(head, config): switch.build("model.heads", head, config) for head in config.heads}
        self.heads = nn.ModuleDict(_pooler_first(heads))
        self.own_position = Position()
        self.conditional = any(getattr(module, "conditional", False) for module in self.modules())
        self.encoder = Transformer(config.encoder, lent=config.shared_embedding) if config.encoder else None
        # Kinds of layers that read a mask; the others are spared the matrix, and read the facts.
        self.masked = {kind for kind, (own, _) in zip(self.kinds, self.kernels(), strict=True) if own.reads_mask}
        _refuse(self)

    @property
    def mask(self) -> Mask:
        """The mask of the first layer; those of all have one clock."""
        return self.masks[0]

    @property
    def position(self) -> Position:
        """The position of the first layer."""
        first = self.positions[0]
        assert isinstance(first, Position)
        return first

    @property
    def longest(self) -> int | None:
        """How many positions a text may have, None for any number."""
        limits = [position.length for position in self.positions if isinstance(position.length, int)]
        return min(limits, default=None)

    def reading(self, max_length: int | None) -> int:
        """How many tokens of a text a task reads together: `max_length`, as far as there are positions; None: all of them, and where they
        have no end, the config's max_positions."""
        if max_length is None:
            return self.config.max_positions if self.longest is None else self.longest
        return max_length if self.longest is None else min(max_length, self.longest)

    @property
    def table(self) -> Tensor:
        """The vectors of the tokens, [v e]."""
        if self.embedding.tokens is None:
            raise ValueError("this encoder shares its decoder's token table, and has none of its own")
        table: Tensor = self.embedding.tokens.weight
        return table

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
        filled by the prompts, a filled one is continued with ids [r] or [r u]. encoder_batch: what the encoder of a decoder reads, or has
        read: encoded [m d]; both are left out once a cache holds it. condition [b c]: for conditional norms. embedded [n e]: instead
        of token vectors. logits_at [m]: flat indices, logits only there.
        all_hidden: embeddings and each layer, the last with the final norm. attentions: every layer's weights; the explicit path.
        With a cache, sequence heads (pooler, nsp, classifier) are left out. Errors: ValueError for shapes, DataError for ids and lengths.
        """
        batch = self._batch(ids, segments, padding, positions, condition, cache)
        self._check(batch, cache)
        if self.encoder is not None and encoder_batch is not None and encoded is None:
            encoded = self.encode(encoder_batch)
        steps = self.steps if cache is not None and cache.length and not attentions else []
        around, views, stream = self._surroundings(batch, cache, encoded, encoder_batch, embedded, attentions)
        hidden, maps = [stream], []
        carry: tuple[Any, Any] = (None, None)
        for index, kind in enumerate(self.kinds):
            if cache is not None and steps and (step := steps[index]) is not None:
                stream = step(stream, views[kind][0], cache.memories[index][0])
                hidden.append(stream)
                continue
            block = self.layers[index * len(self.layers) // len(self.kinds)]
            around = around if around.views is views[kind] else replace(around, views=views[kind])
            memory = (None, None) if cache is None else cache.memories[index]
            if self.recompute and cache is None and self.training and torch.is_grad_enabled():      # again would append to a memory twice
                stream, carry, weights = checkpoint(block, stream, around, carry, memory, use_reentrant=False)
            else:
                stream, carry, weights = block(stream, around, carry, memory)
            hidden.append(stream)
            maps.append(weights)
        stream = self.final_norm(stream, around.condition) if self.config.norm_at == "pre" else stream
        hidden[-1] = stream
        output = Output(hidden=batch.restore(stream), cache=cache)
        if all_hidden:
            output.all_hidden = tuple(batch.restore(one) for one in hidden)
        if attentions:
            output.attentions = tuple(_maps(pair, whole=batch.shape is not None) for pair in maps)
        self._head(output, stream, batch, around.condition, logits_at)
        return output

    def encode(self, batch: Batch) -> Tensor:
        """What the encoder makes of a batch, [m d]: `encoded` of any number of forwards. ValueError for a model without an encoder."""
        if self.encoder is None:
            raise ValueError("this model reads no encoder")
        lent = self.table[batch.ids] if self.config.shared_embedding else None
        hidden: Tensor = self.encoder(batch, embedded=lent, logits_at=batch.ids.new_empty(0)).hidden
        return hidden if batch.shape is None else hidden.flatten(0, 1)

    def prepare(self, *, dtype: torch.dtype = torch.float32) -> Transformer:
        """Pack the matrices for inference, in fp32 or bf16, beside the weights, which stay as they are and are what is saved. Returns the
        model, in evaluation mode. Training mode, another device or other weights undo it. bf16 halves the memory that a product
        reads; its outputs are bf16, too."""
        if dtype not in (torch.float32, torch.bfloat16):
            raise ConfigError(f"prepare packs fp32 or bf16, not {dtype}.", fix="Choose torch.float32 or torch.bfloat16.")
        self.eval()
        for module in self.modules():
            if isinstance(module, Linear):
                module.packed = Packed(module.weight, module.bias, dtype)
            elif isinstance(module, LanguageModel | MaskedLanguageModel):
                module.packed = Packed(module.weight(self.table), module.bias, dtype)
            elif isinstance(module, Transformer):
                module.compute = dtype
        positions, count = self._positions(), len(self.kinds)
        self.steps = [bind(self.layers[index * len(self.layers) // count], positions[kind[1]]) for index, kind in enumerate(self.kinds)]
        return self

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode inside; afterwards every module is as it was."""
        training = [module for module in self.modules() if module.training] if self.training else []
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True

    def train(self, mode: bool = True) -> Transformer:
        """As nn.Module.train; training undoes `prepare`."""
        if mode:
            self._unpack()
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._unpack()
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's own has no types

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._unpack()
        super()._load_from_state_dict(*arguments)

    def _unpack(self) -> None:
        for module in self.modules():
            if isinstance(module, Linear | LanguageModel | MaskedLanguageModel):
                module.packed = None
            elif isinstance(module, Transformer):
                module.compute = None
                module.steps = []

    def new_cache(self, *, room: int | None = None) -> Cache:
        """An empty cache for `forward`, with room for that many keys a prompt before it must grow. ConfigError for a mask that looks
        ahead: what was computed would change with each step."""
        if self.mask.clock == "full" or self.config.stream == "positions":
            raise ConfigError(
                f"A model with the mask {self.mask.clock!r} can't decode step by step.", fix='Load it with mask="causal" or mask="unilm".'
            )
        pairs = [(own.memory(room), None if cross is None else cross.memory()) for own, cross in self.kernels()]
        return Cache(pairs, self.mask)

    def kernels(self) -> list[tuple[Attention, Attention | None]]:
        """What attends in each layer: to the tokens themselves, and to the encoder."""
        found: list[tuple[Attention, Attention | None]] = []
        for index in range(len(self.kinds)):
            block: Any = self.layers[index * len(self.layers) // len(self.kinds)]                   # whatever its kind
            found.append(block.kernels)
        return found

    def set_heads(self, heads: Sequence[switch.Spec]) -> None:
        """Keep the heads that are held already and named the same, build the others from random values, drop the rest."""
        config = self.config.change({"heads": tuple(heads)})
        held = {_head_name(head, self.config): head for head in self.config.heads}
        device, dtype = self.table.device, self.table.dtype
        made = nn.ModuleDict()
        for head in config.heads:
            name = _head_name(head, config)
            kept = name in self.heads and held.get(name) == head
            made[name] = self.heads[name] if kept else switch.build("model.heads", head, config).to(device=device, dtype=dtype)
        before = self.config, self.heads
        self.config, self.heads = config, nn.ModuleDict(_pooler_first(dict(made)))
        try:
            _refuse(self)
        except ConfigError:
            self.config, self.heads = before
            raise
        self.train(self.training)

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
        if torch.compiler.is_exporting():                                        # the graph is for any length and ids
            return
        if batch.ids.is_floating_point():
            raise DataError(f"The token ids are {batch.ids.dtype}.", fix="Give whole numbers.")
        if (batch.condition is not None) != self.conditional:
            said = "The norms of this model read a condition" if self.conditional else "No norm of this model reads a condition"
            raise ConfigError(f"{said}.", fix="Give condition [rows, size]." if self.conditional else "Leave it out.")
        limit = self.longest
        if batch.ids.device.type != "cpu":                                       # a look at the ids would wait for the device
            longest = max(grid.t for grid in batch.grids)
            longest = cache.reach + longest // cache.lanes if cache is not None and cache.length else longest
            if limit is not None and longest > limit:
                raise DataError(f"A text of {longest} tokens, but the model has {limit} positions.", fix=_SHORTER)
            return
        _within("token ids", batch.ids, self.config.vocab_size, "the vocabulary has")
        if batch.segments is not None and self.config.segments > 1:
            _within("segments", batch.segments, self.config.segments, "the model has")
        if limit is not None:
            if (longest := max(int(rows.order.max()) for rows in batch.rows) + 1) > limit:
                raise DataError(f"A text of {longest} tokens, but the model has {limit} positions.", fix=_SHORTER)
            _within("positions", batch.positions, limit, "the model has")

    def _surroundings(
        self,
        batch: Batch,
        cache: Cache | None,
        encoded: Tensor | None,
        encoder_batch: Batch | None,
        embedded: Tensor | None,
        attentions: bool,
    ) -> tuple[Surroundings, Mapping[Kind, Sequence[View]], Tensor]:
        wanted = (len(batch.ids), self.config.embedding)
        if embedded is not None and embedded.shape != wanted:
            raise ValueError(f"embedded has shape {tuple(embedded.shape)}: give {wanted}, a row a token")
        condition = None if batch.condition is None else batch.condition[batch.row]                   # [n c]
        tokens = self._cast(self.embedding(batch, self._positions(), embedded, condition))
        encoder = None if encoder_batch is None else encoder_batch.rows[0]
        if self.config.encoder is not None and (encoder_batch is None or encoded is None) and (cache is None or cache.encoder is None):
            raise ValueError("this decoder reads an encoder: give encoder_batch")
        if encoded is not None or encoder_batch is not None:
            if self.config.encoder is None:
                raise ValueError("this model reads no encoder: leave out encoded and encoder_batch, or give its config an encoder")
            if cache is not None and cache.encoder is not None:
                raise ValueError("the cache already holds what the encoder made: leave out encoded and encoder_batch")
            if encoded is not None and encoder_batch is not None and encoded.shape[:-1] != encoder_batch.ids.shape:
                raise ValueError(f"encoded has shape {tuple(encoded.shape)} for {len(encoder_batch.ids)} tokens: give [tokens, width]")
        views = self._views(batch, cache, encoder, tokens.dtype)
        first = views[self.kinds[0]]
        cross: Sequence[View] = ()
        if self.config.encoder is not None:
            known = encoder if encoder is not None else cache.encoder if cache is not None else None
            assert known is not None
            cross = [self._cross_view(batch, first[0], known, encoder_batch)]
        if self.config.stream == "tokens":
            return Surroundings(first, cross, None, encoded, condition, attentions), views, tokens
        queries = self._cast(self.embedding.queries(batch, self._positions(), condition))
        return Surroundings(first, cross, tokens, encoded, condition, attentions), views, queries

    def _positions(self) -> list[Position]:
        return [position for position in self.positions if isinstance(position, Position)]

    def _cast(self, x: Tensor) -> Tensor:
        return x if self.compute is None else x.to(self.compute)

    def _views(self, batch: Batch, cache: Cache | None, encoder: Rows | None, dtype: torch.dtype) -> dict[Kind, list[View]]:
        """A view a grid, for each kind of layer there is."""
        if cache is not None and batch.shape is None:                    # a packed one may stand in another order
            raise ValueError("a cache reads a padded batch, not a packed one")
        if cache is None or not cache.length:                # a step's batch comes with its times
            rows = []
            for grid, facts in zip(batch.grids, batch.rows, strict=True):
                segments = None if batch.segments is None else grid.lay(batch.segments)
                segments = None if segments is None else segments * facts.keep                      # padding doesn't tick
                rows.append(replace(facts, time=self.mask.times(facts.order, segments)))
            batch = replace(batch, rows=tuple(rows))
        stored = cache is not None and cache.length > 0
        line: Tensor | None = None
        positions = self._positions()
        views: dict[Kind, list[View]] = {kind: [] for kind in self.kinds}
        for grid, q in zip(batch.grids, batch.rows, strict=True):
            k, dense = q, grid.cells is None and (batch.dense or batch.shape is None)               # a packed group without cells is full
            if cache is not None:
                k, line = cache.extend(batch, encoder)
                dense = cache.dense
            for kind, laid in views.items():
                mask, position = self.masks[kind[0]], positions[kind[1]]
                bias = position.bias(q.position, k.position)
                ahead = {"full": False, "causal": stored or bias is not None, "unilm": batch.segments is not None}[mask.clock]
                seen = None
                if kind in self.masked and (not dense or mask.rules or line is not None or (ahead and grid.t > 1)):
                    seen = mask.allowed(q, k)
                    seen = (seen if line is None else seen & line)[:, None]                         # [b 1 1|q k]
                view = View(
                    grid=grid,
                    source=grid,
                    q=q,
                    k=k,
                    position=position,
                    at=position.at(q.position, k.position, q.position, dtype),
                    clock=mask.clock,
                    rules=mask.rules,
                    mask=seen,
                    bias=None if bias is None else bias.to(dtype),
                    lanes=1 if cache is None else cache.lanes,
                )
                if bias is not None:
                    _ = view.additive                                # made here: a recomputed layer must find what it found
                laid.append(view)
        return views

    def _cross_view(self, batch: Batch, own: View, encoder: Rows, encoder_batch: Batch | None) -> View:
        source = own.grid if encoder_batch is None else encoder_batch.grids[0]
        if batch.shape is None or (encoder_batch is not None and encoder_batch.shape is None):
            raise ValueError("cross-attention reads padded batches, not packed ones")
        if own.grid.b != len(encoder.keep):
            raise ValueError(f"{own.grid.b} rows read {len(encoder.keep)} encoded rows: give as many of both")
        mask = None if encoder_batch is not None and encoder_batch.dense else encoder.keep[:, None, None, :]
        return View(grid=own.grid, source=source, q=own.q, k=encoder, position=self.own_position, mask=mask, lanes=own.lanes)

    def _head(self, output: Output, stream: Tensor, batch: Batch, condition: Tensor | None, logits_at: Tensor | None) -> None:
        """Run every head: on tokens, on one token of each sequence, or on what the pooler made of it."""
        for head in self.heads.values():
            if head.reads == "tokens":
                chosen = stream if logits_at is None else stream[logits_at]
                made = head(chosen, self.table, condition if condition is None or logits_at is None else condition[logits_at])
                setattr(output, str(head.fills), batch.restore(made) if logits_at is None else made)
            elif output.cache is None:                                           # a step has no whole sequence to pool
                read = output.pooled if head.reads == "pooled" else stream[batch.first if head.at == "first" else batch.last()]
                setattr(output, str(head.fills), head(read))


def distinct(specs: Sequence[switch.Spec]) -> list[switch.Spec]:
    """Each spec once, in the order of its first turn."""
    found: dict[Any, switch.Spec] = {}
    for spec in specs:
        found.setdefault(_key(spec), spec)
    return list(found.values())


def _key(value: Any) -> Any:
    """Equal where values are equal, and hashable: options may be lists or objects."""
    if isinstance(value, Mapping):
        return frozenset((name, _key(one)) for name, one in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_key, value))
    return value if isinstance(value, Hashable) else repr(value)


_CLOCKS = 'Masks in turn share their clock: give one of them to all layers, or ["causal", {"name": "causal", "window": 128}], for example.'
_SHORTER = "Truncate it, or load another position."


def _within(what: str, values: Tensor, count: int, has: str) -> None:
    least, most = int(values.min()), int(values.max())
    if not 0 <= least <= most < count:
        raise DataError(f"The {what} go from {least} to {most}, but {has} {count}.", fix=f"Give 0 to {count - 1}.")


def _maps(pair: tuple[Any, Any], *, whole: bool) -> Any:
    """A padded batch has one view: its map; a packed one a map a group."""
    own, cross = ((None if one is None else one[0] if whole else tuple(one)) for one in pair)
    return own if cross is None else (own, cross)


def _pooler_first(heads: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """The same heads, those that read a sequence before those that read what they made."""
    return dict(sorted(heads.items(), key=lambda item: getattr(item[1], "reads", None) == "pooled"))


def _head_name(head: switch.Spec, config: ModelConfig) -> str:
    name = switch.spec_name(head)
    if [switch.spec_name(other) for other in config.heads].count(name) > 1:
        raise ConfigError(f"heads names {name!r} twice.", fix="Keep one of them.")
    if callable(head) or ":" in name:
        raise ConfigError(f"heads holds {name!r}, a part of your own.", fix="Put it on the hidden states yourself: output.hidden.")
    return name


def _places(config: ModelConfig, field: str) -> list[int]:
    """For each layer which of the distinct specs is its own."""
    specs, known = config.turns(field), dict[Any, int]()
    places = [known.setdefault(_key(spec), len(known)) for spec in specs]
    return [places[index % len(specs)] for index in range(config.layers)]


def _block(config: ModelConfig, index: int) -> nn.Module:
    """Block `index`. The first of a model that norms before and has an embedding norm does without the norm that would come twice."""
    if config.distinct_layers and len(config.turns("attention")) > 1:
        raise refused("distinct_layers x a list of attentions")
    turns = {field: config.turns(field) for field in ("attention", "mask", "position")}
    own = {field: specs[index % len(specs)] for field, specs in turns.items() if len(specs) > 1}    # what a layer has, no list of all
    block: nn.Module = switch.build("model", config.block, config.change(own) if own else config)
    if config.norm_at == "pre" and config.embedding_norm and index == 0 and config.blocks == config.layers:
        block.attention_norm = switch.build("norms", "none", config.hidden_size)
    return block


def _refuse(model: Transformer) -> None:
    """Pairs of switches that can't be, each with its reason."""
    config = model.config
    if len({mask.clock for mask in model.masks}) > 1:
        raise ConfigError(f"mask lists {', '.join(mask.clock for mask in model.masks)}.", fix=_CLOCKS)
    if config.qk_norm and model.conditional:
        raise refused("qk_norm x norm {}", repr(switch.spec_name(config.norm)))
    attentions, positions, parts = config.turns("attention"), config.turns("position"), model._positions()
    for index, ((own, cross), (mask, position)) in enumerate(zip(model.kernels(), model.kinds, strict=True)):
        name = switch.spec_name(attentions[index % len(attentions)])
        place = switch.spec_name(positions[index % len(positions)]), parts[position]
        refuse_attention(name, own, position=place, mask=model.masks[mask], residual_scores=config.residual_scores)
        if cross is not None:
            refuse_attention(name, cross, position=("none", model.own_position), mask=Mask("full"), residual_scores=False)
    fills = [str(head.fills) for head in model.heads.values()]
    for head_name, head in model.heads.items():
        if head.reads == "pooled" and "pooled" not in fills:
            raise ConfigError(f"The head {head_name} reads the pooler, which heads lacks.", fix='Add "pooler".')
        if fills.count(str(head.fills)) > 1:
            raise ConfigError(f"The head {head_name} makes {head.fills}, and so does another.", fix="Keep one of them.")
