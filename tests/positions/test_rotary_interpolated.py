"""Interpolated positions: rotary at position / factor, and transformers' "linear"."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.positions.rotary import Rotary
from fishpaw.positions.rotary_interpolated import build

torch.set_num_threads(1)
CONFIG = ModelConfig(vocab_size=3, hidden_size=28, layers=1, attention_heads=2, intermediate_size=3)


def test_it_is_rotary_at_a_smaller_position():
    x, pos = torch.randn(1, 2, 7, 14, dtype=torch.float64), torch.randint(0, 4096, (1, 7))
    found, plain = build(CONFIG, factor=8), Rotary(14)
    expected = plain.rotate(x, None, plain.at(pos / 8, pos, pos / 8, torch.float64))[0]
    assert float((found.rotate(x, None, found.at(pos, pos, pos, torch.float64))[0] - expected).abs().max()) < 1e-10
    assert torch.equal(build(CONFIG, factor=1).frequencies(), plain.frequencies())


@pytest.mark.parity
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_it_is_the_linear_scaling_of_transformers(share):
    config = import_module("transformers").LlamaConfig(
        hidden_size=256, num_attention_heads=2, max_position_embeddings=2048,
        rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0, "partial_rotary_factor": share},
    )  # fmt: skip
    theirs, scaling = import_module("transformers.modeling_rope_utils").ROPE_INIT_FUNCTIONS["linear"](config, "cpu")
    ours = build(ModelConfig(vocab_size=3, hidden_size=256, layers=1, attention_heads=2, intermediate_size=3), factor=4.0, share=share)
    assert theirs.shape == ours.frequencies().shape and scaling == ours.temperature == 1
    assert float((ours.frequencies() / theirs - 1).abs().max()) < 1e-6                              # theirs are fp32
