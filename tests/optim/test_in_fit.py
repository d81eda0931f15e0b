"""Derived optimizers in `fit`: they go on to the bit, are told apart, and fit's own accumulation is the big batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fishpaw.errors import CheckpointError, ConfigError
from fishpaw.optim.adafactor import adafactor
from fishpaw.optim.adamw import adamw
from fishpaw.optim.derive import Derived, derive
from fishpaw.optim.lamb import lamb
from fishpaw.optim.lion import lion
from fishpaw.optim.muon import muon
from fishpaw.optim.schedules import piecewise
from fishpaw.optim.tiger import tiger
from fishpaw.optim.transforms import Accumulate, Average, LayerAdaptation, Lazy, Lookahead, PiecewiseLinear, Rates
from fishpaw.train.loop import fit
from fishpaw.train.options import Options

torch.set_num_threads(1)
TOY = run_path(str(Path(__file__).resolve().parent.parent / "train" / "kill_and_resume.py"))
OPTIONS = dataclasses.replace(TOY["OPTIONS"], epochs=1, save_every=2, evaluate_every=None)


def everything(model: nn.Module) -> Derived:
    """All that keeps state, with a schedule and rates."""
    around = [LayerAdaptation(), Lazy(), Rates({"norm": 0.5}), PiecewiseLinear({3: 1, 9: 0.1}), Lookahead(3), Average(0.9)]
    return derive(adamw(model, learning_rate=0.05, weight_decay=0), around)


MAKERS: dict[str, Callable[[nn.Module], Derived]] = {
    "everything": everything,
    "lamb": lambda model: lamb(model, learning_rate=0.05),
    "lion": lambda model: lion(model, learning_rate=0.01),
    "tiger": lambda model: tiger(model, learning_rate=0.01),
    "muon": lambda model: muon(model, learning_rate=0.01),
    "adafactor": lambda model: adafactor(model),
}


class Killed(BaseException):
    """Nothing catches this: it stands for the end of the process."""


@pytest.mark.parametrize("name", MAKERS)
def test_a_run_goes_on_to_the_same_bits(name: str, tmp_path: Path) -> None:
    calls = 0

    def deadly(model: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 9:
            raise Killed
        return TOY["loss"](model, batch)

    TOY["train"](tmp_path / "whole", OPTIONS, optimizer=MAKERS[name])
    with pytest.raises(Killed):
        TOY["train"](tmp_path / "run", OPTIONS, optimizer=MAKERS[name], loss=deadly)
    _, result = TOY["train"](tmp_path / "run", OPTIONS, optimizer=MAKERS[name])
    assert result.resumed_from == 4 and TOY["differing"](tmp_path / "whole", tmp_path / "run") == []


def test_a_run_with_other_transforms_is_refused_by_name(tmp_path: Path) -> None:
    TOY["train"](tmp_path, OPTIONS, optimizer=MAKERS["lamb"])
    with pytest.raises(CheckpointError, match=r"optimizer was AdamW\(.*LayerAdaptation\(.*, now Lion\("):
        TOY["train"](tmp_path, OPTIONS, optimizer=MAKERS["lion"])


def test_two_accumulations_are_refused() -> None:
    with pytest.raises(ConfigError, match="accumulates gradients, and so does fit"):
        TOY["train"](None, OPTIONS, optimizer=lambda model: derive(torch.optim.SGD(model.parameters(), lr=0.1), [Accumulate(2)]))


class Tokens(nn.Module):
    """No dropout, fp64: what differs is the batch alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embedding = nn.Embedding(31, 5)
        self.output = nn.Linear(5, 31)
        self.double()


def loss(model: Any, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Of every token its successor: rows of unequal length count by their tokens."""
    ids, targets = (torch.tensor(sum(([*row[begin : len(row) - 1 + begin]] for row in rows), [])) for begin in (0, 1))
    return nn.functional.cross_entropy(model.output(model.embedding(ids)), targets, reduction="sum"), torch.tensor(len(targets))


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize(
    "make",
    [lambda m: torch.optim.SGD(m.parameters(), lr=0.5, momentum=0.9), lambda m: adamw(m, learning_rate=0.01), MAKERS["lamb"]],
    ids=["sgd", "adamw", "lamb"],
)
def test_fits_accumulation_is_the_big_batch_by_tokens(make: Callable[[nn.Module], torch.optim.Optimizer], clip: float | None) -> None:
    """13 rows of 2 to 16 tokens as one batch, and as five of 3, 3, 3, 3 and 1 rows."""
    def run(batch_size: int, accumulate: int, planted: bool = False) -> list[Tensor]:
        def mean(model: Any, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
            total, count = loss(model, rows)
            return total / count, torch.ones(())

        model = Tokens()
        options = Options(steps=6, batch_size=batch_size, accumulate=accumulate, clip=clip, warmup=0)
        fit(model, TOY["EXAMPLES"][:13], loss=mean if planted else loss, collate=list, options=options, optimizer=make,
            schedule=lambda steps: piecewise({2: 1, 6: 0}), progress=False)  # fmt: skip
        return [p.detach() for p in model.parameters()]

    big = run(13, 1)
    assert max(float((a - b).abs().max()) for a, b in zip(big, run(3, 5), strict=True)) < 1e-12
    assert max(float((a - b).abs().max()) for a, b in zip(big, run(3, 5, planted=True), strict=True)) > 1e-4      # a mean of means
