"""Keys and values in buffers that grow: what comes out is what went in, in its order."""

from __future__ import annotations

import pytest
import torch

from fishpaw.attention.memory import LEAST, KeyValue

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
