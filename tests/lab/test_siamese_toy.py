"""The toys' velocities against gradients by autograd, the order of the two methods, what is conserved."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fishpaw.lab.siamese_toy import drift, euler, matrix_stopped, matrix_whole, pairs, runge_kutta, stopped, target_only, whole

torch.set_num_threads(1)


@pytest.mark.parametrize("flow", [stopped, whole, target_only])
def test_velocities_are_minus_the_gradients(flow) -> None:
    phi, theta = torch.tensor([0.7, 0.3], dtype=torch.float64).requires_grad_().unbind()
    phi, theta = (one.detach().requires_grad_() for one in (phi, theta))
    first, second = (theta.detach() if flow is target_only else theta), (theta.detach() if flow is stopped else theta)
    loss = (phi * first - second) ** 2 / 2
    gradients = torch.autograd.grad(loss, [phi, theta])
    np.testing.assert_allclose(flow(np.array([0.7, 0.3])), [-float(one) for one in gradients], atol=1e-12)
    others = [one for one in (stopped, whole, target_only) if one is not flow]
    assert all(np.abs(one(np.array([0.7, 0.3])) - flow(np.array([0.7, 0.3]))).max() > 1e-2 for one in others)


@pytest.mark.parametrize("stop", [True, False])
def test_matrix_velocities_are_minus_the_gradients_of_the_expected_loss(stop: bool) -> None:
    k, d, data = 3, 5, pairs(5, noise=0.3, seed=1)
    p, w = (torch.tensor(np.random.default_rng(2).normal(size=shape), requires_grad=True) for shape in ((k, k), (k, d)))
    own, cross = torch.tensor(data.own), torch.tensor(data.cross)
    goal = w.detach() if stop else w
    ahead = p @ w
    loss = ((ahead @ own @ ahead.T).trace() - 2 * (ahead @ cross @ goal.T).trace() + (goal @ own @ goal.T).trace()) / 2
    to_p, to_w = torch.autograd.grad(loss, [p, w])
    both = np.concatenate([p.detach().numpy(), w.detach().numpy().T])
    velocity = (matrix_stopped if stop else matrix_whole)(data)(both)
    np.testing.assert_allclose(velocity, -np.concatenate([to_p.numpy(), to_w.numpy().T]), atol=1e-12)
    assert np.abs(velocity - (matrix_whole if stop else matrix_stopped)(data)(both)).max() > 1e-2


def test_two_views_share_what_the_covariances_say() -> None:
    data = pairs(5, noise=0.3, seed=1)
    np.testing.assert_allclose(data.own - data.cross, 0.3 * np.eye(5), atol=1e-12)
    assert np.linalg.eigvalsh(data.cross)[-1] == pytest.approx(1) and np.linalg.eigvalsh(data.cross)[0] > 0


@pytest.mark.parametrize("method, order", [(euler, 1), (runge_kutta, 4)])
def test_halving_the_step_divides_the_error_by_two_to_the_order(method, order: int) -> None:
    errors = [abs(float(method(lambda x: -x, np.ones(1), time=2.0, step=step)[-1, 0]) - np.exp(-2)) for step in (0.1, 0.05)]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.15)              # higher orders, at a step of 0.1


def test_drift_is_zero_for_a_path_that_stays_and_sees_one_that_does_not() -> None:
    start = np.random.default_rng(0).normal(size=(8, 3))
    assert drift(np.stack([start, start])) == 0
    moved = start.copy()
    moved[0, 0] += 1
    assert drift(np.stack([start, moved])) == pytest.approx(max(abs(2 * start[0, 0] + 1), abs(start[0, 1]), abs(start[0, 2])))
