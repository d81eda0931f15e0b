"""The processes that train one model together, as the loop sees them: here one, alone; several are in train/distributed.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, NoReturn, TypeVar

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fishpaw.errors import FishpawError

__all__ = ["Forward", "Loss", "Parallel", "Team"]

Parallel = Literal["replicated", "sharded"]
Loss = Callable[[nn.Module, Any], tuple[Tensor, Tensor | float]]
Forward = Callable[[Any, bool], tuple[Tensor, Tensor | float]]
"""(batch, whether it is the last one of the step) -> (sum of losses, what it counts)."""

_Plain = TypeVar("_Plain")


class Team:
    """One process: it has every row, and nobody to ask. The methods say what they do among several.

    A method that speaks to the others must be called by all of them, in the same order.
    """

    rank = 0
    size = 1

    def __enter__(self) -> Team:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Leave together. An error of one process ends all: that one raises it, the others leave with SystemExit."""

    @property
    def leader(self) -> bool:
        """Whether this is the process that writes and reads files and shows a bar."""
        return self.rank == 0

    def share(self, rows: NDArray[numpy.int64]) -> NDArray[numpy.int64]:
        """Rows rank::size of a batch: this process' part, which may be none."""
        return rows

    def prepare(self, model: nn.Module, loss: Loss) -> Forward:
        """Give all processes the leader's weights, and return how a batch is to be computed. Afterwards gradients are means over
        processes: sums divided by `size`."""
        return lambda batch, last: loss(model, batch)

    def check(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise ConfigError for one that can't work here."""

    def stir(self, seed: int, step: int) -> None:
        """Give each process random states of its own, those of this step; alone they simply go on."""

    def settle(self, parameters: Iterable[nn.Parameter]) -> None:
        """After the last backward pass of a step: gradients are there for what was used in any process, and None for the rest."""

    def sum(self, values: list[float]) -> list[float]:
        """Each summed over all processes, in fp64."""
        return values

    def most(self, value: int) -> int:
        """The largest of all processes' values; nobody goes on before all have come here."""
        return value

    def every(self, value: _Plain) -> list[_Plain]:
        """What each process has, in their order; values of JSON."""
        return [value]

    def told(self, value: _Plain) -> _Plain:
        """What the leader has; values of JSON."""
        return value

    def spread(self, source: Tensor | None, *, shape: torch.Size, dtype: torch.dtype, like: Tensor) -> Tensor:
        """The leader's tensor on every process, on the device of `like` and, if it has its shape, spread over processes as it is."""
        assert source is not None
        return source.to(like.device)

    def whole(self, tensor: Tensor) -> Tensor:
        """All of a tensor that may be spread over processes."""
        return tensor

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Inside, the model can be called by itself, without a loss."""
        yield

    def release(self) -> None:
        """Make the model again what it was before `prepare`, with the weights of now."""

    def fail(self, error: FishpawError) -> NoReturn:
        """Raise an error that all processes know of: in one of them, the others leave."""
        raise error
