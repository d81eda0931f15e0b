"""PyTorch's `.bin` and `.pt` files, read without executing anything: only torch's restricted unpickler ever sees them.

A file that asks for any other function (`os.system`) is refused by name. So are compressed archives, tensors larger than their file and
many names for the same bytes, with which a small file could fill the memory. These formats carry no usable checksum: prefer safetensors.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fishpaw.errors import CheckpointError
from fishpaw.weights.safetensors import AGAIN, refuse_accidents

__all__ = ["read_pickled"]


def read_pickled(path: str | Path) -> dict[str, Tensor]:
    """Name -> tensor on the CPU; mapped into memory where the file is of the newer kind (a zip archive), else read.

    A dictionary under "state_dict", "model_state_dict", "model" or "module" is taken out; what is no tensor (a step number) is left behind.
    Raises CheckpointError for a file that is damaged, truncated, refused for safety, or holds no tensors.
    """
    where = Path(path)
    refuse_accidents(where)
    _refuse_old_torch(where)
    try:
        archive = zipfile.is_zipfile(where)
        if archive:
            _refuse_bomb(where)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                       # torch's remarks on old protocols: nothing the user can act on
            value = torch.load(where, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as error:
        raise _refused(where, str(error)) from error
    except _ANYTHING as error:
        message = f"{where}: damaged or truncated ({type(error).__name__}: {str(error).partition(chr(10))[0][:200]})."
        raise CheckpointError(message, fix=AGAIN) from error
    return _state(where, value)


_SHARED = 4                                                       # times the file: mT5's table of tokens, most of it, has up to four names
_SAFE = (2, 10)                                                   # before: CVE-2026-24747, memory corruption through weights_only
# What torch's unpickler and zip reader raise on damaged files, found by mutation: nearly every kind but those of the system.
_ANYTHING = (
    RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, EOFError, OSError, MemoryError,
    ImportError, BufferError, struct.error, zipfile.BadZipFile, pickle.PickleError,
)  # fmt: skip


def _refuse_old_torch(path: Path) -> None:
    found = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if found is None or (int(found[1]), int(found[2])) < _SAFE:
        raise CheckpointError(
            f"{path}: torch {torch.__version__} can't read this kind of file safely (CVE-2026-24747).",
            fix="Install torch 2.10 or newer, or use the model's safetensors file.",
        )


def _refuse_bomb(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members) or sum(m.file_size for m in members) > path.stat().st_size:
        raise CheckpointError(f"{path}: a compressed archive, which torch never writes.", fix="Don't use it; ask for safetensors.")


def _refused(path: Path, message: str) -> CheckpointError:
    found = re.search(r"GLOBAL ([\w.]+)", message) or re.search(r"<(?:class|function) '?([\w.]+)", message)
    name = found[1] if found else _foreign_name(path)
    if name is None:
        return CheckpointError(f"{path}: its pickle is damaged or not one of weights; nothing was executed.", fix=AGAIN)
    return CheckpointError(
        f"{path}: asks for {name}, which is no part of a tensor: refused, nothing was executed.",
        fix="Don't use this file unless you trust its author; ask for a safetensors file.",
    )


def _foreign_name(path: Path) -> str | None:
    """The first name outside of torch that a bare pickle asks for, read off its instructions without following them."""
    strings: list[str] = []
    try:
        with open(path, "rb") as file:
            for instruction, argument, _ in pickletools.genops(file):
                if instruction.name == "GLOBAL":
                    strings = str(argument).split()
                if instruction.name in ("GLOBAL", "STACK_GLOBAL") and not strings[0].startswith(("torch", "collections")):
                    return ".".join(strings)
                if isinstance(argument, str) and instruction.name != "GLOBAL":
                    strings = [*strings[-1:], argument]
    except _ANYTHING:
        pass
    return None


def _state(path: Path, value: object) -> dict[str, Tensor]:
    for key in ("state_dict", "model_state_dict", "model", "module"):
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
    found = value.items() if isinstance(value, Mapping) else ()
    tensors = {name: tensor.detach() for name, tensor in found if isinstance(name, str) and isinstance(tensor, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path}: holds no named tensors ({type(value).__name__}).", fix="Save a state_dict().")
    size = path.stat().st_size
    for name, tensor in tensors.items():
        dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not dense or tensor.numel() * tensor.element_size() > size:
            raise CheckpointError(f"{path}: tensor {name!r} is not a plain one within the file.", fix="Save it dense, on the CPU.")
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if total > _SHARED * size:
        raise CheckpointError(f"{path}: {len(tensors):,} tensors of {total:,} bytes share a file of {size:,}.",
                              fix="Save a state_dict() with each weight under one name.")  # fmt: skip
    return tensors
