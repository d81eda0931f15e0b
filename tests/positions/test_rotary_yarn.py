"""YaRN: by parts with a ramp, a temperature on q and k, and transformers' own."""

from __future__ import annotations

import math
from importlib import import_module

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.positions.rotary import Rotary
from fishpaw.positions.rotary_yarn import build

torch.set_num_threads(1)
CONFIG = ModelConfig(vocab_size=3, hidden_size=256, layers=1, attention_heads=2, intermediate_size=3, max_positions=4096)


def test_pairs_are_kept_interpolated_or_between_by_how_often_they_turn():
    plain, found = Rotary(128).frequencies(), build(CONFIG, factor=8).frequencies()
    turns, slowed = 4096 * plain / (2 * math.pi), plain / found
    assert float((slowed[turns > 40] - 1).abs().max()) < 1e-12 and float((slowed[turns < 0.8] - 8).abs().max()) < 1e-12
    middle = slowed[(turns > 1.5) & (turns < 25)]
    assert len(middle) > 5 and bool(((middle > 1) & (middle < 8)).all()) and bool((middle.diff() > 0).all())
    assert float((build(CONFIG, factor=1).frequencies() - plain).abs().max()) < 1e-15


def test_the_temperature_multiplies_scores_twice():
    found = build(CONFIG, factor=8)
    assert found.temperature == pytest.approx(0.1 * math.log(8) + 1, rel=1e-15) and found.sharpens
    assert build(CONFIG, factor=0.5).temperature == 1 and build(CONFIG, temperature=1.5).temperature == 1.5
    q, k = torch.randn(2, 1, 1, 5, 128, dtype=torch.float64)
    pos = torch.arange(5)[None]
    cold = build(CONFIG, factor=8, temperature=1.0)
    scores = [a @ b.mT for a, b in (one.rotate(q, k, one.at(pos, pos, pos, torch.float64)) for one in (found, cold))]
    assert float((scores[0] - scores[1] * found.temperature**2).abs().max()) < 1e-11


@pytest.mark.parity
@pytest.mark.parametrize("options", [{}, {"beta_fast": 16.0, "beta_slow": 2.0}, {"partial_rotary_factor": 0.5}, {"attention_factor": 1.25},
                                     {"rope_theta": 500_000.0}], ids=str)
@pytest.mark.parametrize("original", [512, 4096])
def test_it_is_the_yarn_of_transformers(options, original):
    config = import_module("transformers").LlamaConfig(
        hidden_size=256, num_attention_heads=2, max_position_embeddings=original * 4,
        rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 10_000.0, **options,
                         "original_max_position_embeddings": original},
    )  # fmt: skip
    theirs, scaling = import_module("transformers.modeling_rope_utils").ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    names = {"partial_rotary_factor": "share", "attention_factor": "temperature", "rope_theta": "theta"}
    ours = build(CONFIG, factor=4.0, original_length=original, **{names.get(name, name): value for name, value in options.items()})
    assert ours.temperature == pytest.approx(scaling, rel=1e-12)
    assert float((ours.frequencies() / theirs - 1).abs().max()) < 2e-6                              # theirs are fp32
    cos, *_ = ours.at(torch.tensor([[7]]), torch.tensor([[7]]), torch.tensor([[7]]), torch.float64)
    assert float((cos[0, 0, 0] - (7 * theirs.double()).cos() * scaling).abs().max()) < 1e-5
