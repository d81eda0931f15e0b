"""L2 and WEISSI under rescaling: rows that must hold hold, planted faults turn them, what the small trainings obey. fp64."""

from __future__ import annotations

import json
import math

import pytest
import torch

from fishpaw.lab import weight_scale as lab
from fishpaw.lab.weight_scale import FACTORS, as_printed, descent, draw, layers, measure, network, spread, squares, trained
from fishpaw.losses.weissi import rescaled, weissi

torch.set_num_threads(1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def found():
    return measure(seed=0)


def test_every_row_that_must_hold_holds(found):
    """All but the last, which compares accuracies: that may come out either way."""
    assert len(found.rows) == 17 and [row.claim.en for row in found.rows[:-1] if row.verdict != "holds"] == []
    assert [row.interval is None for row in found.rows] == [True] * 13 + [False] * 4


@pytest.mark.parametrize("seed", range(1, 6))
def test_the_mathematical_rows_hold_whatever_is_drawn(seed):
    draws = generator(seed)
    rows = (*lab._penalty_rows(draws), *lab._function_rows(draws), *lab._least_rows(draws))
    assert [row.claim.en for row in rows if row.verdict != "holds" and "to this share" not in row.claim.en] == []


def test_it_is_deterministic_in_its_seed(monkeypatch):
    monkeypatch.setattr(lab, "STEPS", 4)
    monkeypatch.setattr(lab, "trained", lambda *given, **options: trained(*given, **options, steps=2))
    first = measure(seed=0)
    assert measure(seed=0) == first and measure(seed=1) != first


def by_l2(weights, scale=1.0, direction=1.0):
    return scale * squares(weights) + direction * squares(weights)


def own(weights, biases, factors):
    return as_printed(weights, biases, factors)


@pytest.mark.parametrize(
    ("name", "fault", "rows", "claim"),
    [
        ("weissi", by_l2, "_penalty_rows", "adds l1 log 5"),
        ("weissi", by_l2, "_penalty_rows", "nothing to the second"),
        ("weissi", by_l2, "_penalty_rows", "in each layer: least"),
        ("weissi", by_l2, "_function_rows", "WEISSI is the same"),
        ("rescaled", own, "_function_rows", "each bias times the product"),
        ("as_printed", rescaled, "_function_rows", "as in the article"),
        ("FACTORS", (3.0, 0.25, 1.0), "_function_rows", "leave the output alone"),
        ("FACTORS", (1.0, 1.0, 1.0), "_function_rows", "it is multiplied by"),
        ("network", lambda weights, biases, x: 2 * network(weights, biases, x), "_function_rows", "|df/dx|"),
        ("balanced", lambda weights, biases: (weights, biases), "_least_rows", "geometric mean"),
        ("balanced", lambda weights, biases: (weights, biases), "_least_rows", "no other factors"),
        ("balanced", lambda weights, biases: (weights, biases), "_least_rows", "to this share"),
    ],
)
def test_a_fault_turns_a_row(monkeypatch, name, fault, rows, claim):
    monkeypatch.setattr(lab, name, fault)
    turned = [row for row in getattr(lab, rows)(generator()) if claim in row.claim.en]
    assert [row.verdict for row in turned] == ["fails"]


def test_the_penalties_exchanged_turn_the_rows_of_the_descent(found):
    paths = {"L2": descent(lab._each(scale=lab.PULL, direction=0.0), 0), "WEISSI": descent(lab._l2(lab.DECAY / 2), 0)}
    assert [row.verdict for row in lab._path_rows(paths)] == ["fails", "fails"]


def test_without_a_penalty_descent_keeps_what_layers_differ_by():
    kept = descent(lambda weights: 0 * squares(weights), 0)
    assert kept.shape == (lab.STEPS + 1, lab.SEEDS) and float((kept - 1).abs().max()) < 1e-3          # steps of finite length


def test_the_network_is_a_loop_over_layers():
    weights, biases = layers((5, 11, 7, 3), generator(), 2)
    x = torch.randn(2, 13, 5, dtype=torch.float64, generator=generator(1))
    found = network(weights, biases, x)
    for copy in range(2):
        for row in range(13):
            at = x[copy, row]
            for index in range(3):
                at = weights[index][copy] @ (at if index == 0 else at.clamp_min(0)) + biases[index][copy, 0]
            torch.testing.assert_close(found[copy, row], at, atol=1e-13, rtol=0)


def test_networks_side_by_side_are_penalised_as_each_alone():
    weights, _ = layers((5, 11, 3), generator(), 4)
    whole = lab._each(scale=0.7, direction=0.3)(weights)
    alone = sum(weissi([one[copy] for one in weights], scale=0.7, direction=0.3) for copy in range(4))
    torch.testing.assert_close(whole, alone, atol=1e-12, rtol=0)


def test_spread_is_of_the_norms():
    weights = [torch.ones(2, 3, 3, dtype=torch.float64), 4 * torch.ones(2, 3, 3, dtype=torch.float64)]
    assert spread(weights) == pytest.approx([math.log(4)] * 2)
    assert spread([weights[0], weights[0]]) == [0.0, 0.0]


def test_training_begins_with_the_same_function_whatever_the_factors():
    plain = trained(lambda weights: 0 * squares(weights), 0, steps=0)
    moved = trained(lambda weights: 0 * squares(weights), 0, factors=FACTORS, steps=0)
    assert plain[0] == pytest.approx(moved[0]) and plain[1] == pytest.approx(moved[1]) and max(plain[2]) < 2 < min(moved[2])


def test_the_strength_is_chosen_on_other_points_than_it_is_judged_by(monkeypatch):
    monkeypatch.setattr(lab, "SEEDS", 2)
    runs = [([0.9, 0.1], [0.3, 0.4], []), ([0.2, 0.5], [0.99, 0.6], [])]
    assert lab._chosen(runs) == [0.3, 0.6]


def test_the_figure_is_drawn_from_a_record(found):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    series = json.loads(json.dumps(found.series))
    figure = Figure(figsize=(9, 4))
    draw(figure, series)
    assert len(figure.axes) == 3 and all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
    assert all(len(values) <= 400 for values in (series["g"], series["time"], *series["paths"].values()))
