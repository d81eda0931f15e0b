"""Leaky ReRoPE: rotary positions whose distance grows `stretch` times slower beyond a window (kexue.fm/archives/9708)."""

from __future__ import annotations

from fishpaw import checks
from fishpaw.config import ModelConfig
from fishpaw.positions.distances import looks_ahead
from fishpaw.positions.rerope import ReRoPE
from fishpaw.positions.rotary import Rotary

__all__ = ["build"]


def build(
    config: ModelConfig,
    *,
    window: int = 256,
    stretch: float = 16.0,
    theta: float = 10_000.0,
    layout: str = "pairs",
    share: float = 1.0,
    log_n: int | None = None,
) -> ReRoPE:
    """Distances 0, 1, …, window, window + 1/stretch, window + 2/stretch, …; stretch 1 is rotary, a large one ReRoPE."""
    checks.number("The position's stretch", stretch)
    rotary = Rotary(config.width, theta, layout=layout, share=share)
    return ReRoPE(rotary, window, slope=1 / stretch, ahead=looks_ahead(config), log_n=log_n)
