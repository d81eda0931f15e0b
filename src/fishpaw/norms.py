"""Normalisation over the width of a token: layer (arXiv:1607.06450), rms (arXiv:1910.07467) or none."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from fishpaw.errors import ConfigError

__all__ = ["layer", "none", "rms"]


def layer(size: int, *, eps: float = 1e-12, bias: bool = True) -> nn.Module:
    """(x - mean) / sqrt(variance + eps) * weight + bias; [… d] -> [… d]. eps as in BERT; bias False as in ModernBERT."""
    return _Layer(size, eps=_small(eps), bias=_truth("bias", bias))


def rms(size: int, *, eps: float = 1e-6, scale: bool = True) -> nn.Module:
    """x / sqrt(mean(x^2) + eps) * weight; [… d] -> [… d]. eps as in T5; scale False, without the weight, as in RoFormerV2."""
    return _RMS(size, eps=_small(eps), elementwise_affine=_truth("scale", scale))


def none(size: int) -> nn.Module:
    """x as it is."""
    return _None()


class _None(nn.Module):
    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return x


class _Layer(nn.LayerNorm):
    """torch's, called as every norm is: with a condition [n c], which only a norm with `conditional` = True reads."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return super().forward(x)


class _RMS(nn.RMSNorm):
    """torch's, in the type of x: inference in bf16 keeps its weights in fp32."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        weight = None if self.weight is None else self.weight.to(x.dtype)
        return functional.rms_norm(x, self.normalized_shape, weight, self.eps)


def _truth(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"The norm's {name} is {value!r}.", fix="Give true or false.")
    return value


def _small(eps: object) -> float:
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps < 1:
        raise ConfigError(f"The norm's eps is {eps!r}.", fix="Give a number from 0 to below 1.")
    return eps
