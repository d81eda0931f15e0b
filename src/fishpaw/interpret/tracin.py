"""TracIn: which training examples pushed a prediction, from a few checkpoints of the training. arXiv:2002.08484.

The sum of the path kernel (interpret/path_kernel) with few terms: in a segment of many steps gradients are taken to stay what they are
at one checkpoint. An example added -(its exposure) <grad f(x), P grad l_i>. Its exposure is the sum over the segment's steps of rate x its
share in the loss; P is what its optimizer multiplies gradients by: 1 for gradient descent, 1 / (sqrt v + eps) for Adam without momentum.
The paper's own form is f = -loss, P = 1, with the rate as exposure of all. Gradients are whole, without random projection; of a large
model take the last layers (`parameters`), and then the sum is no longer all that happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from fishpaw.errors import CheckpointError, ConfigError, DataError
from fishpaw.interpret.path_kernel import Contributions

__all__ = ["Checkpoint", "tracin"]

Example = TypeVar("Example")
Watched = TypeVar("Watched")


@dataclass(frozen=True)
class Checkpoint:
    """weights: parameters and buffers by name (those not named stay as they are). exposure [n]: of each example in the steps that the
    checkpoint stands for; all zeros: only outputs are read there. scale: P, by parameter, of its shape; None: 1. Best in the middle of its
    segment, where the error of the sum falls with the square of the segment's length; at its begin it falls with the length."""

    weights: Mapping[str, Tensor]
    exposure: Tensor
    scale: Mapping[str, Tensor] | None = None


def tracin(
    model: nn.Module, checkpoints: Iterable[Checkpoint], examples: Sequence[Example], watched: Sequence[Watched], *,
    loss: Callable[[nn.Module, Example], Tensor], read: Callable[[nn.Module, Watched], Tensor], parameters: Sequence[str] | None = None,
    tell: Callable[[int], object] = lambda count: None,
) -> Contributions:  # fmt: skip
    """What each example added to each watched output, as the checkpoints, first to last, tell -> each [m 1 n].

    loss(model, example) -> []; read(model, watched) -> [], what is asked about (a logit, a log-probability): both in evaluation mode, one
    at a time. parameters: parts of names; None: all that learn. tell(n): n more examples are done. start and end are read at the first and
    the last checkpoint. Cost: n + m backwards a checkpoint; memory: m + 1 gradients. The model ends as it was.

    Errors: DataError for no example, nothing watched, no checkpoint, exposures of another number of examples; CheckpointError for weights
    that are not the model's; ConfigError for a name in `parameters` that fits none.
    """
    if not examples or not watched:
        raise DataError("There are no examples, or nothing is watched.", fix="Give at least one of each.")
    chosen = _chosen(model, parameters)
    kept = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    training = model.training
    each = torch.zeros(len(watched), 1, len(examples), dtype=torch.float64)            # [m 1 n]
    outputs: list[Tensor] = []
    model.eval()
    try:
        for number, checkpoint in enumerate(checkpoints):
            if checkpoint.exposure.shape != (len(examples),):
                what = f"Checkpoint {number} has exposures of shape {list(checkpoint.exposure.shape)} for {len(examples)} examples."
                raise DataError(what, fix="Give the examples of that training, all of them, in their order.")
            _put(model, checkpoint.weights, f"Checkpoint {number}")
            values = [read(model, one) for one in watched]
            outputs.append(torch.stack([value.detach().double().cpu().reshape(1) for value in values]))    # [m 1]
            if not checkpoint.exposure.any():
                continue
            scale = _scale(chosen, checkpoint.scale, f"Checkpoint {number}")
            ways = torch.stack([_slope(value, chosen) for value in values]) * scale    # [m P]
            del values
            for index, example in enumerate(examples):
                if share := float(checkpoint.exposure[index]):
                    pull = ways @ _slope(loss(model, example), chosen)                 # [m]
                    each[:, 0, index] -= share * pull.double().cpu()
                tell(1)
    finally:
        _put(model, kept, "The model")
        model.train(training)
    if not outputs:
        raise DataError("There is no checkpoint.", fix="Give at least one.")
    return Contributions(each, outputs[0], outputs[-1])


def _chosen(model: nn.Module, parameters: Sequence[str] | None) -> dict[str, nn.Parameter]:
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for part in parameters or ():
        if not any(part in name for name in learning):
            raise ConfigError(f"parameters names {part!r}, which no parameter that learns has in its name.", fix="Use part of a name.")
    found = {name: p for name, p in learning.items() if parameters is None or any(part in name for part in parameters)}
    if not found:
        raise ConfigError("No parameter is left.", fix="Name at least one, or leave `parameters` out.")
    return found


def _slope(value: Tensor, parameters: Mapping[str, nn.Parameter]) -> Tensor:
    """[P]"""
    found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    pairs = zip(parameters.values(), found, strict=True)
    return torch.cat([torch.zeros_like(p).reshape(-1) if g is None else g.reshape(-1) for p, g in pairs])


def _scale(parameters: Mapping[str, nn.Parameter], scale: Mapping[str, Tensor] | None, where: str) -> Tensor:
    """[P], or 1 as [1]."""
    if scale is None:
        one = next(iter(parameters.values()))
        return torch.ones(1, dtype=one.dtype, device=one.device)
    if wrong := [name for name, p in parameters.items() if name not in scale or scale[name].shape != p.shape]:
        raise CheckpointError(f"{where}: {wrong[0]} has no scale of its shape.", fix="Use the scales of this training.")
    return torch.cat([scale[name].to(p).reshape(-1) for name, p in parameters.items()])


@torch.no_grad()
def _put(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    own = model.state_dict()
    if wrong := [name for name in weights if name not in own or own[name].shape != weights[name].shape]:
        raise CheckpointError(f"{where}: {wrong[0]} is not the model's.", fix="Build the model that was trained.")
    for name in weights:
        own[name].copy_(weights[name])
