"""fit from outside: it goes on to the same bits from any moment, refuses what differs, and leaves the process as it found it."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import pytest
import torch

from fishpaw.data.order import Order
from fishpaw.errors import CheckpointError, ConfigError, DataError, FishpawError
from fishpaw.files import lock
from fishpaw.train.randomness import Randomness


class Killed(BaseException):
    """Nothing catches this: it stands for the end of the process."""


def deadly(toy: ModuleType, calls: int) -> Callable[..., Any]:
    """The toy's loss, until that many calls were made."""
    left = calls

    def loss(model: Any, batch: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return toy.loss(model, batch)

    return loss


@pytest.fixture(scope="session")
def whole(toy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    toy.train(out)
    return out


def interrupted(toy: ModuleType, out: Path, *calls: int) -> Path:
    for number in calls:
        with pytest.raises(Killed):
            toy.train(out, loss=deadly(toy, number))
    toy.train(out)
    return out


@pytest.mark.parametrize("calls", [(0,), (1,), (2,), (3,), (15,), (16,), (31,), (59,), (20, 2, 0, 7)])
def test_a_run_goes_on_to_the_same_bits(toy: ModuleType, whole: Path, tmp_path: Path, calls: tuple[int, ...]) -> None:
    """In the middle of epochs, at their ends, between the two batches of a step, before the first checkpoint, several times."""
    assert toy.differing(whole, interrupted(toy, tmp_path / "run", *calls)) == []


class Masked:
    """Examples of which another token is missing in each epoch."""

    def __init__(self, toy: ModuleType) -> None:
        self.examples, self.asked = toy.EXAMPLES, set[tuple[int, int]]()

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> list[int]:
        return list(self.examples[index])

    def visit(self, index: int, epoch: int) -> list[int]:
        self.asked.add((index, epoch))
        row = self[index]
        row[(7 * index + epoch) % len(row)] = 0
        return row


def test_examples_that_differ_by_epoch_are_visited_with_theirs_and_go_on_to_the_same_bits(
    toy: ModuleType, whole: Path, tmp_path: Path
) -> None:
    masked = Masked(toy)
    toy.train(tmp_path / "whole", examples=masked)
    assert masked.asked == {(index, epoch) for index in range(101) for epoch in range(4)}      # each once an epoch, by its own number
    with pytest.raises(Killed):
        toy.train(tmp_path / "run", examples=Masked(toy), loss=deadly(toy, 37))
    toy.train(tmp_path / "run", examples=Masked(toy))
    assert toy.differing(tmp_path / "whole", tmp_path / "run") == []
    assert "checkpoint/model.safetensors" in toy.differing(tmp_path / "whole", whole)


def test_lengths_may_be_given_for_all_at_once(toy: ModuleType, whole: Path, tmp_path: Path) -> None:
    toy.train(tmp_path, length=[len(row) for row in toy.EXAMPLES])
    assert toy.differing(whole, tmp_path) == []


PLANTED: dict[str, tuple[Any, str, Any]] = {
    "random states": (Randomness, "put", lambda self, device: None),
    "order": (Order, "restore", lambda self, place: None),
}


@pytest.mark.parametrize("fault", ["random states", "order"])
def test_what_is_not_restored_is_noticed(toy: ModuleType, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    with pytest.raises(Killed):
        toy.train(tmp_path / "run", loss=deadly(toy, 20))
    owner, name, planted = PLANTED[fault]
    monkeypatch.setattr(owner, name, planted)
    toy.train(tmp_path / "run")
    assert "checkpoint/model.safetensors" in toy.differing(whole, tmp_path / "run")


def test_the_log_has_every_line_once(toy: ModuleType, whole: Path, tmp_path: Path) -> None:
    interrupted(toy, tmp_path / "run", 20, 9)
    steps = [line["step"] for line in toy.essence(tmp_path / "run") if line["event"] == "step"]
    assert steps == [*range(3, 32, 3), 32]
    assert toy.essence(tmp_path / "run") == toy.essence(whole)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["event"], line["step"]) for line in lines if line["event"] in ("start", "resume", "end")] == [
        ("start", 0), ("resume", 10), ("resume", 14), ("end", 32),
    ]  # fmt: skip
    start = lines[0]
    assert start["versions"].keys() == {"fishpaw", "python", "torch", "numpy"}
    assert start["options"]["seed"] == 3 and start["examples"] == 101 and start["steps"] == 32
    assert {"loss", "rate", "norm", "epoch", "tokens_per_second"} <= lines[1].keys()


def test_without_a_folder_the_result_is_the_same_and_nothing_is_written(
    toy: ModuleType, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, result = toy.train(None)
    again, stored = toy.train(whole)
    assert list(tmp_path.iterdir()) == []
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert result.history == stored.history and result.best == stored.best


def test_a_run_that_ended_gives_its_result_again_without_a_step(toy: ModuleType, whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    model, result = toy.train(whole, loss=deadly(toy, 0))
    assert (result.step, result.stopped, result.resumed_from) == (32, "steps", 32)
    assert result.best == min(record["loss"] for record in toy.essence(whole) if record["event"] == "evaluate")
    assert toy.evaluate(model)["loss"] == result.best and not model.training
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch_size": 8}, "options: batch_size was 7, now 8"),
        ({"seed": 4, "clip": None}, "options: clip was 1.0, now None; options: seed was 3, now 4"),
        ({"epochs": 5.0}, "options: epochs was 4, now 5.0"),
    ],
)
def test_other_options_are_refused_by_name(toy: ModuleType, whole: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        toy.train(whole, dataclasses.replace(toy.OPTIONS, **changes))


def test_options_without_effect_may_change(toy: ModuleType, whole: Path) -> None:
    toy.train(whole, dataclasses.replace(toy.OPTIONS, save_every=None, log_every=1, save_seconds=1.5))


def test_other_data_model_optimizer_and_torch_are_refused_by_name(
    toy: ModuleType, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match="holds another run: data: examples was 101, now 100"):
        toy.train(whole, examples=toy.EXAMPLES[:-1])
    swapped = [toy.EXAMPLES[0][::-1], *toy.EXAMPLES[1:]]
    with pytest.raises(CheckpointError, match="holds another run: data: digest was"):
        toy.train(whole, examples=swapped)
    with pytest.raises(CheckpointError, match="optimizer was AdamW, now SGD"):
        toy.train(whole, optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(CheckpointError, match=r"another model: .*embedding.weight is \[31, 13\] float32, the model's \[31, 17\] float32"):
        toy.train(whole, width=17)
    monkeypatch.setattr(torch, "__version__", "9.9")
    with pytest.raises(CheckpointError, match="torch was .*, now 9.9"):
        toy.train(whole)


def test_other_threads_are_told_and_not_refused(toy: ModuleType, whole: Path) -> None:
    with pytest.warns(UserWarning, match="began with threads 1, goes on with 2"):
        toy.train(whole, dataclasses.replace(toy.OPTIONS, threads=2))
    assert torch.get_num_threads() == 1


def test_a_log_that_lost_lines_is_told_and_not_refused(toy: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        toy.train(tmp_path, loss=deadly(toy, 20))
    (tmp_path / "log.jsonl").write_bytes(b"")
    with pytest.warns(UserWarning, match="log.jsonl has lost lines"):
        toy.train(tmp_path)


def test_resume_false_starts_anew_and_leaves_other_files(toy: ModuleType, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Killed):
        toy.train(out, dataclasses.replace(toy.OPTIONS, seed=9), loss=deadly(toy, 40))
    (out / "notes.md").write_text("mine", encoding="utf-8")
    _, result = toy.train(out, resume=False)
    assert result.resumed_from is None and toy.differing(whole, out) == []
    assert (out / "notes.md").read_text(encoding="utf-8") == "mine"


def test_best_weights_of_a_run_that_was_killed_between_two_writes(
    toy: ModuleType, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint with a new best is written, best/ is not yet: going on must write it."""
    out = tmp_path / "run"
    real = toy.sys.modules["fishpaw.train.checkpoint"].save_weights
    calls = 0

    def dying(*given: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Killed
        real(*given)

    monkeypatch.setattr("fishpaw.train.checkpoint.save_weights", dying)
    with pytest.raises(Killed):
        toy.train(out)
    toy.train(out)
    assert calls > 2 and toy.differing(whole, out) == []


def test_one_flipped_byte_in_a_checkpoint_is_an_error_that_names_the_file(toy: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        toy.train(tmp_path / "run", loss=deadly(toy, 20))
    draw = random.Random(0)
    for path in sorted((tmp_path / "run" / "checkpoint").iterdir()):
        content = path.read_bytes()
        at = draw.randrange(len(content))
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :])
        with pytest.raises(CheckpointError, match=path.name):
            toy.train(tmp_path / "run")
        path.write_bytes(content)


def test_two_processes_cannot_train_in_one_folder(toy: ModuleType, tmp_path: Path) -> None:
    with lock(tmp_path / "training"), pytest.raises(FishpawError, match="process [0-9]+ is writing there"):
        toy.train(tmp_path)


def test_random_states_handlers_and_threads_of_the_caller_stay(toy: ModuleType) -> None:
    def states() -> tuple[Any, ...]:
        return random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), torch.get_num_threads()  # type: ignore[index]

    before, handlers = states(), [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    model = toy.Toy()
    before = states()
    toy.fit(model, toy.EXAMPLES, loss=toy.loss, collate=toy.collate, options=dataclasses.replace(toy.OPTIONS, threads=2))
    assert states() == before and [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_what_else_a_run_depends_on_is_kept_with_it_and_compared(toy: ModuleType, tmp_path: Path) -> None:
    given = {"labels": ("neg", "pos"), "model": {"width": 13}, "dev": None}
    toy.train(tmp_path, identity=given)
    assert toy.train(tmp_path, identity={**given, "labels": ["neg", "pos"]})[1].resumed_from == 32           # a tuple is a list
    differing = r"dev was None, now b; labels was \['neg', 'pos'\], now \['pos'\]; model: width was 13, now 17"
    with pytest.raises(CheckpointError, match=differing):
        toy.train(tmp_path, identity={"labels": ("pos",), "model": {"width": 17}, "dev": "b"})
    with pytest.raises(CheckpointError, match=r"labels was .*, now None.* start anew \(resume=False; --restart\)"):
        toy.train(tmp_path)
    for wrong, says in (({"data": 1}, "identity names data"), ({"a": {1, 2}}, "can't be written as JSON"), ({"a": math.nan}, "JSON")):
        with pytest.raises(ConfigError, match=says):
            toy.train(tmp_path, identity=wrong)


def test_who_is_refused_by_the_lock_leaves_all_as_it_was(toy: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        toy.train(tmp_path, identity={"dev": "a"}, loss=deadly(toy, 20))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with lock(tmp_path / "training"), pytest.raises(FishpawError, match="is writing there"):
        toy.train(tmp_path, identity={"dev": "b"}, resume=False)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert toy.train(tmp_path, identity={"dev": "a"})[1].resumed_from == 10


def test_no_examples_is_one_sentence(toy: ModuleType) -> None:
    with pytest.raises(DataError, match="No examples to train on"):
        toy.train(None, examples=[])


def test_parts_of_epochs_and_steps(toy: ModuleType) -> None:
    wanted = (({"epochs": 0.5}, 4), ({"epochs": 1.25}, 10), ({"steps": 11}, 11), ({"epochs": 0.01}, 1), ({"token_budget": 50}, None))
    for changes, steps in wanted:
        _, result = toy.train(None, dataclasses.replace(toy.OPTIONS, **changes))
        assert steps is None or result.step == steps
    assert round(result.history[-1]["epoch"], 9) == 4                     # with a token budget, epochs differ in steps, and still end


@pytest.mark.timeout(20)
def test_many_epochs_are_multiplied_and_not_counted(toy: ModuleType) -> None:
    def stop(record: dict[str, Any]) -> None:
        assert record["steps"] == 8 * 10**8 + 4                           # 101 examples, 7 a batch, 2 batches an update
        raise Killed

    with pytest.raises(Killed):
        toy.train(None, dataclasses.replace(toy.OPTIONS, epochs=1e8 + 0.5), report=stop)


def kill(*arguments: str) -> dict[str, Any]:
    script = Path(__file__).with_name("kill_and_resume.py")
    done = subprocess.run([sys.executable, "-W", "error", str(script), *arguments], capture_output=True, text=True, timeout=570)
    assert done.returncode in (0, 1) and done.stdout, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == bool(said["differing"])
    return said


def test_killed_with_sigkill_at_random_moments() -> None:
    said = kill("--kills", "4", "--epochs", "2")
    assert said["kills"] == 4 and said["differing"] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_with_sigkill_at_twenty_random_moments_and_the_planted_fault_is_found() -> None:
    said = kill("--kills", "20")
    assert said["kills"] == 20 and said["kills_in_saves"] > 0 and said["differing"] == []
    assert kill("--kills", "4", "--forget")["differing"] != []


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")
def test_killed_before_each_file_operation() -> None:
    said = kill("--every", "1", "--epochs", "0.3", "--width", "13")
    assert said["kills"] == said["operations"] > 50 and said["differing"] == []


def test_patience_without_an_evaluation_is_refused(toy: ModuleType, tmp_path: Path) -> None:
    """It would never end a run, and whoever set it would wait for that."""
    with pytest.raises(ConfigError, match="patience is 2, but nothing is evaluated"):
        toy.train(tmp_path, dataclasses.replace(toy.OPTIONS, patience=2), evaluate=None)
    assert not list(tmp_path.iterdir())
