"""Tiger: signs of one momentum, each tensor's step in proportion to its size; the least state there is. https://kexue.fm/archives/9512."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from fishpaw.optim.derive import Derived, derive
from fishpaw.optim.lion import Lion
from fishpaw.optim.parameters import tables, trainable
from fishpaw.optim.transforms import Change, Moves, WeightDecay, vectors

__all__ = ["Proportional", "ProportionalRows", "tiger"]


@dataclasses.dataclass(frozen=True)
class Proportional(Change):
    """Δ times the root mean square of θ, of each tensor; but for vectors and parameters (whole names) in `exclude`."""

    exclude: tuple[str, ...] = ()

    def covers(self, name: str, parameter: Tensor) -> bool:
        return parameter.ndim > 1 and name not in self.exclude

    def change(self, moves: Moves) -> None:
        _scale(moves, [before.square().mean().sqrt() for before in moves.before])


@dataclasses.dataclass(frozen=True)
class ProportionalRows(Change):
    """Δ times the root mean square of θ, of each row, for the parameters in `rows` (whole names)."""

    rows: tuple[str, ...]

    def covers(self, name: str, parameter: Tensor) -> bool:
        return name in self.rows

    def change(self, moves: Moves) -> None:
        _scale(moves, [before.square().mean(-1, keepdim=True).sqrt() for before in moves.before])


def tiger(model: nn.Module, *, learning_rate: float, weight_decay: float = 0.01, beta: float = 0.965) -> Derived:
    """m ← β m + (1 − β) g; θ ← θ − γ s (sign(m) + λ θ). State: m, a tensor as large as θ.

    s is the root mean square of the matrix, in embeddings that of each row; for vectors s = 1/2, λ = 0. A matrix or a row that is 0
    stays 0: give those of adapters to another optimizer. learning_rate: 1e-3 is right for most models, as it is relative.
    """
    named = trainable(model)
    groups: list[dict[str, Any]] = [
        {"params": [(name, p) for name, p in named if p.ndim > 1], "lr": learning_rate},
        {"params": [(name, p) for name, p in named if p.ndim <= 1], "lr": learning_rate / 2},
    ]
    rows = tuple(sorted(tables(model)))
    base = Lion([group for group in groups if group["params"]], betas=(beta, beta))            # equal betas: the sign is that of the new m
    return derive(base, [WeightDecay(weight_decay, exclude=(vectors,)), Proportional(rows), ProportionalRows(rows)])


def _scale(moves: Moves, sizes: list[Tensor]) -> None:
    for parameter, before, size in zip(moves.parameters, moves.before, sizes, strict=True):
        torch.addcmul(before, parameter - before, size, out=parameter)
