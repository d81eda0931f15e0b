"""Keys and values in buffers that grow: what comes out is what went in, in its order. Sums that don't grow: each lane keeps its own."""

from __future__ import annotations

import pytest
import torch

from fishpaw.attention.memory import LEAST, KeyValue, State

torch.set_num_threads(1)


def filled(sizes, p=3, h=2):
    memory, told = KeyValue(), []
    for size in sizes:
        k, v = torch.randn(p, h, size, 5), torch.randn(p, h, size, 7)
        told.append((k, v))
        memory.append(k, v)
    return memory, [torch.cat(column, dim=2) for column in zip(*told, strict=True)]


@pytest.mark.parametrize("sizes", [[1], [LEAST], [LEAST + 1], [7, 1, 1, 3], [61, 3, 1, 1], [3, 200, 1, 5], [1] * 131])
def test_it_gives_back_all_that_was_appended(sizes):
    memory, (keys, values) = filled(sizes)
    k, v = memory.read()
    assert torch.equal(k, keys) and torch.equal(v, values) and memory.length == sum(sizes)


def test_it_doubles_so_that_appending_is_cheap_on_average():
    memory, copies, last = KeyValue(), 0, None
    for _ in range(1000):
        memory.append(torch.zeros(1, 1, 1, 3), torch.zeros(1, 1, 1, 3))
        copies += memory.keys is not last
        last = memory.keys
    assert copies <= 6


def test_taking_prompts_and_compacting_keep_what_they_name_and_leave_room_to_grow():
    memory, (keys, values) = filled([61, 5])
    memory.take(torch.tensor([0, 2]))
    assert torch.equal(memory.read()[0], keys[[0, 2]]) and torch.equal(memory.read()[1], values[[0, 2]])
    cells = torch.stack([torch.randperm(66)[:13].sort().values for _ in range(2)])
    memory.compact(cells)
    expected = [torch.stack([one[prompt][:, cells[row]] for row, prompt in enumerate((0, 2))]) for one in (keys, values)]
    assert memory.length == 13 and all(torch.equal(found, one) for found, one in zip(memory.read(), expected, strict=True))
    more = torch.randn(2, 2, 3, 5), torch.randn(2, 2, 3, 7)
    k, v = memory.append(*more)
    assert torch.equal(k, torch.cat((expected[0], more[0]), 2)) and torch.equal(v, torch.cat((expected[1], more[1]), 2))


def test_moving_lanes_moves_no_key():
    memory, (keys, _) = filled([5])
    memory.select(torch.tensor([[1, 0], [3, 3], [4, 5]]))
    assert torch.equal(memory.read()[0], keys)


def test_an_empty_memory_says_so():
    with pytest.raises(ValueError, match="empty: read the prompt"):
        KeyValue().read()


# Sums of constant size

def summed(p=3, lanes=2):
    state = State()
    state.sums = (torch.randn(p, lanes, 2, 5, 7), torch.randn(p, lanes, 2, 5, 1))
    return state, state.sums


def test_new_lanes_of_a_state_continue_the_lanes_they_name():
    state, before = summed()
    lanes = torch.tensor([[1, 0, 1], [2, 2, 2], [5, 4, 5]])
    state.select(lanes)
    for found, one in zip(state.sums, before, strict=True):
        assert found.shape[:2] == (3, 3)
        assert all(torch.equal(found[p, x], one[int(lanes[p, x]) // 2, int(lanes[p, x]) % 2]) for p in range(3) for x in range(3))


def test_a_state_keeps_the_prompts_that_stay_and_forgets_no_key():
    state, before = summed()
    state.take(torch.tensor([0, 2]))
    assert all(torch.equal(found, one[[0, 2]]) for found, one in zip(state.sums, before, strict=True))
    held = state.sums
    state.compact(torch.zeros(2, 1, dtype=torch.long))
    assert state.sums is held


def test_an_empty_state_says_so():
    with pytest.raises(ValueError, match="empty: read the prompt"):
        State().select(torch.tensor([[0]]))
