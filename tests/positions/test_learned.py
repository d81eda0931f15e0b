"""Learned positions: a row of the table for each token's position."""

from __future__ import annotations

import torch

from fishpaw.config import ModelConfig
from fishpaw.positions.learned import build

torch.set_num_threads(1)


def test_each_token_gets_the_row_of_its_position():
    position = build(ModelConfig(vocab_size=3, hidden_size=12, embedding_size=7, layers=1, attention_heads=2, intermediate_size=3,
                                 max_positions=11, init_std=0.7))
    x, pos = torch.randn(5, 7), torch.tensor([3, 0, 10, 3, 5])
    expected = torch.stack([row + position.table.weight[place] for row, place in zip(x, pos.tolist(), strict=True)])
    assert torch.equal(position.embed(x, pos), expected)
    assert position.hooks() == {"embed"} and position.length == 11
    assert position.table.weight.shape == (11, 7) and 0.5 < float(position.table.weight.detach().std()) < 0.9


def test_rows_that_are_read_get_gradients_and_no_others():
    position = build(ModelConfig(vocab_size=3, hidden_size=7, layers=1, attention_heads=1, intermediate_size=3, max_positions=5))
    position.embed(torch.zeros(3, 7), torch.tensor([1, 4, 1])).sum().backward()
    assert position.table.weight.grad[:, 0].tolist() == [0.0, 2.0, 0.0, 0.0, 1.0]


def test_positions_may_start_at_a_later_row():
    """RoBERTa and XLM-R: rows 0 and 1 belong to no position."""
    position = build(ModelConfig(vocab_size=3, hidden_size=7, layers=1, attention_heads=1, intermediate_size=3, max_positions=11), offset=2)
    assert position.length == 9 and position.table.weight.shape == (11, 7)
    pos = torch.tensor([0, 8, 3])
    assert torch.equal(position.embed(torch.zeros(3, 7), pos), position.table.weight[pos + 2])
