"""The analysis of derived optimizers: every law holds, and faults planted in the library turn their rows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fishpaw.lab import optimizers
from fishpaw.lab.findings import Found, Row
from fishpaw.optim import schedules
from fishpaw.optim.derive import Derived
from fishpaw.optim.transforms import LayerAdaptation, Lazy, Lookahead, WeightDecay

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def found() -> Found:
    return optimizers.measure(seed=0)


def test_every_law_holds(found: Found) -> None:
    assert [row.claim.en for row in found.rows if row.verdict != "holds"] == []
    assert all(row.interval is None for row in found.rows)           # mathematics, no samples


def test_other_seeds_hold_too_and_one_seed_gives_the_same() -> None:
    rows = optimizers._accumulation(3)
    assert all(row.verdict == "holds" for row in rows) and rows == optimizers._accumulation(3)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_the_emulation_is_its_closed_form(n: int) -> None:
    lengths, empty = optimizers.counted_by_calls(n, updates=3)
    assert lengths[0] == pytest.approx(0.1 / (1 - 0.9 ** (n + 1)) / math.sqrt(0.001 / (1 - 0.999 ** (n + 1))), abs=1e-12)
    assert len(lengths) == 3 and empty == 1 and lengths[0] < lengths[1] < 1


Rows = Callable[[], list[Row]]


def accumulation() -> list[Row]:
    return optimizers._accumulation(0)


def layers() -> list[Row]:
    return optimizers._layers(0)


def decay() -> list[Row]:
    return optimizers._decay(0)


def rest() -> list[Row]:
    return optimizers._rest(0)


def nothing(self: Any, *given: Any) -> None:
    return None


def zeros(self: Any, parameter: torch.Tensor, updates: int) -> torch.Tensor:
    return torch.zeros_like(parameter)


def still(self: Any, moves: Any) -> None:
    for parameter, before in zip(moves.parameters, moves.before, strict=True):
        parameter.copy_(before)


def forgetful(self: Any, state: dict[str, Any]) -> None:
    torch.optim.Optimizer.load_state_dict(self, {**state, "state": {}})


plain_adam = optimizers._adam
FAULTS: list[tuple[object, str, Any, Rows, str]] = [
    (Derived, "_scale", nothing, accumulation, "Accumulation over 4 equal parts against one batch, clipped, SGD"),
    (Derived, "_scale", nothing, accumulation, "The same with parts of"),
    (Derived, "_collect", lambda self, found, count: count, accumulation, "Ours, the worst"),
    (optimizers, "counted_by_calls", lambda n, updates=1: ([1.0] * updates, 0), accumulation, "bert4keras' Adam, n = 16"),
    (optimizers, "counted_by_calls", lambda n, updates=1: ([1.0] * updates, 0), accumulation, "Its updates with"),
    (Lookahead, "begin", zeros, optimizers._lookahead, "Lookahead on a quadratic"),
    (Lookahead, "begin", zeros, optimizers._lookahead, "Ours multiplies"),
    (Lookahead, "act", nothing, optimizers._lookahead, "Lookahead with alpha = 0"),
    (optimizers._FromZero, "begin", Lookahead.begin, optimizers._lookahead, "A slow copy from 0"),
    (LayerAdaptation, "change", nothing, layers, "LAMB without decay"),
    (LayerAdaptation, "change", nothing, layers, "LAMB against its paper"),
    (WeightDecay, "covers", lambda self, name, parameter: False, decay, "SGD: decoupled"),
    (WeightDecay, "covers", lambda self, name, parameter: "outer" in name, decay, "Adam with decoupled"),
    (optimizers, "_adam", lambda model, transforms, decay=0.0: plain_adam(model, [], decay=0.1), decay, "Adam: decoupled decay against L2"),
    (schedules, "piecewise", lambda knots: lambda step: 1.0, rest, "{1000: 1"),
    (Lazy, "change", nothing, rest, "Lazy: rows"),
    (Lazy, "change", still, rest, "Lazy with all rows"),
    (Derived, "load_state_dict", forgetful, rest, "Of 64 combinations"),
]


@pytest.mark.parametrize(("owner", "name", "fault", "rows", "claim"), FAULTS, ids=[f"{claim} {name}" for _, name, _, _, claim in FAULTS])
def test_a_planted_fault_turns_its_verdict(
    owner: object, name: str, fault: Any, rows: Rows, claim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not claim.startswith("Of 64"):
        monkeypatch.setattr(optimizers, "_subsets", lambda: [])
    monkeypatch.setattr(owner, name, fault)
    (row,) = [row for row in rows() if row.claim.en.startswith(claim)]
    assert row.verdict == "fails"


def test_its_figure_is_drawn_from_what_json_keeps(found: Found) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    series = json.loads(json.dumps(found.series))
    assert series == found.series
    figure = Figure(figsize=(9, 4))
    FigureCanvasAgg(figure)
    optimizers.draw(figure, series)
    figure.canvas.draw()
    assert len(figure.axes) == 3 and all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
