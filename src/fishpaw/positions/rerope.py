"""ReRoPE: rotary positions whose distance stops growing at a window, so that a text of any length holds only distances that were trained
(kexue.fm/archives/9708). Keys are kept unturned: which way they turn depends on the query."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fishpaw import checks
from fishpaw.config import ModelConfig
from fishpaw.contracts import Position
from fishpaw.positions.distances import distances, looks_ahead, shared
from fishpaw.positions.rotary import Rotary, growth

__all__ = ["ReRoPE", "build"]


class ReRoPE(Position):
    """q [b h q d], k [b h k d] -> scores whose distance is query minus key up to `window`, then window + (distance - window) * slope.

    slope 0: ReRoPE, clipped at the window; above: Leaky ReRoPE. Two matrices of scores, inside and outside of the window; with `ahead` a
    third one, for keys more than a window after their query (mirrored: -window); without it they are taken for inside, so leave it out
    only where a causal mask hides them. log_n as in Rotary.
    """

    def __init__(self, rotary: Rotary, window: int, *, slope: float = 0.0, ahead: bool = True, log_n: int | None = None) -> None:
        super().__init__()
        checks.whole("The position's window", window, least=1)
        checks.whole("The position's log_n", log_n, least=2, optional=True)
        self.rotary = rotary
        self.window = window
        self.slope = slope
        self.ahead = ahead
        self.log_n = log_n

    def at(self, q_pos: Tensor, k_pos: Tensor, new_pos: Tensor, dtype: torch.dtype) -> Any:
        """Tables inside the window; for each side where they replace those, [1|b 1 q k], and others; the growth of the queries."""
        near = self.rotary.at(q_pos, k_pos, k_pos, dtype)
        scale = None if self.log_n is None else growth(q_pos, self.log_n, dtype)
        q_pos, k_pos = shared(q_pos).double(), shared(k_pos).double()                              # whole numbers x slope would be fp32
        rest, k_slow = self.window * (1 - self.slope), k_pos * self.slope
        behind = -distances(q_pos, k_pos)[:, None]
        sides = [(behind > self.window, self.rotary.at(q_pos * self.slope + rest, k_slow, k_slow, dtype))]
        if self.ahead:
            sides.append((behind < -self.window, self.rotary.at(q_pos * self.slope - rest, k_slow, k_slow, dtype)))
        return near, sides, scale

    def score(self, q: Tensor, k: Tensor, at: Any) -> Tensor:
        near, sides, scale = at
        q = q if scale is None else q * scale
        near_q, near_k = self.rotary.rotate(q, k, near)
        assert near_k is not None
        scores = near_q @ near_k.mT                                                                 # [b h q k]
        for outside, far in sides:
            far_q, far_k = self.rotary.rotate(q, k if self.slope else None, far)                    # slope 0: keys turn by nothing
            scores = torch.where(outside, far_q @ (k if far_k is None else far_k).mT, scores)
        return scores


def build(
    config: ModelConfig,
    *,
    window: int = 256,
    theta: float = 10_000.0,
    layout: str = "pairs",
    share: float = 1.0,
    log_n: int | None = None,
) -> ReRoPE:
    """window: the largest distance, in positions; half of the trained length is usual. Needs the explicit path of attention."""
    rotary = Rotary(config.width, theta, layout=layout, share=share)
    return ReRoPE(rotary, window, ahead=looks_ahead(config), log_n=log_n)
