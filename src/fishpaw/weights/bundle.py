"""Write a TensorFlow V2 checkpoint (`.index` + `.data-00000-of-00001` + `checkpoint`) without TensorFlow, byte for byte as it does.

The index is a LevelDB table whose values are protocol buffers; weights/tensorflow.py reads it and names the sources of the format.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fishpaw.errors import CheckpointError
from fishpaw.files import file_atomic, write_atomic
from fishpaw.weights.crc32c import crc32c, masked
from fishpaw.weights.tensorflow import FOOTER, MAGIC, TYPES

__all__ = ["write_bundle"]


def write_bundle(prefix: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write `prefix.index`, `prefix.data-00000-of-00001` and, beside them, the file `checkpoint` that names the newest prefix.

    Each file is whole or as it was; the index comes after the data, so that a process killed between the two leaves an index whose
    checksums tell. The data lie in the order of the mapping; one tensor is read at a time.
    Raises CheckpointError for a name or a type that TensorFlow can't hold, and then the old files are as they were; FishpawError where the
    disk is full.
    """
    keys = {name: _key(name) for name in tensors}
    rows = [(b"", _HEADER)]
    with file_atomic(f"{prefix}.data-00000-of-00001") as file:
        offset = 0
        for name, key in keys.items():
            tensor = tensors[name].detach()
            values = _bytes(name, tensor)
            file.write(values)
            rows.append((key, _entry(tensor, offset, values)))
            offset += len(values)
    write_atomic(f"{prefix}.index", _table(sorted(rows)))
    latest = _quoted(Path(prefix).name)
    text = f"model_checkpoint_path: {latest}\nall_model_checkpoint_paths: {latest}\n"
    write_atomic(os.path.join(os.path.dirname(prefix), "checkpoint"), text)


_NUMBERS = {dtype: number for number, dtype in TYPES.items()}
_HEADER = b"\x08\x01\x1a\x02\x08\x01"                              # BundleHeaderProto: 1 data file, little-endian, version 1
_FULL = 2**18                                                     # bytes, from which on a block takes no more rows
_RESTART = 16                                                     # keys, of which the first is given whole


def _key(name: str) -> bytes:
    """The key of a tensor. An empty one is the header's, and those that begin with a zero are of slices."""
    key = name.encode("utf-8", "replace")
    if not name or name.startswith("\0") or key.decode("utf-8") != name:
        raise CheckpointError(f"A tensor is named {name!r}, which a TensorFlow checkpoint can't hold.", fix="Rename it.")
    return key


def _bytes(name: str, tensor: Tensor) -> memoryview:
    if tensor.dtype not in _NUMBERS or tensor.layout != torch.strided or tensor.is_meta:
        what = "on meta" if tensor.is_meta else f"{tensor.dtype}, {tensor.layout}"
        raise CheckpointError(f"Tensor {name!r} is {what}, which is not written to TensorFlow.", fix="Convert it to torch.float32.")
    dense = tensor.cpu().contiguous()
    flat = dense.as_strided((dense.numel(),), (1,))               # reshape keeps the stride 0 that one number may have
    return flat.view(torch.uint8).numpy().data


def _entry(tensor: Tensor, offset: int, values: memoryview) -> bytes:
    """BundleEntryProto; numbers that are zero are left out, as protocol buffers do."""
    shape = b"".join(_field(2, _number(1, length)) for length in tensor.shape)
    checksum = b"\x35" + struct.pack("<I", masked(crc32c(values)))
    return _number(1, _NUMBERS[tensor.dtype]) + _field(2, shape) + _number(4, offset) + _number(5, len(values)) + checksum


def _number(field: int, value: int) -> bytes:
    return bytes([field << 3]) + _varint(value) if value else b""


def _field(field: int, message: bytes) -> bytes:
    return bytes([field << 3 | 2]) + _varint(len(message)) + message


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


def _table(rows: list[tuple[bytes, bytes]]) -> bytes:
    """A LevelDB table: the blocks, an empty one of metadata, the one that says where the blocks are, and the footer."""
    content = bytearray()
    blocks = [_Block(_RESTART)]
    for key, value in rows:
        if blocks[-1].size >= _FULL:
            blocks.append(_Block(_RESTART))
        blocks[-1].add(key, value)
    places = _Block(1)
    for block, after in zip(blocks, [*blocks[1:], None], strict=True):
        places.add(_between(block.last, after.first if after else None), _append(content, block))
    footer = _append(content, _Block(1)) + _append(content, places)
    return bytes(content) + footer.ljust(FOOTER - 8, b"\0") + MAGIC.to_bytes(8, "little")


class _Block:
    """Rows in the order of their keys: each key is given by the length it shares with the one before and the rest, some whole."""

    def __init__(self, restart: int) -> None:
        self._restart, self._rows, self._content, self._restarts = restart, 0, bytearray(), [0]
        self.first, self.last = b"", b""

    def add(self, key: bytes, value: bytes) -> None:
        shared = len(os.path.commonprefix([self.last, key]))
        if self._rows % self._restart == 0:
            shared = 0
            self._restarts += [len(self._content)] if self._rows else []
        self._content += _varint(shared) + _varint(len(key) - shared) + _varint(len(value)) + key[shared:] + value
        self.first, self.last = self.first if self._rows else key, key
        self._rows += 1

    @property
    def size(self) -> int:
        return len(self._content) + 4 * (len(self._restarts) + 1)

    def __bytes__(self) -> bytes:
        return bytes(self._content) + struct.pack(f"<{len(self._restarts) + 1}I", *self._restarts, len(self._restarts))


def _append(content: bytearray, block: _Block) -> bytes:
    """Write a block, its type (0: not compressed) and its checksum; return its handle."""
    written = bytes(block) + b"\0"
    handle = _varint(len(content)) + _varint(len(written) - 1)
    content += written + struct.pack("<I", masked(crc32c(written)))
    return handle


def _between(last: bytes, after: bytes | None) -> bytes:
    """A short key, not below the last of a block and below the first of the next, as LevelDB chooses it."""
    if after is None:
        at, limit = next((index for index, byte in enumerate(last) if byte < 0xFF), len(last)), 0x100
    else:
        at = len(os.path.commonprefix([last, after]))
        limit = after[at] if at < len(last) else 0
    return last[:at] + bytes([last[at] + 1]) if at < len(last) and last[at] + 1 < min(limit, 0x100) else last


def _quoted(name: str) -> str:
    """A string of the text form of protocol buffers."""
    escaped = "".join(chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in name.encode("utf-8"))
    return f'"{escaped}"'
