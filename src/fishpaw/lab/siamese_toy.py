"""Two toys of learning from pairs alone: l = (phi theta - theta)^2 / 2 and its matrix version, under gradient flow, with and without
stop-gradient (kexue.fm/archives/7980).

theta stands for the encoder, phi for the predictor. With stop-gradient on the second theta phi^2 - theta^2 doesn't change; without it
(phi - 1)^2 - theta^2 doesn't, and theta ends at 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Flow", "Pairs", "drift", "euler", "matrix_stopped", "matrix_whole", "pairs", "runge_kutta", "stopped", "target_only", "whole"]

Array = NDArray[np.float64]
Flow = Callable[[Array], Array]


def stopped(point: Array) -> Array:
    """(phi, theta) [2] -> its velocity where the second theta of phi theta - theta is a constant to the gradient."""
    phi, theta = point
    velocity: Array = -(phi * theta - theta) * np.array([theta, phi])
    return velocity


def whole(point: Array) -> Array:
    """(phi, theta) [2] -> its velocity with the whole gradient."""
    phi, theta = point
    velocity: Array = -(phi * theta - theta) * np.array([theta, phi - 1])
    return velocity


def target_only(point: Array) -> Array:
    """(phi, theta) [2] -> its velocity where theta is moved by the second term alone: the target goes to the prediction."""
    phi, theta = point
    velocity: Array = (phi * theta - theta) * np.array([-theta, 1.0])
    return velocity


@dataclass(frozen=True)
class Pairs:
    """Two views x + noise of the same x: own [d d] = E[x1 x1^T] = E[x2 x2^T], cross [d d] = E[x2 x1^T], symmetric."""

    own: Array
    cross: Array


def pairs(size: int, *, noise: float, seed: int) -> Pairs:
    """x with a random covariance whose largest eigenvalue is 1, noise of variance `noise` in each direction."""
    mixed = np.random.default_rng(seed).normal(size=(size, size))
    cross = mixed @ mixed.T
    cross /= np.linalg.eigvalsh(cross)[-1]
    return Pairs(cross + noise * np.eye(size), cross)


def matrix_stopped(data: Pairs) -> Flow:
    """(P [k k] over W^T, both k columns, [k + d k]) -> velocity for E |P W x1 - stop(W x2)|^2 / 2: P^T P - W W^T doesn't change."""
    def flow(both: Array) -> Array:
        p, w = both[: both.shape[1]], both[both.shape[1] :].T
        gap = p @ w @ data.own - w @ data.cross                        # E[(P W x1 - W x2) x1^T]: [k d]
        return np.concatenate([-gap @ w.T, -gap.T @ p])

    return flow


def matrix_whole(data: Pairs) -> Flow:
    """As `matrix_stopped`, with the gradient through W x2, too."""
    first = matrix_stopped(data)

    def flow(both: Array) -> Array:
        k = both.shape[1]
        p, w = both[:k], both[k:].T
        velocity = first(both)
        velocity[k:] += (p @ w @ data.cross - w @ data.own).T          # E[(P W x1 - W x2) x2^T]: [k d]
        return velocity

    return flow


def drift(path: Array) -> float:
    """path [t k + d k] -> the largest change of an entry of P^T P - W W^T between the start and any later time."""
    k = path.shape[2]
    kept = np.einsum("tij,til->tjl", path[:, :k], path[:, :k]) - np.einsum("tij,til->tjl", path[:, k:], path[:, k:])
    return float(np.abs(kept - kept[0]).max())


def runge_kutta(flow: Flow, start: Array, *, time: float, step: float) -> Array:
    """The path [1 + time / step, …] of the classical fourth-order method; error of order step^4."""
    path = [start]
    for _ in range(round(time / step)):
        here = path[-1]
        a = flow(here)
        b = flow(here + step / 2 * a)
        c = flow(here + step / 2 * b)
        path.append(here + step / 6 * (a + 2 * b + 2 * c + flow(here + step * c)))
    return np.stack(path)


def euler(flow: Flow, start: Array, *, time: float, step: float) -> Array:
    """The path of gradient descent with the rate `step`, which is Euler's method; error of order step."""
    path = [start]
    for _ in range(round(time / step)):
        path.append(path[-1] + step * flow(path[-1]))
    return np.stack(path)
