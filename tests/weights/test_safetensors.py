"""Safetensors written here: the package's own bytes, always the same, whole or absent; hostile headers refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from fishpaw.errors import CheckpointError
from fishpaw.weights import safetensors
from fishpaw.weights.safetensors import Safetensors, write_safetensors

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
TYPES = (*FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(7)
    made = {f"层.{i}": (torch.randn(i + 2, 3, generator=noise) * 3).to(dtype) for i, dtype in enumerate(TYPES)}
    return made | {"scalar": torch.tensor(2.5), "empty": torch.zeros(3, 0, 2), "turned": torch.randn(5, 7, generator=noise).mT}


def same(found, expected) -> bool:
    return set(found) == set(expected) and all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_what_the_package_reads_is_what_was_given(tmp_path, tensors):
    write_safetensors(tensors, tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")
    assert set(found) == set(tensors) and all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_the_bytes_are_the_packages_and_always_the_same(tmp_path):
    tensors = {"c": torch.arange(6, dtype=torch.int8).reshape(2, 3), "b": torch.arange(6.0).reshape(3, 2), "a": torch.ones(5)}
    write_safetensors(tensors, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == save(tensors, {"format": "pt"})
    write_safetensors(dict(reversed(tensors.items())), tmp_path / "y")
    assert (tmp_path / "y").read_bytes() == (tmp_path / "x").read_bytes()


def test_tied_and_sliced_tensors_are_written(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"a": whole, "b": whole, "row": whole[1], "column": whole[:, 1]}
    write_safetensors(tensors, tmp_path / "x.safetensors")
    assert same(Safetensors(tmp_path / "x.safetensors"), tensors)


def test_sparse_types_have_no_place(tmp_path):
    with pytest.raises(CheckpointError, match="'a' of torch.complex64"):
        write_safetensors({"a": torch.zeros(2, dtype=torch.complex64)}, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="limits are POSIX's")
def test_a_full_disk_leaves_the_old_weights(tmp_path):
    write_safetensors({"a": torch.ones(3)}, tmp_path / "x.safetensors")
    code = (
        "import resource, sys, torch\nfrom fishpaw.errors import FishpawError\nfrom fishpaw.weights.safetensors import write_safetensors\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9999, 9999))\n"
        "try:\n    write_safetensors({'a': torch.ones(10_000)}, sys.argv[1])\nexcept FishpawError as error:\n    print(error)"
    )
    source = Path(safetensors.__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "x.safetensors"], env={**os.environ, "PYTHONPATH": str(source)},
                          capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert "Free some space" in done.stdout, done.stderr
    assert Safetensors(tmp_path / "x.safetensors")["a"].tolist() == [1, 1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def header(value: object, data: int = 8, length: int | None = None) -> bytes:
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    return (len(content) if length is None else length).to_bytes(8, "little") + content + bytes(data)


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD = {
    "length 2^60": header({}, length=2**60),
    "length 2^64 - 1": header({}, length=2**64 - 1),
    "length beyond the file": header({"a": ONE}, length=10**6),
    "no JSON": header(b"{{{{", 8),
    "a list": header([]),
    "deep": header(b"[" * 10**6, 8),
    "twice": header(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
    "truncated": header({"a": ONE}, 7),
    "too long": header({"a": ONE}, 9),
    "unknown type": header({"a": ONE | {"dtype": "F31"}}),
    "overflow": header({"a": ONE | {"shape": [2**62, 2**62]}}),
    "negative": header({"a": ONE | {"shape": [-2]}}),
    "two negatives": header({"a": ONE | {"shape": [-2, -1]}}),
    "fraction": header({"a": ONE | {"shape": [2.0]}}),
    "text": header({"a": ONE | {"shape": "2"}}),
    "offsets turned": header({"a": ONE | {"data_offsets": [8, 0]}}),
    "offset negative": header({"a": ONE | {"data_offsets": [-8, 8]}}),
    "overlap": header({"a": ONE, "b": ONE}),
    "hole": header({"a": ONE | {"data_offsets": [8, 16]}}, 16),
    "not UTF-8": header(b'{"\xff": 1}'),
    "no shape": header({"a": {}}),
}


@pytest.mark.parametrize("name", BAD)
def test_hostile_headers(tmp_path, name):
    path = tmp_path / "x.safetensors"
    path.write_bytes(BAD[name])
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        dict(Safetensors(path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_a_tensor_read_by_itself_is_the_mapped_one_in_memory_of_its_own(dtype, tmp_path):
    values = {name: torch.randint(0, 2, shape).to(dtype) for name, shape in {"b": (3, 5), "a": (7,), "none": (0, 2), "one": ()}.items()}
    write_safetensors(values, tmp_path / "x.safetensors")
    found = Safetensors(tmp_path / "x.safetensors")
    for name, value in values.items():
        assert found.read(name).dtype == dtype and torch.equal(found.read(name), value)
    found.read("b").zero_()
    assert torch.equal(found["b"], values["b"])
