"""Load a model: a name, a folder, a file or an old TensorFlow checkpoint -> a Transformer and its tokenizer."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fishpaw import hub
from fishpaw.config import ModelConfig, parse_object
from fishpaw.errors import CheckpointError, ConfigError
from fishpaw.files import MANIFEST, blobs, inside, recover, verify_manifest
from fishpaw.model.transformer import Transformer
from fishpaw.switch import Spec
from fishpaw.text.bpe import ByteLevel
from fishpaw.text.load import load_tokenizer
from fishpaw.text.wordpiece import WordPiece
from fishpaw.weights.formats import Tensors, find_nonfinite, read_folder, read_tensors
from fishpaw.weights.names import Family
from fishpaw.weights.translate import Part, heads_of, ignored, join, parts, read_config, recognise, renamed

__all__ = ["Report", "inspect", "load", "load_model", "load_tokenizer"]

_log = logging.getLogger("fishpaw")
_LARGEST_CONFIG = 2**22            # bytes
_NEW = ("heads.", "embedding.query")
_OTHER = "Is this config.json of this file?"


@dataclass(frozen=True)
class Report:
    """What was found. reason: how the family was recognised; new: tensors of ours that the file lacks and that start from random values;
    unused: tensors of the file that this model has no place for; nonfinite: tensors with a NaN or an infinity."""

    family: str
    reason: str
    config: ModelConfig
    folder: Path
    revision: str | None = None
    new: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    nonfinite: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())


def load(
    name: str | Path,
    *,
    revision: str | None = None,
    family: str | None = None,
    mask: Spec | None = None,
    position: Spec | None = None,
    attention: Spec | None = None,
    heads: Sequence[Spec] | None = None,
    residual_scores: bool | None = None,
    dropout: float | None = None,
    dtype: torch.dtype = torch.float32,
    verify: bool = True,
) -> tuple[Transformer, WordPiece | ByteLevel]:
    """A model and its tokenizer; the options are those of `load_model`."""
    model = load_model(
        name,
        revision=revision,
        family=family,
        mask=mask,
        position=position,
        attention=attention,
        heads=heads,
        residual_scores=residual_scores,
        dropout=dropout,
        dtype=dtype,
        verify=verify,
    )
    return model, load_tokenizer(hub.find(name, revision=revision).folder)


def load_model(
    name: str | Path,
    *,
    revision: str | None = None,
    family: str | None = None,
    mask: Spec | None = None,
    position: Spec | None = None,
    attention: Spec | None = None,
    heads: Sequence[Spec] | None = None,
    residual_scores: bool | None = None,
    dropout: float | None = None,
    dtype: torch.dtype = torch.float32,
    verify: bool = True,
) -> Transformer:
    """A Transformer in evaluation mode from a folder, a file, a TensorFlow bundle or a hub id (with `revision`).

    family: where neither config.json nor the names tell it. mask "causal" or "unilm": an encoder as a language model or seq2seq;
    position, attention, residual_scores, dropout: other switches. heads: which to build, default those that the checkpoint holds;
    one that it lacks starts from random values, and a log line says so. dtype: of the parameters. verify: compare a saved folder with
    its manifest. Errors: CheckpointError (damaged, unsafe, incomplete or of another model), ConfigError, HubError.
    """
    changes = {
        "mask": mask,
        "position": position,
        "attention": attention,
        "heads": None if heads is None else tuple(heads),
        "residual_scores": residual_scores,
        "dropout": dropout,
        "attention_dropout": dropout,
    }
    given = {key: value for key, value in changes.items() if value is not None}
    model, report = inspect(name, changes=given, revision=revision, family=family, dtype=dtype, verify=verify)
    for note in report.notes:
        _log.info(note)
    if report.new:
        _log.warning("%s: %d new tensors start from random values: %s", report.folder, len(report.new), _few(report.new))
    if report.unused:
        _log.info("%s: %d tensors are not used: %s", report.folder, len(report.unused), _few(report.unused))
    if report.nonfinite:
        warnings.warn(f"{report.folder}: NaN or infinite values in {_few(report.nonfinite)}", stacklevel=2)
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
    """`load_model`, with any field of ModelConfig to change, and a report of what was found."""
    found = hub.find(name, revision=revision)
    folder = found.folder
    recover(folder)
    if verify and (folder / MANIFEST).exists():
        verify_manifest(folder)
    values = _read_values(folder)
    notes = [] if found.note is None else [found.note]
    if "auto_map" in values:
        notes.append(f"{folder}: config.json names code (auto_map), which is never run.")
    tensors = read_folder(folder) if found.file is None else read_tensors(found.file)
    if values.get("model_type") == "fishpaw":
        config = ModelConfig.from_dict(values.get("fishpaw") or {})
        table: Family | None = None
        reason = "config.json says model_type 'fishpaw'"
        known = {tensor: (tensor, False) for tensor in tensors}
    else:
        table, reason = recognise(values, list(tensors), family=family)
        known = renamed(list(tensors), table)
        config = read_config(values, table)
        held = heads_of(values, set(known), table)
        own = values.get("fishpaw") or {}
        config = ModelConfig.from_dict({**config.change({"heads": held}).to_dict(), **own})
    _log.info("%s: a %s model, because %s", folder, config.family, reason)
    config = config.change(dict(changes or {}))
    model, new, unused = _filled(config, table, tensors, known, dtype)
    nonfinite = tuple(find_nonfinite(dict(model.named_parameters())))
    return model, Report(config.family, reason, config, folder, found.revision, new, unused, nonfinite, tuple(notes))


def _read_values(folder: Path) -> dict[str, Any]:
    """config.json, or Google's bert_config.json."""
    for name in ("config.json", "bert_config.json"):
        path = inside(folder, name, also=blobs(folder))
        if not path.is_file():
            continue
        if path.stat().st_size > _LARGEST_CONFIG:
            raise ConfigError(f"{path}: {path.stat().st_size:,} bytes.", fix="That is no configuration of a model.")
        try:
            return parse_object(path.read_text(encoding="utf-8-sig"), str(path))
        except UnicodeDecodeError:
            raise ConfigError(f"{path}: not UTF-8.", fix="Save it as UTF-8.") from None
    raise CheckpointError(f"{folder}: holds no config.json or bert_config.json.", fix="Copy the model's configuration into it.")


def _filled(
    config: ModelConfig, family: Family | None, tensors: Tensors, known: Mapping[str, tuple[str, bool]], dtype: torch.dtype
) -> tuple[Transformer, tuple[str, ...], tuple[str, ...]]:
    """Build without memory, then hand each tensor over: nothing is initialised to be overwritten."""
    _refuse_giant(config, tensors)
    with torch.device("meta"):
        model = Transformer(config)
    wanted = model.state_dict()
    rows = dict(parts(family, config.layers)) if family else {name: [Part((name,), False)] for name in wanted}
    taken: dict[str, Tensor] = {}
    wrong: list[str] = []
    used: set[str] = set()
    for name, empty in wanted.items():
        several = rows.get(name, [])
        value = join(tensors, known, several, dtype) if several else None
        if value is None:
            continue
        used.update(alias for part in several for alias in part.names)
        if value.shape != empty.shape:
            wrong.append(f"  {name}: the file has {list(value.shape)}, the config asks for {list(empty.shape)}")
        taken[name] = value
    if wrong:
        shown = "\n".join(wrong[:20]) + (f"\n  … and {len(wrong) - 20} more" if len(wrong) > 20 else "")
        raise CheckpointError(f"{tensors.files[0]}: {len(wrong)} tensors have other shapes:\n{shown}\n", fix=_OTHER)
    missing = [name for name in wanted if name not in taken]
    lost = [name for name in missing if not name.startswith(_NEW) and (family is None or name in rows)]
    if lost:
        raise CheckpointError(f"{tensors.files[0]}: lacks {len(lost)} tensors: {_few(lost)}.", fix=_OTHER)
    unused = [name for name in known if name not in used and not (family and ignored(name, family))]
    strange = unused if family is None else [] if _switched_off(config, family) else _backbone(unused, family)
    if strange:
        raise CheckpointError(
            f"{tensors.files[0]}: holds {len(strange)} tensors that this config has no place for: {_few(strange)}.", fix=_OTHER
        )
    if missing:
        fresh = Transformer(config).to(dtype).state_dict()
        taken.update({name: fresh[name] for name in missing})
    model.load_state_dict(taken, assign=True)
    return model.eval(), tuple(missing), tuple(unused)


def _backbone(names: Sequence[str], family: Family) -> list[str]:
    return [name for name in names if name.startswith(family.prefix) and not name.startswith(f"{family.prefix}pooler.")]


def _switched_off(config: ModelConfig, family: Family) -> bool:
    """Whether a switch was turned that leaves tensors of the family without a place, such as another position."""
    return any(getattr(config, name) != value for name, value in family.fixed.items() if name not in ("mask",))


def _refuse_giant(config: ModelConfig, tensors: Tensors) -> None:
    held = sum(_count(tensors.shape(name)) for name in tensors)
    if config.parameters > 2 * held + 10**7:
        raise ConfigError(f"{tensors.files[0]}: holds {held:,} numbers, the config asks for about {config.parameters:,}.", fix=_OTHER)


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _few(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(list(names)[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
