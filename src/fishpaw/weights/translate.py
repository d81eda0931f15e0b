"""Their configuration and tensors to ours and back, by the tables of weights/names.py."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from fishpaw.config import ModelConfig
from fishpaw.errors import CheckpointError, ConfigError
from fishpaw.switch import nearest, spec_name
from fishpaw.weights.names import FAMILIES, TENSORFLOW_ENDINGS, TENSORFLOW_MODULES, Family

__all__ = ["Part", "export_config", "export_tensors", "heads_of", "ignored", "join", "parts", "read_config", "recognise", "renamed"]

_ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "relu2", "silu", "swish", "tanh")
_SIDE_SHOWS = ("mask", "heads")              # fields that transformers may ignore and still give the same hidden states with its 4-D masks
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
        if family not in FAMILIES:
            raise ConfigError(f"There is no family {family!r}.", fix=nearest(family, sorted(FAMILIES)))
        return FAMILIES[family], "you said so"
    told = values.get("model_type")
    if told in FAMILIES:
        return FAMILIES[str(told)], f"config.json says model_type {told!r}"
    if told is not None:
        raise CheckpointError(f"config.json says model_type {told!r}, which can't be built.", fix=f"Known: {', '.join(FAMILIES)}.")
    if values.get("use_relative_position"):
        raise CheckpointError("The config has use_relative_position: NEZHA, which fishpaw can't build.", fix="Use another model.")
    fits = {}
    for candidate in FAMILIES.values():
        known = set(renamed(names, candidate))
        first = [part for ours, several in parts(candidate, 1) if ours.startswith("layers.0.") for part in several]
        if all(known & set(part.names) for part in first):
            fits[candidate.name] = sum(1 for _, several in parts(candidate, 1) for part in several if known & set(part.names))
    if not fits:
        shown = ", ".join(list(names)[:5])
        raise CheckpointError(f"No known family has tensors named {shown} ….", fix=f"Say which it is: family= one of {', '.join(FAMILIES)}.")
    best = max(fits, key=lambda name: fits[name])
    table = any(name.endswith(("position_embeddings", "position_embeddings.weight", "wpe.weight")) for name in names)
    return FAMILIES[best], f"its tensors are named so, {'with' if table else 'without'} a table of positions"


# -- configuration ------------------------------------------------------------------------------------------------------------------


def read_config(values: Mapping[str, Any], family: Family) -> ModelConfig:
    """Their config.json as ours. Fields that it lacks have transformers' defaults; a value that we can't serve is a ConfigError."""
    for field, served in family.only.items():
        if values.get(field, served[0]) not in served:
            raise ConfigError(f"config.json: {field} is {values[field]!r}, which fishpaw can't build.", fix=f"Served: {served[0]!r}.")
    chosen: dict[str, Any] = {"family": family.name, **family.fixed}
    options: dict[str, Any] = {}
    for field, (ours, default) in family.config.items():
        value = values.get(field, default)
        if ours.startswith("norm."):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
                raise ConfigError(f"config.json: {field} is {value!r}.", fix="Give a small positive number.")
            options[ours.removeprefix("norm.")] = value
        elif value is not None:
            chosen[ours] = value
    chosen["norm"] = {"name": "layer", **options}
    if "intermediate_size" not in chosen and isinstance(chosen.get("hidden_size"), int):
        chosen["intermediate_size"] = 4 * chosen["hidden_size"]
    if family.decoder is not None and values.get(family.decoder):
        chosen["mask"] = "causal"
    if chosen["activation"] not in _ACTIVATIONS:
        named = str(chosen["activation"])
        raise ConfigError(f"config.json: the activation is {named!r}.", fix=nearest(named, list(_ACTIVATIONS)))
    try:
        return ModelConfig(**chosen)
    except ConfigError as error:
        raise ConfigError(f"config.json: {error.what}", fix=error.fix) from None


def heads_of(values: Mapping[str, Any], known: Sequence[str] | set[str], family: Family) -> tuple[Any, ...]:
    """The heads that a checkpoint holds, from its tensors' names; a classifier's labels from id2label."""
    heads: dict[str, Any] = {}
    for name, shows, options in family.heads:
        if shows in known and name not in heads:
            heads[name] = {"name": name, **{option: values.get(field, "gelu") for option, field in options.items()}}
    if "classifier" in heads:
        heads["classifier"] |= {"labels": _labels(values), "multi_label": values.get("problem_type") == "multi_label_classification"}
        heads.setdefault("pooler", {"name": "pooler"})
    if "nsp" in heads and "pooler" not in heads:
        del heads["nsp"]
    return tuple(heads.values())


def export_config(config: ModelConfig, family: Family) -> dict[str, Any]:
    """Our configuration as theirs, with what only we know under "fishpaw". Where transformers has no such architecture, model_type is
    "fishpaw" and it refuses the folder instead of computing something else."""
    theirs: dict[str, Any] = {"model_type": family.name}
    ours = config.to_dict()
    norm = ours["norm"] if isinstance(ours["norm"], dict) else {}
    for field, (name, default) in family.config.items():
        theirs[field] = norm.get(name.removeprefix("norm."), default) if name.startswith("norm.") else ours[name]
    names = [spec_name(head) for head in config.heads]
    causal = config.mask == "causal" and family.decoder is not None
    if family.decoder is not None:
        theirs[family.decoder] = causal
    wanted = next(cls for held, cls in family.classes if held <= set(names))
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
        back = {}
    differs = {name: value for name, value in ours.items() if back.get(name) != value}
    if not set(differs) <= set(_SIDE_SHOWS):
        return {"model_type": "fishpaw", "fishpaw": ours}
    return {**theirs, "fishpaw": differs}


def _labels(values: Mapping[str, Any]) -> list[str]:
    table = values.get("id2label")
    if isinstance(table, Mapping) and table:
        try:
            return [str(table[key]) for key in sorted(table, key=int)]
        except ValueError:
            raise ConfigError("config.json: id2label has a key that is no number.", fix='Write {"0": …, "1": …}.') from None
    count = values.get("num_labels", 2)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 10**6:
        raise ConfigError(f"config.json: num_labels is {count!r}.", fix="Give the number of labels.")
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


def export_tensors(state: Mapping[str, Tensor], config: ModelConfig, family: Family) -> dict[str, Tensor]:
    """Our tensors under their names and in their shapes. Tied and frozen ones are left out, as transformers leaves them out."""
    query, key = config.attention_heads * config.width, config.keys * config.width
    rows = dict(parts(family, config.layers))
    theirs: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name not in rows:
            raise CheckpointError(f"{name} has no place in a {family.name} checkpoint.", fix="Save it in fishpaw's own layout.")
        several = rows[name]
        sizes = {1: [tensor.shape[0]], 2: [key, key], 3: [query, key, key]}[len(several)]
        for part, piece in zip(several, tensor.split(sizes), strict=True):
            theirs[part.names[0]] = piece.t() if part.transposed and piece.dim() == 2 else piece
    return theirs


def join(
    tensors: Mapping[str, Tensor], known: Mapping[str, tuple[str, bool]], several: Sequence[Part], dtype: torch.dtype
) -> Tensor | None:
    """One of our tensors from its parts in a file, or None where one is missing."""
    pieces = []
    for part in several:
        name = next((name for name in part.names if name in known), None)
        if name is None:
            return None
        source, transposed = known[name]
        piece = tensors[source]
        if (part.transposed != transposed) and piece.dim() == 2:
            piece = piece.t()
        pieces.append(piece.to(dtype) if piece.is_floating_point() else piece)
    whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    return whole.contiguous()


def ignored(name: str, family: Family) -> bool:
    """Whether a tensor of theirs holds nothing that we learn or keep."""
    return any(fnmatchcase(name, pattern) for pattern in family.ignored)


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
