"""Reading images: what was written comes back, in the promised order; each damage is an error that names the file."""

from __future__ import annotations

import gzip
import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from fishpaw.errors import ConfigError, DataError
from fishpaw.lab.images import CIFAR, MNIST, read_cifar, read_mnist

torch.set_num_threads(1)
CLASSES = ("cat", "airplane", "dog")


def jpeg(grey: int, side: int = 32, kind: str = "JPEG") -> bytes:
    image = pytest.importorskip("PIL.Image")
    held = io.BytesIO()
    image.fromarray(np.full((side, side, 3), grey, np.uint8)).save(held, kind, quality=95)
    return held.getvalue()


def tar(folder: Path, members: dict[str, bytes], *, link: str = "") -> Path:
    path = folder / CIFAR
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo("train/cat/9999.jpg")
            info.type, info.linkname = tarfile.SYMTYPE, link
            archive.addfile(info)
    return folder


def idx(path: Path, values: np.ndarray, *, magic: bytes | None = None, sizes: tuple[int, ...] | None = None, cut: int = 0) -> None:
    head = magic or bytes((0, 0, 8, values.ndim))
    body = head + b"".join(size.to_bytes(4, "big") for size in sizes or values.shape) + values.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(body[: len(body) - cut]))


def digits(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    pixels, labels = random.integers(0, 256, (13, 28, 28), dtype=np.uint8), random.integers(0, 10, 13, dtype=np.uint8)
    idx(folder / MNIST[0], pixels)
    idx(folder / MNIST[1], labels)
    return pixels, labels


def test_jpeg_files_come_class_by_class_in_turn(tmp_path: Path) -> None:
    greys = {(name, place): 20 * place + 70 * label for label, name in enumerate(sorted(CLASSES)) for place in range(3)}
    members = {f"train/{name}/{place:04}.jpg": jpeg(greys[name, place]) for name in CLASSES for place in (2, 0, 1)}
    found = read_cifar(tar(tmp_path, {"train/notes.txt": b"x", **members}, link="/etc/passwd"), per_class=3)
    assert found.names == ("airplane", "cat", "dog") and found.labels.tolist() == [0, 1, 2] * 3
    assert found.pixels.shape == (9, 3, 32, 32) and found.pixels.dtype == torch.uint8 and len(found) == 9
    expected = [greys[name, place] for place in range(3) for name in sorted(CLASSES)]
    assert (found.pixels.float().mean((1, 2, 3)) - torch.tensor(expected)).abs().max() <= 2       # JPEG loses a little


def test_only_the_first_of_a_class_are_read(tmp_path: Path) -> None:
    members = {f"train/{name}/{place:04}.jpg": jpeg(90) for name in CLASSES for place in range(3)}
    assert read_cifar(tar(tmp_path, members), per_class=2).labels.tolist() == [0, 1, 2, 0, 1, 2]
    with pytest.raises(ConfigError):
        read_cifar(tmp_path, per_class=0)


@pytest.mark.parametrize("name, content, says", [
    ("train/cat/0000.jpg", lambda: jpeg(9, side=33), "33 x 33"),
    ("train/cat/0000.jpg", lambda: jpeg(9)[:-200], "JPEG"),
    ("train/cat/0000.jpg", lambda: jpeg(9, kind="PNG"), "JPEG"),
    ("train/cat/0000.jpg", lambda: b"", "0 bytes"),
    ("train/cat/0000.jpg", lambda: jpeg(9) + bytes(70_000), "at most"),
    ("train/cat.txt", lambda: b"x", "no member"),
    ("../../cat.jpg/0.png", lambda: b"x", "no member"),
])  # fmt: skip
def test_damaged_members_are_named(name: str, content, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says) as caught:
        read_cifar(tar(tmp_path, {name: content()}))
    assert "train_10k.tar" in str(caught.value)


def test_a_tar_that_is_none_or_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train_10k.tar: there is no such file"):
        read_cifar(tmp_path)
    (tmp_path / CIFAR).parent.mkdir(parents=True)
    (tmp_path / CIFAR).write_bytes(b"no tar" * 1000)
    with pytest.raises(DataError, match="no sound tar"):
        read_cifar(tmp_path)


def test_without_pillow_the_way_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tar(tmp_path, {"train/cat/0000.jpg": jpeg(9)})
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ConfigError, match="pip install pillow"):
        read_cifar(folder)


def test_idx_files_come_back(tmp_path: Path) -> None:
    pixels, labels = digits(tmp_path)
    found = read_mnist(tmp_path)
    assert found.pixels.shape == (13, 1, 28, 28) and found.labels.dtype == torch.int64 and found.names[3] == "3"
    assert np.array_equal(found.pixels[:, 0].numpy(), pixels) and np.array_equal(found.labels.numpy(), labels)


@pytest.mark.parametrize("change, says", [
    (lambda path, pixels: idx(path, pixels, magic=bytes((0, 0, 13, 3))), "idx"),
    (lambda path, pixels: idx(path, pixels[:, :, 0]), "3 dimensions"),
    (lambda path, pixels: idx(path, pixels, sizes=(14, 28, 28)), "fewer bytes"),
    (lambda path, pixels: idx(path, pixels, sizes=(12, 28, 28)), "more bytes"),
    (lambda path, pixels: idx(path, pixels, sizes=(2**31, 28, 28)), "at most"),
    (lambda path, pixels: idx(path, pixels, cut=13 * 784 + 5), "idx"),
    (lambda path, pixels: idx(path, pixels[:12]), "12 images, but 13 labels"),
    (lambda path, pixels: path.write_bytes(b"plain"), "no sound gzip"),
    (lambda path, pixels: path.write_bytes(path.read_bytes()[:-90]), "no sound gzip"),
    (lambda path, pixels: path.unlink(), "no such file"),
])  # fmt: skip
def test_damaged_idx_files_are_named(change, says: str, tmp_path: Path) -> None:
    pixels, _ = digits(tmp_path)
    change(tmp_path / MNIST[0], pixels)
    with pytest.raises(DataError, match=says) as caught:
        read_mnist(tmp_path)
    assert "t10k-images-idx3-ubyte.gz" in str(caught.value)


def test_a_label_that_is_no_digit_is_refused(tmp_path: Path) -> None:
    digits(tmp_path)
    idx(tmp_path / MNIST[1], np.full(13, 11, np.uint8))
    with pytest.raises(DataError, match="11 is no digit"):
        read_mnist(tmp_path)
