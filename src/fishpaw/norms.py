"""Normalisation over the width of a token: layer (arXiv:1607.06450) and rms (arXiv:1910.07467)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from fishpaw.errors import ConfigError

__all__ = ["layer", "rms"]


def layer(size: int, *, eps: float = 1e-12) -> nn.Module:
    """(x - mean) / sqrt(variance + eps) * weight + bias; [n d] -> [n d]. eps as in BERT."""
    return _Layer(size, eps=_small(eps))


def rms(size: int, *, eps: float = 1e-6) -> nn.Module:
    """x / sqrt(mean(x^2) + eps) * weight; [n d] -> [n d]. eps as in T5."""
    return _RMS(size, eps=_small(eps))


class _Layer(nn.LayerNorm):
    """torch's, called as every norm is: with a condition [n c], which only a norm with `conditional` = True reads."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return super().forward(x)


class _RMS(nn.RMSNorm):
    """torch's, in the type of x: inference in bf16 keeps its weights in fp32."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return functional.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def _small(eps: object) -> float:
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps < 1:
        raise ConfigError(f"The norm's eps is {eps!r}.", fix="Give a number from 0 to below 1.")
    return eps
