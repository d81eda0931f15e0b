"""TensorFlow V2 checkpoints (`.index` + `.data-00000-of-0000N`) read with numpy, without TensorFlow.

The index is a LevelDB table: blocks of prefix-compressed keys, each block with a CRC-32C. Its values are protocol buffers: where a
tensor lies in which data file, its type, shape and CRC-32C. Formats: github.com/google/leveldb doc/table_format.md,
tensorflow/core/protobuf/tensor_bundle.proto. Nothing in a file is trusted: sizes are compared with the files before any allocation.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fishpaw.errors import CheckpointError
from fishpaw.files import blobs, inside
from fishpaw.weights.crc32c import crc32c, masked

__all__ = ["FOOTER", "MAGIC", "TYPES", "Bundle", "open_bundle"]

Bytes = NDArray[np.uint8]

TYPES = MappingProxyType({                                        # DataType of types.proto
    1: torch.float32, 2: torch.float64, 3: torch.int32, 4: torch.uint8, 5: torch.int16, 6: torch.int8,
    9: torch.int64, 10: torch.bool, 14: torch.bfloat16, 19: torch.float16,
})  # fmt: skip
MAGIC = 0xDB4775248B80FB57                                        # the last 8 bytes of a LevelDB table, little-endian
FOOTER = 48                                                       # bytes


def open_bundle(path: str | Path, *, checksums: bool = True) -> Bundle:
    """Open a checkpoint by its prefix (`bert_model.ckpt`) or by one of its files.

    Reads the index; tensors are read when asked for. `checksums=False` reads a file whose checksums are known to be wrong.
    Raises CheckpointError for anything that is not a whole little-endian bundle, with the file and what to do; and for files that are
    links out of their folder (but for those of a hub snapshot, see files.inside).
    """
    prefix = str(path)
    if prefix.endswith(".index"):
        prefix = prefix[: -len(".index")]
    elif ".data-" in Path(prefix).name:
        prefix = prefix[: prefix.rindex(".data-")]
    index = _beside(prefix, ".index")
    try:
        return _opened(prefix, index, checksums)
    except _Damage as damage:
        raise CheckpointError(f"{index}: {damage}.", fix=damage.fix) from None


class Bundle(Mapping[str, Tensor]):
    """Name -> tensor, in the order of the names. A tensor is read, checked and copied each time it is asked for.

    Tensors of strings, types without a counterpart, damaged or missing data raise CheckpointError that names the tensor.
    """

    def __init__(self, prefix: str, entries: Mapping[str, Entry], slices: Mapping[bytes, Entry], shards: int, checksums: bool) -> None:
        self._prefix, self._entries, self._slices, self._shards, self._checksums = prefix, entries, slices, shards, checksums
        self._maps: dict[int, tuple[Path, Bytes]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, name: str) -> Tensor:
        entry = self._entries[name]
        try:
            return self._partitioned(name, entry) if entry.extents else self._read(entry)
        except _Damage as damage:
            raise CheckpointError(f"{damage.where or self._prefix}: tensor {name!r}: {damage}.", fix=damage.fix) from None

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return self._entries[name].shape

    def _read(self, entry: Entry) -> Tensor:
        dtype = _dtype(entry)
        size = _bytes(entry.shape, dtype)
        if entry.shard not in self._maps:
            where = self._shard(entry.shard)
            self._maps[entry.shard] = where, _mapped(where)
        where, data = self._maps[entry.shard]
        if entry.size != size:
            raise _Damage(f"{entry.size:,} bytes for shape {list(entry.shape)} of {dtype}, which needs {size:,}", where=where)
        if entry.offset < 0 or entry.offset > len(data) - size:
            raise _Damage(f"bytes {entry.offset:,} to {entry.offset + size:,} of a file of {len(data):,}: truncated", where=where)
        values = np.array(data[entry.offset : entry.offset + size])              # a copy: aligned, writable, ours
        if self._checksums and masked(crc32c(values)) != entry.checksum:
            raise _Damage("its bytes do not fit their checksum (CRC-32C)", where=where)
        if dtype == torch.bool:
            values = values.astype(np.bool_).view(np.uint8)                       # any other byte is no valid bool
        if not size:
            return torch.empty(entry.shape, dtype=dtype)
        return torch.from_numpy(values).view(dtype).reshape(entry.shape)

    def _partitioned(self, name: str, entry: Entry) -> Tensor:
        """Join the slices that a partitioned variable was saved in: along one axis, without a gap."""
        _dtype(entry)
        spans = [_span(extent, entry.shape) for extent in entry.extents]
        axes = {axis for span in spans for axis, (_, length) in enumerate(span) if length != entry.shape[axis]} or {0}
        if len(axes) > 1:
            raise _Damage("is partitioned along more than one axis", _CONVERT)
        axis = axes.pop()
        pieces, end = [], 0
        for extent, span in sorted(zip(entry.extents, spans, strict=True), key=lambda pair: pair[1][axis]):
            piece = self._slices.get(_slice_key(name, extent))
            shape = tuple(length for _, length in span)
            if piece is None or piece.extents or piece.kind != entry.kind or piece.shape != shape or span[axis][0] != end:
                raise _Damage(f"its slice that begins at {span[axis][0]:,} is missing or overlaps another")
            pieces.append(self._read(piece))
            end += shape[axis]
        if end != entry.shape[axis]:
            raise _Damage(f"its slices end at {end:,} of {entry.shape[axis]:,}")
        return torch.cat(pieces, dim=axis)

    def _shard(self, number: int) -> Path:
        if not 0 <= number < self._shards:
            raise _Damage(f"lies in data file {number} of {self._shards}")
        return _beside(self._prefix, f".data-{number:05d}-of-{self._shards:05d}")


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies: BundleEntryProto. `extents`: the slices of a partitioned variable, each ((start, length | -1), …)."""

    kind: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    extents: tuple[tuple[tuple[int, int], ...], ...]


_AGAIN = "Copy or download the checkpoint again (all of its files)."
_CONVERT = (
    "Convert it where TensorFlow is installed: read it with tf.train.load_checkpoint and save the tensors as .npz or .safetensors, "
    "or save it again on a little-endian machine without strings or compression."
)
_NAMES = MappingProxyType({7: "string", 8: "complex64", 11: "qint8", 18: "complex128", 20: "resource", 21: "variant"})
_LARGEST_INDEX = 2**28                                            # bytes; the index of a model of 10^5 tensors has 10^7
_LARGEST_NAMES = 2**26                                            # bytes of all names: prefixes could repeat without end
_GRAPH = b"_CHECKPOINTABLE_OBJECT_GRAPH"                          # a description of Python objects, no tensor of the model


class _Damage(Exception):
    """What is wrong with a file or a tensor; the public functions add which."""

    def __init__(self, what: str, fix: str = _AGAIN, *, where: Path | None = None) -> None:
        super().__init__(what)
        self.fix, self.where = fix, where


def _opened(prefix: str, index: Path, checksums: bool) -> Bundle:
    content = _index_bytes(index)
    rows = _table(content, checksums)
    header = next(rows, None)
    if header is None or header[0] != b"":
        raise _Damage("has no header of a TensorFlow bundle")
    shards = _header(header[1])
    entries: dict[str, Entry] = {}
    slices: dict[bytes, Entry] = {}
    for key, value in rows:
        if key.startswith(b"\0"):
            slices[key] = _entry(value)
        elif key != _GRAPH:
            try:
                entries[key.decode("utf-8")] = _entry(value)
            except UnicodeDecodeError:
                raise _Damage(f"the name {key[:80]!r} is not UTF-8") from None
    _refuse_overlaps([*entries.values(), *slices.values()])
    return Bundle(prefix, entries, slices, shards, checksums)


def _beside(prefix: str, ending: str) -> Path:
    """A file of the bundle, after making sure that it is no link that leads out of the folder."""
    path = Path(prefix + ending)
    return inside(path.parent, path.name, also=blobs(path.parent))


def _index_bytes(index: Path) -> bytes:
    try:
        found = index.stat()
        if found.st_size > _LARGEST_INDEX:
            raise _Damage(f"{found.st_size:,} bytes are too many for the index of a bundle")
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):                  # to open a pipe is to wait for its writer
            raise _Damage("is no regular file (a pipe or a device)")
        content = index.read_bytes()
    except OSError as error:
        raise _Damage(f"can't be read ({error.strerror})") from error
    if len(content) < FOOTER:
        raise _Damage(f"{len(content):,} bytes, but the footer alone has {FOOTER}: empty or truncated")
    if int.from_bytes(content[-8:], "little") != MAGIC:
        raise _Damage("is no index of a TensorFlow V2 checkpoint, or truncated (its last 8 bytes are not the magic number)")
    return content


def _mapped(shard: Path) -> Bytes:
    try:
        found = shard.stat()
        if not stat.S_ISREG(found.st_mode):
            raise _Damage("the data file is no regular file", where=shard)
        return np.memmap(shard, np.uint8, "r") if found.st_size else np.zeros(0, np.uint8)           # an empty one can't be mapped
    except OSError as error:
        raise _Damage(f"the data file can't be read ({error.strerror})", where=shard) from error


def _table(content: bytes, checksums: bool) -> Iterator[tuple[bytes, bytes]]:
    """All (key, value) of a LevelDB table, keys strictly increasing."""
    at = len(content) - FOOTER
    for _ in range(2):                                            # the block of the metadata, unused, then that of the blocks
        offset, at = _varint(content, at)
        size, at = _varint(content, at)
    last, total = None, 0
    for _, handle in _block(content, offset, size, checksums):
        start, after = _varint(handle, 0)
        length, _ = _varint(handle, after)
        for key, value in _block(content, start, length, checksums):
            total += len(key)
            if (last is not None and key <= last) or total > _LARGEST_NAMES:
                raise _Damage("the names in the index are out of order or too long")
            last = key
            yield key, value


def _block(content: bytes, offset: int, size: int, checksums: bool) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of one block: each key is given by the length it shares with the one before, and the rest."""
    end = offset + size
    if end + 5 > len(content) - FOOTER:
        raise _Damage(f"a block at bytes {offset:,} to {end:,} lies outside of the file ({len(content):,} bytes): truncated")
    if checksums and int.from_bytes(content[end + 1 : end + 5], "little") != masked(crc32c(content[offset : end + 1])):
        raise _Damage(f"the block at byte {offset:,} does not fit its checksum (CRC-32C)")
    if content[end]:
        raise _Damage("is compressed, which is not supported", _CONVERT)
    block = content[offset:end]
    restarts = int.from_bytes(block[-4:], "little")
    stop = len(block) - 4 - 4 * restarts
    if len(block) < 4 or stop < 0:
        raise _Damage(f"the block at byte {offset:,} is damaged")
    at, key = 0, b""
    while at < stop:
        shared, at = _varint(block, at)
        added, at = _varint(block, at)
        length, at = _varint(block, at)
        if shared > len(key) or at + added + length > stop:
            raise _Damage(f"the block at byte {offset:,} is damaged")
        key = key[:shared] + block[at : at + added]
        yield key, block[at + added : at + added + length]
        at += added + length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _Damage("a number in the index is damaged")


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field, value) of a protocol buffer: numbers as signed 64-bit integers, the rest as bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind, size = tag & 7, 0
        if kind == 0:
            value, at = _varint(message, at)
            value &= 2**64 - 1
            yield tag >> 3, value - 2**64 if value >> 63 else value
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        if kind not in (1, 2, 5) or size > len(message) - at:
            raise _Damage("an entry of the index is damaged")
        part = message[at : at + size]
        at += size
        yield tag >> 3, part if kind == 2 else int.from_bytes(part, "little")


def _number(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise _Damage("an entry of the index is damaged")
    return value


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise _Damage("an entry of the index is damaged")
    return value


def _header(message: bytes) -> int:
    """BundleHeaderProto -> number of data files."""
    shards = 0
    for field, value in _fields(message):
        if field == 1:
            shards = _number(value)
        elif field == 2 and _number(value) != 0:
            raise _Damage("was written on a big-endian machine, which is not supported", _CONVERT)
    if not 0 < shards <= 99_999:
        raise _Damage(f"says that it has {shards:,} data files")
    return shards


def _entry(message: bytes) -> Entry:
    shape: tuple[int, ...] = ()
    numbers = dict.fromkeys(range(1, 7), 0)
    extents = []
    for field, value in _fields(message):
        if field == 2:
            shape = tuple(_dimension(_message(part)) for number, part in _fields(_message(value)) if number == 2)
        elif field == 7:
            extents.append(tuple(_extent(_message(part)) for number, part in _fields(_message(value)) if number == 1))
        elif field in numbers:
            numbers[field] = _number(value)
    return Entry(numbers[1], shape, numbers[3], numbers[4], numbers[5], numbers[6], tuple(extents))


def _dimension(message: bytes) -> int:
    return next((_number(value) for field, value in _fields(message) if field == 1), 0)


def _extent(message: bytes) -> tuple[int, int]:
    values = dict(_fields(message))
    return _number(values.get(1, 0)), _number(values.get(2, -1))


def _dtype(entry: Entry) -> torch.dtype:
    if entry.kind not in TYPES:
        raise _Damage(f"is of type {_NAMES.get(entry.kind, entry.kind)}, which is not supported", _CONVERT)
    return TYPES[entry.kind]


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """The size of a tensor; Python's integers do not overflow, torch's strides would."""
    if len(shape) > 32 or any(length < 0 for length in shape) or math.prod(max(1, length) for length in shape) > 2**48:
        raise _Damage(f"has the shape {list(shape[:33])}, which no tensor can have")
    return math.prod(shape) * dtype.itemsize


def _span(extent: tuple[tuple[int, int], ...], shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """The slice as (start, length) on each axis, -1 resolved to the whole axis."""
    if not shape or len(extent) != len(shape):
        raise _Damage("a slice has another number of axes than the tensor")
    return tuple((0, whole) if length == -1 else (start, length) for (start, length), whole in zip(extent, shape, strict=True))


def _slice_key(name: str, extent: tuple[tuple[int, int], ...]) -> bytes:
    """The key of a slice in TensorFlow's OrderedCode: 0, the name, the number of axes, then start and length of each."""
    escaped = name.encode("utf-8").replace(b"\xff", b"\xff\x00").replace(b"\0", b"\0\xff")
    numbers = b"".join(_signed(number) for pair in extent for number in pair)
    return b"\0" + escaped + b"\0\1" + bytes([1, len(extent)]) + numbers


def _signed(number: int) -> bytes:
    """A signed number whose bytes sort as it does: a run of ones says the length, zeros and ones swap for negative numbers."""
    length = (~number if number < 0 else number).bit_length() // 7 + 1
    if length > 8:
        raise _Damage("a slice begins or ends beyond any tensor")
    code = number & ((1 << 8 * length) - 1)
    return (code ^ (((1 << length) - 1) << 7 * length)).to_bytes(length, "big")


def _refuse_overlaps(entries: list[Entry]) -> None:
    """Two tensors never share bytes; a hostile index could point a million names at the same gigabyte."""
    ends: dict[int, int] = {}
    for entry in sorted((entry for entry in entries if entry.size and not entry.extents), key=lambda entry: (entry.shard, entry.offset)):
        if entry.offset < ends.get(entry.shard, 0) or entry.size < 0:
            raise _Damage(f"tensors overlap, or begin before the file, at byte {entry.offset:,} of data file {entry.shard}")
        ends[entry.shard] = entry.offset + entry.size
