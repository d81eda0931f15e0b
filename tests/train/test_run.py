"""What a step does to the weights, when a run looks, stops, fails, and what it keeps."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fishpaw.errors import ConfigError, FishpawError
from fishpaw.losses.generation import masked_cross_entropy
from fishpaw.optim.schedules import linear
from fishpaw.train.loop import fit
from fishpaw.train.options import Options

EXAMPLES = [[3 + (i * i + j) % 7 for j in range(1 + i % 5)] for i in range(21)]


class Letters(nn.Module):
    """ids [b t] -> logits [b t 11]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.output = nn.Embedding(11, 5), nn.Linear(5, 11)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.output(torch.tanh(self.embedding(ids)))
        return logits


def collate(rows: list[list[int]]) -> Tensor:
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=0)


def loss(model: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    targets = torch.where(ids == 0, -100, (ids * 3) % 11)
    return masked_cross_entropy(model(ids).flatten(0, 1), targets.flatten())


def mean_loss(model: nn.Module, ids: Tensor) -> tuple[Tensor, int]:
    """The usual mistake: each batch weighs the same, however many tokens it has."""
    total, count = loss(model, ids)
    return total / count, 1


def descend(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1.0)


def trained(options: Options, *, using: Any = loss, optimizer: Any = descend, **changes: Any) -> dict[str, Tensor]:
    torch.manual_seed(5)
    model = Letters().double()
    examples = changes.pop("examples", EXAMPLES)
    fit(model, examples, loss=using, collate=collate, options=options, optimizer=optimizer, progress=False, **changes)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize(("size", "accumulate"), [(7, 3), (4, 6), (1, 21), (10, 3)])
def test_accumulated_batches_are_the_one_big_batch(size: int, accumulate: int, clip: float | None) -> None:
    def options(batch_size: int, number: int) -> Options:
        return Options(steps=1, batch_size=batch_size, accumulate=number, clip=clip, warmup=0, seed=2)

    one, many = trained(options(21, 1)), trained(options(size, accumulate))
    assert distance(one, many) < 1e-6                                     # seen: 4e-17
    assert distance(one, trained(Options(steps=1, batch_size=21, clip=None, warmup=0, learning_rate=1e-9), optimizer=None)) > 1e-3
    if size > 1:
        assert distance(one, trained(options(size, accumulate), using=mean_loss)) > 1e-4       # planted: not weighted


def test_the_gradient_is_clipped_by_its_norm_over_all_parameters() -> None:
    records: list[dict[str, Any]] = []
    options = Options(steps=1, batch_size=21, clip=0.05, warmup=0, log_every=1)
    torch.manual_seed(5)
    before = {name: tensor.clone() for name, tensor in Letters().double().state_dict().items()}
    after = trained(options, report=records.append)
    moved = math.sqrt(sum(float(((after[name] - before[name]) ** 2).sum()) for name in after))
    assert moved == pytest.approx(0.05, rel=1e-4) and records[1]["norm"] > 0.05


def test_the_rate_follows_the_schedule_and_another_one_can_be_given() -> None:
    records: list[dict[str, Any]] = []
    options = Options(steps=10, batch_size=7, warmup=0.4, log_every=1)
    trained(options, report=records.append)
    rates = [record["rate"] for record in records if record["event"] == "step"]
    assert rates == pytest.approx([linear(10, warmup=0.4)(step) for step in range(10)])
    records.clear()
    trained(options, report=records.append, schedule=lambda total: lambda step: 1 / (total + step))
    assert [record["rate"] for record in records if record["event"] == "step"] == pytest.approx([1 / (10 + step) for step in range(10)])


def test_a_batch_without_targets_changes_nothing() -> None:
    empty = [[0, 0]] * 5
    torch.manual_seed(5)
    before = Letters().double().state_dict()
    records: list[dict[str, Any]] = []
    after = trained(Options(steps=3, batch_size=2, weight_decay=0.5), examples=empty, optimizer=None, report=records.append)
    assert distance(before, after) == 0 and records[-1]["event"] == "end"
    assert {record[name] for record in records for name in ("loss", "train_loss", "norm") if name in record} == {0.0}


def test_how_often_one_looks_saves_and_logs_does_not_change_what_is_learned(toy: ModuleType, tmp_path: Path) -> None:
    def weights(**changes: Any) -> dict[str, Tensor]:
        name = "-".join(f"{name}={value}" for name, value in changes.items())
        options = dataclasses.replace(toy.OPTIONS, save_every=None, **changes)
        toy.train(tmp_path / name, options)
        return load_file(tmp_path / name / "checkpoint" / "model.safetensors")

    wanted = weights(evaluate_every=5)
    for changes in ({"evaluate_every": None}, {"evaluate_every": 3, "log_every": 1}, {"save_seconds": 1e-9}):
        assert distance(wanted, weights(**changes)) == 0


def test_patience_stops_and_the_best_weights_are_left_in_the_model(toy: ModuleType, tmp_path: Path) -> None:
    scores = iter([0.1, 0.3, 0.2, 0.3, math.nan, 0.9])
    seen: list[dict[str, Tensor]] = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert not model.training and not torch.is_grad_enabled()
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"f1": next(scores)}

    options = dataclasses.replace(toy.OPTIONS, evaluate_every=2, patience=3)
    for out in (tmp_path / "run", None):
        scores, seen = iter([0.1, 0.3, 0.2, 0.3, math.nan, 0.9]), []
        model, result = toy.train(out, options, evaluate=evaluate, monitor="f1")
        assert (result.stopped, result.step, result.best, result.best_step) == ("patience", 10, 0.3, 4)
        assert distance(model.state_dict(), seen[1]) == 0 and distance(model.state_dict(), seen[4]) > 0
    stored = load_file(tmp_path / "run" / "best" / "model.safetensors")
    assert distance({name: seen[1][name] for name in stored}, stored) == 0
    assert json.loads((tmp_path / "run" / "best" / "facts.json").read_text(encoding="utf-8")) == {"step": 4, "metric": "f1", "value": 0.3}


def test_a_monitor_that_is_not_measured_is_refused_with_those_that_are(toy: ModuleType) -> None:
    with pytest.raises(ConfigError, match="monitor is 'f2', but the evaluation gave accuracy, loss"):
        toy.train(None, monitor="f2")


def test_without_an_evaluation_the_last_weights_stay(toy: ModuleType) -> None:
    _, result = toy.train(None, evaluate=None)
    assert result.best is None and result.best_step is None and result.step == 32
    assert [record["step"] for record in result.history] == [*range(5, 32, 5), 32]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_stops_and_keeps_the_state_before_it(toy: ModuleType, tmp_path: Path, bad: float) -> None:
    calls = 0

    def failing(model: nn.Module, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        total, count = toy.loss(model, batch)
        return (total * bad if calls == 14 else total), count                    # the second batch of step 7

    out = tmp_path / "run"
    options = dataclasses.replace(toy.OPTIONS, save_every=None, evaluate_every=None)
    said = rf"Step 7: the loss is {bad} \(examples .*bad_batch, the state before it in .*checkpoint"
    with pytest.raises(FishpawError, match=said) as raised:
        toy.train(out, options, loss=failing)
    facts = json.loads((out / "bad_batch" / "facts.json").read_text(encoding="utf-8"))
    assert facts["step"] == 7 and facts["losses"][1] == str(bad) and len(facts["rows"]) == 1
    assert facts["examples"] == [[toy.EXAMPLES[row] for row in facts["rows"][0]]]
    assert ", ".join(map(str, facts["rows"][0])) in str(raised.value)
    batch = load_file(out / "bad_batch" / "batch-0.safetensors")
    assert batch["batch.ids"].shape[0] == len(facts["rows"][0]) and batch["batch.labels"].tolist() == [
        sum(toy.EXAMPLES[row]) % 3 for row in facts["rows"][0]
    ]
    whole = tmp_path / "whole"
    toy.train(whole, options)
    toy.train(out, options)                                                      # goes on as if nothing had been
    kept, wanted = (load_file(folder / "checkpoint" / "model.safetensors") for folder in (out, whole))
    assert distance({n: kept[n] for n in kept if n != "calls"}, {n: wanted[n] for n in wanted if n != "calls"}) == 0


def test_a_gradient_that_is_no_number_stops_too(toy: ModuleType) -> None:
    def failing(model: nn.Module, batch: Any) -> Any:
        total, count = toy.loss(model, batch)
        weight = model.get_parameter("inner.weight")
        return total + (weight * 0).sum().sqrt(), count                          # value 0, gradient 0 * inf

    with pytest.raises(FishpawError, match="Step 1: the gradient is nan"):
        toy.train(None, loss=failing)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda total: total.expand(3), r"has the shape \[3\]"),
        (lambda total: total.detach(), "does not depend on a parameter"),
    ],
)
def test_a_loss_of_another_kind_is_refused(toy: ModuleType, made: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        toy.train(None, loss=lambda model, batch: (made(toy.loss(model, batch)[0]), 1))


def test_a_loss_that_returns_no_sum_and_count_is_refused(toy: ModuleType) -> None:
    for answer in (lambda total: total, lambda total: None, lambda total: (total, 1, 2)):
        with pytest.raises(ConfigError, match="The loss returned a"):
            toy.train(None, loss=lambda model, batch, answer=answer: answer(toy.loss(model, batch)[0]))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_saves_and_leaves_and_the_run_goes_on_to_the_same_bits(
    toy: ModuleType, tmp_path: Path, number: signal.Signals
) -> None:
    calls = 0

    def interrupted(model: nn.Module, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 9:
            os.kill(os.getpid(), number) if os.name == "posix" else signal.raise_signal(number)
        return toy.loss(model, batch)

    options = dataclasses.replace(toy.OPTIONS, save_every=None)
    out, whole = tmp_path / "run", tmp_path / "whole"
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as raised:
        toy.train(out, options, loss=interrupted)
    if number == signal.SIGTERM:
        assert isinstance(raised.value, SystemExit) and raised.value.code == 143
    assert calls == 10                                                           # both batches of step 5, and no more
    last = json.loads((out / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert (last["event"], last["step"], last["signal"]) == ("stop", 5, number)
    _, result = toy.train(out, options)
    toy.train(whole, options)
    assert result.resumed_from == 5 and toy.differing(whole, out) == []


def test_a_signal_during_the_last_step_is_not_lost(toy: ModuleType, tmp_path: Path) -> None:
    def interrupted(model: nn.Module) -> dict[str, float]:
        signal.raise_signal(signal.SIGINT)
        return {"loss": 1.0}

    options = dataclasses.replace(toy.OPTIONS, steps=1, evaluate_every=None)
    with pytest.raises(KeyboardInterrupt):
        toy.train(tmp_path, options, evaluate=interrupted)
    _, result = toy.train(tmp_path, options, evaluate=interrupted)
    assert (result.stopped, result.step) == ("steps", 1)


def test_bf16_learns_and_goes_on(toy: ModuleType, tmp_path: Path) -> None:
    seen = []

    def watching(model: nn.Module, batch: Any) -> Any:
        seen.append(model(batch["ids"]).dtype)
        return toy.loss(model, batch)

    options = dataclasses.replace(toy.OPTIONS, precision="bf16")
    model, result = toy.train(tmp_path / "run", options, loss=watching)
    assert set(seen) == {torch.bfloat16} and model.inner.weight.dtype == torch.float32
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
