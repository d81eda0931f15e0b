"""Llama 3.1's scaling by parts, and transformers' own."""

from __future__ import annotations

import math
from importlib import import_module

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.positions.rotary import Rotary
from fishpaw.positions.rotary_llama3 import build

torch.set_num_threads(1)
CONFIG = ModelConfig(vocab_size=3, hidden_size=256, layers=1, attention_heads=2, intermediate_size=3)


def test_each_pair_is_that_of_a_loop():
    plain, found = Rotary(128, 500_000.0).frequencies().tolist(), build(CONFIG).frequencies().tolist()
    expected = []
    for frequency in plain:
        length = 2 * math.pi / frequency
        if length < 8192 / 4:
            expected.append(frequency)
        elif length > 8192 / 1:
            expected.append(frequency / 8)
        else:
            smooth = (8192 / length - 1) / (4 - 1)
            expected.append((1 - smooth) * frequency / 8 + smooth * frequency)
    assert found == pytest.approx(expected, rel=1e-12)
    assert len({round(a / b, 6) for a, b in zip(plain, found, strict=True)}) > 3                    # all three parts are there


@pytest.mark.parity
@pytest.mark.parametrize(("factor", "original", "theta", "share"), [(8.0, 8192, 500_000.0, 1.0), (32.0, 8192, 500_000.0, 0.5),
                                                                    (4.0, 512, 10_000.0, 1.0)])
def test_it_is_the_scaling_of_transformers(factor, original, theta, share):
    config = import_module("transformers").LlamaConfig(
        hidden_size=256, num_attention_heads=2, max_position_embeddings=131072,
        rope_parameters={"rope_type": "llama3", "factor": factor, "rope_theta": theta, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": original, "partial_rotary_factor": share},
    )  # fmt: skip
    theirs, scaling = import_module("transformers.modeling_rope_utils").ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    ours = build(CONFIG, factor=factor, original_length=original, theta=theta, share=share)
    assert scaling == ours.temperature == 1
    assert float((ours.frequencies() / theirs - 1).abs().max()) < 5e-6                              # theirs are fp32
    other = build(CONFIG, factor=2 * factor, original_length=original, theta=theta, share=share)
    assert float((other.frequencies() / theirs - 1).abs().max()) > 0.1
