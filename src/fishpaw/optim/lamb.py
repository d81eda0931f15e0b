"""LAMB: Adam whose step in each tensor is the rate times the tensor's norm; for very large batches. arXiv:1904.00962."""

from __future__ import annotations

from torch import nn
from torch.optim import AdamW

from fishpaw.optim.derive import Derived, derive
from fishpaw.optim.parameters import fused, trainable
from fishpaw.optim.transforms import Exclusion, LayerAdaptation, WeightDecay, vectors

__all__ = ["lamb"]


def lamb(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-6,
    exclude: Exclusion = (vectors,),
) -> Derived:
    """θ ← θ − γ h |θ| / |h|, h = m̂ / (√v̂ + ε) + λ θ, with Adam's corrected moments m̂ and v̂. State: two tensors as large as θ.

    exclude: parts of names, or functions, of parameters that neither decay nor adapt: they take AdamW's steps. The rate is a share
    of the norm: 1e-3 is much larger than AdamW's. `clip` is 1 in the paper and in `fit`.
    """
    named = trainable(model)
    base = AdamW(named, lr=learning_rate, betas=betas, eps=epsilon, weight_decay=0, fused=fused(p for _, p in named))
    return derive(base, [WeightDecay(weight_decay, exclude=exclude), LayerAdaptation(exclude=exclude)])
