"""Every format read as the same mapping; every accident one clear CheckpointError; nothing executed."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fishpaw.errors import CheckpointError, FishpawError
from fishpaw.weights.formats import find_nonfinite, find_weights, read_folder, read_tensors, write_safetensors

BUNDLES = Path(__file__).resolve().parent / "bundles"
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
TYPES = (*FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
OUTSIDE = ["../secret.safetensors", "/etc/passwd", "link.safetensors", "a/../../secret.safetensors", "..\\secret", "x" * 300, "."]


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(7)
    made = {f"层.{i}": (torch.randn(i + 2, 3, generator=noise) * 3).to(dtype) for i, dtype in enumerate(TYPES)}
    return made | {"scalar": torch.tensor(2.5), "empty": torch.zeros(3, 0, 2), "turned": torch.randn(5, 7, generator=noise).mT}


def same(found, expected) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found.shape(name) == tuple(tensor.shape)
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape and torch.equal(found[name], tensor), name


# what is read equals what was written

def write_one(kind: str, path: Path, tensors) -> Path:
    if kind == "safetensors":
        write_safetensors(tensors, path / "x.safetensors")
        return path / "x.safetensors"
    if kind == "package":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "x.safetensors", {"a": "1"})
        return path / "x.safetensors"
    value = {"model": {"model_state_dict": tensors, "step": 3}}["model"] if kind == "nested" else tensors
    torch.save(value, path / "x.bin", _use_new_zipfile_serialization=kind != "legacy")
    return path / "x.bin"


@pytest.mark.parametrize("kind", ["safetensors", "package", "archive", "legacy", "nested"])
def test_tensors_come_back(tmp_path, tensors, kind):
    same(read_tensors(write_one(kind, tmp_path, tensors)), tensors)


def test_a_wrong_order_would_be_seen(tmp_path, tensors):
    """The planted fault: tensors of one shape exchanged are not the same."""
    write_safetensors(tensors | {"层.0": tensors["层.0"].flip(0)}, tmp_path / "x.safetensors")
    with pytest.raises(AssertionError):
        same(read_tensors(tmp_path / "x.safetensors"), tensors)


def test_changing_a_tensor_leaves_the_file(tmp_path, tensors):
    for kind in ("safetensors", "archive"):
        path = write_one(kind, tmp_path, tensors)
        before = path.read_bytes()
        read_tensors(path)["层.0"].zero_()
        assert path.read_bytes() == before


def test_writing_over_the_file_that_is_read(tmp_path, tensors):
    path = write_one("safetensors", tmp_path, tensors)
    source = read_tensors(path)
    write_safetensors(source, path)
    same(source, tensors)
    same(read_tensors(path), tensors)


# folders and shards

def shards(folder: Path, tensors, suffix: str = "safetensors", stem: str = "model") -> Path:
    folder.mkdir(exist_ok=True)
    names = sorted(tensors)
    where = {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f"{stem}-{i:05d}-of-00002.{suffix}"
        piece = {name: tensors[name] for name in part}
        write_safetensors(piece, folder / file) if suffix == "safetensors" else torch.save(piece, folder / file)
        where |= dict.fromkeys(part, file)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}), encoding="utf-8")
    return index


def test_folders_of_every_kind(tmp_path, tensors):
    shards(tmp_path, tensors, "bin", "pytorch_model")
    same(read_folder(tmp_path), tensors)
    torch.save({"b": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    assert list(read_folder(tmp_path)) == ["b"]
    index = shards(tmp_path, tensors)
    same(read_folder(tmp_path), tensors)
    same(read_tensors(index), tensors)
    assert len(read_folder(tmp_path).files) == 2
    write_safetensors({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    assert list(read_folder(tmp_path)) == ["a"]
    assert find_weights(tmp_path).name == "model.safetensors"


def test_a_folder_with_a_bundle():
    found = read_folder(BUNDLES / "bert")
    assert len(found) == 49 and found["global_step"].item() == 1000 and found.shape("bert/pooler/dense/kernel") == (12, 12)
    assert list(read_tensors(BUNDLES / "bert" / "bert_model.ckpt")) == list(found)


def test_folders_without_one_answer(tmp_path):
    with pytest.raises(CheckpointError, match="holds none of model.safetensors"):
        read_folder(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        read_folder(tmp_path / "nothing")
    for name in ("a.index", "b.index"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"2 TensorFlow checkpoints \(a.index, b.index\)"):
        read_folder(tmp_path)


def test_a_shard_missing_extra_empty_or_without_its_tensor(tmp_path, tensors):
    index = shards(tmp_path, tensors)
    second = tmp_path / "model-00002-of-00002.safetensors"
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(CheckpointError, match="00002-of-00002.safetensors: missing, 1 of 2 shards"):
        read_folder(tmp_path)
    second.mkdir()
    with pytest.raises(CheckpointError, match="00002-of-00002.safetensors: missing"):
        read_folder(tmp_path)
    second.rmdir()
    second.write_bytes(b"")
    with pytest.raises(CheckpointError, match="00002-of-00002.safetensors: is empty"):
        read_folder(tmp_path)
    second.write_bytes(content)
    shutil.copy(second, tmp_path / "model-00003-of-00003.safetensors")
    with pytest.raises(CheckpointError, match="00003-of-00003.safetensors: a shard that the index does not list"):
        read_folder(tmp_path)
    (tmp_path / "model-00003-of-00003.safetensors").unlink()
    value = json.loads(index.read_text(encoding="utf-8"))
    value["weight_map"]["ghost"] = second.name
    index.write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(CheckpointError, match="tensor 'ghost' is listed in model.safetensors.index.json, but absent"):
        read_folder(tmp_path)


@pytest.mark.parametrize("name", OUTSIDE)
def test_shards_outside_the_folder_are_refused(tmp_path, name):
    write_safetensors({"a": torch.ones(2)}, tmp_path / "secret.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    if name.startswith("link"):
        try:
            (folder / name).symlink_to(tmp_path / "secret.safetensors")
        except OSError:
            pytest.skip("this system makes no links")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="leaves the folder"):
        read_folder(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
def test_links_of_a_hub_snapshot_are_followed_and_others_are_not(tmp_path):
    snapshot = tmp_path / "snapshots" / "0f3a"
    snapshot.mkdir(parents=True)
    write_safetensors({"a": torch.ones(2)}, tmp_path / "blobs" / "77ab")
    (snapshot / "model.safetensors").symlink_to("../../blobs/77ab")
    assert read_folder(snapshot)["a"].tolist() == [1, 1]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.safetensors").symlink_to("../blobs/77ab")
    with pytest.raises(CheckpointError, match="leaves the folder"):
        read_folder(tmp_path / "other")


@pytest.mark.parametrize("content", [
    b"", b"{", b"[]", b"{}", b'{"weight_map": {}}', b'{"weight_map": {"a": 1}}', b'{"weight_map": ["a"]}', b"\xff", b"[" * 10**6,
], ids=range(9))  # fmt: skip
def test_damaged_indexes(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json: (damaged|is empty)"):
        read_folder(tmp_path)


# accidents

@pytest.mark.parametrize("name", ["x.safetensors", "x.bin", "x.pt", "x.index"])
def test_empty_missing_and_foreign_files(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(CheckpointError, match=f"{name}: can't be read"):
        read_tensors(path)
    for content, message in ((b"", "empty"), (b"x", "."), (b"\0" * 100, ".")):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name}: .*{message}"):
            read_tensors(path)
    if name == "x.index":
        return
    for content, message in (
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            read_tensors(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match="holds none of"):
        read_tensors(path)


def test_unknown_kinds_are_listed(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"Known: \.safetensors"):
        read_tensors(tmp_path / "x.gguf")


@pytest.mark.parametrize("kind", ["safetensors", "archive", "legacy"])
def test_truncation_at_every_hundredth(tmp_path, tensors, kind):
    path = write_one(kind, tmp_path, tensors)
    content = path.read_bytes()
    for part in range(100):
        path.write_bytes(content[: len(content) * part // 100])
        with pytest.raises(CheckpointError, match=rf"x\.{path.suffix[1:]}"):
            dict(read_tensors(path))


# numbers

@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.float8_e5m2])
def test_nonfinite_tensors_are_found(dtype):
    tensors = {name: torch.ones(2, 3) for name in ("sound", "nan", "inf", "minus")}
    tensors["nan"][1, 2], tensors["inf"][0, 0], tensors["minus"][1, 0] = float("nan"), float("inf"), float("-inf")
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    tensors |= {"empty": torch.zeros(0, dtype=dtype), "number": torch.tensor(3), "largest": torch.tensor([torch.finfo(torch.float32).max])}
    assert find_nonfinite(tensors) == ["nan", "inf", "minus"]


def test_errors_are_of_the_family():
    assert issubclass(CheckpointError, FishpawError)
