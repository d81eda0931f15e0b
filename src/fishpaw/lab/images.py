"""Small images of public sets, read into tensors: CIFAR-10 as JPEG files in one tar, MNIST as idx files under gzip.

Both files are untrusted: nothing is extracted to disk, sizes are bounded before anything is unpacked, and what isn't as it should be is an
error that names the file. Formats: kexue.fm/archives/6549 uses both sets; idx: yann.lecun.com/exdb/mnist.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import re
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fishpaw import checks
from fishpaw.errors import ConfigError, DataError

__all__ = ["CIFAR", "MNIST", "Images", "read_cifar", "read_mnist"]

CIFAR = "images/cifar10_jpg/train_10k.tar"
MNIST = ("images/mnist_t10k/t10k-images-idx3-ubyte.gz", "images/mnist_t10k/t10k-labels-idx1-ubyte.gz")

_MEMBER = re.compile(r"(?:[\w.-]+/)*([\w-]+)/(\d+)\.jpg")
_JPEG_BYTES = 65_536                                                  # of one image of 32 x 32; the largest real one has some 2,000
_MEMBERS = 200_000
_IDX_BYTES = 512 * 2**20                                              # unpacked; MNIST has 47 MB


@dataclass(frozen=True)
class Images:
    """pixels [n c h w] uint8, labels [n] int64, names: what the labels mean."""

    pixels: Tensor
    labels: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def digest(self) -> str:
        """Stands for all pixels and labels."""
        return hashlib.sha256(self.pixels.numpy().tobytes() + self.labels.numpy().tobytes()).hexdigest()


def read_cifar(data: Path, *, per_class: int = 1000) -> Images:
    """The first `per_class` images of each class in data/images/cifar10_jpg/train_10k.tar, [n 3 32 32]: all first ones, then all second …

    So every stretch has all classes. Errors: ConfigError without pillow, DataError for a file that is absent, damaged, or of other images.
    """
    checks.whole("per_class", per_class, least=1)
    path = _there(data, CIFAR)
    found: dict[str, list[tuple[int, Tensor]]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for place, member in enumerate(archive):
                if place >= _MEMBERS:
                    raise DataError(f"{path}: more than {_MEMBERS:,} members.", fix=_AGAIN)
                named = _MEMBER.fullmatch(member.name)
                if not member.isreg() or named is None:
                    continue                                          # folders and notes; a link is never followed
                kind = found.setdefault(named[1], [])
                if len(kind) < per_class:
                    kind.append((int(named[2]), _decoded(archive, member, path)))
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{path}: no sound tar file ({error}).", fix=_AGAIN) from error
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error}).", fix=_AGAIN) from error
    if not found:
        raise DataError(f"{path}: no member is called class/number.jpg.", fix=_AGAIN)
    names = tuple(sorted(found))
    ordered = sorted((place, label, pixels) for label, name in enumerate(names) for place, (_, pixels) in
                     enumerate(sorted(found[name], key=lambda one: one[0])))  # fmt: skip
    return Images(torch.stack([pixels for _, _, pixels in ordered]), torch.tensor([label for _, label, _ in ordered]), names)


def read_mnist(data: Path) -> Images:
    """All images of data/images/mnist_t10k/*.gz, [n 1 28 28], in the file's order: the first half is easier than the second, so shuffle.

    Errors: DataError for a file that is absent, damaged, or no idx file of bytes.
    """
    pixels, labels = _idx(_there(data, MNIST[0]), 3), _idx(_there(data, MNIST[1]), 1)
    if len(pixels) != len(labels):
        raise DataError(f"{data / MNIST[0]}: {len(pixels)} images, but {len(labels)} labels beside it.", fix=_AGAIN)
    if len(labels) and int(labels.max()) > 9:
        raise DataError(f"{data / MNIST[1]}: the label {int(labels.max())} is no digit.", fix=_AGAIN)
    return Images(pixels[:, None], labels.long(), tuple("0123456789"))


_AGAIN = "Fetch the file again."


def _there(data: Path, name: str) -> Path:
    path = data / name
    if not path.is_file():
        raise DataError(f"{path}: there is no such file.", fix=f"Name the folder that holds {name}.")
    return path


def _decoded(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> Tensor:
    """[3 32 32] uint8. The size is read from the header before a pixel is unpacked."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ConfigError("Reading JPEG files needs pillow, which isn't installed.", fix="pip install pillow") from error
    where = f"{path}, {member.name}"
    file = archive.extractfile(member)
    if file is None or not 0 < member.size <= _JPEG_BYTES:
        raise DataError(f"{where}: {member.size:,} bytes; a JPEG of 32 x 32 has {_JPEG_BYTES:,} at most.", fix=_AGAIN)
    try:
        with Image.open(io.BytesIO(file.read(_JPEG_BYTES)), formats=["JPEG"]) as image:
            if image.size != (32, 32):
                raise DataError(f"{where}: {image.size[0]} x {image.size[1]} pixels instead of 32 x 32.", fix=_AGAIN)
            pixels = np.array(image.convert("RGB"))                   # [h w c]
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where}: no sound JPEG ({error}).", fix=_AGAIN) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _idx(path: Path, dimensions: int) -> Tensor:
    """An idx file of unsigned bytes: 0, 0, 8, the number of dimensions, each size as four bytes, the bytes."""
    try:
        with gzip.open(path) as file:
            head = file.read(4 + 4 * dimensions)
            sizes = [int.from_bytes(head[at : at + 4], "big") for at in range(4, len(head), 4)]
            if head[:4] != bytes((0, 0, 8, dimensions)) or len(sizes) != dimensions:
                raise DataError(f"{path}: begins with {head[:4].hex(' ')}, no idx file of {dimensions} dimensions of bytes.", fix=_AGAIN)
            wanted = math.prod(sizes)
            if wanted > _IDX_BYTES:
                raise DataError(f"{path}: says that it holds {wanted:,} bytes; {_IDX_BYTES:,} are read at most.", fix=_AGAIN)
            body = file.read(wanted + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: no sound gzip file ({error}).", fix=_AGAIN) from error
    if len(body) != wanted:
        raise DataError(f"{path}: {'more' if len(body) > wanted else 'fewer'} bytes than its sizes {sizes} say.", fix=_AGAIN)
    return torch.from_numpy(np.frombuffer(body, np.uint8).copy()).view(sizes)
