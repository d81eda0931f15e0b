"""Rotary positions as Llama 3.1 scales them, by parts: pairs of short wavelengths stay as they are, long ones are divided by `factor`, with
a ramp between (arXiv:2407.21783; the constants are in the files of the models)."""

from __future__ import annotations

import math
from functools import partial

from torch import Tensor

from fishpaw import checks
from fishpaw.config import ModelConfig
from fishpaw.errors import ConfigError
from fishpaw.positions.rotary import Rotary

__all__ = ["build", "by_wavelength"]


def by_wavelength(frequencies: Tensor, *, factor: float, slow: float, fast: float, length: float) -> Tensor:
    """frequencies [d/2] -> pairs that turn `fast` times or more in `length` unchanged, `slow` times or less divided by factor."""
    kept = ((length * frequencies / (2 * math.pi) - slow) / (fast - slow)).clamp(0, 1)
    return frequencies / factor * (1 - kept) + frequencies * kept


def build(
    config: ModelConfig,
    *,
    factor: float = 8.0,
    low_frequency_factor: float = 1.0,
    high_frequency_factor: float = 4.0,
    original_length: int = 8192,
    theta: float = 500_000.0,
    layout: str = "half",
    share: float = 1.0,
    log_n: int | None = None,
) -> Rotary:
    """The defaults are Llama 3.1's. original_length: of training, in positions."""
    slow, fast = low_frequency_factor, high_frequency_factor
    numbers = {"factor": factor, "low_frequency_factor": slow, "high_frequency_factor": fast, "original_length": original_length}
    for name, value in numbers.items():
        checks.number(f"The position's {name}", value)
    if fast <= slow:
        raise ConfigError(f"The position's high_frequency_factor {fast} isn't above low_frequency_factor {slow}.", fix="Exchange them.")
    rescale = partial(by_wavelength, factor=factor, slow=slow, fast=fast, length=original_length)
    return Rotary(config.width, theta, layout=layout, share=share, log_n=log_n, rescale=rescale)
