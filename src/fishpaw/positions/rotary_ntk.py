"""Rotary positions of a text `factor` times as long as was trained, without training: the base of the wavelengths grows, so that the
fastest pair stays as it is and the slowest is interpolated ("NTK-aware", 2023; kexue.fm/archives/9675 derives it from number bases)."""

from __future__ import annotations

from fishpaw import checks
from fishpaw.config import ModelConfig
from fishpaw.errors import ConfigError
from fishpaw.positions.rotary import Rotary

__all__ = ["base", "build"]


def base(theta: float, factor: float, size: int) -> float:
    """theta * factor^(size / (size - 2)), where `size` units turn."""
    if size < 4:
        raise ConfigError(f"{size} units turn, but another base needs two pairs.", fix="Make head_size larger, or choose another position.")
    return float(theta * factor ** (size / (size - 2)))


def build(
    config: ModelConfig,
    *,
    factor: float = 8.0,
    theta: float = 10_000.0,
    layout: str = "pairs",
    share: float = 1.0,
    log_n: int | None = None,
) -> Rotary:
    """As rotary, with base(theta, factor, …) in the place of theta."""
    checks.number("The position's factor", factor)
    plain = Rotary(config.width, theta, layout=layout, share=share, log_n=log_n)
    turned = base(theta, factor, plain.size)
    checks.number("The base that the position's theta and factor give", turned)
    return Rotary(config.width, turned, layout=layout, share=share, log_n=log_n)
