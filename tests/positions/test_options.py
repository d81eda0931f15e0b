"""Options of positions: what is refused is named."""

from __future__ import annotations

import pytest

from fishpaw.config import ModelConfig
from fishpaw.errors import ConfigError
from fishpaw.switch import build, names

CONFIG = ModelConfig(vocab_size=3, hidden_size=28, layers=1, attention_heads=2, intermediate_size=3)


@pytest.mark.parametrize(
    ("position", "wrong", "name"),
    [
        ("rotary", {"theta": 0}, "theta"),
        ("rotary", {"layout": "halves"}, "layout"),
        ("rotary", {"share": 0}, "share"),
        ("rotary", {"share": 1.5}, "head_size 14"),
        ("rotary", {"share": 0.5}, "is 7"),
        ("rotary", {"log_n": 1}, "log_n"),
        ("rotary_interpolated", {"factor": 0}, "factor"),
        ("rotary_ntk", {"factor": "8"}, "factor"),
        ("rotary_ntk", {"share": 0.15}, "two pairs"),
        ("rotary_ntk", {"theta": 1e9, "factor": 1e9}, "theta and factor"),
        ("rotary_yarn", {"factor": 0}, "factor"),
        ("rotary_yarn", {"theta": 1}, "theta"),
        ("rotary_yarn", {"beta_fast": 0}, "beta_fast"),
        ("rotary_yarn", {"original_length": 0}, "original_length"),
        ("rotary_yarn", {"temperature": 0}, "temperature"),
        ("rotary_llama3", {"high_frequency_factor": 1.0}, "high_frequency_factor"),
        ("rotary_llama3", {"original_length": -1}, "original_length"),
        ("rerope", {"window": 0}, "window"),
        ("rerope", {"log_n": 0}, "log_n"),
        ("leaky_rerope", {"stretch": 0}, "stretch"),
        ("nezha", {"reach": 0}, "reach"),
        ("buckets", {"buckets": 7}, "buckets"),
        ("buckets", {"buckets": 2}, "buckets"),
        ("buckets", {"distance": 8}, "distance"),
        ("buckets", {"bidirectional": 1}, "bidirectional"),
        ("hierarchical", {"alpha": 0.5}, "alpha is 0.5"),
        ("hierarchical", {"alpha": 1.0}, "alpha"),
        ("learned", {"offset": 512}, "512 rows"),
        ("learned", {"offset": -1}, "offset"),
        ("sinusoidal", {"theta": -1.0}, "theta"),
        ("rotary", {"lay": "half"}, "layout='pairs'"),
    ],
    ids=str,
)
def test_every_position_refuses_what_it_cannot_use(position, wrong, name):
    with pytest.raises(ConfigError) as caught:
        build("positions", {"name": position, **wrong}, CONFIG)
    assert name in str(caught.value)


def test_every_position_is_built_by_its_name_alone():
    assert all(build("positions", name, CONFIG).length in (None, 512, 512**2) for name in names("positions"))
