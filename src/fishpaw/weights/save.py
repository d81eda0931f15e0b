"""Save a model as a folder that opens here and, wherever transformers has the architecture, there: config.json, model.safetensors, the
tokenizer's files and manifest.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from fishpaw.config import ModelConfig
from fishpaw.files import folder_atomic
from fishpaw.model.transformer import Transformer
from fishpaw.weights.formats import write_safetensors
from fishpaw.weights.names import FAMILIES
from fishpaw.weights.translate import export_config, export_tensors

__all__ = ["Saveable", "export", "save"]


class Saveable(Protocol):
    """A tokenizer: it writes its own files."""

    def save(self, folder: Path) -> None:
        """Write the files into an existing folder."""


def save(model: Transformer, folder: str | Path, tokenizer: Saveable | None = None) -> None:
    """Write the model to `folder`, whole or not at all; an older model there is replaced at the end. The same model gives the same bytes.

    Tensors have transformers' names and shapes where transformers has the architecture; else config.json says model_type "fishpaw", so
    that transformers refuses the folder. "origin" in config.json is the hub id and the commit that the model was made from, if it was.
    Errors: ConfigError for parts that a config can't name; FishpawError where the disk is full or the folder not writable, and then the
    older model is untouched.
    """
    values, tensors = export(model.config, model.state_dict())
    if model.origin is not None:
        values["origin"] = model.origin
    with folder_atomic(folder) as new:
        (new / "config.json").write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8", newline="\n")
        write_safetensors(tensors, new / "model.safetensors")
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
