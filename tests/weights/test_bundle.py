"""Bundles that we write are TensorFlow's own, byte for byte, and come back bit for bit."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import pytest
import torch

from fishpaw import files
from fishpaw.errors import CheckpointError, FishpawError
from fishpaw.weights.bundle import write_bundle
from fishpaw.weights.tensorflow import TYPES, open_bundle

HERE = Path(__file__).resolve().parent
BUNDLES = HERE / "bundles"
DATA = ".data-00000-of-00001"
# What TensorFlow 2.21.0 wrote: make_tensorflow_digests.py.
DIGESTS = {
    ".index": "6008f59158e1e4520920dbf423ff1d6b1539c414cdd5994075af057668072f6f",
    DATA: "a4ba2bd6fbd689fcfef61116235866e9526fa9b7bac5ebf28294de2406856cde",
}
_spec = importlib.util.spec_from_file_location("make_tensorflow_digests", HERE / "make_tensorflow_digests.py")
digests = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(digests)


def bits(tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor).reshape(-1).view(torch.uint8)


def same(prefix, tensors) -> None:
    bundle = open_bundle(prefix)
    assert list(bundle) == sorted(tensors, key=lambda name: name.encode())
    for name, tensor in tensors.items():
        found = bundle[name]
        assert found.dtype == tensor.dtype and found.shape == tensor.shape, name
        assert torch.equal(bits(found), bits(tensor)), name


def bytes_of(prefix) -> dict[str, bytes]:
    return {ending: Path(f"{prefix}{ending}").read_bytes() for ending in (".index", DATA)}


@pytest.mark.parametrize("name", ["bert/bert_model.ckpt", "types"])
def test_the_bytes_are_those_of_tensorflow(tmp_path, name):
    bundle = open_bundle(BUNDLES / name)
    saved = sorted(bundle, key=lambda name: (bundle._entries[name].offset, bundle._entries[name].size))       # the order it was saved in
    write_bundle(tmp_path / "x", {name: bundle[name] for name in saved})
    assert bytes_of(tmp_path / "x") == bytes_of(BUNDLES / name)


def test_the_bytes_of_an_index_of_several_blocks_are_those_of_tensorflow(tmp_path):
    tensors = {name: torch.from_numpy(value.copy()) for name, value in digests.many().items()}
    write_bundle(tmp_path / "many", tensors)
    assert {ending: hashlib.sha256(content).hexdigest() for ending, content in bytes_of(tmp_path / "many").items()} == DIGESTS
    assert (tmp_path / "many.index").stat().st_size > 2**18


def test_a_thousand_random_tensors_come_back_bit_for_bit(tmp_path):
    random = torch.Generator().manual_seed(20201120)
    kinds = list(TYPES.values())
    tensors = {}
    for number in range(1009):
        kind = kinds[number % len(kinds)]
        shape = torch.randint(0, 5, (number % 4,), generator=random).tolist()
        bits = torch.randint(0, 2 if kind == torch.bool else 256, (*shape, kind.itemsize), generator=random, dtype=torch.uint8)
        tensors[f"{'层' * (number % 3)}/{number * 7919 % 1009}"] = bits.view(kind).reshape(shape)      # NaN and denormal numbers, too
    write_bundle(tmp_path / "x", tensors)
    same(tmp_path / "x", tensors)
    assert any(not tensor.numel() for tensor in tensors.values()) and any(tensor.shape == () for tensor in tensors.values())


def test_views_parameters_and_strange_strides(tmp_path):
    table = torch.arange(35.0).reshape(5, 7)
    tensors = {
        "turned": table.t(), "strided": table[::2, ::3], "expanded": torch.ones(1).expand(3, 2), "one": torch.ones(1, 2)[:, 0].expand(1),
        "parameter": torch.nn.Parameter(torch.randn(3)), "negative": table.flip(0), "zero stride": torch.as_strided(table, (1,), (0,), 4),
    }  # fmt: skip
    write_bundle(tmp_path / "x", tensors)
    same(tmp_path / "x", {name: tensor.detach() for name, tensor in tensors.items()})


def test_nothing_at_all(tmp_path):
    write_bundle(tmp_path / "x", {})
    assert len(open_bundle(tmp_path / "x")) == 0


def test_the_file_checkpoint_names_the_prefix(tmp_path):
    write_bundle(tmp_path / 'a "模型".ckpt', {"x": torch.ones(1)})
    name = r'"a \"\346\250\241\345\236\213\".ckpt"'.replace(r"\"\346", r"\042\346").replace(r"\213\"", r"\213\042")
    assert (tmp_path / "checkpoint").read_text(encoding="ascii") == f"model_checkpoint_path: {name}\nall_model_checkpoint_paths: {name}\n"


@pytest.mark.parametrize(("tensors", "message"), [
    ({"": torch.ones(1)}, "named ''"),
    ({"\0a": torch.ones(1)}, "can't hold"),
    ({"a\ud800": torch.ones(1)}, "can't hold"),
    ({"a": torch.ones(1, dtype=torch.complex64)}, "'a' is torch.complex64"),
    ({"a": torch.ones(1), "b": torch.ones(1, device="meta")}, "'b' is on meta"),
    ({"a": torch.eye(3).to_sparse()}, "'a' is torch.float32, torch.sparse_coo"),
])  # fmt: skip
def test_what_a_bundle_cannot_hold_leaves_the_old_one(tmp_path, tensors, message):
    write_bundle(tmp_path / "x", {"old": torch.ones(3)})
    before = bytes_of(tmp_path / "x")
    with pytest.raises(CheckpointError, match=message):
        write_bundle(tmp_path / "x", tensors)
    assert bytes_of(tmp_path / "x") == before and len(list(tmp_path.iterdir())) == 3


def test_a_new_data_file_with_an_old_index_is_seen(tmp_path, monkeypatch):
    write_bundle(tmp_path / "x", {"a": torch.zeros(3)})
    old = (tmp_path / "x.index").read_bytes()
    write_bundle(tmp_path / "x", {"a": torch.ones(3)})
    (tmp_path / "x.index").write_bytes(old)                       # as if the process had died between the two
    with pytest.raises(CheckpointError, match="checksum"):
        open_bundle(tmp_path / "x")["a"]


def test_a_full_disk_is_an_error_of_ours(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(FishpawError, match="Free some space"):
        write_bundle(tmp_path / "x", {"a": torch.zeros(3)})
    assert list(tmp_path.iterdir()) == []


def test_one_wrong_bit_is_seen_by_these_checks(tmp_path):
    tensors = {"a": torch.randn(5), "b": torch.randn(5)}
    write_bundle(tmp_path / "x", tensors)
    tensors["b"].view(torch.int32)[3] ^= 1
    with pytest.raises(AssertionError):
        same(tmp_path / "x", tensors)
