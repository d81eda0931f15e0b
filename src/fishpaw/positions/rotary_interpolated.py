"""Rotary positions of a text `factor` times as long as was trained: every position is divided by it (arXiv:2306.15595)."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from fishpaw import checks
from fishpaw.config import ModelConfig
from fishpaw.positions.rotary import Rotary

__all__ = ["build", "slowed"]


def slowed(frequencies: Tensor, *, factor: float) -> Tensor:
    """frequencies [d/2] / factor."""
    return frequencies / factor


def build(
    config: ModelConfig,
    *,
    factor: float = 8.0,
    theta: float = 10_000.0,
    layout: str = "pairs",
    share: float = 1.0,
    log_n: int | None = None,
) -> Rotary:
    """As rotary, at position / factor. Needs a little training at the new length; transformers calls it "linear"."""
    checks.number("The position's factor", factor)
    return Rotary(config.width, theta, layout=layout, share=share, log_n=log_n, rescale=partial(slowed, factor=factor))
