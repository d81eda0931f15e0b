"""Rotary positions in a config.json, in both of transformers' spellings: read, written, read again; other kinds refused by name."""

from __future__ import annotations

import pytest

from fishpaw.errors import ConfigError
from fishpaw.weights.rope import read_rope, write_rope

YARN = {"factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.25}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("kind", "fields", "name", "options"),
    [
        ("default", {}, "rotary", {}),
        ("linear", {"factor": 2.0}, "rotary_interpolated", {"factor": 2.0}),
        ("llama3", LLAMA3, "rotary_llama3",
         {"factor": 8.0, "low_frequency_factor": 1.0, "high_frequency_factor": 4.0, "original_length": 32}),
        ("yarn", YARN, "rotary_yarn", {"factor": 4.0, "original_length": 64, "beta_fast": 16.0, "beta_slow": 2.0, "temperature": 1.25}),
    ],
)
def test_both_spellings_are_read_and_what_is_written_is_read_again(kind, fields, name, options):
    expected = {"name": name, "layout": "half", "theta": 50.0, **options}
    new = {"rope_parameters": {"rope_type": kind, "rope_theta": 50.0, **fields}}
    old = {"rope_theta": 50.0, **({"rope_scaling": {"type": kind, **fields}} if fields else {})}
    assert read_rope(new, theta=1.0, positions=7) == read_rope(old, theta=1.0, positions=7) == expected
    written = write_rope(expected)
    assert written == {"rope_type": kind, "rope_theta": 50.0, **fields}
    assert read_rope({"rope_parameters": written}, theta=1.0, positions=7) == expected
    assert read_rope({"rope_parameters": {**written, "rope_theta": 51.0}}, theta=1.0, positions=7) != expected


def test_what_is_not_given_has_defaults():
    assert read_rope({}, theta=3.0, positions=7) == {"name": "rotary", "layout": "half", "theta": 3.0}
    assert read_rope({"rope_scaling": {"type": "yarn", "factor": 2.0}}, theta=3.0, positions=7)["original_length"] == 7
    assert write_rope("nezha") == {"rope_type": "default"}           # no counterpart: reading it back shows the difference


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rope_scaling": {"type": "longrope"}}, "longrope"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, "rope_type"),
        ({"rope_scaling": 3}, "rope_parameters is 3"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear"}}, "'linear', but lacks factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lacks low_freq_factor, high_freq_factor"),
        ({"rope_theta": float("inf")}, "rope_theta"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 1.0}}, "mscale"),
    ],
)
def test_what_can_not_be_served_is_refused_by_name(values, said):
    with pytest.raises(ConfigError, match=said):
        read_rope(values, theta=3.0, positions=7)
