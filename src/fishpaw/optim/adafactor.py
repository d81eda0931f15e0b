"""Adafactor: the second moment of a matrix by its rows and columns, steps relative to θ; next to no state. arXiv:1804.04235."""

from __future__ import annotations

from torch import nn
from torch.optim import Adafactor

from fishpaw.optim.derive import Derived, derive
from fishpaw.optim.parameters import trainable
from fishpaw.optim.transforms import Exclusion, WeightDecay, vectors

__all__ = ["adafactor"]


def adafactor(
    model: nn.Module,
    *,
    learning_rate: float = 0.01,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    exclude: Exclusion = (vectors,),
) -> Derived:
    """θ ← θ − max(ε₂, rms θ) min(γ, 1/√t) u / max(1, rms u / clip), u = g / √v, v = r cᵀ / mean(r): torch.optim.Adafactor.

    r and c are moving averages, over t with 1 − t^−0.8, of the row and column means of g². State: a number a row and a column of each
    matrix, one as large as θ for vectors. learning_rate: relative to the size of θ, and at most 1/√t. No momentum.
    """
    base = Adafactor(trainable(model), lr=learning_rate, d=clip)
    return derive(base, [WeightDecay(weight_decay, exclude=exclude)] if weight_decay else [])
