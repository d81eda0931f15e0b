"""Pack encoded texts, or pad them into one rectangle, and carry whatever a batch is made of to a device.

Whether anything was padded is known here for free; later it costs a synchronisation on a GPU. So `keep` is None if nothing was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeVar, cast

import numpy
import torch
from torch import Tensor

from fishpaw.contracts import Batch
from fishpaw.errors import DataError

__all__ = ["Encoded", "Padded", "move", "named_tensors", "pack", "pad"]

Anything = TypeVar("Anything")


class Encoded(Protocol):
    """What a tokenizer gives for a text: ids and segments of the same length."""

    @property
    def ids(self) -> Sequence[int]: ...
    @property
    def segments(self) -> Sequence[int]: ...


@dataclasses.dataclass(frozen=True)
class Padded:
    """ids, segments [b t] int64; keep [b t] bool, True where there is a token, None if all are; lengths: tokens a row, on the host."""

    ids: Tensor
    segments: Tensor
    keep: Tensor | None
    lengths: tuple[int, ...]


def pack(features: Sequence[Encoded], *, segments: bool) -> Batch:
    """Features one after another without padding; segments: whether the model reads them. `first` keeps the order given."""
    ids = [torch.tensor(feature.ids) for feature in features]
    return Batch.packed(ids, segments=[torch.tensor(feature.segments) for feature in features] if segments else None)


def pad(features: Sequence[Encoded], *, fill: int = 0, side: Literal["left", "right"] = "right") -> Padded:
    """Lay features of different lengths in one rectangle of the longest one's width.

    fill: the id of the padding token; segments are filled with 0. side: "right" for encoders, "left" for prompts to continue.
    Raises DataError if there is no feature, or one whose ids and segments differ in length.
    """
    if not features:
        raise DataError("A batch without a single text.", fix="Give at least one.")
    lengths = tuple(len(feature.ids) for feature in features)
    for row, feature in enumerate(features):
        if len(feature.segments) != lengths[row]:
            what = f"Row {row} of a batch: {lengths[row]} ids, but {len(feature.segments)} segments."
            raise DataError(what, fix="Give one segment an id.")
    width = max(1, *lengths)
    ids = numpy.full((len(features), width), fill, dtype=numpy.int64)                  # [b t]
    segments = numpy.zeros_like(ids)
    keep = numpy.zeros(ids.shape, dtype=numpy.bool_)
    for row, (feature, length) in enumerate(zip(features, lengths, strict=True)):
        at = slice(0, length) if side == "right" else slice(width - length, width)
        ids[row, at], segments[row, at], keep[row, at] = feature.ids, feature.segments, True
    dense = min(lengths) == width
    return Padded(torch.from_numpy(ids), torch.from_numpy(segments), None if dense else torch.from_numpy(keep), lengths)


def move(batch: Anything, device: torch.device) -> Anything:
    """The same batch with every tensor on `device`: tensors, lists, tuples, dicts and dataclasses of them; all else stays as it is."""
    if isinstance(batch, Tensor):
        return cast(Anything, batch.to(device))
    names, items = _parts(batch)
    if not names:
        return batch
    moved = [move(item, device) for item in items]
    if isinstance(batch, dict):
        return type(batch)(zip(batch, moved, strict=True))
    if dataclasses.is_dataclass(batch):
        return dataclasses.replace(batch, **dict(zip(names, moved, strict=True)))  # type: ignore[type-var]  # an instance, as was asked
    return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)  # type: ignore[call-arg]  # tuples and lists


def named_tensors(batch: object, *, name: str = "batch") -> dict[str, Tensor]:
    """All tensors that `move` would find, by where they stand: "batch.ids", "batch.labels.0"."""
    if isinstance(batch, Tensor):
        return {name: batch}
    found: dict[str, Tensor] = {}
    for part, item in zip(*_parts(batch), strict=True):
        found.update(named_tensors(item, name=f"{name}.{part}"))
    return found


def _parts(value: Any) -> tuple[list[str], list[Any]]:
    if isinstance(value, dict):
        return [str(name) for name in value], list(value.values())
    if isinstance(value, (list, tuple)):
        return list(getattr(value, "_fields", [str(i) for i in range(len(value))])), list(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.init]
        return names, [getattr(value, name) for name in names]
    return [], []
