"""The cache's book-keeping, by hand: who owns which lane, what each row descends from, what memories are told. Its laws are those of
whole models, in tests/test_contracts.py and tests/decoding/test_stepper.py."""

from __future__ import annotations

import pytest
import torch

from fishpaw.contracts import Batch, Rows
from fishpaw.masks import Mask
from fishpaw.model.cache import Cache

KEEP = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]]).bool()


class Told:
    """A memory that writes down what it is told."""

    def __init__(self):
        self.calls = []

    def select(self, lanes):
        self.calls.append(("select", lanes.tolist()))

    def take(self, prompts):
        self.calls.append(("take", prompts.tolist()))

    def compact(self, cells):
        self.calls.append(("compact", cells.tolist()))


def filled(clock="causal", keep=KEEP, segments=None):
    mask = Mask(clock)
    cache = Cache([(Told(), Told())], mask)
    batch = Batch.padded(torch.zeros(keep.shape, dtype=torch.long), keep=keep)
    rows = batch.rows[0]
    rows = Rows(rows.order, rows.position, mask.times(rows.order, segments), rows.keep)
    cache.extend(Batch(batch.ids, None, batch.grids, (rows,), batch.row, batch.first, batch.shape), None)
    return cache


def step(cache, *shape, segments=None):
    batch = cache.batch(torch.arange(torch.Size(shape).numel()).view(shape), segments)
    return batch, *cache.extend(batch, None)


def test_a_first_step_counts_on_from_each_prompts_last_token():
    cache = filled()
    batch, keys, line = step(cache, 3, 2)
    assert batch.rows[0].order.tolist() == [[3, 4], [1, 2], [2, 3]] == batch.rows[0].position.tolist() == batch.rows[0].time.tolist()
    assert batch.shape == (3, 2) and batch.last().tolist() == [1, 3, 5] and line is None and cache.line is None
    assert keys.order.shape == (3, 5) and keys.keep.tolist() == [[1, 1, 1, 1, 1], [1, 0, 0, 1, 1], [1, 1, 0, 1, 1]]


def test_ragged_lanes_stand_in_one_rectangle():
    cache = filled()
    cache.select(torch.tensor([0, 0, 1, 2, 2, 2]))
    assert (cache.lanes, cache.prompts, cache.owner.tolist()) == (3, 3, [0, 0, 1, 2, 2, 2])
    assert cache.memories[0][0].calls == [("select", [[0, 0, 0], [1, 1, 1], [2, 2, 2]])] and cache.memories[0][1].calls == []
    batch, keys, line = step(cache, 6, 2)
    grid, rows = batch.grids[0], batch.rows[0]
    assert (grid.b, grid.t, grid.size) == (3, 6, 12)
    assert rows.keep.tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [1] * 6]
    assert grid.lay(batch.ids)[rows.keep].tolist() == list(range(12)) == grid.flat(grid.lay(batch.ids)).tolist()
    assert [one.tolist() for one in batch.unpack(batch.ids)] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]
    own = [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]]
    assert cache.line.int().tolist() == [[[1, 1, 1, *row] for row in own]] * 3
    assert line.shape == (3, 6, 9) and torch.equal(line[:, 2], cache.line[:, 1]) and torch.equal(line[:, 3], cache.line[:, 1])
    assert keys.keep.shape == (3, 9)


def test_lanes_are_counted_over_the_prompts_that_are_left():
    cache = filled()
    cache.select(torch.tensor([0, 0, 1, 1, 2, 2]))
    step(cache, 6)
    cache.select(torch.tensor([1, 5, 4, 5]))                         # prompt 1 leaves
    own, cross = cache.memories[0]
    assert own.calls[1:] == [("take", [0, 2]), ("select", [[1, 0, 0], [3, 2, 3]])] and cross.calls == [("take", [0, 2])]
    assert cache.owner.tolist() == [0, 1, 1, 1] and (cache.prompts, cache.lanes) == (2, 3)
    assert cache.line.int()[:, :, 3:].tolist() == [[[0, 1], [1, 0], [1, 0]], [[0, 1], [1, 0], [0, 1]]]
    assert cache.last.order.flatten().tolist() == [3, 2, 2, 2]


def test_compacting_drops_keys_without_heirs_and_padding():
    cache = filled()
    cache.compact()
    assert cache.length == 3                                         # nothing was hidden from anyone yet
    cache.select(torch.tensor([0, 0, 1, 1, 2, 2]))
    step(cache, 6)
    cache.select(torch.tensor([0, 1, 3, 4]))
    own, cross = cache.memories[0]
    cache.compact()                                                  # both of prompt 0's rows live: its 5 keys are all in use
    assert own.calls[-1][0] == "select" and cache.length == 5
    cache.select(torch.tensor([1, 2, 3]))
    cache.compact()
    assert own.calls[-1] == ("compact", [[0, 1, 2, 4], [0, 4, 1, 2], [0, 1, 3, 2]])
    assert cache.length == 4 and cache.line is None and "compact" not in [name for name, _ in cross.calls]
    assert cache.keys.order[cache.keys.keep].tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2]
    assert cache.keys.keep.sum(1).tolist() == [4, 2, 3] and cache.dense is False


@pytest.mark.parametrize(("given", "times"), [(None, [[3, 4], [1, 2]]), ([[0, 1], [0, 0]], [[2, 3], [0, 0]])])
def test_steps_of_a_unilm_tick_by_their_segments(given, times):
    cache = filled("unilm", torch.ones(2, 3, dtype=torch.bool), torch.tensor([[0, 1, 1], [0, 0, 0]]))
    batch, _, _ = step(cache, 2, 2, segments=None if given is None else torch.tensor(given))
    assert batch.rows[0].time.tolist() == times
    assert batch.segments.tolist() == ([1] * 4 if given is None else sum(given, []))


def test_mistakes_are_said():
    cache = Cache([], Mask("causal"))
    for act in (lambda: cache.batch(torch.zeros(1)), lambda: cache.select(torch.tensor([0]))):
        with pytest.raises(ValueError, match="empty: read the prompts"):
            act()
    cache.compact()
    cache = filled()
    with pytest.raises(ValueError, match=r"shape \(2, 1\) for 3 live rows"):
        cache.batch(torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"segments has shape \(2,\), ids \(3, 1\)"):
        cache.batch(torch.zeros(3, dtype=torch.long), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="adjacent"):
        cache.select(torch.tensor([0, 1, 0]))
    with pytest.raises(ValueError, match="adjacent"):
        cache.select(torch.tensor([1, 0]))
