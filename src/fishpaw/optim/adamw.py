"""AdamW with weight decay on matrices only, in one fused kernel where torch has it. arXiv:1711.05101."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import AdamW

from fishpaw.errors import ConfigError
from fishpaw.optim.parameters import fused, trainable

__all__ = ["adamw", "groups"]


def groups(model: nn.Module, *, weight_decay: float, exempt: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Parameter groups: decayed, and not decayed. A decay of biases and norms pulls towards a model that is no simpler.

    Not decayed: parameters of one dimension or none (biases, norms) and those whose name holds one of `exempt`
    ("embedding", "head.out"). Frozen parameters are left out; a parameter shared under two names counts once.
    Raises ConfigError if nothing is left to train, or if a name in `exempt` fits no parameter.
    """
    names = tuple(exempt)
    found = trainable(model)
    for part in names:
        if not any(part in name for name, _ in model.named_parameters()):
            what = f"exempt names {part!r}, which no parameter has in its name."
            raise ConfigError(what, fix="Use part of a name in model.named_parameters().")
    free = {name for name, parameter in found if parameter.ndim <= 1 or any(part in name for part in names)}
    both = [
        {"params": [p for name, p in found if name not in free], "weight_decay": weight_decay},
        {"params": [p for name, p in found if name in free], "weight_decay": 0.0},
    ]
    return [group for group in both if group["params"]]


def adamw(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    exempt: Iterable[str] = (),
) -> AdamW:
    """torch's AdamW over `groups`, with names: `derive` can go on from it. Fused on CPU and CUDA. State: two tensors as large as θ."""
    parameters = groups(model, weight_decay=weight_decay, exempt=exempt)
    names = {id(p): name for name, p in model.named_parameters()}
    named = [{**group, "params": [(names[id(p)], p) for p in group["params"]]} for group in parameters]
    kernel = fused(p for group in parameters for p in group["params"])
    return AdamW(named, lr=learning_rate, betas=betas, eps=epsilon, weight_decay=weight_decay, fused=kernel)
