"""Normalisation over the width of a token: layer (arXiv:1607.06450) and rms (arXiv:1910.07467)."""

from __future__ import annotations

from torch import nn

from fishpaw.errors import ConfigError

__all__ = ["layer", "rms"]


def layer(size: int, *, eps: float = 1e-12) -> nn.Module:
    """(x - mean) / sqrt(variance + eps) * weight + bias; [n d] -> [n d]. eps as in BERT."""
    return nn.LayerNorm(size, eps=_small(eps))


def rms(size: int, *, eps: float = 1e-6) -> nn.Module:
    """x / sqrt(mean(x^2) + eps) * weight; [n d] -> [n d]. eps as in T5."""
    return nn.RMSNorm(size, eps=_small(eps))


def _small(eps: object) -> float:
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps < 1:
        raise ConfigError(f"The norm's eps is {eps!r}.", fix="Give a number from 0 to below 1.")
    return eps
