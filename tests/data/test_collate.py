"""Padding: what was given stands where it should, and nothing but padding elsewhere; batches keep their shape on the way to a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch

from fishpaw.contracts import Batch
from fishpaw.data.collate import Padded, move, named_tensors, pack, pad
from fishpaw.errors import DataError


@dataclass
class Encoding:
    ids: list[int]
    segments: list[int]


ROWS = [Encoding([2, 7, 3], [0, 0, 1]), Encoding([], []), Encoding([5], [1])]


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_come_back_out_of_the_rectangle(side: str) -> None:
    batch = pad([*ROWS, ROWS[2]], fill=9, side=side)  # type: ignore[arg-type]
    assert batch.ids.shape == batch.segments.shape == (4, 3)
    assert batch.keep is not None
    assert [row[keep].tolist() for row, keep in zip(batch.ids, batch.keep, strict=True)] == [row.ids for row in (*ROWS, ROWS[2])]
    assert [row[keep].tolist() for row, keep in zip(batch.segments, batch.keep, strict=True)] == [[0, 0, 1], [], [1], [1]]
    assert set(batch.ids[~batch.keep].tolist()) == {9} and set(batch.segments[~batch.keep].tolist()) == {0}
    assert batch.keep[2].tolist() == [True, False, False][:: 1 if side == "right" else -1]
    assert batch.lengths == (3, 0, 1, 1)


def test_a_batch_without_padding_says_so() -> None:
    assert pad([ROWS[0], ROWS[0]]).keep is None
    assert pad([ROWS[1]]).keep is not None                               # one empty text: width 1, all of it padding


def test_no_text_and_unequal_segments_are_refused() -> None:
    with pytest.raises(DataError, match="without a single text"):
        pad([])
    with pytest.raises(DataError, match="Row 1 of a batch: 2 ids, but 1 segments"):
        pad([ROWS[0], Encoding([1, 2], [0])])


@pytest.mark.parametrize("segments", [False, True])
def test_packed_rows_come_back_and_move_as_they_are(segments: bool) -> None:
    rows = [ROWS[2], ROWS[0], ROWS[2]]
    batch = pack(rows, segments=segments)
    assert [one.tolist() for one in batch.unpack(batch.ids)] == [row.ids for row in rows] and len(batch.ids) == 5
    assert (batch.segments is not None) == segments
    if batch.segments is not None:
        assert [one.tolist() for one in batch.unpack(batch.segments)] == [row.segments for row in rows]
    there = move({"texts": batch}, torch.device("meta"))
    assert isinstance(there["texts"], Batch)
    assert {tensor.device.type for tensor in named_tensors(there).values()} == {"meta"}
    assert len(named_tensors(there)) == len(named_tensors(batch)) >= 3 + segments


class Pair(NamedTuple):
    padded: Padded
    rest: dict[str, list[torch.Tensor | str]]


def test_moving_keeps_the_shape_of_a_batch_and_every_tensor_has_a_name() -> None:
    batch = Pair(pad(ROWS), {"labels": [torch.ones(2), "text"]})
    there = move(batch, torch.device("meta"))
    assert isinstance(there, Pair) and isinstance(there.padded, Padded)
    assert there.padded.lengths == (3, 0, 1) and there.rest["labels"][1] == "text"
    names = named_tensors(there)
    assert list(names) == ["batch.padded.ids", "batch.padded.segments", "batch.padded.keep", "batch.rest.labels.0"]
    assert {tensor.device.type for tensor in names.values()} == {"meta"}
    assert {tensor.device.type for tensor in named_tensors(batch).values()} == {"cpu"}
