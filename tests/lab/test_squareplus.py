"""SquarePlus: the rows hold, planted faults turn them, the nearest b against the equations that it solves. fp64."""

from __future__ import annotations

import json
import math

import pytest
import torch

from fishpaw.lab import squareplus as lab
from fishpaw.lab.squareplus import above, difference, draw, measure, naive, nearest, peak

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def found():
    return measure(seed=0)


def test_every_row_holds(found):
    assert [row.claim.en for row in found.rows if row.verdict != "holds"] == []


def test_nothing_depends_on_chance(found):
    assert measure(seed=1) == found


@pytest.mark.parametrize(
    ("fault", "claim"),
    [
        (lambda x, b=4.0: (x + (x * x + b).sqrt()) / 2, "rationalised"),                                   # cancels
        (lambda x, b=4.0: (x + (x * x + 2 * b).sqrt()) / 2, "the b nearest"),                              # another b
        (lambda x, b=4.0: (x + (x * x + b).sqrt()) / 2 + 0.01 * x.relu(), "the difference is even"),
        (lambda x, b=4.0: (x + (x * x + b + 0.01 * x).sqrt()) / 2, "the gradient is"),
        (lambda x, b=4.0: (x.abs() + torch.where(x < 0, -2 * x.abs(), 0 * x) + (x * x + b).sqrt()) / 2, "the gradient is"),   # slope 0 at 0
        (lambda x, b=4.0: (x + (x * x + b).sqrt()).square() / 4, "the second derivative"),
        (lambda x, b=4.0: torch.nn.functional.relu(x), "it is convex"),
    ],
)
def test_a_fault_in_the_function_turns_a_row(monkeypatch, fault, claim):
    monkeypatch.setattr(lab, "squareplus", fault)
    rows = (*lab._nearest_rows(), *lab._above_rows(), *lab._product_rows(), *lab._slope_rows())
    assert any(row.verdict == "fails" for row in rows if claim in row.claim.en), claim


def test_the_nearest_b_solves_both_of_its_equations():
    """The slope of D is 0 at the peak, and D there is -D(0); the peak's place by bisection on the slope, without a grid."""
    b = nearest()

    def slope(x: float) -> float:
        return (1 + x / math.sqrt(x * x + b)) / 2 - 1 / (1 + math.exp(-x))

    low, high = 2.0, 6.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    top = (low + math.sqrt(low * low + b)) / 2 - math.log1p(math.exp(low))
    assert abs(top + math.sqrt(b) / 2 - math.log(2)) < 1e-14                     # fp64, values about 4
    assert abs(peak(b)[0] - low) < 1e-6                                          # flat there: the grid sees 1e-16 in D, 1e-8 in x


def test_the_difference_rises_with_b_everywhere():
    """Why the equal extremes are the best there is."""
    x = torch.linspace(-30, 30, 601, dtype=torch.float64)
    sizes = torch.stack([difference(x, b) for b in (0.5, 1.0, 1.5, 2.0, 4.0)])
    assert bool((sizes.diff(dim=0) > 0).all())


def test_the_touching_b_is_the_greatest_of_a_product():
    """f >= softplus is b >= 4 softplus(x) softplus(-x), greatest at 0."""
    x = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    needed = 4 * torch.logaddexp(x, torch.zeros_like(x)) * torch.logaddexp(-x, torch.zeros_like(x))
    assert abs(above() - float(needed.max())) < 1e-12 and abs(above() - 4 * math.log(2) ** 2) < 1e-12


def test_both_forms_agree_where_nothing_cancels():
    x = torch.linspace(0, 50, 101, dtype=torch.float64)
    torch.testing.assert_close(naive(x, 3.0), lab.squareplus(x, b=3.0), atol=1e-13, rtol=1e-14)


def test_the_figure_is_drawn_from_a_record(found):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    series = json.loads(json.dumps(found.series))
    figure = Figure(figsize=(9, 4))
    draw(figure, series)
    assert len(figure.axes) == 2 and all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
    assert all(len(values) <= 400 for values in (series["x"], series["far"], *series["differences"]))
