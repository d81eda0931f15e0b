"""Gradient x input, SmoothGrad and expected gradients: exact where they must be, the same for any batch, and their limits."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from fishpaw.errors import ConfigError
from fishpaw.interpret.gradients import _drawn, expected_gradients, gradient_times_input, smooth_gradients
from fishpaw.interpret.integrated_gradients import integrated_gradients

torch.set_num_threads(1)
METHODS = [gradient_times_input, smooth_gradients, expected_gradients, integrated_gradients]


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def curved(x: Tensor) -> Tensor:
    return (x @ draw(5, 7)).tanh().sum(1) + x[:, 0] * x[:, 1]


@pytest.mark.parametrize("method", METHODS)
def test_all_are_exact_and_complete_on_a_linear_function(method):
    weight, x, start = draw(3, 5), draw(3, 5, seed=2), draw(3, 5, seed=3)
    found = method(lambda rows: (rows * weight).sum((1, 2)), x, baseline=start)
    torch.testing.assert_close(found.values, weight * (x - start), atol=1e-12, rtol=0)
    assert abs(found.error) < 1e-11


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_read_gets_nothing_and_what_equals_the_baseline_neither(method):
    x = draw(5)
    start = torch.where(torch.arange(5) == 1, x, 0)
    values = method(lambda rows: curved(torch.cat([rows[:, :4], torch.ones(len(rows), 1).double()], 1)), x, baseline=start).values
    assert values[4] == values[1] == 0 and values[[0, 2, 3]].abs().min() > 1e-4


def test_the_gradient_of_squares_is_twice_what_completeness_wants():
    x = draw(7)
    found = gradient_times_input(lambda rows: rows.square().sum(1), x)
    torch.testing.assert_close(found.values, 2 * x.square(), atol=1e-12, rtol=0)
    assert found.relative == pytest.approx(1) and found.points == 1


def test_smoothing_without_noise_is_the_gradient_and_with_noise_that_of_the_smoothed_function():
    """F = x^3: the mean of 3 (x + s z)^2 is 3 x^2 + 3 s^2."""
    x = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)

    def cubes(rows: Tensor) -> Tensor:
        return (rows**3).sum(1)

    still = smooth_gradients(cubes, x, noise=0.0, points=3)
    torch.testing.assert_close(still.values, gradient_times_input(cubes, x).values, atol=1e-12, rtol=0)
    found = smooth_gradients(cubes, x, noise=0.2, points=20_000, rows=5000)
    spread = 0.2 * 3.0
    torch.testing.assert_close(found.values / x, 3 * x.square() + 3 * spread**2, atol=0.2, rtol=0)          # 6 standard errors of 0.03
    assert (found.values - still.values).abs().min() > 0.3


def test_expected_gradients_of_one_baseline_are_near_integrated_ones_and_nearer_with_more_points():
    x, start = draw(5, seed=2), draw(5, seed=3)
    exact = integrated_gradients(curved, x, baseline=start).values
    far, near = (float((expected_gradients(curved, x, baseline=start, points=points).values - exact).abs().max()) for points in (10, 1000))
    assert near < 1e-3 < far < 0.3


def test_expected_gradients_are_the_mean_over_baselines():
    x, starts = draw(5, seed=2), draw(3, 5, seed=3)
    exact = [integrated_gradients(curved, x, baseline=one) for one in starts]
    found = expected_gradients(curved, x, baseline=starts, points=3000, rows=500)
    torch.testing.assert_close(found.values, torch.stack([one.values for one in exact]).mean(0), atol=0.05, rtol=0)
    assert found.at_baseline == pytest.approx(sum(one.at_baseline for one in exact) / 3) and found.relative < 0.05
    planted = expected_gradients(curved, x, baseline=starts[:1], points=3000, rows=500)
    assert (planted.values - found.values).abs().max() > 0.2
    few = expected_gradients(curved, x, baseline=starts, points=2)       # of three baselines two are used
    pairs = [(exact[a].at_baseline + exact[b].at_baseline) / 2 for a, b in ((0, 1), (0, 2), (1, 2))]
    assert any(few.at_baseline == pytest.approx(pair) for pair in pairs)


@pytest.mark.parametrize(("count", "points"), [(1, 13), (3, 13), (7, 5), (5, 10)])
def test_draws_are_spread_evenly(count, points):
    draw = torch.Generator().manual_seed(0)
    each = [_drawn(count, points, draw) for _ in range(400)]
    for order, shares in each:
        times = order.bincount(minlength=count)
        assert len(order) == len(shares) == points and int(times.max() - times.min()) <= 1
        for one in order.unique():
            own = shares[order == one].sort().values
            assert torch.equal((own * len(own)).floor(), torch.arange(len(own)).double())
    every = torch.cat([shares for _, shares in each])
    assert float(every.mean()) == pytest.approx(0.5, abs=0.01) and float(every.var()) == pytest.approx(1 / 12, abs=0.01)
    assert float(torch.stack([order for order, _ in each]).double().mean()) == pytest.approx((count - 1) / 2, abs=0.25)


@pytest.mark.parametrize("method", [partial(smooth_gradients, noise=0.3), expected_gradients])
def test_a_seed_says_all_whatever_the_batches(method):
    x = draw(5)
    first = method(curved, x, points=13, seed=4)
    for rows in (1, 3, 64):
        torch.testing.assert_close(method(curved, x, points=13, seed=4, rows=rows).values, first.values, atol=1e-12, rtol=0)
    assert (method(curved, x, points=13, seed=5).values - first.values).abs().max() > 1e-4


@pytest.mark.parametrize("call", [
    lambda: smooth_gradients(curved, draw(5), noise=-1.0), lambda: smooth_gradients(curved, draw(5), points=0),
    lambda: expected_gradients(curved, draw(5), points=0), lambda: expected_gradients(curved, draw(5), baseline=draw(2, 4)),
    lambda: expected_gradients(curved, draw(5), baseline=draw(0, 5)), lambda: gradient_times_input(curved, torch.arange(5)),
    lambda: expected_gradients(curved, draw(5), rows=0), lambda: smooth_gradients(curved, draw(5), rows=0),
])  # fmt: skip
def test_what_cannot_be_is_refused(call):
    with pytest.raises(ConfigError):
        call()


@pytest.mark.parity
def test_gradient_times_input_is_captums():
    captum = pytest.importorskip("captum.attr")
    x = draw(5)
    theirs = captum.InputXGradient(curved).attribute(x[None].clone().requires_grad_())
    torch.testing.assert_close(gradient_times_input(curved, x).values, theirs[0].detach(), atol=1e-10, rtol=0)
