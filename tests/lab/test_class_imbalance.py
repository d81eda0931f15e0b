"""The analysis of losses for rare classes: every row holds, faults in losses and priors turn theirs, training comes to its border."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fishpaw.lab import class_imbalance
from fishpaw.lab.class_imbalance import border, draw, points, trained, trained_for_f1
from fishpaw.lab.findings import Found
from fishpaw.losses import imbalance
from fishpaw.losses.classification import cross_entropy

torch.set_num_threads(1)
TRUE = {name: getattr(imbalance, name) for name in ("smooth_f1", "f1_weighted", "dice", "logit_adjusted", "post_hoc", "focal")}


@pytest.fixture(scope="module")
def found() -> Found:
    return class_imbalance.measure()


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few points that sampled rows may be open; faults are far larger."""
    monkeypatch.setattr(class_imbalance, "_SEEDS", 2)
    monkeypatch.setattr(class_imbalance, "_COUNT", 4000)
    monkeypatch.setattr(class_imbalance, "_PRIORS", (0.5, 0.1))


def failing(result: Found) -> set[str]:
    return {row.claim.en for row in result.rows if row.verdict == "fails"}


def test_every_row_holds(found: Found) -> None:
    assert len(found.rows) == 21
    assert not [row for row in found.rows if row.verdict != "holds"]
    assert sum(row.interval is not None for row in found.rows) == 7


def test_measuring_again_finds_the_same(cheap: None) -> None:
    assert class_imbalance.measure(seed=2) == class_imbalance.measure(seed=2) != class_imbalance.measure(seed=3)


def adjusted_wrongly(change: Callable[[Tensor], Tensor], more: float = 0.0) -> Callable[..., Any]:
    return lambda z, y, prior, tau=1.0: TRUE["logit_adjusted"](z, y, change(prior), tau=tau + more)


def f1_changed(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    return lambda z, y, f1=None: TRUE["f1_weighted"](z, y, f1=None if f1 is None else change(f1))


FAULTS: list[tuple[dict[str, Callable[..., Any]], set[str]]] = [
    ({"smooth_f1": lambda z, y: (lambda loss, n: (2 * loss, n))(*TRUE["smooth_f1"](z, y)),
      "dice": lambda z, y, alpha=0.0: TRUE["dice"](z.detach() + 0.9 * (z - z.detach()), y, alpha=alpha),
      "focal": lambda z, y, gamma=2.0: TRUE["focal"](z, y, gamma=gamma + 0.1),
      "post_hoc": lambda z, prior: z},
     {"gradient of -F1 against -(2 / E[y + p]) E[(y - F1/2) p (1 - p)]", "gradient of dice against finite differences",
      "focal loss with gamma = 0 against cross entropy", "adjusting in training or afterwards: log probabilities differ by"}),
    ({"f1_weighted": lambda z, y, f1=None: TRUE["f1_weighted"](z, y, f1=torch.tensor(0.9))},
     {"log p for p in smooth F1: weights 1 - F1/2 and F1/2"}),
    ({"f1_weighted": f1_changed(lambda f1: 2 - f1)}, {"the F1 that they gain on cross entropy"}),
    ({"f1_weighted": f1_changed(lambda f1: 1.5 * f1)},
     {"at F1 = 1 both weights are 1/2", "weights 1 - F1/2 and F1/2: at the border p is F1/2, off by"}),
    ({"logit_adjusted": adjusted_wrongly(lambda prior: prior, more=0.1)}, {"logit adjustment with tau = 0 against cross entropy"}),
    ({"logit_adjusted": adjusted_wrongly(lambda prior: 1 / prior)},
     {"with tau = 1 against cross entropy of z + log prior", "logit adjustment, a class of 10 %: the border is the balanced one, 0"}),
    ({"logit_adjusted": adjusted_wrongly(lambda prior: 1 + prior)},
     {"counts in the place of frequencies change it by", "how far apart these borders are"}),
    ({"logit_adjusted": adjusted_wrongly(lambda prior: torch.ones_like(prior))},
     {"balanced accuracy gained on cross entropy: Φ(1) less that at its border"}),
]  # fmt: skip


@pytest.mark.parametrize(("faults", "turned"), FAULTS, ids=lambda part: "+".join(part) if isinstance(part, dict) else "")
def test_faults_turn_their_rows(faults: dict[str, Any], turned: set[str], cheap: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, fault in faults.items():
        monkeypatch.setattr(imbalance, name, fault)
    assert turned <= failing(class_imbalance.measure())


def test_faults_of_the_plain_losses_turn_theirs(cheap: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_imbalance, "cross_entropy", lambda z, y: cross_entropy(z, y, smoothing=0.1))
    monkeypatch.setattr(class_imbalance, "multi_label", lambda z, y: (-(y * z.sigmoid() + (1 - y) * (-z).sigmoid()).sum(), None))
    turned = failing(class_imbalance.measure())
    assert {"softmax: gradient of cross entropy against p - one-hot", "gradient of cross entropy, which has log p for p, against p - y",
            "p = 0.001 of a positive: its gradient over cross entropy's"} <= turned  # fmt: skip


def test_points_are_as_many_and_where_they_should_be() -> None:
    x, labels = points(0.1, seed=1, count=10_007)
    assert int(labels.sum()) == 1001 and len(x) == 10_007
    assert x[labels == 1].mean().item() == pytest.approx(1, abs=0.15) and x[labels == 0].mean().item() == pytest.approx(-1, abs=0.05)


def test_training_ends_where_the_gradient_does_whatever_the_start() -> None:
    x, labels = points(0.2, seed=0, count=997)
    weights = trained(x, labels, cross_entropy)
    place = weights.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(torch.stack([x, torch.ones_like(x)], 1) @ place, labels)[0] / 997, place)
    assert gradient.abs().max() < 1e-6
    again = trained(x, labels, cross_entropy, start=torch.tensor([[1.0, -1.0], [0.5, 2.0]], dtype=torch.float64))
    assert border(again) == pytest.approx(border(weights), abs=1e-5)


def test_the_sample_s_own_identity_of_adjusting_early_or_late() -> None:
    """With a bias in the model both have one optimum on any sample, however few its points: the borders are log odds apart."""
    x, labels = points(0.1, seed=3, count=499)
    plain = trained(x, labels, cross_entropy)
    counts = torch.bincount(labels)
    adjusted = trained(x, labels, lambda z, y: imbalance.logit_adjusted(z, y, counts))
    slope = float(plain[0, 1] - plain[0, 0])
    assert border(plain) - border(adjusted) == pytest.approx(math.log(float(counts[0] / counts[1])) / slope, abs=1e-5)
    half = trained(x, labels, lambda z, y: imbalance.logit_adjusted(z, y, counts, tau=0.5))
    assert 2 * (border(plain) - border(half)) == pytest.approx(border(plain) - border(adjusted), abs=1e-5)


def test_rounds_of_smooth_f1_stand_still() -> None:
    x, labels = points(0.1, seed=0, count=3001)
    start = trained(x, labels, cross_entropy)
    few, f1 = trained_for_f1(x, labels, start=start)
    many, same = trained_for_f1(x, labels, start=start, rounds=8)
    assert border(few) == pytest.approx(border(many), abs=1e-3) and f1 == pytest.approx(same, abs=1e-3)
    scores = torch.stack([x, torch.ones_like(x)], 1) @ (many[:, 1] - many[:, 0])

    def summed(step: Tensor) -> Tensor:
        return imbalance.f1_weighted(scores + step, labels)[0] / 3001

    zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
    assert abs(float(torch.autograd.grad(summed(zero), zero)[0])) < 1e-6               # also with the batch's own F1 in the weights


def test_the_figure_is_drawn_from_a_record(found: Found) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4))
    FigureCanvasAgg(figure)
    draw(figure, json.loads(json.dumps(found.series, allow_nan=False)))
    figure.canvas.draw()
    left, right = figure.axes
    assert len(left.lines) == 6 and len(right.lines) == 5 and all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
    assert all(len(curve) <= 400 for curve in found.series.values())


def test_curves_show_that_focal_loss_keeps_the_border_and_adjustment_moves_it(found: Found) -> None:
    for rare, theory, focal, adjusted in zip(*(found.series[name] for name in ("rare", "theory", "focal", "adjusted")), strict=True):
        error = 5 / math.sqrt(rare * 25_000)                          # five standard errors of the rare class's mean
        assert focal == pytest.approx(theory, abs=error) and adjusted == pytest.approx(0, abs=error)
