"""No position at all: order comes from the mask alone, or not (arXiv:2203.16634)."""

from __future__ import annotations

from fishpaw.config import ModelConfig
from fishpaw.contracts import Position

__all__ = ["build"]


def build(config: ModelConfig) -> Position:
    """The identity."""
    return Position()
