"""Any checkpoint as a mapping name -> tensor: safetensors, PyTorch, TensorFlow, Keras; one file, shards, ranks, or a folder.

Nothing is unpickled freely, no name leads out of the folder, and whatever is wrong is one CheckpointError that names the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fishpaw.errors import CheckpointError
from fishpaw.files import blobs, inside, recover
from fishpaw.weights.hdf5 import read_keras
from fishpaw.weights.megatron import RANK, read_ranks
from fishpaw.weights.pickled import read_pickled
from fishpaw.weights.safetensors import AGAIN, Safetensors, refuse_accidents, write_safetensors
from fishpaw.weights.tensorflow import Bundle, open_bundle

__all__ = ["Tensors", "find_nonfinite", "find_weights", "read_folder", "read_tensors", "write_safetensors"]

Source = Safetensors | Bundle | dict[str, Tensor]


class Tensors(Mapping[str, Tensor]):
    """Name -> tensor out of one file or several, each tensor read when asked for. `files`: where they come from."""

    def __init__(self, sources: Mapping[str, Source], files: tuple[Path, ...]) -> None:
        self._sources, self.files = sources, files

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, name: str) -> Tensor:
        return self._sources[name][name]

    def read(self, name: str) -> Tensor:
        """A tensor that shares no memory with a mapped file, to be joined with others and thrown away."""
        source = self._sources[name]
        return source.read(name) if isinstance(source, Safetensors) else source[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        source = self._sources[name]
        return tuple(source[name].shape) if isinstance(source, dict) else source.shape(name)


def read_tensors(path: str | Path) -> Tensors:
    """Read one checkpoint: a `.safetensors`, `.bin`, `.pt` or `.pth` file, an index of shards (`.index.json`), a TensorFlow bundle, the
    `.weights` or `.h5` of bert4keras, the ranks of Megatron (`mp_rank_00_model_states.pt` stands for all).

    A bundle is named by its prefix or one of its files; a folder goes to `read_folder`. Raises CheckpointError for a file that is
    missing, empty, damaged, unsafe or of another kind.
    """
    where = Path(path)
    if where.is_dir():
        return read_folder(where)
    if where.name.endswith(".index.json"):
        return _read_shards(where)
    if where.suffix == ".index" or ".data-" in where.name or where.with_name(where.name + ".index").is_file():
        bundle = open_bundle(where)
        return Tensors(dict.fromkeys(bundle, bundle), (where,))
    if RANK.fullmatch(where.name):
        merged, files = read_ranks(where.parent)
        return Tensors(dict.fromkeys(merged, merged), files)
    source = _read_file(where)
    return Tensors(dict.fromkeys(source, source), (where,))


def read_folder(folder: str | Path) -> Tensors:
    """Read the weights of a model folder, safetensors before PyTorch before TensorFlow or Keras; see `find_weights`.

    Raises CheckpointError: no weights, several bundles or Keras files, a shard or a rank missing, a shard unlisted or outside the folder,
    a tensor listed but absent.
    """
    recover(folder)
    return read_tensors(find_weights(folder))


def find_weights(folder: str | Path) -> Path:
    """The file that `read_folder` reads, by the names that transformers and TensorFlow give.

    model.safetensors, its .index.json, pytorch_model.bin, its .index.json, the first of Megatron's ranks, then the only `*.index` of a
    TensorFlow bundle or `*.weights` or `*.h5` of Keras: these are no copies of each other, but a model and what was trained from it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise CheckpointError(f"{root}: no such folder.", fix="Check the name.")
    for name in _FILES:
        path = inside(root, name, also=blobs(root))
        if path.exists() or path.is_symlink():
            return path
    others = sorted(path for kind in _OTHERS for path in root.glob(kind))
    if len(others) == 1:
        return inside(root, others[0].name, also=blobs(root))
    if others:
        names = ", ".join(path.name for path in others[:5])
        kind = "TensorFlow checkpoints" if all(path.suffix == ".index" for path in others) else "TensorFlow or Keras checkpoints"
        raise CheckpointError(f"{root}: holds {len(others)} {kind} ({names}).", fix="Name the one to load.")
    raise CheckpointError(
        f"{root}: holds none of {', '.join(_FILES)}, no TensorFlow `.index` and no `.weights` or `.h5` of Keras.",
        fix="Check the folder; .msgpack weights must be converted to safetensors first.",
    )


def find_nonfinite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors with a NaN or an infinity in them, in order. One tensor is read at a time."""
    return [name for name in tensors if not _is_finite(tensors[name])]


_FILES = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json", "mp_rank_00_model_states.pt",
)  # fmt: skip
_OTHERS = ("*.index", "*.weights", "*.h5")
_LARGEST_INDEX = 2**26                                            # bytes


def _read_file(path: Path) -> Source:
    if path.suffix == ".safetensors":
        return Safetensors(path)
    if path.suffix in (".weights", ".h5"):
        return read_keras(path)
    refuse_accidents(path)
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt"):
        return read_pickled(path)
    known = ".safetensors, .bin, .pt, .pth, .index.json, .index, .weights, .h5"
    raise CheckpointError(f"{path}: not a known file of weights.", fix=f"Known: {known}.")


def _read_shards(index: Path) -> Tensors:
    folder, also = index.parent, blobs(index.parent)
    where = _weight_map(index)
    try:
        missing = sorted({name for name in where.values() if not inside(folder, name, also=also).is_file()})
    except CheckpointError as error:
        raise CheckpointError(f"{index}: {error.what}", fix=error.fix) from None
    if missing:
        count = f"{len(missing)} of {len(set(where.values()))}"
        raise CheckpointError(f"{folder / missing[0]}: missing, {count} shards of {index.name} are.", fix=AGAIN)
    _refuse_unlisted(folder, frozenset(where.values()))
    shards = {name: _read_file(folder / name) for name in sorted(set(where.values()))}
    for name, file in where.items():
        if name not in shards[file]:
            raise CheckpointError(f"{folder / file}: tensor {name!r} is listed in {index.name}, but absent.", fix=AGAIN)
    return Tensors({name: shards[file] for name, file in where.items()}, tuple(folder / name for name in shards))


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file name, out of transformers' `*.index.json`."""
    refuse_accidents(index)
    try:
        if index.stat().st_size > _LARGEST_INDEX:
            raise ValueError("larger than 64 MiB")
        value = json.loads(index.read_bytes())
        where = value["weight_map"]
        if not where or not all(isinstance(part, str) for pair in where.items() for part in pair):
            raise ValueError("its weight_map does not map names to files")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index}: damaged ({type(error).__name__}: {str(error)[:200]}).", fix=AGAIN) from error
    return dict(where)


def _refuse_unlisted(folder: Path, listed: frozenset[str]) -> None:
    """A shard that no index lists is left from another save: which of the two is whole, nobody knows."""
    kind = re.compile(r"(.+)-\d+-of-\d+(\.\w+)")
    families = {found.groups() for name in listed if (found := kind.fullmatch(name))}
    for path in sorted(folder.iterdir()):
        found = kind.fullmatch(path.name)
        if found and found.groups() in families and path.name not in listed:
            raise CheckpointError(f"{path}: a shard that the index does not list.", fix="Remove it, or copy the folder again.")


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.numel() or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if tensor.dtype.itemsize < 2:                                 # 8-bit floats have no order
        tensor = tensor.float()
    least, most = torch.aminmax(tensor)                           # NaN wins over both; no copy, unlike isfinite().all()
    return bool(torch.isfinite(least) & torch.isfinite(most))
