"""Load a model: a name, a folder, a file or an old TensorFlow checkpoint -> a Transformer and its tokenizer."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fishpaw import hub, switch
from fishpaw.config import ModelConfig, parse_object
from fishpaw.errors import CheckpointError, ConfigError, FishpawError
from fishpaw.files import MANIFEST, blobs, inside, recover, verify_manifest
from fishpaw.model.transformer import Transformer, distinct
from fishpaw.switch import Spec, spec_name, spec_options
from fishpaw.text.encoding import Tokenizer
from fishpaw.text.load import load_tokenizer
from fishpaw.weights.changes import adapted, gathered
from fishpaw.weights.formats import Tensors, find_nonfinite, read_folder, read_tensors
from fishpaw.weights.generation import read_generation
from fishpaw.weights.names import FAMILIES, Family
from fishpaw.weights.translate import (
    Part,
    heads_of,
    ignored,
    join,
    joined_shape,
    parts,
    read_config,
    recognise,
    renamed,
    roots,
    spelled_rows,
)

__all__ = ["Report", "inspect", "load", "load_model", "load_tokenizer", "tell", "tokenizer_of"]

_log = logging.getLogger("fishpaw")
_LARGEST_CONFIG = 2**22            # bytes
_LONGEST_TABLE = 20                # lines
_ALWAYS_FIT = ("dropout", "attention_dropout", "init_std")
_OTHER = "Is this config.json of this file?"
_ORIGIN = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?@[0-9a-f]{40}", re.ASCII)
_NORM = re.compile(r"(embedding\.norm|final_norm|layers\.\d+\.((attention|cross|feed_forward)_norm|attention\.(query|key)_norm))\.")
# Turning a switch may leave tensors of the file without a place and ask for new ones: those whose name holds one of these.
_AFFECTED = {
    "position": ("positions.",),
    "attention": (".kernel.",),
    "stream": ("embedding.query",),
    "embedding_norm": ("embedding.norm.",),
    "norm_at": ("final_norm.",),
    "norm": ("norm.",),
    "qk_norm": ("query_norm.", "key_norm."),
}


@dataclass(frozen=True)
class Report:
    """What was found. reason: how the family was recognised; new: tensors of ours that the file lacks and that start anew;
    unused: tensors of the file that this model has no place for; unbuilt: those of them that no change of the caller's left out, such as a
    head that fishpaw doesn't build; nonfinite: tensors with a NaN or an infinity. origin: "hub id@commit" of
    the model, or of the one that a saved model was made from."""

    family: str
    reason: str
    config: ModelConfig
    folder: Path
    origin: str | None = None
    new: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    unbuilt: tuple[str, ...] = ()
    nonfinite: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def load(
    name: str | Path,
    *,
    revision: str | None = None,
    family: str | None = None,
    mask: Spec | None = None,
    position: Spec | None = None,
    attention: Spec | None = None,
    norm: Spec | None = None,
    heads: Sequence[Spec] | None = None,
    residual_scores: bool | None = None,
    dropout: float | None = None,
    changes: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    verify: bool = True,
) -> tuple[Transformer, Tokenizer]:
    """A model and its tokenizer; the options are those of `load_model`. CheckpointError, too, for a tokenizer of another model."""
    wanted = gathered(mask, position, attention, norm, heads, residual_scores, dropout, changes)
    model, report = inspect(name, changes=wanted, revision=revision, family=family, dtype=dtype, verify=verify)
    tokenizer = tokenizer_of(report)
    tell(report)
    return model, tokenizer


def load_model(
    name: str | Path,
    *,
    revision: str | None = None,
    family: str | None = None,
    mask: Spec | None = None,
    position: Spec | None = None,
    attention: Spec | None = None,
    norm: Spec | None = None,
    heads: Sequence[Spec] | None = None,
    residual_scores: bool | None = None,
    dropout: float | None = None,
    changes: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    verify: bool = True,
) -> Transformer:
    """A Transformer in evaluation mode from a folder, a file, a TensorFlow bundle or a hub id (with `revision`).

    family: where neither config.json nor the names tell it. mask "causal" or "unilm": an encoder as a language model or seq2seq;
    position, attention, norm, residual_scores, dropout: other switches; a norm without an eps has the file's, rotary positions of
    any kind its theta, layout and share. heads: which to build,
    default those that the checkpoint holds; one that it lacks, or a classifier of other labels, starts from random values, and a log
    line says so. changes: any other field of ModelConfig, {"norm_at": "pre"}. dtype: of the parameters.
    verify: compare a saved folder with its manifest. Errors: CheckpointError (damaged, unsafe, incomplete or of another model),
    ConfigError, HubError.
    """
    wanted = gathered(mask, position, attention, norm, heads, residual_scores, dropout, changes)
    model, report = inspect(name, changes=wanted, revision=revision, family=family, dtype=dtype, verify=verify)
    tell(report)
    return model


def inspect(
    name: str | Path,
    *,
    changes: Mapping[str, Any] | None = None,
    revision: str | None = None,
    family: str | None = None,
    dtype: torch.dtype = torch.float32,
    verify: bool = True,
) -> tuple[Transformer, Report]:
    """`load_model`, with all changes in one mapping, and a report of what was found instead of log lines (`tell` writes them)."""
    if not isinstance(dtype, torch.dtype):
        named = isinstance(dtype, str) and isinstance(getattr(torch, dtype, None), torch.dtype)
        raise ConfigError(f"dtype is {dtype!r}.", fix=f"Give torch.{dtype if named else 'float32'}, torch's own object.")
    if not isinstance(name, str | os.PathLike):
        raise ConfigError(f"The model's name is {name!r}.", fix="Give a folder, a file or a hub id.")
    if not dtype.is_floating_point:
        raise ConfigError(f"dtype is {dtype}.", fix="Give torch.float32, torch.bfloat16 or another of real numbers.")
    place = os.path.expanduser(os.fspath(name)).rstrip("/")
    if not os.path.exists(place) and os.path.isdir(os.path.join(os.path.dirname(place), f".{os.path.basename(place)}.old")):
        recover(place)                                            # a process died while it replaced the folder
    found = hub.find(name, revision=revision)
    folder = found.folder
    if verify and found.source != "hub" and os.path.lexists(folder / MANIFEST):     # the hub states hashes of its own
        if (folder / MANIFEST).exists() and not (folder / MANIFEST).is_file():
            raise CheckpointError(f"{folder / MANIFEST}: is no regular file.", fix="Remove it.")
        verify_manifest(folder, also=blobs(folder))
    path, values = _read_values(folder)
    notes = [] if found.note is None else [found.note]
    if "auto_map" in values:
        notes.append(f"{path} names code (auto_map), which is never run.")
    tensors = read_folder(folder) if found.file is None else read_tensors(found.file)
    if family is not None and family not in FAMILIES:
        raise ConfigError(f"There is no family {family!r}.", fix=switch.nearest(str(family), sorted(FAMILIES)))
    try:
        table, reason, before = _understand(values, tensors, family)
    except (ConfigError, CheckpointError) as error:
        raise _named(path if isinstance(error, ConfigError) else tensors.files[0], error) from None
    config = adapted(before, changes or {})
    try:
        placed = _placed(config, before, table, tensors)
    except (CheckpointError, ConfigError) as error:
        if config == before:
            raise (_named(path, error) if isinstance(error, ConfigError) else error) from None
        raise _of_changes(error, config, before, table, tensors) from None
    model = _filled(placed, tensors, dtype)
    origin = f"{found.name}@{found.revision}" if found.source == "hub" else values.get("origin")
    origin = origin if isinstance(origin, str) and _ORIGIN.fullmatch(origin) else None
    model.origin = origin                                         # save writes both down
    model.generation = read_generation(values, _read_object(folder, "generation_config.json") or {}, before.vocab_size)
    nonfinite = tuple(find_nonfinite(dict(model.named_parameters())))
    return model, Report(config.family, reason, config, folder, origin, placed.new, placed.unused, placed.unbuilt, nonfinite, tuple(notes))


def tokenizer_of(report: Report) -> Tokenizer:
    """The tokenizer beside a model. CheckpointError where it has tokens that the model has no row for; one with far fewer than the model
    has rows (some rows that nothing stands for are usual) is named in the log."""
    tokenizer, rows = load_tokenizer(report.folder), report.config.vocab_size
    if tokenizer.size > rows:
        what = f"{report.folder}: the tokenizer has {tokenizer.size:,} tokens, but the model only {rows:,}."
        raise CheckpointError(what, fix="Copy the tokenizer files of this very model into the folder.")
    if tokenizer.size < 0.9 * rows:
        what = "%s: the tokenizer has %d tokens, the model %d: is it of another model?"
        _log.warning(what, report.folder, tokenizer.size, rows)
    return tokenizer


def tell(report: Report) -> None:
    """Write a report to the log "fishpaw", as `load_model` does: what is as expected at level info, what may surprise as a warning; NaN
    through `warnings`, too: nobody overlooks that. Whoever called `tell`'s caller is named there."""
    _log.info("%s: a %s model, because %s", report.folder, report.family, report.reason)
    for note in report.notes:
        _log.warning("%s", note)
    if report.new:
        starts = {name: _start(name) for name in report.new}
        for way in dict.fromkeys(starts.values()):
            those = [name for name, start in starts.items() if start == way]
            _log.warning("%s: %d new tensors start %s: %s", report.folder, len(those), way, _few(those))
    if report.unbuilt:
        what = "%s: %d tensors have no place, and are not used: %s; a head for them isn't built"
        _log.warning(what, report.folder, len(report.unbuilt), _few(report.unbuilt))
    if chosen := [name for name in report.unused if name not in report.unbuilt]:
        _log.info("%s: %d tensors are not used: %s", report.folder, len(chosen), _few(chosen))
    if report.nonfinite:
        warnings.warn(f"{report.folder}: NaN or infinite values in {_few(report.nonfinite)}", stacklevel=3)


def _read_values(folder: Path) -> tuple[Path, dict[str, Any]]:
    """config.json, or Google's bert_config.json."""
    for name in ("config.json", "bert_config.json"):
        values = _read_object(folder, name)
        if values is not None:
            return folder / name, values
    run = (folder / "model" / "config.json").is_file()            # a run of training, which leaves its model there
    fix = f"It holds a run: give {folder / 'model'}." if run else "Copy the model's configuration into it."
    raise CheckpointError(f"{folder}: holds no config.json or bert_config.json.", fix=fix)


def _read_object(folder: Path, name: str) -> dict[str, Any] | None:
    """A JSON file of the folder; None where there is none."""
    path = inside(folder, name, also=blobs(folder))
    try:
        if not path.is_file():
            return None
        if path.stat().st_size > _LARGEST_CONFIG:
            raise ConfigError(f"{path}: {path.stat().st_size:,} bytes.", fix="That is no configuration of a model.")
        return parse_object(path.read_text(encoding="utf-8-sig"), str(path))
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8.", fix="Save it as UTF-8.") from None
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror}).", fix="Check its permissions and the disk.") from None


def _understand(values: Mapping[str, Any], tensors: Tensors, family: str | None) -> tuple[Family | None, str, ModelConfig]:
    """The family (None: our own layout), how it was recognised, and the configuration that the file stands for."""
    own = values.get("fishpaw", {})
    if not isinstance(own, Mapping):
        raise ConfigError(f'"fishpaw" is a {type(own).__name__}.', fix="It must be a JSON object.")
    try:
        if values.get("model_type") == "fishpaw":
            return None, "config.json says model_type 'fishpaw'", ModelConfig.from_dict(own)
        table, reason = recognise(values, list(tensors), family=family)
        known = renamed(list(tensors), table)
        config = read_config(values, table)
        config = config if table.untied is None else config.change({"tie_embeddings": _tied(known, tensors, table, table.untied)})
        config = config.change({"heads": heads_of(values, known, table, tied=config.tie_embeddings)})
        return table, reason, ModelConfig.from_dict({**config.to_dict(), **own})
    except RecursionError:
        raise ConfigError("encoders within encoders without end.", fix="That is no configuration of a model.") from None


def _tied(known: Mapping[str, tuple[str, bool]], tensors: Tensors, family: Family, output: str) -> bool:
    """Whether the matrix of the output is the table of tokens: it isn't there, or equal."""
    tokens = dict(parts(family, 1))["embedding.tokens.weight"][0].names
    table = next((known[name][0] for name in tokens if name in known), None)
    if output not in known or table is None:
        return True
    same = tensors.shape(known[output][0]) == tensors.shape(table)
    return same and torch.equal(tensors.read(known[output][0]), tensors.read(table))


@dataclass(frozen=True)
class _Placed:
    """A model without memory, and where each of its tensors comes from: (name in the file, whether it lies transposed there)."""

    model: Transformer
    sources: Mapping[str, list[tuple[str, bool]]]
    added: Mapping[str, str]                                      # ours -> a tensor in the file whose first row is added
    new: tuple[str, ...]
    unused: tuple[str, ...]
    unbuilt: tuple[str, ...]


def _of_changes(
    error: FishpawError, config: ModelConfig, before: ModelConfig, family: Family | None, tensors: Tensors
) -> FishpawError:
    """The same error, or what to tell a caller whose changes don't fit weights that fit without them."""
    if error.fix != _OTHER:
        return error
    try:
        _placed(before, before, family, tensors)
    except FishpawError:
        return error
    ours, theirs = ({field.name: getattr(one, field.name) for field in fields(one)} for one in (config, before))
    said = ", ".join(f"{name}={value!r}" for name, value in ours.items() if value != theirs[name] and name not in _ALWAYS_FIT)
    layers = " Fewer layers: load it as it is, then fishpaw.weights.surgery.keep_layers." if config.layers != before.layers else ""
    return ConfigError(f"The changes {said} don't fit the weights: {error.what}", fix=f"Leave out what needs other weights.{layers}")


def _placed(config: ModelConfig, before: ModelConfig, family: Family | None, tensors: Tensors) -> _Placed:
    """Build without memory, and find a source for every tensor. `before`: what the file says. Nothing is read yet."""
    _refuse_giant(config, tensors)
    with torch.device("meta"):
        model = Transformer(config)
    _refuse_larger(sum(value.numel() for value in (*model.parameters(), *model.buffers())), tensors)
    wanted = model.state_dict()
    buffers = dict(model.named_buffers(remove_duplicate=False))
    known = renamed(list(tensors), family) if family else {name: (name, False) for name in tensors}
    rows = spelled_rows(family, config) if family else {name: [Part((name,), False)] for name in {*wanted, *tensors}}
    free = tuple(piece for field, pieces in _AFFECTED.items() if getattr(config, field) != getattr(before, field) for piece in pieces)
    anew = ("heads.classifier.",) if _renames_labels(config, before) else ()

    order = 1 if config.tie_embeddings else -1                    # the bias of an untied decoder lies beside it: see translate._written
    sources: dict[str, list[tuple[str, bool]]] = {}
    used: set[str] = set()
    lost: list[str] = []
    for name in wanted:
        several = [] if name.startswith(anew) else rows.get(name, [])
        aliases = [next((alias for alias in part.names[::order] if alias in known), None) for part in several]
        held = [alias for alias in aliases if alias is not None]
        if several and len(held) == len(several):
            sources[name] = [
                (known[alias][0], part.transposed != known[alias][1]) for alias, part in zip(held, several, strict=True)
            ]
            used.update(alias for part in several for alias in part.names)
        elif not _may_lack(name, free) and name not in buffers:
            lost += [part.names[0] for part, alias in zip(several, aliases, strict=True) if alias is None] or [name]
    if lost:
        raise CheckpointError(f"{tensors.files[0]}: lacks {len(lost)} tensors: {_few(lost)}.", fix=_OTHER)

    used.update(family.added.values() if family else ())
    unused = [name for name in known if name not in used and not (family and ignored(name, family))]
    places = {alias: name for name, several in rows.items() for part in several for alias in part.names}
    idle = [name for name in unused if family is None or _in_backbone(name, family)]
    strange = [known[name][0] for name in idle if not any(piece in places.get(name, "") for piece in ("heads.", *free))]
    if strange:
        raise CheckpointError(
            f"{tensors.files[0]}: holds {len(strange)} tensors that this config has no place for: {_few(strange)}.", fix=_OTHER
        )
    _refuse_other_shapes(tensors, sources, wanted)

    left = (*(f"heads.{spec_name(head)}." for head in before.heads), *free)              # by the caller's choice
    chosen = {name for name in unused if any(piece in places.get(name, "") for piece in left)}
    return _Placed(
        model=model,
        sources=sources,
        added={name: known[other][0] for name in sources if family and (other := family.added.get(rows[name][0].names[0])) in known},
        new=tuple(name for name in wanted if name not in sources and name not in buffers),
        unused=tuple(known[name][0] for name in unused),
        unbuilt=tuple(known[name][0] for name in unused if name not in chosen and ".unused." not in name),
    )


def _filled(placed: _Placed, tensors: Tensors, dtype: torch.dtype) -> Transformer:
    """Hand each tensor over to the model: nothing is initialised to be overwritten."""
    model, sources = placed.model, placed.sources
    wanted, buffers = model.state_dict(), dict(model.named_buffers(remove_duplicate=False))
    bare = [name for name in buffers if name not in sources]      # they hold nothing learned: some are never saved
    made = _new_tensors(model.config, [*placed.new, *bare])
    state: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, empty in wanted.items():
        kind = dtype if empty.is_floating_point() else empty.dtype
        value = join(tensors, sources[name], kind) if name in sources else made[name].to(kind)
        if name in placed.added:
            value = value + tensors.read(placed.added[name])[0].to(kind)
        state[name] = value.clone() if value.data_ptr() in taken else value      # tied in the file, two parameters here
        taken.add(value.data_ptr())
    model.load_state_dict(state, assign=True)
    for name in bare:
        place, _, leaf = name.rpartition(".")
        buffer = made[name]
        setattr(model.get_submodule(place), leaf, buffer.to(dtype) if buffer.is_floating_point() else buffer)
    return model.eval()


def _start(name: str) -> str:
    """How a new tensor begins: a norm, and the matrices of a conditional one, change nothing yet."""
    if name.endswith(("norm.scale.weight", "norm.shift.weight")):
        return "at zero"
    if not _NORM.match(name) or ".hidden." in name:
        return "from random values"
    return "at zero" if name.endswith(".bias") else "at one"


def _may_lack(name: str, free: Sequence[str]) -> bool:
    """Whether a tensor may start anew: a head's, or one that a turned switch asks for. The encoder of a decoder has none."""
    return name.startswith("heads.") or (not name.startswith("encoder.") and any(piece in name for piece in free))


def _in_backbone(name: str, family: Family) -> bool:
    return name.partition(".")[0] in roots(family) and not name.startswith(f"{family.prefix}pooler.")


def _renames_labels(config: ModelConfig, before: ModelConfig) -> bool:
    """Whether the file's classifier is of other labels than the one asked for; names for labels that had only numbers are not others."""
    labels, old = ([list(spec_options(head).get("labels", [])) for head in one.heads if spec_name(head) == "classifier"]
                   for one in (config, before))  # fmt: skip
    if not labels or not old or labels == old:
        return False
    return len(labels[0]) != len(old[0]) or old[0] != [f"LABEL_{index}" for index in range(len(old[0]))]


def _refuse_other_shapes(tensors: Tensors, sources: Mapping[str, list[tuple[str, bool]]], wanted: Mapping[str, Tensor]) -> None:
    wrong = []
    for name, pieces in sources.items():
        if joined_shape(tensors, pieces) != tuple(wanted[name].shape):
            held = " + ".join(f"{source} {list(tensors.shape(source))}" for source, _ in pieces)
            wrong.append(f"  {held}, but the config asks for {list(wanted[name].shape)} ({name})")
    if len(wrong) > _LONGEST_TABLE:
        wrong = [*wrong[: _LONGEST_TABLE - 1], f"  … and {len(wrong) - _LONGEST_TABLE + 1} more"]
    if wrong:
        raise CheckpointError(f"{tensors.files[0]}: tensors of other shapes than the config's:\n" + "\n".join(wrong) + "\n", fix=_OTHER)


def _new_tensors(config: ModelConfig, names: Sequence[str]) -> dict[str, Tensor]:
    """Fresh values for the parameters and buffers that no file holds; only the part that they belong to is built, if it is a head, a
    position or a norm."""
    made: dict[str, Tensor] = {}
    for head in config.heads:
        prefix = f"heads.{spec_name(head)}."
        if any(name.startswith(prefix) for name in names):
            made |= _tensors_of(switch.build("model.heads", head, config), prefix)
    for index, spec in enumerate(distinct(config.turns("position"))):
        if any(name.startswith(f"positions.{index}.") for name in names):
            made |= _tensors_of(switch.build("positions", spec, config), f"positions.{index}.")
    for place in sorted({match[0] for name in names if (match := _NORM.match(name))}):
        size = config.embedding if place.startswith("embedding.") else config.width if ".attention." in place else config.hidden_size
        made |= _tensors_of(switch.build("norms", config.norm, size), place)
    if any(name not in made for name in names):
        made |= _tensors_of(Transformer(config), "")
    return made


def _tensors_of(part: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Parameters and buffers by name, those that a state_dict leaves out, too."""
    pairs = chain(part.named_parameters(remove_duplicate=False), part.named_buffers(remove_duplicate=False))
    return {prefix + name: value.detach() for name, value in pairs}


def _refuse_giant(config: ModelConfig, tensors: Tensors) -> None:
    """What would take long even on meta, or overflow there, before anything is built."""
    layers, inner = config.layers, config.encoder
    if inner is not None:
        layers += inner.layers
        if inner.encoder is not None:
            raise ConfigError("an encoder within an encoder.", fix="Give the encoder of a decoder none of its own.")
    if layers > len(tensors):
        raise ConfigError(f"layers is {layers}, but {tensors.files[0]} holds {len(tensors)} tensors.", fix=_OTHER)
    for one in (config, inner or config):
        if one.max_positions * one.embedding > 2**60:             # bytes of such a table have no number
            raise ConfigError(f"max_positions is {one.max_positions}, of {one.embedding} units each.", fix=_OTHER)
    _refuse_larger(config.parameters, tensors)


def _refuse_larger(count: int, tensors: Tensors) -> None:
    held = sum(_count(tensors.shape(name)) for name in tensors)
    if count > 2 * held + 10**7:
        raise ConfigError(f"{tensors.files[0]}: holds {held:,} numbers, the config asks for about {count:,}.", fix=_OTHER)


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _named(path: Path, error: FishpawError) -> FishpawError:
    """The same error with the file in front, and no value longer than a line or two."""
    return type(error)(f"{path}: {error.what if len(error.what) <= 400 else error.what[:400] + ' …'}", fix=error.fix[:1000])


def _few(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(list(names)[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
