"""Checkpoints: everything comes back to the bit; what is damaged or of another model is refused and changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from fishpaw.errors import CheckpointError, ConfigError, FishpawError
from fishpaw.train import checkpoint
from fishpaw.train.randomness import Randomness

CPU = torch.device("cpu")


def stepped(toy: ModuleType, kind: Any, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(2)
    model = toy.Toy()
    optimizer: torch.optim.Optimizer = kind(model.parameters(), **options)
    for _ in range(3):
        optimizer.zero_grad()
        toy.loss(model, toy.collate(toy.EXAMPLES[:9]))[0].backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.AdamW, {"fused": True}),
        (torch.optim.AdamW, {"amsgrad": True}),
        (torch.optim.SGD, {"lr": 0.1}),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        (torch.optim.NAdam, {}),
        (torch.optim.Adafactor, {}),
    ],
)
def test_any_optimizers_state_comes_back_to_the_bit(toy: ModuleType, tmp_path: Path, kind: Any, options: dict[str, Any]) -> None:
    model, optimizer = stepped(toy, kind, **options)
    checkpoint.save(tmp_path / "c", model, optimizer, Randomness.take(CPU), {"step": 3})
    record = checkpoint.read_record(tmp_path / "c")
    assert record["step"] == 3
    other = toy.Toy()
    again = kind(other.parameters(), **options)
    checkpoint.load(tmp_path / "c", other, again, record).put(CPU)
    batch = toy.collate(toy.EXAMPLES[:9])
    for one, two in ((model, optimizer), (other, again)):
        torch.manual_seed(0)
        two.zero_grad()
        toy.loss(one, batch)[0].backward()
        two.step()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    assert other.get_parameter("embedding.weight") is other.output.weight


def test_tied_weights_are_stored_once_and_shared_storage_apart(tmp_path: Path, toy: ModuleType) -> None:
    assert list(checkpoint.weights(toy.Toy())) == ["calls", "embedding.weight", "norm.weight", "norm.bias", "inner.weight", "inner.bias"]
    model = nn.Module()
    fused = torch.randn(4, 3)
    model.register_buffer("whole", fused)
    model.register_buffer("part", fused[1:3])
    checkpoint.save_weights(tmp_path / "c", model, {})
    other = nn.Module()
    other.register_buffer("whole", torch.zeros(4, 3))
    other.register_buffer("part", torch.zeros(2, 3))
    checkpoint.load_weights(tmp_path / "c", other)
    assert torch.equal(other.get_buffer("whole"), fused) and torch.equal(other.get_buffer("part"), fused[1:3])


def test_weights_of_another_model_are_listed_and_nothing_is_copied(tmp_path: Path) -> None:
    checkpoint.save_weights(tmp_path / "c", nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)), {})
    other = nn.Sequential(nn.Linear(3, 5), nn.Linear(7, 2), nn.Linear(2, 2))
    before = other.get_parameter("0.weight").detach().clone()
    said = r"missing 2.bias; missing 2.weight; 1.weight is \[2, 5\] float32, the model's \[2, 7\] float32"
    with pytest.raises(CheckpointError, match=said):
        checkpoint.load_weights(tmp_path / "c", other)
    assert torch.equal(other.get_parameter("0.weight"), before)
    with pytest.raises(CheckpointError, match="float32, the model's .* float64"):
        checkpoint.load_weights(tmp_path / "c", nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)).double())


def test_a_folder_that_is_no_checkpoint_and_another_format_are_refused(toy: ModuleType, tmp_path: Path) -> None:
    assert not checkpoint.exists(tmp_path / "none")
    checkpoint.save_weights(tmp_path / "w", toy.Toy(), {"step": 1})
    assert checkpoint.read_facts(tmp_path / "w") == {"step": 1} and checkpoint.read_facts(tmp_path / "none") is None
    with pytest.raises(CheckpointError, match="state.json: no training checkpoint"):
        checkpoint.read_record(tmp_path / "w")
    model, optimizer = stepped(toy, torch.optim.AdamW)
    checkpoint.save(tmp_path / "c", model, optimizer, Randomness.take(CPU), {"format": 99})
    with pytest.raises(CheckpointError, match="not of format 1"):
        checkpoint.read_record(tmp_path / "c")


def test_state_that_is_neither_tensor_nor_number_is_refused(toy: ModuleType, tmp_path: Path) -> None:
    model, optimizer = stepped(toy, torch.optim.AdamW)
    optimizer.state[model.get_parameter("inner.bias")]["history"] = []
    with pytest.raises(ConfigError, match="'inner.bias/history' is a list"):
        checkpoint.save(tmp_path / "c", model, optimizer, Randomness.take(CPU), {})
    assert not (tmp_path / "c").exists()
    with pytest.raises(ConfigError, match="a parameter that the model doesn't"):
        checkpoint.save(tmp_path / "c", toy.Toy(), optimizer, Randomness.take(CPU), {})


def test_a_full_disk_leaves_the_former_checkpoint(toy: ModuleType, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    model, optimizer = stepped(toy, torch.optim.AdamW)
    checkpoint.save(tmp_path / "c", model, optimizer, Randomness.take(CPU), {"step": 3})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(FishpawError, match="can't be written"):
            checkpoint.save(tmp_path / "c", model, optimizer, Randomness.take(CPU), {"step": 4})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.read_record(tmp_path / "c")["step"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_differences_name_each_leaf() -> None:
    before: dict[str, Any] = {"a": 1, "b": {"c": [1], "d": 2}, "gone": 0}
    after: dict[str, Any] = json.loads(json.dumps({"a": 1.0, "b": {"c": [2], "d": 2}, "new": None}))
    assert checkpoint.differences(before, before) == []
    assert checkpoint.differences(before, after) == ["b: c was [1], now [2]", "gone was 0, now None"]
