"""Lion: steps by the sign of a momentum, all of the same size; half of Adam's state. arXiv:2302.06675."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fishpaw.errors import ConfigError
from fishpaw.optim.derive import Derived, derive
from fishpaw.optim.parameters import trainable
from fishpaw.optim.transforms import Exclusion, WeightDecay, vectors

__all__ = ["Lion", "lion"]

_PIECE = 1 << 22                 # numbers whose directions are held at a time


class Lion(Optimizer):
    """θ ← θ − γ sign(β₁ m + (1 − β₁) g), then m ← β₂ m + (1 − β₂) g, m = 0 at first. State: m, a tensor as large as θ.

    params as torch's optimizers take them. betas: β₁, β₂ from 0, less than 1. Decay is the business of the transform WeightDecay.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(f"Lion: betas is {betas}.", fix="Give two numbers from 0, less than 1.")
        super().__init__(params, {"lr": lr, "betas": betas})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of the parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            near, far = group["betas"]
            for parameters in _pieces(p for p in group["params"] if p.grad is not None):
                for p in parameters:
                    if "exp_avg" not in self.state[p]:
                        self.state[p]["exp_avg"] = torch.zeros_like(p)
                momenta, gradients = [self.state[p]["exp_avg"] for p in parameters], [cast(Tensor, p.grad) for p in parameters]
                directions = torch._foreach_lerp(momenta, gradients, 1 - near)
                torch._foreach_sign_(directions)
                torch._foreach_add_(parameters, directions, alpha=-group["lr"])
                torch._foreach_lerp_(momenta, gradients, 1 - far)
        return loss


def lion(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.99),
    exclude: Exclusion = (vectors,),
) -> Derived:
    """Lion with decoupled decay, but of what `exclude` names. The paper: a rate 3 to 10 times smaller than AdamW's, as much more decay."""
    return derive(Lion(trainable(model), lr=learning_rate, betas=betas), [WeightDecay(weight_decay, exclude=exclude)])


def _pieces(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """In runs of about as many numbers as stay close to the processor; one that is larger alone."""
    piece: list[Tensor] = []
    size = 0
    for parameter in parameters:
        if piece and (size + parameter.numel() > _PIECE or parameter.device != piece[0].device):
            yield piece
            piece, size = [], 0
        piece.append(parameter)
        size += parameter.numel()
    if piece:
        yield piece
