"""Their configuration and tensors to ours and back, by the tables of weights/names.py."""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from fishpaw import switch
from fishpaw.config import ModelConfig
from fishpaw.errors import CheckpointError, ConfigError
from fishpaw.positions.sinusoidal import sinusoids
from fishpaw.switch import nearest, spec_name, spec_options
from fishpaw.weights.formats import Tensors
from fishpaw.weights.names import ACTIVATIONS, FAMILIES, TENSORFLOW_ENDINGS, TENSORFLOW_MODULES, Family

__all__ = [
    "Part", "export_config", "export_tensors", "heads_of", "ignored", "join", "joined_shape", "parts", "read_config", "recognise",
    "renamed", "roots", "spelled_out", "spelled_rows", "unlike",
]  # fmt: skip

_OF_OURS: Mapping[str, dict[str, Any]] = {
    "pooler": {"activation": "tanh", "at": "first"},
    "classifier": {"multi_label": False},
    "lm": {"bias": False, "scale": 1.0},
    "mlm": {"dense_bias": True},
}
# A field whose spec has options -> its room, and the name that it has by default.
_SWITCHES = {"norm": ("norms", "layer"), "position": ("positions", "learned"), "attention": ("attention", "softmax"),
             "mask": ("masks", "full")}  # fmt: skip
_ONLY_IN_TRAINING = ("dropout", "attention_dropout", "init_std")
_MOST_LABELS = 10**5
_MOST_SINES = 8192                                                # rows: beyond, they could outweigh the model
_FURNITURE = re.compile(r"/(adam|lamb|Adam|Adam_1)(_[mv])?$")     # the optimizer's slots
_HEADS_ELSEWHERE = ("cls", "classifier", "lm_head", "qa_outputs", "score")


@dataclass(frozen=True)
class Part:
    """One of their tensors in one of ours: its possible names, the first written; whether it is stored transposed."""

    names: tuple[str, ...]
    transposed: bool


# -- which family -------------------------------------------------------------------------------------------------------------------


def recognise(values: Mapping[str, Any], names: Sequence[str], *, family: str | None = None) -> tuple[Family, str]:
    """The family of a checkpoint and the reason, from its config's model_type, else from the names of its tensors."""
    if family is not None:
        return FAMILIES[family], "you said so"
    given = {field: value for field, value in values.items() if value is not None}
    if any(_NEZHA in name for name in names):
        given.setdefault("use_relative_position", True)           # Keras saves its sines
    said = {one.name: one.told(given) if one.told else None for one in FAMILIES.values()}
    may = [one for one in FAMILIES.values() if said[one.name] is not False]
    kind = given.get("model_type")
    if kind is not None:
        of_kind = sorted((one for one in may if kind in one.types), key=lambda one: said[one.name] is not True)
        if of_kind:
            return of_kind[0], f"config.json says model_type {kind!r}"
        raise ConfigError(f"model_type is {kind!r}, which fishpaw can't build.", fix=f"Known: {', '.join(_types())}.")
    fits = {}
    for candidate in may:
        known = set(renamed(names, candidate))
        rows = dict(parts(candidate, 1, 1))
        held = {ours: all(known & set(part.names) for part in several) for ours, several in rows.items()}
        # A layer, and a table of positions where the family has one: that alone tells BERT from RoFormer in a TensorFlow checkpoint.
        if all(there for ours, there in held.items() if ours.startswith(_NEEDED) and ours.endswith(".weight")):
            places = {alias for several in rows.values() for part in several for alias in part.names}
            first = {name for name in known - places if not _LATER.search(name) and not ignored(name, candidate)}
            lacks = sum(not there for ours, there in held.items() if ours.startswith(("embedding.", "layers.0.")))
            fits[candidate.name] = (said[candidate.name] is True, -len(first), -lacks, sum(held.values()))
    if not fits:
        shown = f"tensors named {', '.join(list(names)[:5])} …" if names else "no tensor"
        raise CheckpointError(f"No known family has {shown}.", fix=f"Say which it is: family= one of {', '.join(FAMILIES)}.")
    best = FAMILIES[max(fits, key=lambda name: fits[name])]
    table = "with" if "positions.0.table.weight" in best.weights else "without"
    return best, f"its tensors are named as a {best.name} model's, {table} a table of positions"


_NEZHA = "Embedding-Relative-Position"
_LATER = re.compile(r"\.[1-9]\d*\.")                              # of a block after the first
_NEEDED = ("layers.0.attention.project.", "layers.0.feed_forward.", "positions.")


def _types() -> list[str]:
    return list(dict.fromkeys(kind for family in FAMILIES.values() for kind in family.types))


# -- configuration ------------------------------------------------------------------------------------------------------------------


def read_config(values: Mapping[str, Any], family: Family) -> ModelConfig:
    """Their config.json as ours. Fields that it lacks, or that are null, have transformers' defaults; a value that we can't serve is a
    ConfigError that names the field."""
    given = {field: value for field, value in values.items() if value is not None or field in family.nullable}
    for field, served in family.only.items():
        if given.get(field, served[0]) not in served:
            raise ConfigError(f"{field} is {given[field]!r}, which fishpaw can't build.", fix=f"Served: {served[0]!r}.")
    chosen: dict[str, Any] = {"family": family.name, **family.fixed}
    inner: dict[str, Any] = {}
    for field, (ours, default) in family.config.items():
        value = given.get(field, default)
        if ours == "norm.eps" and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1):
            raise ConfigError(f"{field} is {value!r}.", fix="Give a small positive number.")
        if ours == "activation":
            value = _activation(value, family)
        if value is not None:
            _put(chosen, inner, ours, value)
    if "intermediate_size" not in chosen and isinstance(chosen["hidden_size"], int):
        chosen["intermediate_size"] = 4 * chosen["hidden_size"]
    if family.decoder is not None:
        causal = given.get(family.decoder, False)
        if not isinstance(causal, bool):
            raise ConfigError(f"{family.decoder} is {causal!r}.", fix="Give true or false.")
        chosen["mask"] = "causal" if causal else "full"
    for ours, value in (family.read(given) if family.read else {}).items():
        _put(chosen, inner, ours, value)
    if family.encoder is not None:
        apart = {"shared_embedding": False, "heads": (), **family.encoder, **inner}
        chosen["encoder"] = ModelConfig(**{**chosen, **apart})
    return ModelConfig(**chosen)


def _put(chosen: dict[str, Any], inner: dict[str, Any], ours: str, value: Any) -> None:
    """A field, an option of a switch, "norm.eps", or either of the encoder, "encoder.layers"."""
    place, _, rest = ours.partition(".")
    if place == "encoder":
        _put(inner, {}, rest, value)
    elif rest:
        spec = chosen.get(place, _SWITCHES[place][1])
        chosen[place] = {"name": spec_name(spec), **spec_options(spec), rest: value}
    else:
        chosen[ours] = value


def _activation(value: Any, family: Family) -> str:
    if not isinstance(value, str) or value not in family.activations:
        raise ConfigError(f"The activation is {value!r}.", fix=nearest(str(value), list(family.activations)))
    return value if family.activations is ACTIVATIONS else family.activations[value]


def heads_of(values: Mapping[str, Any], known: Collection[str], family: Family, *, tied: bool = True) -> tuple[Any, ...]:
    """The heads that a checkpoint holds, from its tensors' names, and whether its embeddings are tied; a classifier's labels from id2label.
    A classifier of tokens, spans or choices (told by `architectures`, or without a pooler) is none of ours."""
    given = {field: value for field, value in values.items() if value is not None}
    tokens = _alias(family.weights["embedding.tokens.weight"])
    heads: dict[str, Any] = {}
    for name, shows, options in family.heads:
        if name not in heads and shows in known and (shows not in tokens or tied):
            heads[name] = {"name": name, **(options(given) if callable(options) else options)}
    built = values.get("architectures")
    other = isinstance(built, list) and built and not any(str(one).endswith("ForSequenceClassification") for one in built)
    if "classifier" in heads and ("pooler" not in heads or other):
        del heads["classifier"]
    if "nsp" in heads and "pooler" not in heads:
        del heads["nsp"]
    if "classifier" in heads:
        heads["classifier"] |= {"labels": _labels(values), "multi_label": values.get("problem_type") == "multi_label_classification"}
    return tuple(heads.values())


def export_config(config: ModelConfig, family: Family) -> dict[str, Any] | None:
    """Our configuration as theirs, with what only we know under "fishpaw"; None where transformers has no such architecture, and would
    refuse it or, worse, compute something else (`unlike` says why)."""
    theirs = _theirs(config, family)
    if unlike(config, family):
        return None
    ours, back = config.to_dict(), read_config(theirs, family).to_dict()
    return {**theirs, "fishpaw": {name: value for name, value in ours.items() if back[name] != value or name == "heads"}}


def unlike(config: ModelConfig, family: Family) -> list[str]:
    """What of a model the family's own class doesn't compute, as fields of ModelConfig with their values; or the reason in words."""
    theirs = _theirs(config, family)
    try:
        back = read_config(theirs, family)
    except ConfigError as error:
        unnamed = config.activation if _found(config.to_dict(), "activation", family) not in family.activations else None
        return [error.what.rstrip(".") if unnamed is None else f"activation={unnamed!r}"]
    return [*_other_stack(config.to_dict(), back.to_dict()), *_other_outputs(config, theirs, family)]


def _theirs(config: ModelConfig, family: Family) -> dict[str, Any]:
    ours = config.to_dict()
    theirs: dict[str, Any] = {"model_type": family.types[0]}
    for field, (name, _) in family.config.items():
        theirs[field] = _found(ours, name, family)
    names = {spec_name(head) for head in config.heads}
    causal = config.mask == "causal" and family.decoder is not None
    if family.decoder is not None:
        theirs[family.decoder] = causal
    wanted = next(built for held, built in family.classes if held <= names)
    theirs["architectures"] = [family.causal_class if causal and "mlm" in names and family.causal_class else wanted]
    for head in ours["heads"]:
        if spec_name(head) == "classifier":
            labels = list(head["labels"])
            theirs["id2label"] = {str(index): label for index, label in enumerate(labels)}
            theirs["label2id"] = {label: index for index, label in enumerate(labels)}
            theirs["problem_type"] = "multi_label_classification" if head.get("multi_label") else "single_label_classification"
    return theirs | (dict(family.write(config)) if family.write else {})


def _found(ours: Mapping[str, Any], name: str, family: Family) -> Any:
    """What `_put` put there."""
    place, _, rest = name.partition(".")
    if place == "encoder":
        return None if ours["encoder"] is None else _found(ours["encoder"], rest, family)
    if rest:
        return None if isinstance(ours[place], list) else spelled_out(place, ours[place]).get(rest)
    if name == "activation":
        plain = ACTIVATIONS.get(ours[name], ours[name])
        return next((theirs for theirs, own in family.activations.items() if own == plain), plain)
    if ours[name] is None and name in _USUAL:                     # in full: without it, theirs may be another
        size, parts_of_it = _USUAL[name]
        return ours[size] // (ours[parts_of_it] if parts_of_it else 1)
    return ours[name]


# Our None -> what it stands for: a field, and another that divides it.
_USUAL: Mapping[str, tuple[str, str | None]] = {
    "head_size": ("hidden_size", "attention_heads"), "key_value_heads": ("attention_heads", None), "embedding_size": ("hidden_size", None),
}  # fmt: skip


def _other_stack(ours: Mapping[str, Any], back: Mapping[str, Any]) -> list[str]:
    """The fields in which two configurations compute other hidden states from the same weights. A UniLM's mask they take as a 4-D mask."""
    if (ours["encoder"] is None) != (back["encoder"] is None):
        return ["encoder"]
    one, other = _comparable(ours), _comparable(back)
    unilm = ours["mask"] == "unilm" and back["mask"] in ("causal", "full")
    differs = [f"{name}={ours[name]!r}" for name in one if one[name] != other[name] and not (unilm and name == "mask")]
    inner = [] if ours["encoder"] is None else _other_stack(ours["encoder"], back["encoder"])
    return differs + [f"the encoder's {said}" for said in inner]


def _comparable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that change hidden states: every option written out, switches in turn layer by layer."""
    found = {name: value for name, value in values.items() if name not in ("heads", "encoder", *_ONLY_IN_TRAINING)}
    found["activation"] = ACTIVATIONS.get(found["activation"], found["activation"])
    for place in _SWITCHES:
        turns = found[place] if isinstance(found[place], list) else [found[place]]
        found[place] = [spelled_out(place, turns[index % len(turns)]) for index in range(values["layers"])]
    return found


def _other_outputs(config: ModelConfig, theirs: Mapping[str, Any], family: Family) -> list[str]:
    """The heads of which their class doesn't compute what ours does: pooled states, scores of labels and logits. Their tables can't be
    empty, nor a padding id lie beyond them."""
    if config.pad_id >= config.vocab_size or (family.decoder and not config.segments):
        return [f"pad_id={config.pad_id}" if config.pad_id >= config.vocab_size else "segments=0"]
    held = ("embedding.tokens.", *(f"heads.{spec_name(head)}." for head in config.heads))
    rows = [(ours, part) for ours, several in parts(family, 1) if ours.startswith(held) for part in several]
    tensors = {name for ours, part in rows for name in _written(ours, part, config)}
    read = {spec_name(head): head for head in heads_of(theirs, tensors, family, tied=config.tie_embeddings)}
    differs = []
    for head in config.heads:
        name = spec_name(head)
        if name in _OF_OURS and _OF_OURS[name] | _relevant(head) != _OF_OURS[name] | _relevant(read.get(name, {"name": name})):
            differs.append(f"the head {head!r}")
    return differs


def _relevant(head: Any) -> dict[str, Any]:
    """What of a head's options changes its result."""
    options = {option: value for option, value in spec_options(head).items() if option != "dropout"}
    return {option: list(value) if isinstance(value, tuple) else value for option, value in options.items()}


def spelled_out(place: str, spec: Any) -> dict[str, Any]:
    """A spec with the options that it leaves at their defaults."""
    name, room = spec_name(spec), _SWITCHES[place][0]
    defaults: Mapping[str, Any] = {}
    if name in switch.names(room):
        of_file = room in ("positions", "attention")
        module = importlib.import_module(f"fishpaw.{room}.{name}" if of_file else f"fishpaw.{room}")
        defaults = getattr(module, "build" if of_file else name).__kwdefaults__ or {}
    return {"name": name, **defaults, **spec_options(spec)}


def _labels(values: Mapping[str, Any]) -> list[str]:
    table = values.get("id2label")
    if isinstance(table, Mapping) and table:
        try:
            return [str(table[key]) for key in sorted(table, key=int)]
        except ValueError:
            raise ConfigError("id2label has a key that is no number.", fix='Write {"0": …, "1": …}.') from None
    count = values.get("num_labels", 2)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= _MOST_LABELS:
        raise ConfigError(f"num_labels is {count!r}.", fix=f"Give the number of labels, at most {_MOST_LABELS}.")
    return [f"LABEL_{index}" for index in range(count)]


# -- tensors ------------------------------------------------------------------------------------------------------------------------


def parts(family: Family, blocks: int, encoder_blocks: int = 0) -> Iterator[tuple[str, list[Part]]]:
    """Every row of the family's table, spelled out: the name of one of our tensors, and the parts of theirs that make it."""
    for row, value in family.weights.items():
        endings = [""] if row.endswith((".weight", ".bias")) else [".weight", ".bias"]
        count = encoder_blocks if row.startswith("encoder.") else blocks
        for number in range(count if "*" in row else min(count, 1)):
            for ending in endings:
                several = [_part(piece.strip(), ending, number) for piece in value.split(" + ")]
                yield row.replace("*", str(number)) + ending, several


def spelled_rows(family: Family, config: ModelConfig) -> dict[str, list[Part]]:
    """`parts` of a model."""
    return dict(parts(family, config.blocks, config.encoder.blocks if config.encoder else 0))


def roots(family: Family) -> set[str]:
    """What the names of the backbone begin with, as the table spells them."""
    rows = [value for ours, value in family.weights.items() if not ours.startswith("heads.")]
    return {name.partition(".")[0] for value in rows for piece in value.split(" + ") for name in _alias(piece)}


def renamed(names: Sequence[str], family: Family) -> dict[str, tuple[str, bool]]:
    """Their names in the family's spelling -> (the name in the file, whether the file has it transposed): TensorFlow variables, a
    backbone without its prefix, LayerNorm.gamma of old PyTorch files."""
    found: dict[str, tuple[str, bool]] = {}
    bare = not any(name.startswith(family.prefix) for name in names)
    heads = {name.partition(".")[0] for ours, value in family.weights.items() if ours.startswith("heads.") for name in _alias(value)}
    outside = (heads | set(_HEADS_ELSEWHERE)) - roots(family)
    own = _variables(family)
    for name in names:
        spelled, transposed = name, False
        if name == "global_step" or _FURNITURE.search(name):
            continue
        if "/" in name:
            if family.variables is not None:
                spelled, transposed = _from_tensorflow(name, family, own)
        elif bare and name.partition(".")[0] not in outside:
            spelled = family.prefix + name
        spelled = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", spelled))
        found[spelled] = (name, transposed)
    respelled = family.respelled(list(found)) if family.respelled else {}
    return {respelled.get(name, name): source for name, source in found.items()}


def export_tensors(state: Mapping[str, Tensor], config: ModelConfig, family: Family) -> dict[str, Tensor] | None:
    """Our tensors under their names and in their shapes, None where one has no place there. Tied ones are ours only once, and they leave
    them out, too."""
    rows = spelled_rows(family, config)
    theirs: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name not in rows:
            return None
        several = rows[name]
        one = config.encoder if name.startswith("encoder.") and config.encoder else config
        query, key = one.attention_heads * one.width, one.keys * one.width
        equal = [len(tensor) // len(several)] * len(several)
        sizes = [query, key, key] if ".attention.project." in name and len(several) == 3 else equal
        for part, piece in zip(several, tensor.split(sizes), strict=True):
            stored = piece.t() if part.transposed and piece.dim() == 2 else piece
            theirs.update(dict.fromkeys(_written(name, part, config), stored))
    if family.sines is not None and config.max_positions <= _MOST_SINES:
        waves = sinusoids(torch.arange(config.max_positions), config.width)
        theirs[family.sines] = torch.cat((waves[:, 0::2], waves[:, 1::2]), dim=1).to(next(iter(theirs.values())).dtype)
    return theirs


def joined_shape(tensors: Tensors, sources: Sequence[tuple[str, bool]]) -> tuple[int, ...] | None:
    """The shape that `join` will give, without reading a tensor; None where the pieces don't fit together."""
    shapes = [tensors.shape(name)[::-1] if turned and len(tensors.shape(name)) == 2 else tensors.shape(name) for name, turned in sources]
    if len(shapes) == 1:
        return shapes[0]
    if not all(shapes) or len({shape[1:] for shape in shapes}) > 1:
        return None
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def join(tensors: Tensors, sources: Sequence[tuple[str, bool]], dtype: torch.dtype) -> Tensor:
    """One of our tensors from its pieces: (name in the file, whether it lies transposed there). CheckpointError for whole numbers where
    others are wanted."""
    pieces = []
    for name, turned in sources:
        piece = tensors[name] if len(sources) == 1 else tensors.read(name)
        if dtype.is_floating_point and not piece.is_floating_point():
            raise CheckpointError(f"{tensors.files[0]}: tensor {name!r} holds {piece.dtype}.", fix="Load the weights before quantisation.")
        pieces.append((piece.t() if turned and piece.dim() == 2 else piece).to(dtype))
    return (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).contiguous()


def ignored(name: str, family: Family) -> bool:
    """Whether a tensor of theirs holds nothing that we learn or keep."""
    return any(fnmatchcase(name, pattern) for pattern in family.ignored)


def _written(ours: str, part: Part, config: ModelConfig) -> tuple[str, ...]:
    """The first of the names; the last for a pooler that a classifier reads, which in RoFormer owns the matrix; all for the bias of an
    untied decoder, which transformers has twice: it reads the decoder's and misses the other."""
    if ours == "heads.mlm.bias" and not config.tie_embeddings:
        return part.names
    classified = ours.startswith("heads.pooler.") and any(spec_name(head) == "classifier" for head in config.heads)
    return part.names[-1:] if classified else part.names[:1]


def _part(piece: str, ending: str, number: int) -> Part:
    names = [name.replace("*", str(number)) + ending for name in _alias(piece)]
    return Part(tuple(names), piece.startswith("^") and ending != ".bias")


def _alias(piece: str) -> list[str]:
    return [name.strip() for name in piece.removeprefix("^").split("|")]


def _variables(family: Family) -> list[tuple[re.Pattern[str], str, bool]]:
    """The family's own rules for TensorFlow: what a variable looks like, the name in the table, whether it lies transposed."""
    found = []
    for theirs, variable in family.tensorflow.items():
        pattern = re.sub(r"(\\\*)+", lambda stars: rf"(\d{{{len(stars[0]) // 2},}})", re.escape(variable.removeprefix("^")))
        found.append((re.compile(pattern), theirs, variable.startswith("^")))
    return found


def _from_tensorflow(name: str, family: Family, own: Sequence[tuple[re.Pattern[str], str, bool]]) -> tuple[str, bool]:
    for pattern, theirs, transposed in own:
        if match := pattern.fullmatch(name):
            return theirs.replace("*", str(int(match[1])) if match.groups() else ""), transposed
    *path, last = re.sub(r"layer_(\d+)", r"layer/\1", name).split("/")
    ending = TENSORFLOW_ENDINGS.get(last, last)
    spelled = ".".join([*path, ending.removeprefix("^")])
    for theirs, ours in TENSORFLOW_MODULES.items():
        spelled = spelled.replace(theirs, ours)
    return re.sub(rf"^{re.escape(family.variables or '')}", family.prefix, spelled), ending.startswith("^")
