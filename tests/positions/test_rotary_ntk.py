"""NTK-aware positions: another base, and transformers' dynamic scaling at the length that it is asked for."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.positions.rotary import Rotary
from fishpaw.positions.rotary_ntk import base, build

torch.set_num_threads(1)
CONFIG = ModelConfig(vocab_size=3, hidden_size=256, layers=1, attention_heads=2, intermediate_size=3)


@pytest.mark.parametrize(("size", "expected"), [(128, 82684.6), (64, 85550.4)])
def test_the_base_grows_as_the_slowest_pair_needs(size, expected):
    """10000 k^(d/(d-2)) with k = 8, the NTK-aware base of arXiv:2309.00071: by it the slowest pair turns k times slower."""
    assert base(10_000.0, 8, size) == pytest.approx(expected, abs=0.05)


def test_the_fastest_pair_stays_and_the_slowest_is_interpolated():
    plain, found = Rotary(128).frequencies(), build(CONFIG, factor=8).frequencies()
    assert float(found[0]) == float(plain[0]) == 1
    assert float(plain[-1] / found[-1]) == pytest.approx(8, rel=1e-12)
    assert bool((found[1:] < plain[1:]).all())
    assert torch.equal(build(CONFIG, factor=1).frequencies(), plain)  # factor 1 is rotary


def test_a_share_counts_the_units_that_turn():
    assert build(CONFIG, factor=8, share=0.5).theta == pytest.approx(85550.4, abs=0.05)


@pytest.mark.parity
def test_it_is_the_dynamic_scaling_of_transformers_at_that_length():
    config = import_module("transformers").LlamaConfig(
        hidden_size=256, num_attention_heads=2, max_position_embeddings=512,
        rope_parameters={"rope_type": "dynamic", "factor": 1.0, "rope_theta": 10_000.0},
    )  # fmt: skip
    theirs, _ = import_module("transformers.modeling_rope_utils").ROPE_INIT_FUNCTIONS["dynamic"](config, "cpu", seq_len=4096)
    assert float((build(CONFIG, factor=8).frequencies() / theirs - 1).abs().max()) < 2e-6            # theirs are fp32
