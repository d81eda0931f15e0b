"""Change a model's shape and keep what it knows: its vocabulary, how far its positions reach, its layers, its encoder.

Each function returns a new model that shares no memory with the old one; recompute, origin, generation, dtype, device, training mode and
frozen parameters stay as they were. Rows are bert4keras' keep_tokens and compound_tokens (https://github.com/bojone/bert4keras), done on
the model; text/vocab does the same to the tokenizer and returns the ids that are given here. New rows are means: a random row would take
the probability of known tokens (https://nlp.stanford.edu/~johnhew/vocab-expansion.html), a mean row can't.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from fishpaw.config import ModelConfig
from fishpaw.contracts import Position
from fishpaw.errors import ConfigError, DataError
from fishpaw.model.transformer import Transformer, distinct
from fishpaw.positions.learned import Learned
from fishpaw.switch import Spec, nearest, spec_name, spec_options
from fishpaw.weights.family import period
from fishpaw.weights.generation import follow

__all__ = ["add_rows", "keep_layers", "keep_rows", "longer_positions", "share_layers", "unshare_layers", "with_encoder"]


def keep_rows(model: Transformer, ids: Sequence[int]) -> Transformer:
    """A copy of the model whose token i is the old token ids[i]; the logits of tokens that stay are unchanged.

    ids: as text.vocab.keep returns them; any order, each once, the padding id among them. Whatever has a row a token follows: tables,
    decoders and biases of heads, buffers, an encoder with a vocabulary of the same size, and the ids of `generation`.
    Errors: DataError for an id that the model lacks or that stands twice, ConfigError without the padding.
    """
    kept = list(ids)
    _check(kept, model.config.vocab_size, "tokens")
    if not kept or len(set(kept)) < len(kept):
        twice = next((number for number in kept if kept.count(number) > 1), None)
        raise DataError("There is no id to keep." if twice is None else f"id {twice} stands twice.", fix="Name each id to keep once.")

    def change(config: ModelConfig) -> dict[str, Any]:
        if config.pad_id not in kept:
            raise ConfigError(f"The ids leave out pad_id {config.pad_id}.", fix="Keep it: batches are padded with it.")
        heads = tuple(_renumbered(head, kept) for head in config.heads)
        return {"vocab_size": len(kept), "pad_id": kept.index(config.pad_id), "heads": heads}

    index = torch.tensor(kept)
    smaller = _of_vocabulary(model, change, lambda table: table[index.to(table.device)])
    smaller.generation = follow(model.generation, kept)
    return smaller


def add_rows(model: Transformer, rows: int | Sequence[Sequence[int]]) -> Transformer:
    """A copy of the model with more tokens after the old ones, whose logits are unchanged.

    rows: how many (text.vocab.extend), each the mean of all old rows; or the old ids that each new row is the mean of, as
    text.vocab.compound returns them. What follows: see keep_rows. Errors: DataError for a count below 1, an id that the model lacks, or a
    new row of none.
    """
    old = model.config.vocab_size
    if isinstance(rows, int):
        if isinstance(rows, bool) or rows < 1:
            raise DataError(f"{rows} rows can't be added.", fix="Give a number from 1.")
        parts: Sequence[Sequence[int]] = [range(old)]
        times = rows
    else:
        parts, times = [list(part) for part in rows], 1
        if not parts or not all(parts):
            raise DataError("A new row is compounded of nothing.", fix="Name at least one old id for each new row.")
        for part in parts:
            _check(part, old, "tokens")

    def longer(table: Tensor) -> Tensor:
        exact = None if table.is_floating_point() else torch.double      # torch adds halves up in fp32
        means = [table[torch.tensor(part, device=table.device)].mean(0, dtype=exact) for part in parts]
        return torch.cat([table, torch.stack(means * times).to(table.dtype)])

    return _of_vocabulary(model, lambda config: {"vocab_size": old + times * len(parts)}, longer)


def longer_positions(model: Transformer, length: int, *, by: Spec = "hierarchical") -> Transformer:
    """A copy of a model with learned positions that reads texts of `length` tokens.

    by "hierarchical" (option alpha: see positions/hierarchical.py): the n rows stay and serve n^2 positions; texts of up to n tokens give
    what they gave. "interpolation": the table is resampled to `length` rows, linearly between neighbours; the first and the last stay first
    and last (as in vision models: arXiv:2010.11929, section 3.2). Then every text changes, and a little training is needed. Rows before
    that of position 0 (RoBERTa) stay. Errors: ConfigError for other positions, a length read already or, hierarchical, beyond n^2.
    """
    spec, position = model.config.position, model.position
    if isinstance(spec, tuple) or callable(spec) or not isinstance(position, Learned):
        name = " and ".join(spec_name(one) for one in model.config.turns("position"))
        fix = 'Choose another when you load it: position={"name": "rotary_ntk", "factor": 4.0} for rotary ones.'
        raise ConfigError(f"The position is {name}, not learned: there is no table to make longer.", fix=fix)
    rows, way, options = position.length or 0, spec_name(by), spec_options(by)
    if isinstance(length, bool) or not isinstance(length, int) or length <= rows:
        raise ConfigError(f"length is {length!r}, but the model has {rows} positions.", fix=f"Give a whole number above {rows}.")
    tensors = _tensors(model)
    if way == "hierarchical":
        if length > rows**2:
            raise ConfigError(f"{rows} rows serve {rows**2} positions, not {length}.", fix="Give less, or by='interpolation'.")
        turned = {"name": way, **spec_options(spec), **options}
        return _rebuilt(model, model.config.change({"position": turned}), tensors)
    if way != "interpolation" or options:
        raise ConfigError(f"Positions can't be made longer by {by!r}.", fix=nearest(way, ["hierarchical", "interpolation"]))
    with torch.enable_grad():
        table = tensors["positions.0.table.weight"]
        place = torch.arange(length, dtype=torch.double, device=table.device) * (rows - 1) / (length - 1)
        exact, low = table[position.offset :].double(), place.long()
        between = exact[low].lerp(exact[(low + 1).clamp_max(rows - 1)], (place - low)[:, None])
        tensors["positions.0.table.weight"] = torch.cat([table[: position.offset], between.to(table.dtype)])
    return _rebuilt(model, model.config.change({"max_positions": position.offset + length}), tensors)


def keep_layers(model: Transformer, indices: Sequence[int]) -> Transformer:
    """A copy of the model whose layer i is the old layer indices[i], with its attention, mask and position: fewer (BERT-of-Theseus,
    arXiv:2002.02925; ShortGPT, arXiv:2403.03853), in another order, or repeated (SOLAR, arXiv:2312.15166), as copies.

    Layers that share blocks go on sharing them. Errors: DataError for a layer that the model lacks, ConfigError for none, where groups that
    share a block would be of uneven sizes, where a position that is part of the embedding would be lost, and for norm_at "pre" with
    embedding_norm unless layer 0 comes first and only there.
    """
    order, config = list(indices), model.config
    _check(order, config.layers, "layers")
    changes: dict[str, Any] = {"layers": len(order), "distinct_layers": None}
    for field in ("attention", "mask", "position") if order else ():
        turns = config.turns(field)
        changes[field] = tuple(period([turns[index % len(turns)] for index in order]))
    blocks = [index * config.blocks // config.layers for index in order]
    if config.distinct_layers is not None:
        apart = list(dict.fromkeys(blocks))
        if blocks != [apart[index * len(apart) // len(blocks)] for index in range(len(blocks))]:
            raise ConfigError(f"Layers {order} would share blocks {blocks} unevenly.", fix="Keep as many of each, or unshare_layers first.")
        blocks, changes["distinct_layers"] = apart, max(1, len(apart))
    return _of_blocks(model, config.change(changes), [[block] for block in blocks])


def share_layers(model: Transformer, distinct_layers: int) -> Transformer:
    """A copy of the model made of so many blocks (ALBERT: 1), each the mean of the layers that share it: neighbours, in groups of sizes as
    equal as can be. The same outputs where they were equal. Buffers, which nothing learned, are those of a group's first layer.

    Errors: ConfigError for a number that isn't from 1 to the number of layers, and for kinds of attention in turn.
    """
    config = model.config.change({"distinct_layers": distinct_layers})
    if config.distinct_layers is not None and len(config.turns("attention")) > 1:
        raise ConfigError("Layers that share weights can't take kinds of attention in turn.", fix="Use one attention.")
    groups: list[list[int]] = [[] for _ in range(config.blocks)]
    for index in range(config.layers):
        groups[index * config.blocks // config.layers].append(index * model.config.blocks // config.layers)
    return _of_blocks(model, config, groups)


def unshare_layers(model: Transformer) -> Transformer:
    """A copy of the model in which each layer has weights of its own; the same outputs, bit for bit."""
    return share_layers(model, model.config.layers)


def with_encoder(model: Transformer, encoder: Transformer) -> Transformer:
    """A copy of an encoder-decoder with another encoder of the same width, such as keep_layers(model.encoder, …). ConfigError where it
    doesn't fit."""
    config = model.config
    if config.encoder is None or encoder.config.hidden_size != config.encoder.hidden_size:
        raise ConfigError("The model reads no encoder, or one of another width.", fix="Give an encoder-decoder, and an encoder as wide.")
    if (encoder.embedding.tokens is None) != config.shared_embedding:
        raise ConfigError("Of the two encoders one has a token table, the other doesn't.", fix="Change the model's own: model.encoder.")
    tensors = {name: value for name, value in _tensors(model).items() if not name.startswith("encoder.")}
    tensors |= {f"encoder.{name}": value for name, value in _tensors(encoder).items()}
    return _rebuilt(model, config.change({"encoder": encoder.config}), tensors)


def _check(numbers: Sequence[int], count: int, what: str) -> None:
    name = what[:-1] if what == "layers" else "id"
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < count:
            raise DataError(f"{name} {number!r} is none of the model's {count} {what}.", fix=f"Give {name}s from 0 to {count - 1}.")


def _of_vocabulary(model: Transformer, fields: Callable[[ModelConfig], dict[str, Any]], change: Callable[[Tensor], Tensor]) -> Transformer:
    """The model with `change` made to all that has a row for each token: whatever has another shape with another size of vocabulary."""

    def changed(fields: Callable[[ModelConfig], dict[str, Any]]) -> ModelConfig:
        config, inner = model.config, model.config.encoder
        both = inner is not None and inner.vocab_size == config.vocab_size
        return config.change({**fields(config), "encoder": inner.change(fields(inner)) if inner is not None and both else inner})

    config = changed(fields)
    other = _tensors(_on_meta(model, changed(lambda one: {"vocab_size": one.vocab_size + 1})))
    tensors = _tensors(model)
    with torch.enable_grad():
        for name, value in tensors.items():
            for place, (size, grown) in enumerate(zip(value.shape, other[name].shape, strict=True)):
                if size != grown:
                    tensors[name] = change(tensors[name].movedim(place, 0)).movedim(0, place)
    return _rebuilt(model, config, tensors)


def _of_blocks(model: Transformer, config: ModelConfig, blocks: Sequence[Sequence[int]]) -> Transformer:
    """A model whose block i is the mean of the old blocks that blocks[i] lists."""
    bare, was_bare = (one.norm_at == "pre" and one.embedding_norm and one.blocks == one.layers for one in (config, model.config))
    if any((bare and number == 0) != (was_bare and source == 0) for number, sources in enumerate(blocks) for source in sources):
        what = "norm_at 'pre' with embedding_norm: the first layer has a norm less than the others, unless layers share weights."
        raise ConfigError(what, fix="Keep layer 0 first, only there, and sharing as it is.")
    specs, old = distinct(model.config.turns("position")), _tensors(model)
    used = [specs.index(spec) for spec in distinct(config.turns("position"))]
    for number, position in enumerate(model.positions):
        if number not in used and isinstance(position, Position) and "embed" in position.hooks():
            lost = spec_name(specs[number])
            raise ConfigError(f"No layer is left of position {lost!r}, which is part of the embedding.", fix="Keep a layer that has it.")
    tensors = {name: value for name, value in old.items() if not name.startswith(("layers.", "positions."))}
    tensors |= {f"positions.{new}.{rest}": value for new, number in enumerate(used) for rest, value in _under(old, f"positions.{number}.")}
    for new, sources in enumerate(blocks):
        for rest, value in _under(old, f"layers.{sources[0]}."):
            several = [old[f"layers.{source}.{rest}"] for source in sources]
            tensors[f"layers.{new}.{rest}"] = _mean(several) if isinstance(value, nn.Parameter) and len(several) > 1 else value
    return _rebuilt(model, config, tensors)


def _renumbered(head: Spec, kept: Sequence[int]) -> Spec:
    """A head whose options name tokens, by their new ids: what answers start with, and how texts end."""
    options = dict(spec_options(head))
    ending = options.get("ending")
    named = {"start": options.get("start"), "end": ending["end"] if isinstance(ending, Mapping) else None}
    lost = [token for token in named.values() if token is not None and token not in kept]
    if lost:
        raise ConfigError(f"The ids leave out token {lost[0]}, which the head {spec_name(head)!r} names.", fix="Keep it.")
    if named["start"] is not None:
        options["start"] = kept.index(named["start"])
    if isinstance(ending, Mapping):
        options["ending"] = {**ending, "end": kept.index(named["end"])}
    return {"name": spec_name(head), **options} if options else head


def _under(tensors: Mapping[str, Tensor], prefix: str) -> list[tuple[str, Tensor]]:
    return [(name.removeprefix(prefix), value) for name, value in tensors.items() if name.startswith(prefix)]


def _mean(several: Sequence[Tensor]) -> Tensor:
    """Exact where all are equal, which a sum divided by their number needn't be."""
    with torch.enable_grad():
        first = several[0].double()
        return (first + sum((one.double() - first) for one in several[1:]) / len(several)).to(several[0].dtype)


def _tensors(model: Transformer) -> dict[str, Tensor]:
    """Parameters and buffers by name, those that a state_dict leaves out, too."""
    return dict(chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)))


def _on_meta(model: Transformer, config: ModelConfig) -> Transformer:
    with torch.device("meta"):
        return Transformer(config, lent=model.embedding.tokens is None)


def _rebuilt(model: Transformer, config: ModelConfig, tensors: Mapping[str, Tensor]) -> Transformer:
    """A model of another configuration with copies of these tensors, all of them and no other; a parameter is frozen unless its tensor was
    made of one that is learned."""
    other = _on_meta(model, config)
    copies = {name: value.detach().clone() for name, value in tensors.items()}
    bare = [name for name in _tensors(other) if name not in other.state_dict()]                   # buffers that are never saved
    other.load_state_dict({name: value for name, value in copies.items() if name not in bare}, assign=True)
    for name in bare:
        place, _, leaf = name.rpartition(".")
        setattr(other.get_submodule(place), leaf, copies[name])
    for name, value in other.named_parameters():
        value.requires_grad_(tensors[name].requires_grad)
    other.recompute = model.recompute
    other.origin = model.origin
    other.generation = copy.deepcopy(model.generation)
    return other.train(model.training)
