"""Safetensors files: read lazily through the package's memory map, written whole and always with the same bytes.

Format: github.com/huggingface/safetensors. The package checks types, shapes and offsets; here the file is looked at first, so that
the usual accidents (a truncated copy, a Git LFS pointer, a web page saved as weights) are named.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fishpaw.errors import CheckpointError
from fishpaw.files import file_atomic

__all__ = ["AGAIN", "Safetensors", "refuse_accidents", "write_safetensors"]

AGAIN = "Copy or download the file again."


class Safetensors(Mapping[str, Tensor]):
    """Name -> tensor, sorted by name. Opening reads the header only; a tensor is a private view of the mapped file.

    Raises CheckpointError for a file that is truncated, damaged, has a header beyond 32 MiB, or is no safetensors file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        refuse_accidents(self.path)
        self._header = _header(self.path)
        self.metadata: Mapping[str, str] = self._header.pop("__metadata__", {})
        try:
            self._file: Any = safe_open(self.path, framework="pt", device="cpu")
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{self.path}: no sound safetensors file ({error}).", fix=AGAIN) from error

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._header))

    def __len__(self) -> int:
        return len(self._header)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._header:
            raise KeyError(name)
        try:
            tensor: Tensor = self._file.get_tensor(name)
        except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{self.path}: tensor {name!r} can't be read ({error}).", fix=AGAIN) from error
        return tensor

    def read(self, name: str) -> Tensor:
        """A copy that keeps no page of the mapped file in memory: for what is joined with others and then thrown away."""
        entry = self._header[name]
        dtype = next((dtype for dtype, kind in _KINDS.items() if kind == entry["dtype"]), None)
        tensor = self[name]                                           # checks the entry; touches no data
        if dtype is None or not tensor.numel():
            return tensor
        copy = torch.empty(tensor.shape, dtype=dtype)
        start = self.path.stat().st_size - max(one["data_offsets"][1] for one in self._header.values())
        with open(self.path, "rb") as file:
            file.seek(start + entry["data_offsets"][0])
            count = file.readinto(copy.view(-1).view(torch.uint8).numpy().data)
        if count != copy.numel() * copy.itemsize:
            raise CheckpointError(f"{self.path}: tensor {name!r} ends early.", fix=AGAIN)
        return copy

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return tuple(self._header[name]["shape"])


def write_safetensors(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Write name -> tensor as safetensors, atomically; the same tensors give the same bytes on every machine.

    One tensor at a time is copied to the CPU. Tensors that share memory are written as many times as they are named. The metadata is
    `"format": "pt"`, which transformers asks for.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))      # large items first: all are aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in _KINDS:
            raise CheckpointError(f"{path}: tensor {name!r} of {tensor.dtype} has no place in safetensors.", fix="Convert it first.")
        start, end = end, end + tensor.numel() * tensor.dtype.itemsize
        header[name] = {"dtype": _KINDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    head += b" " * (-len(head) % 8)
    with file_atomic(path) as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name in order:
            values = tensors[name].detach().cpu().contiguous().reshape(-1)
            if len(values):                                       # an empty one can't be viewed as bytes
                file.write(values.view(torch.uint8).numpy().data)


def refuse_accidents(path: Path) -> None:
    """Raise CheckpointError for a folder, a pipe, an empty file, a Git LFS pointer, a web page or HDF5 where weights should be."""
    try:
        if path.is_dir():
            raise CheckpointError(f"{path}: is a folder, not a file of weights.", fix="Name the file, or load the folder.")
        if path.exists() and not path.is_file():                  # to open a pipe is to wait for its writer
            raise CheckpointError(f"{path}: is no regular file (a pipe or a device).", fix="Copy the weights into a file.")
        with open(path, "rb") as file:
            begin = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror}).", fix="Check the name and its permissions.") from error
    if not begin:
        raise CheckpointError(f"{path}: is empty (0 bytes).", fix=AGAIN)
    if begin.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: is a Git LFS pointer, the weights themselves are missing.", fix="Run `git lfs pull` in its folder.")
    if begin.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{path}: is a web page, the download went wrong.", fix=AGAIN)
    if begin.startswith(b"\x89HDF"):
        raise CheckpointError(f"{path}: is an HDF5 file (Keras), which is not read.", fix="Convert it to safetensors with Keras.")


_LARGEST_HEADER = 2**25                                           # bytes; 10^5 tensors need 10^7
_KINDS = MappingProxyType({
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.int32: "I32",
    torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
})  # fmt: skip


def _header(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_LARGEST_HEADER, size - 8):
            raise CheckpointError(
                f"{path}: no safetensors file, or truncated: it announces a header of {length:,} bytes and has {size:,} in all.", fix=AGAIN
            )
        content = file.read(length)
    try:
        header = json.loads(content, object_pairs_hook=_unique)
        entries = [entry for name, entry in header.items() if name != "__metadata__"]
        shapes = [math.prod(entry["shape"]) for entry in entries]
        need = 8 + length + max((entry["data_offsets"][1] for entry in entries), default=0)
        sound = all(type(count) is int and count >= 0 for count in shapes) and type(need) is int
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: its header is damaged ({type(error).__name__}: {str(error)[:200]}).", fix=AGAIN) from error
    if not sound or need != size:
        raise CheckpointError(f"{path}: {size:,} bytes, but its header needs {need:,}: truncated or damaged.", fix=AGAIN)
    return dict(header)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name appears twice")
    return found
