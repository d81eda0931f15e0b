"""Their configuration and tensors to ours and back, by the tables of weights/names.py."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from fishpaw.config import ModelConfig
from fishpaw.errors import CheckpointError, ConfigError
from fishpaw.norms import layer
from fishpaw.positions.sinusoidal import sinusoids
from fishpaw.switch import nearest, spec_name, spec_options
from fishpaw.weights.formats import Tensors
from fishpaw.weights.names import ACTIVATIONS, FAMILIES, TENSORFLOW_ENDINGS, TENSORFLOW_MODULES, Family

__all__ = [
    "Part", "export_config", "export_tensors", "heads_of", "ignored", "join", "joined_shape", "parts", "read_config", "recognise",
    "renamed",
]  # fmt: skip

_OF_OURS: Mapping[str, dict[str, Any]] = {"pooler": {"activation": "tanh", "at": "first"}, "classifier": {"multi_label": False}}
_MOST_LABELS = 10**5
_MOST_SINES = 8192                                                # rows: beyond, they could outweigh the model
_FURNITURE = re.compile(r"/(adam|lamb|Adam|Adam_1)(_[mv])?$")     # the optimizer's slots


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
    told = values.get("model_type")
    if isinstance(told, str) and told in FAMILIES:
        return FAMILIES[told], f"config.json says model_type {told!r}"
    if told is not None:
        raise ConfigError(f"model_type is {told!r}, which fishpaw can't build.", fix=f"Known: {', '.join(FAMILIES)}.")
    if values.get("use_relative_position"):
        raise ConfigError("use_relative_position is set: NEZHA, which fishpaw can't build.", fix="Use another model.")
    fits = {}
    for candidate in FAMILIES.values():
        known = set(renamed(names, candidate))
        held = {ours: all(known & set(part.names) for part in several) for ours, several in parts(candidate, 1)}
        # A layer, and a table of positions where the family has one: that alone tells BERT from RoFormer in a TensorFlow checkpoint.
        if all(there for ours, there in held.items() if ours.startswith(("layers.0.attention.project.", "layers.0.feed", "position."))):
            fits[candidate.name] = sum(held.values())
    if not fits:
        shown = f"tensors named {', '.join(list(names)[:5])} …" if names else "no tensor"
        raise CheckpointError(f"No known family has {shown}.", fix=f"Say which it is: family= one of {', '.join(FAMILIES)}.")
    best = FAMILIES[max(fits, key=lambda name: fits[name])]
    table = "with" if "position.table.weight" in best.weights else "without"
    return best, f"its tensors are named as a {best.name} model's, {table} a table of positions"


# -- configuration ------------------------------------------------------------------------------------------------------------------


def read_config(values: Mapping[str, Any], family: Family) -> ModelConfig:
    """Their config.json as ours. Fields that it lacks, or that are null, have transformers' defaults; a value that we can't serve is a
    ConfigError that names the field."""
    given = {field: value for field, value in values.items() if value is not None}
    for field, served in family.only.items():
        if given.get(field, served[0]) not in served:
            raise ConfigError(f"{field} is {given[field]!r}, which fishpaw can't build.", fix=f"Served: {served[0]!r}.")
    chosen: dict[str, Any] = {"family": family.name, **family.fixed}
    options: dict[str, Any] = {}
    for field, (ours, default) in family.config.items():
        value = given.get(field, default)
        if ours.startswith("norm."):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
                raise ConfigError(f"{field} is {value!r}.", fix="Give a small positive number.")
            options[ours.removeprefix("norm.")] = value
        elif value is not None:
            chosen[ours] = value
    chosen["norm"] = {"name": "layer", **options}
    if "intermediate_size" not in chosen and isinstance(chosen["hidden_size"], int):
        chosen["intermediate_size"] = 4 * chosen["hidden_size"]
    if family.decoder is not None:
        causal = given.get(family.decoder, False)
        if not isinstance(causal, bool):
            raise ConfigError(f"{family.decoder} is {causal!r}.", fix="Give true or false.")
        chosen["mask"] = "causal" if causal else "full"
    if not isinstance(chosen["activation"], str) or chosen["activation"] not in ACTIVATIONS:
        raise ConfigError(f"The activation is {chosen['activation']!r}.", fix=nearest(str(chosen["activation"]), list(ACTIVATIONS)))
    return ModelConfig(**chosen)


def heads_of(values: Mapping[str, Any], known: Collection[str], family: Family) -> tuple[Any, ...]:
    """The heads that a checkpoint holds, from its tensors' names; a classifier's labels from id2label. A classifier of tokens, spans or
    choices (told by `architectures`, or without a pooler) is none of ours."""
    heads: dict[str, Any] = {}
    for name, shows, options in family.heads:
        if shows in known and name not in heads:
            heads[name] = {"name": name, **{option: values.get(field) or "gelu" for option, field in options.items()}}
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
    refuse it or, worse, compute something else."""
    ours = config.to_dict()
    plain = {**ours, "norm": _spelled_out(ours["norm"]), "activation": ACTIVATIONS.get(ours["activation"], ours["activation"])}
    theirs: dict[str, Any] = {"model_type": family.name}
    for field, (name, _) in family.config.items():
        theirs[field] = plain["norm"].get(name.removeprefix("norm.")) if name.startswith("norm.") else plain[name]
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
    try:
        back = read_config(theirs, family).to_dict()
    except ConfigError:
        return None
    differs = {name for name in ours if back[name] != plain[name]}
    return {**theirs, "fishpaw": _apart(ours, back)} if differs <= {"mask", "heads"} and _same(config, theirs, back, family) else None


def _same(config: ModelConfig, theirs: Mapping[str, Any], back: Mapping[str, Any], family: Family) -> bool:
    """Whether their class computes what ours does: logits with the mask they have (a UniLM's they take as a 4-D mask), pooled states and
    scores of labels. Their tables can't be empty, nor a padding id lie beyond them."""
    if config.mask not in (back["mask"], "unilm") or config.pad_id >= config.vocab_size or (family.decoder and not config.segments):
        return False
    held = tuple(f"heads.{spec_name(head)}." for head in config.heads)
    rows = [(ours, part) for ours, several in parts(family, 1) if ours.startswith(held) for part in several]
    tensors = {name for ours, part in rows for name in _written(ours, part, config)}
    read = {spec_name(head): head for head in heads_of(theirs, tensors, family)}
    for head in config.heads:
        name = spec_name(head)
        if name in _OF_OURS and _OF_OURS[name] | _relevant(head) != _OF_OURS[name] | _relevant(read.get(name, {"name": name})):
            return False
    return True


def _relevant(head: Any) -> dict[str, Any]:
    """What of a head's options changes its result."""
    options = {option: value for option, value in spec_options(head).items() if option != "dropout"}
    return {option: list(value) if isinstance(value, tuple) else value for option, value in options.items()}


def _apart(ours: Mapping[str, Any], back: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in ours.items() if back[name] != value or name == "heads"}


def _spelled_out(norm: Any) -> dict[str, Any]:
    return {"name": spec_name(norm), **(layer.__kwdefaults__ or {} if spec_name(norm) == "layer" else {}), **spec_options(norm)}


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


def parts(family: Family, layers: int) -> Iterator[tuple[str, list[Part]]]:
    """Every row of the family's table, spelled out: the name of one of our tensors, and the parts of theirs that make it."""
    for row, value in family.weights.items():
        endings = [""] if row.endswith((".weight", ".bias")) else [".weight", ".bias"]
        for number in range(layers) if "*" in row else [0]:
            for ending in endings:
                several = [_part(piece.strip(), ending, number) for piece in value.split(" + ")]
                yield row.replace("*", str(number)) + ending, several


def renamed(names: Sequence[str], family: Family) -> dict[str, tuple[str, bool]]:
    """Their names in the family's spelling -> (the name in the file, whether the file has it transposed): TensorFlow variables, a
    backbone without its prefix, LayerNorm.gamma of old PyTorch files."""
    found: dict[str, tuple[str, bool]] = {}
    bare = not any(name.startswith(family.prefix) for name in names)
    for name in names:
        spelled, transposed = name, False
        if name == "global_step" or _FURNITURE.search(name):
            continue
        if "/" in name:
            spelled, transposed = _from_tensorflow(name)
            spelled = re.sub(r"^bert\.", family.prefix, spelled)
        elif bare and not name.startswith(("cls.", "classifier", "lm_head", "score")):
            spelled = family.prefix + name
        spelled = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", spelled))
        found[spelled] = (name, transposed)
    return found


def export_tensors(state: Mapping[str, Tensor], config: ModelConfig, family: Family) -> dict[str, Tensor] | None:
    """Our tensors under their names and in their shapes, None where one has no place there. Tied ones are ours only once, and they leave
    them out, too."""
    query, key = config.attention_heads * config.width, config.keys * config.width
    rows = dict(parts(family, config.layers))
    theirs: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name not in rows:
            return None
        several = rows[name]
        sizes = {1: [tensor.shape[0]], 2: [key, key], 3: [query, key, key]}[len(several)]
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
    transposed = piece.startswith("^")
    names = [name.strip().replace("*", str(number)) + ending for name in piece.removeprefix("^").split("|")]
    return Part(tuple(names), transposed and ending != ".bias")


def _from_tensorflow(name: str) -> tuple[str, bool]:
    *path, last = re.sub(r"layer_(\d+)", r"layer/\1", name).split("/")
    ending = TENSORFLOW_ENDINGS.get(last, last)
    spelled = ".".join([*path, ending.removeprefix("^")])
    for theirs, ours in TENSORFLOW_MODULES.items():
        spelled = spelled.replace(theirs, ours)
    return spelled, ending.startswith("^")
