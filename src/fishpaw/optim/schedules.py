"""Learning-rate schedules: pure functions from a step to a factor between 0 and 1. arXiv:1810.04805, appendix A.2."""

from __future__ import annotations

from collections.abc import Callable

from fishpaw.errors import ConfigError

__all__ = ["Schedule", "linear"]

Schedule = Callable[[int], float]


def linear(steps: int, *, warmup: float = 0.1) -> Schedule:
    """Up from 0 to 1 over the first `warmup` share of `steps`, then down to 0, both linearly: the usual schedule of fine-tuning.

    Step s counts from 0. The factor is (s + 1) / w while s < w = round(warmup x steps), then (steps - s) / (steps - w): the first
    step already learns, the last one (s = steps - 1) still does, and step `steps` would not. warmup = 0: decay from the start.
    """
    if not 0 <= warmup < 1:
        raise ConfigError(f"warmup is {warmup}.", fix="It is a share of all steps: 0 or more, less than 1.")
    rising = round(warmup * steps)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return max(0.0, (steps - step) / (steps - rising)) if steps > rising else 0.0

    return factor
