"""How transformers writes rotary positions in a config.json, and our specs of them, both ways (transformers/modeling_rope_utils.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fishpaw.errors import ConfigError
from fishpaw.switch import spec_name, spec_options
from fishpaw.weights.family import Values, number

__all__ = ["read_rope", "write_rope"]

# What transformers calls a way to stretch rotary positions -> ours, and its fields -> our options.
_ROPE: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "default": ("rotary", {}),
    "linear": ("rotary_interpolated", {"factor": "factor"}),
    "llama3": ("rotary_llama3", {
        "factor": "factor", "low_freq_factor": "low_frequency_factor", "high_freq_factor": "high_frequency_factor",
        "original_max_position_embeddings": "original_length",
    }),
    "yarn": ("rotary_yarn", {
        "factor": "factor", "original_max_position_embeddings": "original_length", "beta_fast": "beta_fast", "beta_slow": "beta_slow",
        "attention_factor": "temperature",
    }),
}  # fmt: skip
_NEEDED = ("factor", "low_freq_factor", "high_freq_factor")       # as transformers does: there is no usual value
_OF_LENGTH, _SHARE = "original_max_position_embeddings", "partial_rotary_factor"


def read_rope(values: Values, *, theta: float, positions: int, at: str = "rope_parameters") -> Values:
    """The spec of rotary positions from transformers 5's rope_parameters, or rope_scaling and rope_theta before it. theta and positions:
    where they aren't given. ConfigError for a kind that we don't compute."""
    given = values.get(at) or values.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"{at} is {given!r}.", fix="Give an object.")
    given = {"rope_theta": number(values, "rope_theta", theta), **{field: value for field, value in given.items() if value is not None}}
    kind = given.pop("rope_type", given.pop("type", "default"))
    given.pop("type", None)
    if not isinstance(kind, str) or kind not in _ROPE:
        raise ConfigError(f"The rope_type of {at} is {kind!r}, which fishpaw can't build.", fix=f"Served: {', '.join(_ROPE)}.")
    ours, options = _ROPE[kind]
    if values.get(_SHARE, 1) != 1:
        given.setdefault(_SHARE, values[_SHARE])
    if _OF_LENGTH in options:
        given.setdefault(_OF_LENGTH, values.get(_OF_LENGTH, positions))
    spec = {"name": ours, "layout": "half", "theta": number(given, "rope_theta", theta)}
    for field in sorted(given.keys() - {"rope_theta"}):
        if field not in options:
            raise ConfigError(f"{at} has the field {field!r}, which fishpaw can't serve for {kind!r}.", fix="Use another model.")
        spec[options[field]] = number(given, field, 0)
    lacks = [field for field in options if field in _NEEDED and field not in given]
    if lacks:
        raise ConfigError(f"{at} is of rope_type {kind!r}, but lacks {', '.join(lacks)}.", fix="Add what the model was trained with.")
    return spec


def write_rope(spec: Any) -> dict[str, Any]:
    """`read_rope` undone; what has no counterpart is left out, and reading it back then shows the difference."""
    kinds = {ours: (kind, options) for kind, (ours, options) in _ROPE.items()}
    kind, options = kinds.get(spec_name(spec), ("default", {}))
    held = spec_options(spec)
    found = {field: held[option] for field, option in options.items() if held.get(option) is not None}
    return {"rope_type": kind, **({"rope_theta": held["theta"]} if "theta" in held else {}), **found}
