"""YaRN: rotary positions of a text `factor` times as long as was trained, by parts: pairs that turn often within the trained length stay as
they are, those that turn less than once are interpolated, with a ramp between; and attention gets a temperature (arXiv:2309.00071)."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from fishpaw import checks
from fishpaw.config import ModelConfig
from fishpaw.errors import ConfigError
from fishpaw.positions.rotary import Rotary

__all__ = ["build", "by_parts"]


def by_parts(frequencies: Tensor, *, factor: float, low: float, high: float) -> Tensor:
    """frequencies [d/2] -> pairs up to `low` unchanged, from `high` divided by factor, a linear ramp between."""
    pair = torch.arange(len(frequencies), device=frequencies.device, dtype=frequencies.dtype)
    ramp = ((pair - low) / max(high - low, 0.001)).clamp(0, 1)
    return frequencies / factor * ramp + frequencies * (1 - ramp)


def build(
    config: ModelConfig,
    *,
    factor: float = 8.0,
    original_length: int | None = None,
    theta: float = 10_000.0,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    temperature: float | None = None,
    layout: str = "pairs",
    share: float = 1.0,
    log_n: int | None = None,
) -> Rotary:
    """original_length: of training, None: max_positions. A pair that turns beta_fast times in it is kept, one that turns beta_slow times
    divided by factor. temperature multiplies q and k, None: 0.1 ln(factor) + 1 (1 for a factor below 1)."""
    numbers = {"factor": factor, "beta_fast": beta_fast, "beta_slow": beta_slow}
    length = config.max_positions if original_length is None else original_length
    for name, value in {**numbers, "original_length": length, "theta": theta}.items():
        checks.number(f"The position's {name}", value)
    if theta <= 1:
        raise ConfigError(f"The position's theta is {theta}.", fix="Give a number above 1; 10000 is usual.")
    size = Rotary(config.width, theta, layout=layout, share=share).size
    # The pair i that turns `beta` times in `length`: 2i = d ln(length / (2 pi beta)) / ln(theta); rounded outwards, as in the paper's code.
    fast, slow = (size * math.log(length / (2 * math.pi * beta)) / (2 * math.log(theta)) for beta in (beta_fast, beta_slow))
    rescale = partial(by_parts, factor=factor, low=max(math.floor(fast), 0), high=min(math.ceil(slow), size - 1))
    warmth = 0.1 * math.log(max(factor, 1.0)) + 1 if temperature is None else temperature
    return Rotary(config.width, theta, layout=layout, share=share, log_n=log_n, rescale=rescale, temperature=warmth)
