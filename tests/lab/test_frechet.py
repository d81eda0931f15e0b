"""The Fréchet distance: against a matrix square root, its laws, singular covariances."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fishpaw.errors import DataError
from fishpaw.lab.frechet import between_sets, distance, moments

torch.set_num_threads(1)


def gaussian(size: int, seed: int, rank: int | None = None) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    mixed = torch.randn(size, rank or size + 2, dtype=torch.float64, generator=draw)
    return torch.randn(size, dtype=torch.float64, generator=draw), mixed @ mixed.T


def naive(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> float:
    """The trace of the root by the eigenvalues of C1 C2 itself, which isn't symmetric."""
    values = torch.linalg.eigvals(covariance @ other_covariance)
    return float((mean - other_mean).square().sum() + covariance.trace() + other_covariance.trace() - 2 * values.sqrt().real.sum())


def test_it_is_the_textbook_formula_symmetric_and_zero_for_the_same() -> None:
    one, two = gaussian(7, 1), gaussian(7, 2)
    assert distance(*one, *two) == pytest.approx(naive(*one, *two), rel=1e-9)
    assert distance(*one, *two) == pytest.approx(distance(*two, *one), rel=1e-9)
    assert distance(*one, *one) == pytest.approx(0, abs=1e-9)
    planted = float((one[0] - two[0]).square().sum() + (one[1] - two[1]).square().sum())         # covariances compared as means are
    assert abs(planted - distance(*one, *two)) > 1


def test_a_turn_of_both_changes_nothing_and_a_shift_adds_its_square() -> None:
    one, two = gaussian(7, 1), gaussian(7, 2)
    turn = torch.linalg.qr(gaussian(7, 3)[1])[0]
    turned = [(turn @ mean, turn @ covariance @ turn.T) for mean, covariance in (one, two)]
    assert distance(*turned[0], *turned[1]) == pytest.approx(distance(*one, *two), rel=1e-9)
    assert distance(one[0], one[1], one[0] + 3, one[1]) == pytest.approx(7 * 9, rel=1e-9)


def test_singular_covariances_give_a_real_number() -> None:
    flat, full = gaussian(7, 1, rank=2), gaussian(7, 2)
    assert distance(*flat, *full) == pytest.approx(distance(*full, *flat), rel=1e-6)
    zero = torch.zeros(7, 7, dtype=torch.float64)
    assert distance(full[0], zero, full[0], full[1]) == pytest.approx(float(full[1].trace()), rel=1e-12)


def test_moments_are_those_of_the_rows() -> None:
    features = torch.randn(13, 5, dtype=torch.float64)
    mean, covariance = moments(features)
    torch.testing.assert_close(mean, features.mean(0))
    torch.testing.assert_close(covariance, (features - mean).T @ (features - mean) / 12)
    assert between_sets(features, features[torch.randperm(13)]) == pytest.approx(0, abs=1e-9)
    assert moments(features[:, :1])[1].shape == (1, 1)


@pytest.mark.parametrize("features", [torch.zeros(1, 3), torch.zeros(3)])
def test_what_has_no_covariance_is_refused(features: Tensor) -> None:
    with pytest.raises(DataError):
        moments(features)
