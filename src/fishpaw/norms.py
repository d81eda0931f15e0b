"""Normalisation over the width of a token: layer (arXiv:1607.06450), conditional (arXiv:1707.00683; https://kexue.fm/archives/7124), rms
(arXiv:1910.07467) or none."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fishpaw import activations, checks

__all__ = ["conditional", "layer", "none", "rms"]

WIDEST = 2**16
"""Units of a condition, and of what is made of it, at most."""


def layer(size: int, *, eps: float = 1e-12, bias: bool = True) -> nn.Module:
    """(x - mean) / sqrt(variance + eps) * weight + bias; [… d] -> [… d]. eps as in BERT; bias False as in ModernBERT."""
    _check_eps(eps)
    checks.truth("The norm's bias", bias)
    return _Layer(size, eps=eps, bias=bias)


def conditional(size: int, *, condition: int, eps: float = 1e-12, hidden: int | None = None, activation: str = "linear") -> nn.Module:
    """layer, with weight + W c and bias + V c in the place of weight and bias; x [n d], condition c [n condition] -> [n d].

    W and V start at zero: a loaded model computes what it did, whatever the condition. hidden: c goes through a matrix of so many rows and
    the activation first. As bert4keras has it (`layer_norm_cond`).
    """
    _check_eps(eps)
    checks.whole("The norm's condition", condition, least=1, most=WIDEST)
    checks.whole("The norm's hidden", hidden, least=1, most=WIDEST, optional=True)
    return _Conditional(size, condition, eps=eps, hidden=hidden, activation=activation)


def rms(size: int, *, eps: float = 1e-6, scale: bool = True) -> nn.Module:
    """x / sqrt(mean(x^2) + eps) * weight; [… d] -> [… d]. eps as in T5; scale False, without the weight, as in RoFormerV2."""
    _check_eps(eps)
    checks.truth("The norm's scale", scale)
    return _RMS(size, eps=eps, elementwise_affine=scale)


def none(size: int) -> nn.Module:
    """x as it is."""
    return _None()


class _None(nn.Module):
    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return x


class _Layer(nn.LayerNorm):
    """torch's, called as every norm is: with a condition [n c], which only a norm with `conditional` = True reads."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return torch.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class _Conditional(nn.LayerNorm):
    """The state of a plain norm keeps its names; new are `scale`, `shift` and, where asked for, `hidden`."""

    conditional = True

    def __init__(self, size: int, condition: int, *, eps: float, hidden: int | None, activation: str) -> None:
        super().__init__(size, eps=eps)
        self.condition = condition
        self.hidden = None if hidden is None else nn.Linear(condition, hidden, bias=False)
        self.activation = None if activation == "linear" else activations.get(activation)
        self.scale = nn.Linear(hidden or condition, size, bias=False)
        self.shift = nn.Linear(hidden or condition, size, bias=False)
        nn.init.zeros_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        if condition is None or condition.shape[-1] != self.condition:
            found = "no condition" if condition is None else f"a condition of {condition.shape[-1]}"
            raise ValueError(f"{found}, but this norm reads one of {self.condition} units: give condition [rows, {self.condition}]")
        condition = condition.to(self.weight.dtype)
        if self.hidden is not None:
            condition = self.hidden(condition)
            condition = condition if self.activation is None else self.activation(condition)
        scale = functional.linear(condition, self.scale.weight, self.weight)                        # [n d]
        shift = functional.linear(condition, self.shift.weight, self.bias)
        normal = functional.layer_norm(x, self.normalized_shape, eps=self.eps)
        return (normal * scale + shift).to(x.dtype)                  # bf16 in, bf16 out, while the weights stay in fp32


class _RMS(nn.RMSNorm):
    """torch's, in the type of x: inference in bf16 keeps its weights in fp32."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        weight = None if self.weight is None else self.weight.to(x.dtype)
        return functional.rms_norm(x, self.normalized_shape, weight, self.eps)


def _check_eps(eps: object) -> None:
    checks.number("The norm's eps", eps, least=0, below=1)
