"""Sinusoids against the loop of the paper (arXiv:1706.03762, section 3.5)."""

from __future__ import annotations

import math

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.positions.sinusoidal import build, sinusoids

torch.set_num_threads(1)


def naive(pos, size, theta):
    row = []
    for unit in range(size):
        angle = pos / theta ** (2 * (unit // 2) / size)
        row.append(math.cos(angle) if unit % 2 else math.sin(angle))
    return row


@pytest.mark.parametrize("theta", [10_000.0, 300.0])
@pytest.mark.parametrize("size", [1, 2, 7, 12])
def test_sinusoids_are_their_loop(size, theta):
    places = [0, 1, 5, 97, 100_003]
    expected = torch.tensor([naive(pos, size, theta) for pos in places], dtype=torch.float64)
    found = sinusoids(torch.tensor(places), size, theta)
    assert found.dtype == torch.float64 and found.shape == (5, size)
    assert float((found - expected).abs().max()) < 1e-10             # angles up to 1e5: rounding of 1e-11
    assert size < 3 or float((sinusoids(torch.tensor(places), size, theta + 1) - expected).abs().max()) > 1e-6


def test_halves_in_one_block_would_be_caught():
    found = sinusoids(torch.arange(7), 12)
    blocks = torch.cat((found[:, 0::2], found[:, 1::2]), dim=1)      # sin first, then cos: another common layout
    assert float((blocks - torch.tensor([naive(pos, 12, 10_000.0) for pos in range(7)])).abs().max()) > 0.1


def test_they_are_added_in_the_type_of_the_embedding():
    position = build(ModelConfig(vocab_size=3, hidden_size=12, embedding_size=7, layers=1, attention_heads=2, intermediate_size=3))
    x, pos = torch.randn(5, 7, dtype=torch.float64), torch.tensor([3, 1, 4, 1, 5])
    assert torch.equal(position.embed(x, pos), x + sinusoids(pos, 7))
    assert position.embed(x.bfloat16(), pos).dtype == torch.bfloat16
    assert position.hooks() == {"embed"} and not list(position.parameters())
