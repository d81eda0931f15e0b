"""What a caller changes in the configuration of a file: the switches by name, and what a new switch takes over from the file's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fishpaw.config import ModelConfig
from fishpaw.errors import ConfigError
from fishpaw.switch import Spec, spec_name, spec_options
from fishpaw.weights.family import period
from fishpaw.weights.translate import spelled_out

__all__ = ["adapted", "gathered"]

# Positions that read the same weights in the same way -> the options that say how.
_ALIKE: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("rotary", "rotary_interpolated", "rotary_ntk", "rotary_yarn", "rotary_llama3", "rerope", "leaky_rerope"),
     ("theta", "layout", "share", "log_n")),
    (("learned", "hierarchical"), ("offset",)),
)  # fmt: skip


def gathered(
    mask: Spec | None,
    position: Spec | None,
    attention: Spec | None,
    norm: Spec | None,
    heads: Sequence[Spec] | None,
    residual_scores: bool | None,
    dropout: float | None,
    changes: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The fields of ModelConfig that `load_model`'s keywords ask for. ConfigError for one that is given twice."""
    named = {
        "mask": mask,
        "position": position,
        "attention": attention,
        "norm": norm,
        "heads": heads if heads is None or isinstance(heads, str) else tuple(heads),
        "residual_scores": residual_scores,
        "dropout": dropout,
        "attention_dropout": dropout,
    }
    said = {key: value for key, value in named.items() if value is not None}
    if changes is not None and not isinstance(changes, Mapping):
        raise ConfigError(f"changes is {changes!r}.", fix='Give a mapping of fields, for example {"norm_at": "pre"}.')
    twice = sorted(said.keys() & (changes or {}).keys())
    if twice:
        raise ConfigError(f"{', '.join(twice)}: given both by name and in changes.", fix="Leave out one of them.")
    return {**said, **(changes or {})}


def adapted(before: ModelConfig, changes: Mapping[str, Any]) -> ModelConfig:
    """The file's configuration with the changes. A norm of the same kind computes with the file's eps; a position of the same kind has,
    layer by layer, the file's theta, layout, share and log_n, or its offset; unless it says its own."""
    config = before.change(changes)
    norm, held = config.norm, spec_options(before.norm).get("eps")
    if "norm" in changes and not callable(norm) and held is not None:
        centred = ("layer", "conditional")
        alike = spec_name(norm) == spec_name(before.norm) or (spec_name(norm) in centred and spec_name(before.norm) in centred)
        if alike and "eps" not in spec_options(norm):
            config = config.change({"norm": {"name": spec_name(norm), **spec_options(norm), "eps": held}})
    if "position" in changes:
        new, old = config.turns("position"), before.turns("position")
        turns = [_carried(new[index % len(new)], old[index % len(old)]) for index in range(max(before.layers, len(new)))]
        config = config.change({"position": tuple(period(turns))})
    return config


def _carried(new: Spec, old: Spec) -> Spec:
    if callable(new) or callable(old):
        return new
    for names, options in _ALIKE:
        if spec_name(new) in names and spec_name(old) in names:
            held, usual = spelled_out("position", old), spelled_out("position", new)
            own = spec_options(new)
            carried = {option: held[option] for option in options if option not in own and held[option] != usual[option]}
            return {"name": spec_name(new), **own, **carried} if carried else new
    return new
