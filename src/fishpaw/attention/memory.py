"""What attention remembers between the steps of decoding: keys and values in one preallocated buffer a prompt, or a state of constant
size."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["KeyValue", "State"]

LEAST = 64
"""Cells of a first buffer of unknown need; a full one is doubled, so that appending costs a constant time on average."""


class KeyValue:
    """Keys and values [p h k d] of p prompts. Live rows of a prompt share its buffer: moving them costs nothing here."""

    def __init__(self, room: int | None = None) -> None:
        self.room = room or LEAST
        self.length = 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """New k, v [p h m d] -> all so far [p h k d], views of the buffers."""
        start, new = self.length, k.shape[2]
        self.length = end = start + new
        self.keys, self.values = self._room(self.keys, k, start), self._room(self.values, v, start)
        self.keys.narrow(2, start, new).copy_(k)
        self.values.narrow(2, start, new).copy_(v)
        return self.keys.narrow(2, 0, end), self.values.narrow(2, 0, end)

    def read(self) -> tuple[Tensor, Tensor]:
        """All so far, [p h k d]."""
        if self.keys is None or self.values is None:
            raise ValueError("the memory is empty: read the prompt first")
        return self.keys.narrow(2, 0, self.length), self.values.narrow(2, 0, self.length)

    def select(self, lanes: Tensor) -> None:
        """Lanes share their prompt's keys: nothing to move."""

    def take(self, prompts: Tensor) -> None:
        """Keep the prompts [p'] only."""
        self.read()
        assert self.keys is not None and self.values is not None
        self.keys, self.values = self.keys[prompts], self.values[prompts]                           # whole buffers: the room stays

    def compact(self, cells: Tensor) -> None:
        """Keep the stored keys cells [p k'] only, in that order."""
        k, v = self.read()
        index = cells[:, None, :, None]
        self.length = cells.shape[1]
        for buffer in (k, v):
            buffer[:, :, : self.length] = buffer.gather(2, index.expand(-1, buffer.shape[1], -1, buffer.shape[3]))

    def _room(self, buffer: Tensor | None, new: Tensor, start: int) -> Tensor:
        end = self.length
        if buffer is not None and end <= buffer.shape[2]:
            return buffer
        b, h, _, d = new.shape
        larger = torch.empty(b, h, self.room if end <= self.room else 2 * end, d, dtype=new.dtype, device=new.device)
        if buffer is not None:
            larger[:, :, :start] = buffer[:, :, :start]
        return larger


class State:
    """Sums over all keys so far, each [p lanes h f e]: what linear attention remembers, of the same size after any number of them. A lane
    has sums of its own, for what it has read can't be told apart again."""

    def __init__(self) -> None:
        self.sums: tuple[Tensor, ...] | None = None

    def select(self, lanes: Tensor) -> None:
        """lanes [p x]: new lane x of a prompt continues that old one, counted over all prompts."""
        self.sums = tuple(one.flatten(0, 1)[lanes] for one in self._held())

    def take(self, prompts: Tensor) -> None:
        """Keep the prompts [p'] only."""
        self.sums = tuple(one[prompts] for one in self._held())

    def compact(self, cells: Tensor) -> None:
        """No key is stored: nothing to forget."""

    def _held(self) -> tuple[Tensor, ...]:
        if self.sums is None:
            raise ValueError("the memory is empty: read the prompt first")
        return self.sums
