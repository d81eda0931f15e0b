"""The analysis of Mitchell's product: its rows hold, a wrong constant or sign turns them, and a network learns digits with it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fishpaw.lab import mitchell
from fishpaw.lab.findings import Found, Row
from fishpaw.lab.mitchell_arithmetic import multiply, straight, throughout
from fishpaw.lab.table import Language, say

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """200,000 pairs in the place of two million."""
    monkeypatch.setattr(mitchell, "_PAIRS", 200_003)


@pytest.fixture(scope="module")
def found() -> Found:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mitchell, "_SEEDS", 2)
        return mitchell.measure()


def without_network(monkeypatch: pytest.MonkeyPatch) -> tuple[Row, ...]:
    monkeypatch.setattr(mitchell, "accuracies", lambda products, *, seed: dict.fromkeys(products, 1.0))
    return mitchell.measure().rows


def failing(rows: tuple[Row, ...]) -> set[str]:
    return {row.claim.en for row in rows if row.verdict == "fails"}


def test_what_is_mathematical_holds(found: Found) -> None:
    rows = [row for row in found.rows if row.interval is None]
    assert len(rows) == 23 and all(row.verdict == "holds" for row in rows), failing(found.rows)
    assert sum(row.interval is not None for row in found.rows) == 2


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_documents_quote_a_row_as_it_is_worded(found: Found, language: Language) -> None:
    page = (Path(__file__).parents[2] / "docs" / language / "lab.md").read_text(encoding="utf-8")
    (block,) = (block for block in re.findall(r"```text\n(.*?)```", page, re.S) if "≥ -1 " in block)
    words = [re.split(r"  +", line)[0] for line in block.splitlines()[1:]]
    assert ("" if language == "zh" else " ").join(words) in [say(row.claim, language) for row in found.rows]


def test_measuring_again_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert without_network(monkeypatch) == without_network(monkeypatch)


@pytest.mark.parametrize(("fault", "turned"), [
    (lambda a, b, offset=0.0: multiply(a, b, offset=offset + 0.01), "12.3 × 4.56 in fp32 (56.088 truly)"),
    (lambda a, b, offset=0.0: multiply(a, b, offset=offset + 0.01), "no ratio is above 1"),
    (lambda a, b, offset=0.0: multiply(a, b, offset=offset - 0.01), "no ratio is below 8/9"),
    (lambda a, b, offset=0.0: multiply(a, b, offset=offset).abs(), "float16, any bits: products that differ from the same by hand "
                                                                   "in whole numbers"),
    (lambda a, b, offset=0.0: multiply(a, a, offset=offset), "pairs whose order matters"),
    (lambda a, b, offset=0.0: a * b, "mean relative error, mantissas uniform"),
    (lambda a, b, offset=0.0: -multiply(a, b, offset=offset), "places where a product or quotient isn't monotone"),
    (lambda a, b, offset=0.0: 1.01 * a * b, "products that are over-estimated"),
    (lambda a, b, offset=0.0: multiply(a, b), "a constant k added to the sum of bits does it less well: the best greatest error, "
                                              "(1 - k)(3 - k)² = 8"),
])  # fmt: skip
def test_a_fault_turns_its_row(fault: Callable[..., Tensor], turned: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mitchell, "multiply", fault)
    assert turned in failing(without_network(monkeypatch))


def test_faults_of_quotients_and_of_the_balance_turn_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mitchell, "divide", lambda a, b: a / b * 1.13)
    monkeypatch.setattr(mitchell, "balanced", lambda a, b: multiply(a, b) * 17 / 16)
    turned = failing(without_network(monkeypatch))
    assert {"no ratio of quotients is above 9/8", "times 18/17: the greatest error upwards"} <= turned


def test_a_network_whose_products_are_noise_loses_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mitchell, "_SEEDS", 2)
    monkeypatch.setattr(mitchell, "throughout", torch.matmul)
    monkeypatch.setattr(mitchell, "straight", lambda a, b: a.round() @ b.round())       # no gradient, and little is left of the numbers
    (row,) = (row for row in mitchell.measure().rows if "true products backwards" in row.claim.en)
    assert row.measured < -10 and row.verdict == "fails"


def test_by_hand_is_the_article_s_two_cases() -> None:
    assert mitchell.by_hand(1.25, 1.5, torch.float32) == 1.75         # x + y < 1: 1 + x + y
    assert mitchell.by_hand(-1.75, 1.5, torch.float64) == -2.5        # else 2 (x + y)
    assert mitchell.by_hand(2.0**-14, 0.5, torch.float16) == 0 and mitchell.by_hand(65504.0, 2.0, torch.float16) == math.inf
    assert math.isnan(mitchell.by_hand(math.inf, 0.0, torch.bfloat16)) and mitchell.by_hand(0.0, -3.0, torch.bfloat16) == 0


def test_the_means_are_those_of_the_formula() -> None:
    middles = (torch.arange(701, dtype=torch.float64) + 0.5) / 701
    for logarithmic in (False, True):
        x = middles.exp2() - 1 if logarithmic else middles
        s = x[:, None] + x
        approximate = torch.where(s < 1, 1 + s, 2 * s)
        expected = 1 - (approximate / torch.outer(1 + x, 1 + x)).mean()
        assert mitchell.mean_error(logarithmic=logarithmic, steps=701) == pytest.approx(float(expected), abs=1e-14)


def test_the_figure_is_drawn_from_a_record(found: Found) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4))
    FigureCanvasAgg(figure)
    mitchell.draw(figure, json.loads(json.dumps(found.series, allow_nan=False)))
    figure.canvas.draw()
    left, right = figure.axes
    assert len(left.lines) == 6 and all(axes.get_xlabel() and axes.get_ylabel() for axes in (left, right))
    assert all(len(curve) <= 400 for curve in found.series.values())


@pytest.mark.parametrize("product", [straight, throughout])
def test_handwritten_digits_are_learnt_within_a_point(product: Callable[[Tensor, Tensor], Tensor]) -> None:
    """1,797 real digits of 8 x 8, the last third held out; 64 -> 32 -> 10."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    points, labels = torch.tensor(digits.data, dtype=torch.float32)[order] / 16, torch.tensor(digits.target)[order]
    right = []
    for one in (torch.matmul, product):
        generator = torch.Generator().manual_seed(1)
        shapes = ((64, 32), (32,), (32, 10), (10,))
        parameters = [(torch.randn(shape, generator=generator) / 6 if len(shape) == 2 else torch.zeros(shape)).requires_grad_()
                      for shape in shapes]  # fmt: skip
        optimizer = torch.optim.Adam(parameters, lr=0.01)
        for _ in range(240):
            rows = torch.randint(0, 1200, (64,), generator=generator)
            optimizer.zero_grad()
            hidden = (one(points[rows], parameters[0]) + parameters[1]).relu()
            cross_entropy(one(hidden, parameters[2]) + parameters[3], labels[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            hidden = (one(points[1200:], parameters[0]) + parameters[1]).relu()
            right.append(float(((one(hidden, parameters[2]) + parameters[3]).argmax(-1) == labels[1200:]).double().mean()))
    assert right[0] > 0.93 and right[1] > right[0] - 0.01, right
