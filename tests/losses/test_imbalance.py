"""Losses for rare classes against their formulas, the identities of their gradients, and the border that each one draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from fishpaw.errors import ConfigError, DataError
from fishpaw.losses.classification import cross_entropy, multi_label
from fishpaw.losses.imbalance import (
    asymmetric,
    balanced_softmax,
    dice,
    effective_weights,
    f1_weighted,
    focal,
    ldam,
    logit_adjusted,
    post_hoc,
    smooth_f1,
    weighted,
)

torch.set_num_threads(1)
COUNTS = torch.tensor([97.0, 31.0, 11.0, 5.0, 2.0])
Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
ONE_OF_C: dict[str, Loss] = {
    "weighted": partial(weighted, weights=1 / COUNTS),
    "focal": focal,
    "focal, half": partial(focal, gamma=0.5, weights=1 / COUNTS),
    "logit_adjusted": partial(logit_adjusted, prior=COUNTS, tau=1.3, smoothing=0.1),
    "balanced_softmax": partial(balanced_softmax, counts=COUNTS),
    "ldam": partial(ldam, counts=COUNTS, scale=7.0, weights=1 / COUNTS),
}
YES_OR_NO: dict[str, Loss] = {
    "smooth_f1": smooth_f1,
    "f1_weighted": partial(f1_weighted, f1=torch.tensor([0.7])),
    "dice": dice,
    "dice, adjusting": partial(dice, alpha=0.7, smoothing=0.3),
    "asymmetric": partial(asymmetric, positive=1.0),
    "asymmetric, no margin": partial(asymmetric, positive=0.5, negative=1.5, margin=0.0),
}
EACH = {**ONE_OF_C, **YES_OR_NO}


def rows(scale: float = 3.0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    return scale * torch.randn(17, 5, dtype=torch.float64, generator=draw), torch.randint(5, (17,), generator=draw)


def questions(scale: float = 3.0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(5)
    return scale * torch.randn(23, dtype=torch.float64, generator=draw), (torch.rand(23, generator=draw) < 0.3).long()


def data_for(name: str, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    return rows(scale) if name in ONE_OF_C else questions(scale)


# Formulas

def softmax(row: list[float]) -> list[float]:
    return [math.exp(s) / sum(map(math.exp, row)) for s in row]


def test_each_loss_of_one_label_is_its_formula() -> None:
    logits, labels = rows()
    labels[4] = -100
    n = COUNTS.tolist()
    sums = dict.fromkeys(ONE_OF_C, 0.0)
    counts = dict.fromkeys(ONE_OF_C, 0.0)
    for row, y in zip(logits.tolist(), labels.tolist(), strict=True):
        if y == -100:
            continue
        p = softmax(row)[y]
        shifted = softmax([s + 1.3 * math.log(one) for s, one in zip(row, n, strict=True)])
        margin = 0.5 * (n[y] / 2.0) ** -0.25
        pushed = softmax([7.0 * (s - margin * (j == y)) for j, s in enumerate(row)])
        balanced = n[y] * math.exp(row[y]) / sum(one * math.exp(s) for s, one in zip(row, n, strict=True))
        for name, value, weight in (
            ("weighted", -math.log(p), 1 / n[y]),
            ("focal", -((1 - p) ** 2) * math.log(p), 1.0),
            ("focal, half", -math.sqrt(1 - p) * math.log(p), 1 / n[y]),
            ("logit_adjusted", -0.9 * math.log(shifted[y]) - 0.02 * sum(map(math.log, shifted)), 1.0),
            ("balanced_softmax", -math.log(balanced), 1.0),
            ("ldam", -math.log(pushed[y]), 1 / n[y]),
        ):
            sums[name] += weight * value
            counts[name] += weight
    for name, loss in ONE_OF_C.items():
        total, count = loss(logits, labels)
        torch.testing.assert_close([total.item(), count.item()], [sums[name], counts[name]], atol=1e-6, rtol=1e-6)   # fp32 weights


def test_each_loss_of_a_yes_or_no_is_its_formula() -> None:
    scores, labels = questions()
    labels[[3, 8]] = -100
    each = [(1 / (1 + math.exp(-s)), y) for s, y in zip(scores.tolist(), labels.tolist(), strict=True) if y != -100]
    f = 2 * sum(y * p for p, y in each) / sum(y + p for p, y in each)

    def dice_of(p: float, y: int, alpha: float, s: float) -> float:
        w = (1 - p) ** alpha * p
        return 1 - (2 * w * y + s) / (w + y + s)

    def asymmetric_of(p: float, y: int, positive: float, negative: float, margin: float) -> float:
        q = max(p - margin, 0.0)
        return -((1 - p) ** positive) * math.log(p) if y else -(q**negative) * math.log(1 - q)

    wanted = {
        "smooth_f1": 21 * (1 - f),
        "f1_weighted": sum(-0.65 * math.log(p) if y else -0.35 * math.log(1 - p) for p, y in each),
        "dice": sum(dice_of(p, y, 0.0, 1.0) for p, y in each),
        "dice, adjusting": sum(dice_of(p, y, 0.7, 0.3) for p, y in each),
        "asymmetric": sum(asymmetric_of(p, y, 1.0, 4.0, 0.05) for p, y in each),
        "asymmetric, no margin": sum(asymmetric_of(p, y, 0.5, 1.5, 0.0) for p, y in each),
    }
    for name, loss in YES_OR_NO.items():
        total, count = loss(scores, labels)
        assert count.item() == 21
        torch.testing.assert_close(total.item(), wanted[name], atol=1e-6 if name == "f1_weighted" else 1e-10, rtol=0)


def test_columns_have_an_f1_each() -> None:
    scores, labels = questions()
    both, answers = torch.stack([scores, -scores], 1), torch.stack([labels, labels], 1)
    single = [smooth_f1(both[:, at], answers[:, at])[0] / 23 for at in (0, 1)]
    total, count = smooth_f1(both, answers)
    torch.testing.assert_close(total / count, sum(single) / 2, atol=1e-12, rtol=0)


# Identities

def test_the_gradient_of_smooth_f1_is_that_of_the_article() -> None:
    scores, labels = questions()
    scores.requires_grad_()
    total, count = smooth_f1(scores, labels)
    (gradient,) = torch.autograd.grad(total / count, scores)
    p = scores.detach().sigmoid()
    f = 2 * (labels * p).mean() / (labels + p).mean()
    expected = -(2 / (labels + p).mean()) * (labels - f / 2) * p * (1 - p) / 23
    torch.testing.assert_close(gradient, expected, atol=1e-10, rtol=0)
    planted = -(2 / (labels + p).mean()) * (labels - f) * p * (1 - p) / 23               # the slip of the first version of the article
    assert (gradient - planted).abs().max() > 1e-3


def test_f1_weighted_has_that_gradient_with_log_p_in_the_place_of_p() -> None:
    scores, labels = questions()
    scores.requires_grad_()
    total, _ = f1_weighted(scores, labels)
    (gradient,) = torch.autograd.grad(total, scores)
    p = scores.detach().sigmoid()
    f = 2 * (labels * p).sum() / (labels + p).sum()
    slope = torch.where(labels == 1, 1 - p, p)                        # what is left of p (1 - p) dz for log p, log(1 - p)
    torch.testing.assert_close(gradient, -(labels - f / 2) * slope, atol=1e-12, rtol=0)


def test_where_f1_is_one_both_sides_weigh_a_half() -> None:
    _, labels = questions()
    scores = (labels * 2 - 1) * 60.0
    torch.testing.assert_close(f1_weighted(scores.double(), labels)[0], multi_label(scores.double(), labels)[0] / 2, atol=1e-12, rtol=0)
    scores = questions()[0]
    half, whole = f1_weighted(scores, labels, f1=torch.ones(()))[0], multi_label(scores, labels)[0]
    torch.testing.assert_close(half, whole / 2, atol=1e-12, rtol=0)


def test_the_gradient_of_cross_entropy_is_the_probabilities_less_the_label() -> None:
    logits, labels = rows()
    logits.requires_grad_()
    for loss, shift in ((cross_entropy, torch.zeros(5)), (partial(logit_adjusted, prior=COUNTS), COUNTS.double().log())):
        (gradient,) = torch.autograd.grad(loss(logits, labels)[0], logits)
        expected = (logits.detach() + shift).softmax(-1) - torch.nn.functional.one_hot(labels, 5)
        torch.testing.assert_close(gradient, expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("neutral", [
    partial(focal, gamma=0.0),
    partial(weighted, weights=torch.ones(5)),
    partial(logit_adjusted, prior=COUNTS, tau=0.0),
    partial(balanced_softmax, counts=torch.full((5,), 7.0)),
    partial(ldam, counts=COUNTS, margin=0.0, scale=1.0),
    partial(weighted, weights=effective_weights(COUNTS, beta=0.0)),
])  # fmt: skip
def test_where_nothing_is_turned_on_each_is_cross_entropy(neutral: Loss) -> None:
    torch.testing.assert_close(neutral(*rows()), cross_entropy(*rows()), atol=1e-12, rtol=0)


def test_asymmetric_contains_focal_and_multi_label() -> None:
    scores, labels = questions()
    torch.testing.assert_close(asymmetric(scores, labels, negative=0.0, margin=0.0), multi_label(scores, labels), atol=1e-12, rtol=0)
    both = torch.stack([torch.zeros_like(scores), scores], 1)
    ours = asymmetric(scores, labels, positive=2.0, negative=2.0, margin=0.0)
    torch.testing.assert_close(ours, focal(both, labels, gamma=2.0), atol=1e-12, rtol=0)


@pytest.mark.parametrize("scale", [1e-3, 7.0])
def test_only_the_ratios_of_frequencies_and_of_weights_matter(scale: float) -> None:
    logits, labels = rows()
    for name, loss in {
        "adjusted": lambda n: logit_adjusted(logits, labels, n)[0],
        "post hoc": lambda n: post_hoc(logits, n),
        "margins": lambda n: ldam(logits, labels, n)[0],
        "weighted": lambda n: torch.div(*weighted(logits, labels, n)),
    }.items():
        torch.testing.assert_close(loss(COUNTS.double() * scale), loss(COUNTS.double()), atol=1e-9, rtol=0, msg=name)
    assert abs(weighted(logits, labels, COUNTS * scale)[0] - weighted(logits, labels, COUNTS)[0]) > 1   # its sum alone does change


def test_effective_weights_lie_between_ones_and_inverse_counts() -> None:
    n = COUNTS.double()
    expected = (1 - 0.9) / (1 - 0.9**n)
    torch.testing.assert_close(effective_weights(COUNTS, beta=0.9), expected / expected.mean(), atol=1e-12, rtol=0)
    torch.testing.assert_close(effective_weights(COUNTS, beta=1.0), (1 / n) / (1 / n).mean(), atol=1e-12, rtol=0)
    torch.testing.assert_close(effective_weights(COUNTS, beta=1 - 1e-12), effective_weights(COUNTS, beta=1.0), atol=1e-3, rtol=0)


def test_a_self_adjusting_dice_pulls_a_positive_to_one_half_only() -> None:
    """Why alpha is 0 by default: with 1 the loss of a positive is least at p = 1/2, that of a negative largest there."""
    scores = torch.linspace(-6, 6, 121, dtype=torch.float64)
    for label, extreme in ((1, torch.argmin), (0, torch.argmax)):
        losses = torch.stack([dice(one[None], torch.tensor([label]), alpha=1.0)[0] for one in scores])
        assert scores[extreme(losses)].item() == pytest.approx(0.0, abs=1e-9)
        plain = torch.stack([dice(one[None], torch.tensor([label]))[0] for one in scores]).diff()
        assert bool((plain < 0).all() if label else (plain > 0).all())


# The border

def fitted(loss: Loss, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Slope and offset of the score of class 1 against class 0, trained to the end."""
    weights = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        total, count = loss(torch.stack([x, torch.ones_like(x)], 1) @ weights, y)
        (total / count).backward()
        return total / count

    optimizer.step(closure)  # type: ignore[arg-type, no-untyped-call]  # a closure of tensors; torch has no types
    slope, offset = (weights[:, 1] - weights[:, 0]).tolist()
    return slope, offset


def test_adjusting_in_training_and_afterwards_both_find_the_balanced_border_of_two_gaussians() -> None:
    """N(-1, 1) fifty times as often as N(1, 1), at their quantiles: linear scores can be right, and the balanced border is at 0."""
    normal = torch.distributions.Normal(0.0, 1.0)
    many, few = (normal.icdf((torch.arange(n, dtype=torch.float64) + 0.5) / n) for n in (10_000, 200))
    x, y = torch.cat([many - 1, few + 1]), torch.cat([torch.zeros(10_000), torch.ones(200)]).long()
    prior = torch.tensor([50.0, 1.0])
    plain_slope, plain_offset = fitted(cross_entropy, x, y)
    slope, offset = fitted(partial(logit_adjusted, prior=prior), x, y)
    afterwards = post_hoc(torch.tensor([[0.0, plain_offset]], dtype=torch.float64), prior).diff().item()
    assert -offset / slope == pytest.approx(0.0, abs=0.02)
    assert -afterwards / plain_slope == pytest.approx(0.0, abs=0.02)
    assert (slope, offset) == pytest.approx((plain_slope, afterwards), abs=1e-4)
    assert -plain_offset / plain_slope > 1.5                         # the border of cross entropy gives the rare class away


# Numbers

@pytest.mark.parametrize("name", EACH)
def test_gradients_are_finite_differences(name: str) -> None:
    scores, labels = data_for(name, scale=1.0)
    assert torch.autograd.gradcheck(lambda given: EACH[name](given, labels)[0], (scores.requires_grad_(),), eps=1e-6, atol=1e-6)
    if name in ("focal", "asymmetric"):                              # planted: a factor that isn't differentiated
        (gradient,) = torch.autograd.grad(EACH[name](scores, labels)[0], scores)
        plain = cross_entropy if name == "focal" else multi_label
        (other,) = torch.autograd.grad(plain(scores, labels)[0], scores)
        assert (gradient - other).abs().max() > 1e-2


@pytest.mark.parametrize("name", EACH)
def test_nothing_that_counts_is_zero_with_zero_gradients(name: str) -> None:
    for count in (0, 3):
        shape = (count, 5) if name in ONE_OF_C else (count,)
        scores, labels = torch.full(shape, 1e30 if count else 0.0, requires_grad=True), torch.full(shape[:1], -100)
        total, counted = EACH[name](scores, labels)
        total.backward()
        assert (total.item(), counted.item()) == (0.0, 0.0)
        assert scores.grad is not None and not scores.grad.any()


@pytest.mark.parametrize("name", EACH)
def test_scores_that_are_sure_stay_finite_with_finite_gradients(name: str) -> None:
    scores, labels = data_for(name)
    for factor in (1e3, -1e3):
        given = (scores * factor).float().requires_grad_()
        total, _ = EACH[name](given, labels)
        total.backward()
        assert total.isfinite() and given.grad is not None and bool(given.grad.isfinite().all())


@pytest.mark.parametrize("name", EACH)
def test_half_precision_is_summed_in_fp32_and_fp64_stays(name: str) -> None:
    scores, labels = data_for(name)
    narrow, wide = EACH[name](scores.bfloat16(), labels), EACH[name](scores.bfloat16().float(), labels)
    assert narrow[0].dtype == narrow[1].dtype == torch.float32
    torch.testing.assert_close(narrow, wide, atol=0, rtol=0)
    assert EACH[name](scores, labels)[0].dtype == torch.float64


@pytest.mark.parametrize("name", EACH)
def test_parts_add_up_but_for_the_f1_of_a_batch(name: str) -> None:
    scores, labels = data_for(name)
    total, count = EACH[name](scores, labels)
    parts = [EACH[name](scores[at], labels[at]) for at in (slice(0, 6), slice(6, None))]
    assert float(sum(one for _, one in parts)) == pytest.approx(count.item())
    apart = abs(float(sum(one for one, _ in parts)) - total.item())
    assert apart > 1e-3 if name == "smooth_f1" else apart < 1e-8


def test_a_batch_without_positives_teaches_smooth_f1_nothing() -> None:
    scores = questions()[0].requires_grad_()
    total, count = smooth_f1(scores, torch.zeros(23).long())
    (gradient,) = torch.autograd.grad(total, scores)
    assert total.item() == count.item() == 23 and not gradient.any()


# Mistakes

@pytest.mark.parametrize("name", ONE_OF_C)
def test_a_label_outside_the_classes_is_named(name: str) -> None:
    logits, labels = rows()
    labels[3] = 5
    with pytest.raises(DataError, match=r"Row 3 of a batch has label 5.*0 … 4"):
        EACH[name](logits, labels)


@pytest.mark.parametrize("name", EACH)
def test_labels_of_another_shape_are_refused(name: str) -> None:
    scores, labels = data_for(name)
    with pytest.raises(DataError, match="Labels of shape"):
        EACH[name](scores, labels[:-1])
    if name in YES_OR_NO:
        with pytest.raises(DataError, match=r"logits\[:, 1\] - logits\[:, 0\]"):
            EACH[name](torch.stack([scores, scores], 1), labels)


@pytest.mark.parametrize(("call", "says"), [
    (lambda z, y: logit_adjusted(z, y, torch.tensor([1.0, 0, 1, 1, 1])), "prior is 0 for class 1"),
    (lambda z, y: ldam(z, y, COUNTS[:4]), "counts has shape .4., the logits 5"),
    (lambda z, y: effective_weights(torch.tensor([3, 0])), "counts is 0 for class 1"),
    (lambda z, y: weighted(z, y, torch.ones(4)), "Weights of shape .4. for 5"),
    (lambda z, y: post_hoc(z, torch.tensor([1.0, 1, 1, 1, math.nan])), "prior is nan for class 4"),
])  # fmt: skip
def test_frequencies_and_weights_that_cannot_be_are_refused(call: Loss, says: str) -> None:
    with pytest.raises(DataError, match=says):
        call(*rows())


@pytest.mark.parametrize("call", [
    lambda: focal(*rows(), gamma=-1), lambda: logit_adjusted(*rows(), COUNTS, tau=-1), lambda: dice(*questions(), smoothing=0),
    lambda: asymmetric(*questions(), margin=1.0), lambda: effective_weights(COUNTS, beta=1.1), lambda: ldam(*rows(), COUNTS, scale=0),
])  # fmt: skip
def test_options_out_of_range_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ConfigError, match="Give a number"):
        call()


# Parity

@pytest.mark.parity
def test_focal_is_that_of_bert4torch(published: Callable[..., Any]) -> None:
    losses = published("bert4torch", "losses.py")
    logits, labels = rows()
    total, count = focal(logits, labels, weights=1 / COUNTS)
    theirs = losses.FocalLoss(gamma=2, weight=1 / COUNTS.double())(logits, labels)
    torch.testing.assert_close(total / count, theirs, atol=1e-6, rtol=0)


@pytest.mark.parity
def test_margins_are_those_of_pytorch_optimizer(published: Callable[..., Any]) -> None:
    theirs = published("pytorch_optimizer", "loss/ldam.py")
    logits, labels = rows()
    total, count = ldam(logits.float(), labels, COUNTS, scale=3.0)
    torch.testing.assert_close(total / count, theirs.LDAMLoss(COUNTS.tolist(), s=3.0)(logits.float(), labels), atol=1e-5, rtol=0)
