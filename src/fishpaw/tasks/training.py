"""What tasks that train ask of a model: new weights from a seed, a digest of those they begin with, and an ordinary softmax."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fishpaw.data.fingerprint import fingerprint
from fishpaw.decoding.limits import check_whole
from fishpaw.decoding.termination import ending_of
from fishpaw.errors import ConfigError
from fishpaw.model.transformer import Transformer

__all__ = ["imprint", "named", "refuse_ending", "seeded"]

_NUMBERS = 64


def imprint(model: nn.Module) -> str:
    """A digest that tells one model's weights from another's: all numbers of vectors (biases, norms), about 64 from all over each other
    tensor; a matrix would cost too much."""
    return fingerprint([[name, _few(tensor)] for name, tensor in sorted(model.state_dict().items())])[:16]


def named(loss: Callable[..., Any]) -> str:
    """What a run's identity keeps of a loss: its name, of a partial its arguments, too; of a function within another not what it holds."""
    if isinstance(loss, functools.partial):
        return f"{named(loss.func)}{loss.args}{sorted(loss.keywords.items())}"
    return str(getattr(loss, "__qualname__", type(loss).__qualname__))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Weights made inside are those of `seed`; random numbers outside as if nothing had been drawn. ConfigError for a seed below 0."""
    check_whole("seed", seed, 0, 2**63 - 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def refuse_ending(model: Transformer, what: str) -> None:
    """ConfigError for a head with an ending of its own: `what` (a noun) would be of a softmax, which the model doesn't decode by."""
    ending = ending_of(model)
    if ending is not None:
        kind = type(ending).__name__
        raise ConfigError(f"The model's head has an ending ({kind}): {what} is of a softmax, which it doesn't decode by.",
                          fix="Train and measure it by fishpaw.losses.termination, or take a head without ending.")


def _few(tensor: Tensor) -> object:
    flat = tensor.detach().flatten()
    return (flat if tensor.dim() < 2 else flat[:: max(1, len(flat) // _NUMBERS)]).float().cpu().numpy()
