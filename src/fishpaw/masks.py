"""Who may look at whom: a mask is a clock and rules. A key is visible iff its time is not after the query's and every rule allows it.

The clocks: full (everything at time 0), causal (time = order), unilm (segment 0 at time 0, then one tick a token: bidirectional source,
causal target; arXiv:1905.03197). The rules: window (|order difference| <= window) and exclude_self (T-TA, arXiv:2004.08097).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fishpaw import checks
from fishpaw.contracts import Rows

__all__ = ["Mask", "causal", "full", "unilm"]


@dataclass(frozen=True)
class Mask:
    """clock: "full" | "causal" | "unilm". window: largest distance seen, None for any. exclude_self: hide a token from itself."""

    clock: str
    window: int | None = None
    exclude_self: bool = False

    def __post_init__(self) -> None:
        checks.one_of("The mask's clock", self.clock, ("full", "causal", "unilm"))
        checks.truth("The mask's exclude_self", self.exclude_self)
        checks.whole("The mask's window", self.window, least=0, optional=True)

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules beside the clock, by name."""
        return (("window",) if self.window is not None else ()) + (("exclude_self",) if self.exclude_self else ())

    def times(self, order: Tensor, segments: Tensor | None, last: Tensor | None = None) -> Tensor:
        """The time of each token, [b t]. segments [b t] (unilm; None: all 0), 0 at padding, which would tick else; last [b]: the time of
        the row's latest stored token."""
        if self.clock == "causal":
            return order
        if self.clock == "full" or segments is None:
            return torch.zeros_like(order) if last is None else last[:, None].expand_as(order)
        ticks = segments.cumsum(1)
        return ticks if last is None else ticks + last[:, None]

    def allowed(self, q: Rows, k: Rows) -> Tensor:
        """True where the query may see the key, [b 1|q k]; never a padding key."""
        seen = k.keep[:, None, :]
        if self.clock != "full":
            seen = seen & (k.time[:, None, :] <= q.time[:, :, None])
        if self.window is not None:
            seen = seen & ((q.order[:, :, None] - k.order[:, None, :]).abs() <= self.window)
        if self.exclude_self:
            seen = seen & (q.order[:, :, None] != k.order[:, None, :])
        return seen


def full(config: Any, *, window: int | None = None, exclude_self: bool = False) -> Mask:
    """Every token sees every token: an encoder."""
    return Mask("full", window, exclude_self)


def causal(config: Any, *, window: int | None = None, exclude_self: bool = False) -> Mask:
    """A token sees itself and what stands before it: a language model."""
    return Mask("causal", window, exclude_self)


def unilm(config: Any, *, window: int | None = None, exclude_self: bool = False) -> Mask:
    """Segment 0 sees itself both ways, later segments see it and what stands before them: a seq2seq model in one stack."""
    return Mask("unilm", window, exclude_self)
