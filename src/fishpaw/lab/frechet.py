"""The Fréchet distance of two Gaussians, and of two sets of features as if they were Gaussian (arXiv:1706.08500).

|m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2). With features of Inception it is called FID; with others it is another number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fishpaw.errors import DataError

__all__ = ["between_sets", "distance", "moments"]


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """[n d] -> mean [d] and covariance [d d] (divided by n - 1), fp64. DataError for fewer than two rows."""
    if features.dim() != 2 or len(features) < 2:
        raise DataError(f"Features of shape {list(features.shape)}.", fix="Give two rows [n d] at least.")
    wide = features.double()
    return wide.mean(0), torch.cov(wide.T).view(wide.shape[1], wide.shape[1])


def distance(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> float:
    """The distance of N(mean [d], covariance [d d]) from another one; covariances symmetric, eigenvalues >= 0, also singular ones.

    Both square roots are by eigenvalues of symmetric matrices, so that no imaginary part appears and rounding is at most set to 0.
    """
    values, vectors = torch.linalg.eigh(covariance.double())
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T                           # [d d]
    inner = root @ other_covariance.double() @ root
    traces = covariance.double().trace() + other_covariance.double().trace()
    shared = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp_min(0).sqrt().sum()
    return float((mean.double() - other_mean.double()).square().sum() + traces - 2 * shared)


def between_sets(first: Tensor, second: Tensor) -> float:
    """Features [n d] and [m d] -> the distance of their Gaussians. Too large where n and m are small: compare equal numbers only."""
    return distance(*moments(first), *moments(second))
