"""Batches and grids by hand: where each token stands, and that laying and flattening are inverse."""

from __future__ import annotations

import pytest
import torch

from fishpaw.contracts import Batch, Grid, Position

torch.set_num_threads(1)
SEQUENCES = [torch.arange(length) + 10 * length for length in (3, 8, 1, 7, 8, 2)]


def test_a_padded_batch_counts_tokens_only():
    keep = torch.tensor([[True, True, False], [False, True, True], [True, True, True]])
    batch = Batch.padded(torch.arange(9).view(3, 3), keep=keep, segments=torch.ones(3, 3).long())
    assert batch.rows[0].order.tolist() == [[0, 1, 1], [0, 0, 1], [0, 1, 2]] == batch.rows[0].position.tolist()
    assert (batch.shape, batch.dense, batch.first.tolist(), batch.last().tolist()) == ((3, 3), False, [0, 4, 6], [1, 5, 8])
    assert batch.row.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [one.tolist() for one in batch.unpack(batch.ids)] == [[0, 1], [4, 5], [6, 7, 8]]
    assert batch.restore(torch.arange(18).view(9, 2)).shape == (3, 3, 2)
    assert Batch.padded(torch.zeros(2, 5).long()).dense and Batch.padded(torch.zeros(2, 5).long()).last().tolist() == [4, 9]


def test_explicit_positions_leave_the_order():
    batch = Batch.padded(torch.zeros(1, 3).long(), positions=torch.tensor([[5, 3, 9]]))
    assert batch.rows[0].order.tolist() == [[0, 1, 2]] and batch.positions.tolist() == [5, 3, 9]


def test_a_packed_batch_groups_similar_lengths_and_keeps_the_order_given():
    batch = Batch.packed(SEQUENCES, segments=[one % 2 for one in SEQUENCES])
    assert [(grid.b, grid.t, grid.start, grid.size) for grid in batch.grids] == [(3, 8, 0, 23), (1, 3, 23, 3), (1, 2, 26, 2), (1, 1, 28, 1)]
    assert batch.grids[0].index is not None and batch.grids[1].index is None
    assert [one.tolist() for one in batch.unpack(batch.ids)] == [one.tolist() for one in SEQUENCES]
    assert torch.equal(batch.ids[batch.first], torch.stack([one[0] for one in SEQUENCES]))
    assert torch.equal(batch.ids[batch.last()], torch.stack([one[-1] for one in SEQUENCES]))
    assert [len(SEQUENCES[row]) for row in batch.row.tolist()] == (batch.ids // 10).tolist()
    assert torch.equal(batch.positions, batch.ids % 10) and torch.equal(batch.segments, batch.ids % 2)
    assert batch.shape is None and not batch.dense
    assert torch.equal(batch.restore(batch.ids), batch.ids)
    assert Batch.packed([SEQUENCES[1], SEQUENCES[4], SEQUENCES[0]]).dense


@pytest.mark.parametrize("heads", [1, 3])
def test_laying_and_flattening_are_inverse(heads):
    batch = Batch.packed(SEQUENCES)
    flat = torch.randn(29, heads * 5)
    assert torch.equal(torch.cat([grid.merge(grid.split(flat, heads)) for grid in batch.grids]), flat)
    assert torch.equal(torch.cat([grid.flat(grid.lay(flat)) for grid in batch.grids]), flat)
    grid = batch.grids[0]
    split, keep = grid.split(flat, heads), batch.rows[0].keep
    assert split.shape == (3, heads, 8, 5) and keep.sum(1).tolist() == [8, 8, 7]
    assert torch.equal(split[1, heads - 1, 2], flat[8 + 2, -5:])     # row 1 begins after the 8 tokens of row 0
    plain = Grid(2, 7)
    assert torch.equal(plain.lay(torch.arange(14)), torch.arange(14).view(2, 7))


def test_a_batch_moves_whole():
    for batch in (Batch.packed(SEQUENCES), Batch.padded(torch.zeros(2, 3).long(), condition=torch.ones(2, 5))):
        moved = batch.to("meta")
        facts = (one for rows in moved.rows for one in (rows.order, rows.position, rows.time, rows.keep))
        tensors = [moved.ids, moved.row, moved.first, *facts,
                   *(one for grid in moved.grids for one in (grid.index, grid.cells)), moved.condition]
        assert {one.device.type for one in tensors if one is not None} == {"meta"} and moved.shape == batch.shape
        assert batch.ids.device.type == "cpu"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Batch.packed([]), "at least one token"),
        (lambda: Batch.packed([torch.ones(3), torch.ones(0)]), r"lengths \[3, 0\]"),
        (lambda: Batch.packed([torch.ones(3), torch.ones(2)], segments=[torch.ones(2), torch.ones(3)]), r"\[2, 3\] for .* \[3, 2\]"),
        (lambda: Batch.padded(torch.ones(3)), "1 dimensions"),
        (lambda: Batch.padded(torch.ones(0, 3)), "ids is empty"),
        (lambda: Batch.padded(torch.ones(2, 3), keep=torch.ones(3, 2)), r"padding has shape \(3, 2\)"),
        (lambda: Batch.padded(torch.ones(2, 3), keep=torch.zeros(2, 3)), "padding is torch.float32: give booleans"),
        (lambda: Batch.padded([[1, 2]]), "ids is a list: give a tensor"),
        (lambda: Batch.padded(torch.ones(1, 2), segments=[[0, 1]]), "segments is a list"),
    ],
)
def test_batches_that_can_not_be_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_a_position_without_hooks_is_the_identity():
    position, x = Position(), torch.randn(2, 3, 5, 7)
    assert position.hooks() == frozenset()
    assert position.embed(x, x) is x and position.rotate(x, None, None) == (x, None) and position.bias(x, x) is None
    assert position.mix(x, None) is None and torch.equal(position.score(x, x, None), x @ x.mT)
