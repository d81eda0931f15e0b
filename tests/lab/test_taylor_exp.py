"""The polynomials of exp and their softmax: the rows hold, planted faults turn them, what the shares obey. fp64."""

from __future__ import annotations

import json
import math

import pytest
import torch

from fishpaw.attention.taylor import polynomial
from fishpaw.errors import ConfigError
from fishpaw.lab import taylor_exp as lab
from fishpaw.lab.taylor_exp import draw, measure, remainder, share, summed

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def found():
    return measure(seed=0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_row_holds(seed):
    assert [row.claim.en for row in measure(seed=seed).rows if row.verdict != "holds"] == []


def test_it_is_deterministic_in_its_seed(found):
    assert measure(seed=0) == found
    assert measure(seed=1) != found


def truncated(x, order, size=None):
    return polynomial(x, max(order - 1, 0), size)                                # one term too few


def doubled(x):
    return torch.cat((torch.ones_like(x[..., :1]), x / 13**0.25, (x[..., :, None] * x[..., None, :]).flatten(-2) / 13**0.5), -1)


@pytest.mark.parametrize(
    ("name", "fault", "claim"),
    [
        ("lowest", lambda order: -0.33 * order - 0.34, "the minimum lies at"),
        ("polynomial", truncated, "at its minimum"),
        ("polynomial", truncated, "from 0 to x"),
        ("polynomial", truncated, "no value is below the minimum"),
        ("polynomial", truncated, "the gradient of log share"),
        ("polynomial", lambda x, order, size=None: x.exp(), "an odd order is negative"),
        ("summed", lambda x, order: x.exp(), "in fp16"),
        ("features", doubled, "φ(q)·φ(k)"),                                      # without sqrt(1/2) before the squares
        ("share", lambda scores, order, tail="polynomial": scores.softmax(-1), "not shift invariant"),
        ("share", lambda scores, order, tail="polynomial": scores.softmax(-1), "tails are polynomial"),
        ("share", lambda scores, order, tail="polynomial": share(scores, 2), "n = 30 is the softmax"),
        ("share", lambda scores, order, tail="polynomial": share(scores, order), "with a flat tail"),
        ("share", lambda scores, order, tail="polynomial": scores.softmax(-1), "the twenty odd orders"),
    ],
)
def test_a_fault_turns_a_row(monkeypatch, name, fault, claim):
    monkeypatch.setattr(lab, name, fault)
    draws = torch.Generator().manual_seed(0)
    groups = (lab._table_rows, lab._identity_rows, lab._positive_rows, lambda: lab._softmax_rows(draws), lab._refused_rows)
    rows = [row for group in groups for row in group() if claim in row.claim.en]
    assert rows and any(row.verdict == "fails" for row in rows), claim


@pytest.mark.parametrize("order", [2, 4, 10, 30])
def test_shares_are_positive_and_add_up_to_one(order):
    scores = 6 * torch.randn(7, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    shares = share(scores, order)
    assert shares.shape == scores.shape and bool((shares > 0).all())
    torch.testing.assert_close(shares.sum(-1), torch.ones(7, dtype=torch.float64), atol=1e-14, rtol=0)


def test_the_quotient_is_what_the_loop_gives():
    scores = [-2.5, -0.5, 0.0, 1.75, 4.0]
    parts = [sum(x**k / math.factorial(k) for k in range(5)) for x in scores]
    expected = torch.tensor([part / sum(parts) for part in parts], dtype=torch.float64)
    torch.testing.assert_close(share(torch.tensor(scores, dtype=torch.float64), 4), expected, atol=1e-15, rtol=1e-13)


def test_the_distance_to_the_softmax_shrinks_with_the_order():
    scores = torch.linspace(-5, 5, 41, dtype=torch.float64)
    gaps = [float((share(scores, order) - scores.softmax(-1)).abs().max()) for order in (2, 6, 10, 14, 18, 22)]
    assert gaps == sorted(gaps, reverse=True) and gaps[0] > 1e-2 > 1e-5 > gaps[-1]


@pytest.mark.parametrize(("x", "order"), [(3.0, 4), (8.0, 10), (0.5, 1)])
def test_the_remainder_is_the_incomplete_gamma_function(x, order):
    expected = torch.special.gammainc(torch.tensor(order + 1.0, dtype=torch.float64), torch.tensor(x, dtype=torch.float64))
    assert remainder(x, order) == pytest.approx(float(expected), abs=1e-13)


def test_term_by_term_is_the_polynomial_in_fp64():
    x = torch.linspace(-3, 3, 61, dtype=torch.float64)
    torch.testing.assert_close(summed(x, 8), polynomial(x, 8), atol=1e-13, rtol=0)


def test_odd_orders_are_refused():
    with pytest.raises(ConfigError, match="odd polynomial has a root"):
        share(torch.zeros(3), 3)


def test_the_figure_is_drawn_from_a_record(found):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    series = json.loads(json.dumps(found.series))
    figure = Figure(figsize=(9, 4))
    draw(figure, series)
    assert len(figure.axes) == 2 and all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
    assert all(len(values) <= 400 for name in ("polynomials", "tails") for values in series[name])
