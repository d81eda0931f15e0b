"""Lines on the disk between reading and writing, in buckets by ranges of their keys: each bucket is small enough to be sorted in memory.

A bucket is two files that are only ever appended to and held open by nobody: its lines, and a record with key and length for each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy
from numpy.typing import NDArray

from fishpaw.data.shuffle_files import Batch, Place
from fishpaw.data.shuffle_lines import BLOCK, Bits, Bytes, Numbers, arranged, rank
from fishpaw.errors import DataError

__all__ = ["PER_LINE", "RECORD", "Behind", "Bucket", "Loaded", "ahead", "divide", "load", "remove", "reread", "restore",
           "scatter"]

PER_LINE = 56
"""Bytes of memory a line beside its own, while a bucket is sorted or a batch is spread: keys, places, lengths, order."""

RECORD = numpy.dtype([("key", "<u8"), ("length", "<u4")])

_Item = TypeVar("_Item")


@dataclass
class Bucket:
    """The lines whose keys are from `low` up to, not including, `high`; how many there are, and their bytes."""

    low: int
    high: int
    lines: int = 0
    bytes: int = 0

    @property
    def name(self) -> str:
        return f"{self.low:016x}-{self.high - 1:016x}"

    @property
    def memory(self) -> int:
        """What it takes to sort it."""
        return self.bytes + PER_LINE * self.lines


@dataclass(frozen=True, slots=True)
class Loaded:
    """A bucket in memory, and the order in which its lines go out."""

    source: Bytes
    starts: Numbers                                                  # [n]
    lengths: NDArray[numpy.uint32]                                   # [n]
    order: Numbers                                                   # [n]


class Behind:
    """Makes calls on a thread, one after another, and lends blocks: one is lent again when the call that reads it has ended."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._waiting: deque[Future[Any]] = deque()
        self._blocks = [numpy.empty(BLOCK, numpy.uint8) for _ in range(4)]

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def blocks(self) -> Iterator[Bytes]:
        """A block for each call that follows."""
        while True:
            for block in self._blocks:
                while len(self._waiting) >= len(self._blocks):
                    self._waiting.popleft().result()
                yield block

    def call(self, function: Callable[..., object], *given: object) -> None:
        """Once the calls before it have ended. What it raises, a later method of this object raises."""
        self._waiting.append(self._pool.submit(function, *given))

    def wait(self) -> None:
        """Until all calls have ended."""
        while self._waiting:
            self._waiting.popleft().result()


def ahead(items: Iterable[_Item]) -> Generator[_Item, None, None]:
    """The same items; while one is in use, a thread makes the next."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        coming: Future[Any] = pool.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, iterator, end)
            yield item


def divide(bucket: Bucket, count: int) -> list[Bucket]:
    """Empty buckets of equal ranges that make up this one."""
    span = bucket.high - bucket.low
    cuts = sorted({bucket.low + span * at // count for at in range(count + 1)})
    return [Bucket(low, high) for low, high in zip(cuts, cuts[1:], strict=False)]


def scatter(batch: Batch, buckets: Sequence[Bucket], folder: Path, behind: Behind) -> Bits:
    """Append the lines of a batch to the buckets they belong to, in their order; on return all is written. -> their fingerprint."""
    digest = numpy.zeros(2, numpy.uint64)
    bounds = numpy.array([bucket.low for bucket in buckets[1:]], numpy.uint64)
    which = numpy.searchsorted(bounds, batch.keys, side="right").astype(numpy.uint16)
    order = numpy.argsort(which, kind="stable")                      # by counting
    stops = numpy.cumsum(numpy.bincount(which, minlength=len(buckets)))
    records = numpy.empty(len(order), RECORD)
    records["key"], records["length"] = batch.keys[order], batch.lengths[order]
    lines = numpy.cumsum(batch.lengths) - batch.lengths
    for first, last, block in arranged(batch.source, lines, batch.lengths, order, behind.blocks(), total=digest):
        pieces, at, byte = [], first, 0
        for number in range(int(numpy.searchsorted(stops, first, side="right")), len(buckets)):
            stop = min(last, int(stops[number]))
            size = int(records["length"][at:stop].sum(dtype=numpy.int64))
            pieces.append((folder / f"{buckets[number].name}.lines", block[byte : byte + size]))
            buckets[number].bytes += size
            at, byte = stop, byte + size
            if stop == last:
                break
        behind.call(_append, pieces)
    starts = [0, *stops.tolist()]
    behind.call(_append, [(folder / f"{bucket.name}.records", records[start:stop].view(numpy.uint8))
                          for bucket, start, stop in zip(buckets, starts, stops.tolist(), strict=False)])  # fmt: skip
    behind.wait()
    for bucket, start, stop in zip(buckets, starts, stops.tolist(), strict=False):
        bucket.lines += stop - start
    return digest


def load(bucket: Bucket, folders: Sequence[Path], buffer: Bytes, *, seed: int) -> Loaded:
    """Read a bucket, whose lines lie in these folders, one after another, into `buffer`, and find the order of its lines."""
    records = numpy.concatenate([_records(folder, bucket) for folder in folders])
    at = 0
    for folder in folders:
        path = folder / f"{bucket.name}.lines"
        if path.exists():
            with open(path, "rb", buffering=0) as file:
                while count := file.readinto(buffer.data[at : bucket.bytes]):
                    at += count
    lengths = records["length"].astype(numpy.uint32)                 # a copy that lies closely
    order = rank(records["key"].astype(numpy.uint64), seed=seed)
    ends = numpy.cumsum(lengths, dtype=numpy.int64)
    if len(records) != bucket.lines or at != bucket.bytes or (ends[-1] if len(ends) else 0) != at:
        raise _changed(folders[0])
    ends -= lengths
    return Loaded(buffer[:at], ends, lengths, order)


def reread(bucket: Bucket, folder: Path, *, capacity: int, most: int) -> Iterator[Batch]:
    """A bucket that is too large to be loaded, in batches as a Reader gives them."""
    buffer, done = [numpy.empty(capacity, numpy.uint8) for _ in range(2)], 0
    with open(folder / f"{bucket.name}.lines", "rb") as lines, open(folder / f"{bucket.name}.records", "rb") as listed:
        while records := listed.read(most * RECORD.itemsize):
            some = numpy.frombuffer(records, RECORD)
            ends = numpy.cumsum(some["length"], dtype=numpy.int64)
            count = int(numpy.searchsorted(ends, capacity, side="right"))
            listed.seek((count - len(some)) * RECORD.itemsize, 1)
            size = int(ends[count - 1]) if count else -1
            if lines.readinto(buffer[0].data[: max(0, size)]) != size:
                raise _changed(folder)
            done += count
            yield Batch(buffer[0][:size], some["length"][:count].astype(numpy.int64), some["key"][:count].astype(numpy.uint64),
                        Place(lines=done))  # fmt: skip
            buffer.reverse()


def remove(bucket: Bucket, folder: Path) -> None:
    """Its files, if there are any."""
    for kind in ("lines", "records"):
        (folder / f"{bucket.name}.{kind}").unlink(missing_ok=True)


def restore(buckets: Iterable[Bucket], folder: Path) -> bool:
    """Cut files back to what their buckets say, and remove those of others. False where one is shorter: it can't be gone on from."""
    sizes = {}
    for bucket in buckets:
        sizes[f"{bucket.name}.lines"], sizes[f"{bucket.name}.records"] = bucket.bytes, bucket.lines * RECORD.itemsize
    there = {path.name: path for path in folder.iterdir()} if folder.is_dir() else {}
    if any(size and (name not in there or there[name].stat().st_size < size) for name, size in sizes.items()):
        return False
    for name, path in there.items():
        if sizes.get(name):
            with open(path, "r+b") as file:
                file.truncate(sizes[name])
        else:
            path.unlink()
    return True


def _append(pieces: Iterable[tuple[Path, NDArray[numpy.uint8]]]) -> None:
    for path, piece in pieces:
        if piece.size:
            with open(path, "ab", buffering=0) as file:
                view = piece.data
                while view:                                          # a disk that is nearly full takes a part
                    view = view[file.write(view) :]


def _records(folder: Path, bucket: Bucket) -> NDArray[numpy.void]:
    path = folder / f"{bucket.name}.records"
    found: NDArray[numpy.void] = numpy.fromfile(path, RECORD) if path.exists() else numpy.empty(0, RECORD)
    return found


def _changed(folder: Path) -> DataError:
    return DataError(f"{folder}: files there were changed meanwhile.", fix="Begin again (--restart).")
