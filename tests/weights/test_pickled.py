"""PyTorch's pickles: tensors come out, bombs do not go off, small files stay small."""

from __future__ import annotations

import os
import pickle
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from fishpaw.errors import CheckpointError
from fishpaw.weights import pickled
from fishpaw.weights.megatron import read_ranks
from fishpaw.weights.pickled import read_pickled


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model"])
def test_tensors_come_out_of_their_wrapping(tmp_path, archive, key):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(True), "c": torch.nn.Parameter(torch.ones(2).bfloat16())}
    torch.save({key: tensors, "step": 3} if key else tensors | {"step": 3}, tmp_path / "x.bin", _use_new_zipfile_serialization=archive)
    found = read_pickled(tmp_path / "x.bin")
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert not any(isinstance(tensor, torch.nn.Parameter) or tensor.requires_grad for tensor in found.values())


class Bomb:
    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self):
        return os.system, (f"echo > {self.sentinel}",)


@pytest.mark.parametrize("kind", ["archive", "legacy", "raw 2", "raw 4"])
def test_a_bomb_is_named_and_never_goes_off(tmp_path, kind):
    path, sentinel = tmp_path / "x.bin", tmp_path / "sentinel"
    value = {"a": torch.ones(2), "b": Bomb(sentinel)}
    if kind.startswith("raw"):
        path.write_bytes(pickle.dumps(Bomb(sentinel), protocol=int(kind[-1])))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=kind == "archive")
    with pytest.raises(CheckpointError, match=r"(posix|nt)\.system.*nothing was executed"):
        read_pickled(path)
    assert not sentinel.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="the shell differs")
def test_an_open_unpickler_would_set_it_off(tmp_path):
    """The planted fault: the sentinel of the test above works."""
    sentinel = tmp_path / "sentinel"
    pickle.loads(pickle.dumps(Bomb(sentinel)))
    assert sentinel.exists()


def test_compressed_archives_are_refused(tmp_path):
    torch.save({"a": torch.zeros(1_000_000)}, tmp_path / "whole.bin")
    with zipfile.ZipFile(tmp_path / "whole.bin") as source, zipfile.ZipFile(tmp_path / "x.bin", "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert (tmp_path / "x.bin").stat().st_size < 10_000
    with pytest.raises(CheckpointError, match="compressed"):
        read_pickled(tmp_path / "x.bin")


def test_tensors_larger_than_their_file_are_refused(tmp_path):
    torch.save({"a": torch.zeros(1).expand(10**12)}, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match="'a' is not a plain one within the file"):
        read_pickled(tmp_path / "x.bin")


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("folder", ["", "ranks"])
def test_many_names_for_the_same_bytes_are_refused_and_tied_weights_are_not(tmp_path, archive, folder):
    """2,000 names on one storage: 1.2 MB stood for 2 GB once they were copied."""
    table, path = torch.zeros(25_000), tmp_path / folder / "mp_rank_00_model_states.pt"
    path.parent.mkdir(exist_ok=True)
    tied = {"shared": table, "encoder": table, "decoder": table.view(100, 250), "lm_head": table, "norm": torch.ones(7)}
    torch.save(tied, path, _use_new_zipfile_serialization=archive)
    assert read_pickled(path).keys() == tied.keys()
    torch.save({f"w{number}": table for number in range(2_000)}, path, _use_new_zipfile_serialization=archive)
    with pytest.raises(CheckpointError, match="2,000 tensors of 200,000,000 bytes share a file"):
        read_ranks(path.parent) if folder else read_pickled(path)


@pytest.mark.parametrize("value", [
    torch.ones(2), [torch.ones(2)], {}, {"step": 3}, {"a": torch.ones(2).to_sparse()}, {"a": torch.ones(2, device="meta")},
], ids=range(6))  # fmt: skip
def test_what_is_no_state_of_a_model(tmp_path, value):
    torch.save(value, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match=r"x\.bin"):
        read_pickled(tmp_path / "x.bin")


def test_an_old_torch_reads_no_pickles(tmp_path, monkeypatch):
    torch.save({"a": torch.ones(2)}, tmp_path / "x.bin")
    monkeypatch.setattr(pickled.torch, "__version__", "2.9.1+cpu")
    with pytest.raises(CheckpointError, match=r"2\.9\.1.*2\.10 or newer"):
        read_pickled(tmp_path / "x.bin")
