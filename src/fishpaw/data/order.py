"""The order in which examples are visited: a pure function of (seed, epoch), in batches of similar length, that can go on anywhere.

An epoch is a permutation, cut into pools; a pool is sorted by length (lengths are blurred by up to 10 %, so that batches differ from
epoch to epoch), cut into batches, and the batches of all pools are shuffled. Random bits come from Philox (doi:10.1145/2063384.2063405),
whose stream numpy guarantees, not from a shuffle routine, which may change between versions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy
from numpy.typing import NDArray

from fishpaw.errors import ConfigError, DataError

__all__ = ["Order", "Place"]


class Place(TypedDict):
    """How far a reader has come: `batch` batches of `epoch` are done. Together with the seed, all there is to know."""

    epoch: int
    batch: int


class Order:
    """Batches of indices into n examples of known lengths.

    lengths [n]: tokens an example. Either `batch_size` rows a batch or, if `token_budget` is given, as many rows as fit
    rows x longest <= token_budget (one row at least). `pool`: batches that are sorted together; 1 keeps the pure shuffle.
    The last batch of an epoch may be smaller; nothing is dropped. Raises DataError if there is no example.
    """

    def __init__(
        self, lengths: Sequence[int], *, batch_size: int = 32, token_budget: int | None = None, pool: int = 32, seed: int = 0
    ) -> None:
        if len(lengths) == 0:
            raise DataError("No examples to train on.", fix="Give at least one; a filter may have removed them all.")
        for name, value in (("batch_size", batch_size), ("token_budget", token_budget), ("pool", pool)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}.", fix="It must be 1 or more.")
        self.lengths = numpy.asarray(lengths, dtype=numpy.int64)                       # [n]
        self.batch_size, self.token_budget, self.pool, self.seed = batch_size, token_budget, pool, seed
        self.epoch = self.batch = 0
        self._planned: tuple[int, list[NDArray[numpy.int64]]] | None = None

    def batches(self, epoch: int) -> list[NDArray[numpy.int64]]:
        """All batches of an epoch, each an array of indices. The last one asked for is kept."""
        if self._planned is None or self._planned[0] != epoch:
            self._planned = epoch, self._plan(epoch)
        return self._planned[1]

    def count(self, epoch: int) -> int:
        """Number of batches in an epoch; without a token budget it is the same in all, and costs nothing."""
        if self.token_budget is None:
            return -(-len(self.lengths) // self.batch_size)
        return len(self.batches(epoch))

    def take(self, number: int) -> list[NDArray[numpy.int64]]:
        """The next `number` batches, fewer at the end of an epoch; the place moves on, into the next epoch if this one is done."""
        planned = self.batches(self.epoch)
        taken = planned[self.batch : self.batch + number]
        self.batch += len(taken)
        if self.batch >= len(planned):
            self.epoch, self.batch = self.epoch + 1, 0
        return taken

    def state(self) -> Place:
        """The place, to be stored."""
        return {"epoch": self.epoch, "batch": self.batch}

    def restore(self, place: Place) -> None:
        """Go on exactly where `state` was asked for."""
        self.epoch, self.batch = place["epoch"], place["batch"]

    def _plan(self, epoch: int) -> list[NDArray[numpy.int64]]:
        n = len(self.lengths)
        bits = numpy.random.Philox(key=(self.seed % 2**64) << 64 | epoch).random_raw(3 * n).reshape(3, n)
        shuffled = numpy.argsort(bits[0], kind="stable")                               # [n]
        blur = 1 + 0.1 * (bits[1] >> numpy.uint64(11)) * 2.0**-53
        blurred = (self.lengths * blur)[shuffled]
        rows = self.pool * (self.batch_size if self.token_budget is None else max(1, int(self.token_budget / max(1, self.lengths.mean()))))
        batches: list[NDArray[numpy.int64]] = []
        for start in range(0, n, rows):
            part = shuffled[start : start + rows]
            if self.pool > 1:
                part = part[numpy.argsort(blurred[start : start + rows], kind="stable")]
            batches += self._cut(part)
        return [batches[i] for i in numpy.argsort(bits[2, : len(batches)], kind="stable")]

    def _cut(self, rows: NDArray[numpy.int64]) -> list[NDArray[numpy.int64]]:
        if self.token_budget is None:
            return [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        batches, start, longest = [], 0, 0
        for end, length in enumerate(self.lengths[rows].tolist()):
            longest = max(longest, length)
            if end > start and (end - start + 1) * longest > self.token_budget:
                batches.append(rows[start:end])
                start, longest = end, length
        return [*batches, rows[start:]]
