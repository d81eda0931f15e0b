"""Leaky ReRoPE: what its stretch does; its scores and laws are in test_rerope."""

from __future__ import annotations

import torch

from fishpaw.config import ModelConfig
from fishpaw.positions import rerope
from fishpaw.positions.leaky_rerope import build
from fishpaw.positions.rotary import Rotary

torch.set_num_threads(1)
CONFIG = ModelConfig(vocab_size=3, hidden_size=28, layers=1, attention_heads=2, intermediate_size=3)


def scores(position, q, k, pos):
    at = position.at(pos, pos, pos, torch.float64)
    q, turned = position.rotate(q, k, at)
    return position.score(q, turned, at)


def test_it_lies_between_rotary_and_rerope():
    q, k, pos = *torch.randn(2, 1, 2, 23, 14, dtype=torch.float64), torch.arange(23)[None]
    clipped, plain = scores(rerope.build(CONFIG, window=5), q, k, pos), scores(Rotary(14), q, k, pos)
    assert float((scores(build(CONFIG, window=5, stretch=1), q, k, pos) - plain).abs().max()) < 1e-10
    assert float((scores(build(CONFIG, window=5, stretch=1e12), q, k, pos) - clipped).abs().max()) < 1e-8
    between = scores(build(CONFIG, window=5), q, k, pos)
    assert min(float((between - other).abs().max()) for other in (clipped, plain)) > 1e-2
    near = (torch.arange(23) - torch.arange(23)[:, None]).abs() <= 5
    assert float((between - plain)[..., near].abs().max()) < 1e-12


def test_a_step_beyond_the_window_counts_one_of_stretch():
    """Units of one, one pair that turns a radian a position: the score is 2 cos(distance)."""
    ones, pos = torch.ones(1, 1, 9, 2, dtype=torch.float64), torch.arange(9)[None]
    config = ModelConfig(vocab_size=3, hidden_size=2, layers=1, attention_heads=1, intermediate_size=3)
    found = scores(build(config, window=3, stretch=4), ones, ones, pos)[0, 0, 8]
    expected = [3 + 5 / 4, 3 + 4 / 4, 3 + 3 / 4, 3 + 2 / 4, 3 + 1 / 4, 3, 2, 1, 0]
    assert float((found - 2 * torch.tensor(expected, dtype=torch.float64).cos()).abs().max()) < 1e-12
