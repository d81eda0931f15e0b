"""Muon: momentum of matrices made orthogonal, so that every direction learns alike; AdamW for all else. arXiv:2502.16982."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from fishpaw.optim.derive import Derived, derive
from fishpaw.optim.parameters import fused, tables, trainable
from fishpaw.optim.transforms import Exclusion, named_by

__all__ = ["muon"]


def muon(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float = 0.1,
    momentum: float = 0.95,
    betas: tuple[float, float] = (0.9, 0.95),
    epsilon: float = 1e-8,
    exclude: Exclusion = (),
) -> Derived:
    """θ ← θ − γ (0.2 √max(rows, columns) O + λ θ), O = U Vᵀ of the Nesterov momentum's U S Vᵀ, by 5 Newton-Schulz steps in bf16.

    torch.optim.Muon does it for matrices; O as long as AdamW's steps are, so that its rates and decays fit. AdamW, with the same rate
    and decay, takes embeddings, vectors (which don't decay), tensors of more than two dimensions, and what `exclude` names: give it the
    last layer if it isn't tied ("head"). State: one tensor as large as θ for matrices, two for the rest.
    """
    rows = tables(model)
    named = trainable(model)
    matrices = [(name, p) for name, p in named if p.ndim == 2 and name not in rows and not named_by(exclude, name, p)]
    inner = {name for name, _ in matrices}
    rest = [(name, p) for name, p in named if name not in inner]
    bases: list[Optimizer] = []
    if matrices:
        bases.append(Muon(matrices, lr=learning_rate, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"))
    if rest:
        groups: list[dict[str, Any]] = [
            {"params": [(name, p) for name, p in rest if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [(name, p) for name, p in rest if p.ndim <= 1], "weight_decay": 0.0},
        ]
        kernel = fused(p for _, p in rest)
        bases.append(AdamW([group for group in groups if group["params"]], lr=learning_rate, betas=betas, eps=epsilon, fused=kernel))
    return derive(bases)
