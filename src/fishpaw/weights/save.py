"""Save a model as a folder that opens here and, wherever transformers has the architecture, there: config.json, model.safetensors (or its
shards and their index), the tokenizer's files and manifest.json."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from fishpaw import checks
from fishpaw.config import ModelConfig
from fishpaw.errors import ConfigError
from fishpaw.files import folder_atomic
from fishpaw.model.transformer import Transformer
from fishpaw.weights.formats import write_safetensors
from fishpaw.weights.generation import write_generation
from fishpaw.weights.names import FAMILIES
from fishpaw.weights.translate import export_config, export_tensors, spelled_rows, unlike

__all__ = ["Saveable", "check", "described", "export", "reasons", "save"]

_log = logging.getLogger("fishpaw")


class Saveable(Protocol):
    """A tokenizer: it writes its own files. One with a `size` may have no more tokens than the model has rows."""

    def save(self, folder: Path) -> None:
        """Write the files into an existing folder."""


def save(
    model: Transformer,
    folder: str | Path,
    tokenizer: Saveable | None = None,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int | None = None,
) -> None:
    """Write the model to `folder`, whole or not at all; an older model there is replaced at the end. The same model gives the same bytes.

    dtype: of the tensors in the files, torch.float16 for half the size; None: as they are. shard_bytes: at most so many bytes of tensors a
    file; None: one file. A tensor that is larger stands alone.
    Tensors have transformers' names and shapes where transformers has the architecture; else config.json says model_type "fishpaw", so
    that transformers refuses the folder, and a warning in the log names the reason. "origin" in config.json is the hub id and the commit
    that the model was made from, if it was; generation_config.json has the ids of `model.generation`, if it has any and decodes.
    Errors: ConfigError for parts that a config can't name and for a tokenizer with more tokens than the model has rows; FishpawError where
    the disk is full or the folder not writable, and then the older model is untouched.
    """
    check(model, folder, tokenizer)
    checks.whole("shard_bytes", shard_bytes, least=1, most=1 << 62, optional=True)
    values, tensors = export(model.config, model.state_dict())
    if values["model_type"] == "fishpaw":
        what = "%s: saved as model_type 'fishpaw', which transformers can't open. It has no counterpart of %s."
        _log.warning(what, folder, "; ".join(reasons(model.config, model.state_dict())))
    files = described(model, values, "config.json")
    with folder_atomic(folder) as new:
        for name, text in files.items():
            (new / name).write_text(text, encoding="utf-8", newline="\n")
        _write(tensors, new, dtype, shard_bytes)
        if tokenizer is not None:
            tokenizer.save(new)


def export(config: ModelConfig, state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json's values and the tensors to write, in the layout of the model's family or, where it has none, in our own."""
    family = FAMILIES.get(config.family)
    values = export_config(config, family) if family else None
    tensors = export_tensors(state, config, family) if family and values else None
    if values is None or tensors is None:
        return {"model_type": "fishpaw", "fishpaw": config.to_dict()}, dict(state)
    return values, tensors


def check(model: Transformer, folder: str | Path, tokenizer: Saveable | None) -> None:
    """Refuse what isn't to be saved before anything is written: ConfigError for arguments of other kinds, or in another order, and for a
    tokenizer with more tokens than the model has rows; far fewer are named in the log."""
    if not isinstance(model, Transformer):
        raise ConfigError(f"The model to save is a {type(model).__name__}.", fix="Give save(model, folder, tokenizer), in this order.")
    if not isinstance(folder, str | os.PathLike):
        raise ConfigError(f"The folder to save in is a {type(folder).__name__}.", fix="Give save(model, folder, tokenizer), in this order.")
    if tokenizer is not None and not callable(getattr(tokenizer, "save", None)):
        raise ConfigError(f"The tokenizer to save is a {type(tokenizer).__name__}.", fix="Give one of fishpaw's: it has `save`.")
    size, rows = getattr(tokenizer, "size", None), model.config.vocab_size
    if size is None:
        return
    if size > rows:
        what = f"{folder}: the tokenizer has {size:,} tokens, but the model only {rows:,}; nothing is written."
        raise ConfigError(what, fix="Give the tokenizer of this very model, or add_rows to the model first.")
    if size < 0.9 * rows:
        _log.warning("%s: the tokenizer has %d tokens, the model %d: is it of another model?", folder, size, rows)


def described(model: Transformer, values: Mapping[str, Any], name: str) -> dict[str, str]:
    """The text files that describe a model: the configuration by its `name`, and generation_config.json where there is something to say."""
    said = {**values, **({} if model.origin is None else {"origin": model.origin})}
    generation = write_generation(model, said)
    files = {name: said} if generation is None else {name: said, "generation_config.json": generation}
    return {file: json.dumps(content, ensure_ascii=False, indent=2) + "\n" for file, content in files.items()}


def reasons(config: ModelConfig, state: Mapping[str, Tensor]) -> list[str]:
    """Why a model has no layout but our own: fields of its configuration with their values, heads, tensors."""
    family = FAMILIES.get(config.family)
    if family is None:
        return [f"family={config.family!r}"]
    rows = spelled_rows(family, config)
    lone = [name for name in state if name not in rows]
    return unlike(config, family) or [f"the tensor {name}" for name in lone[:1]]


def _write(tensors: Mapping[str, Tensor], folder: Path, dtype: torch.dtype | None, shard_bytes: int | None) -> None:
    kept = {name: one.to(dtype) if dtype is not None and one.is_floating_point() else one for name, one in tensors.items()}
    shards: list[dict[str, Tensor]] = []
    left = 0
    for name, tensor in sorted(kept.items()):
        size = tensor.numel() * tensor.dtype.itemsize
        if not shards or (shard_bytes is not None and size > left):
            shards.append({})
            left = shard_bytes or 0
        shards[-1][name] = tensor
        left -= size
    if len(shards) <= 1:
        write_safetensors(kept, folder / "model.safetensors")
        return
    files = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        write_safetensors(shard, folder / file)
    total = sum(tensor.numel() * tensor.dtype.itemsize for tensor in kept.values())
    places = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
