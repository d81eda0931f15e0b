"""The random states of a process (Python, NumPy, torch, its device) as one value that can be taken, put back and stored as tensors."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor

from fishpaw.errors import CheckpointError

__all__ = ["Randomness", "isolated", "seed"]


@dataclass(frozen=True)
class Randomness:
    """All states at one moment. `take` costs about 0.1 ms: each training step can afford one."""

    python_state: tuple[Any, ...]
    numpy_state: Any
    torch_state: Tensor
    device_state: Tensor | None

    @classmethod
    def take(cls, device: torch.device) -> Randomness:
        """The states now; `device`: whose generator counts besides the CPU's."""
        return cls(random.getstate(), numpy.random.get_state(legacy=True), torch.get_rng_state(), _device_state(device))

    def put(self, device: torch.device) -> None:
        """Make them the states of this process."""
        random.setstate(self.python_state)
        numpy.random.set_state(self.numpy_state)
        torch.set_rng_state(self.torch_state)
        if self.device_state is not None:
            if device.type == "cuda":
                torch.cuda.set_rng_state(self.device_state, device)
            elif device.type == "mps":
                torch.mps.set_rng_state(self.device_state)

    def tensors(self) -> dict[str, Tensor]:
        """As tensors, exact to the bit."""
        version, words, gauss = self.python_state
        _, keys, position, has_gauss, cached = self.numpy_state
        states = {
            "python.words": torch.tensor([version, *words], dtype=torch.int64),
            "python.gauss": torch.tensor([math.nan if gauss is None else gauss], dtype=torch.float64),
            "numpy.keys": torch.from_numpy(numpy.asarray(keys).astype(numpy.int64)),
            "numpy.place": torch.tensor([position, has_gauss], dtype=torch.int64),
            "numpy.gauss": torch.tensor([cached], dtype=torch.float64),
            "torch": self.torch_state,
        }
        return states if self.device_state is None else {**states, "device": self.device_state}

    @classmethod
    def from_tensors(cls, states: dict[str, Tensor]) -> Randomness:
        """The inverse of `tensors`. Raises CheckpointError if one is missing."""
        try:
            version, *words = states["python.words"].tolist()
            gauss = states["python.gauss"].item()
            position, has_gauss = states["numpy.place"].tolist()
            legacy = ("MT19937", states["numpy.keys"].numpy().astype(numpy.uint32), position, has_gauss, states["numpy.gauss"].item())
            return cls((version, tuple(words), None if math.isnan(gauss) else gauss), legacy, states["torch"], states.get("device"))
        except KeyError as error:
            raise CheckpointError(f"The random state {error} is missing in the checkpoint.", fix="Start again without it.") from error


def seed(value: int) -> None:
    """Seed Python, NumPy and torch with all its devices."""
    random.seed(value)
    numpy.random.seed(value % 2**32)
    torch.manual_seed(value)


@contextmanager
def isolated(device: torch.device) -> Iterator[None]:
    """Whatever is drawn inside, the states outside don't notice."""
    before = Randomness.take(device)
    try:
        yield
    finally:
        before.put(device)


def _device_state(device: torch.device) -> Tensor | None:
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.mps.get_rng_state() if device.type == "mps" else None
