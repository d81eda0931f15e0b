"""Learning-rate schedules: pure functions from a step to a factor of the peak. arXiv:1810.04805, appendix A.2."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping

from fishpaw.errors import ConfigError

__all__ = ["Schedule", "linear", "piecewise"]

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


def piecewise(knots: Mapping[int, float]) -> Schedule:
    """Straight lines between knots {step: factor}: from (0, 0) unless there is a knot at 0, constant after the last one.

    {1000: 1, 2000: 0.1}: 0, 0.5, 1, 0.55, 0.1, 0.1 at steps 0, 500, 1000, 1500, 2000, 5000. {0: 1} is constant. Steps are updates, from 0.
    Raises ConfigError for no knots, a step that is no whole number from 0, a factor that is no number from 0.
    """
    wrong = [step for step in knots if not isinstance(step, int) or isinstance(step, bool) or step < 0]
    if wrong or not knots:
        raise ConfigError(f"A schedule has {f'the step {wrong[0]!r}' if wrong else 'no steps'}.", fix="Give {step: factor}, steps from 0.")
    for step, value in knots.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < math.inf:
            raise ConfigError(f"The factor of step {step} is {value!r}.", fix="It must be a number, 0 or more.")
    steps = sorted(knots if 0 in knots else {0: 0.0, **knots})
    values = [float(knots.get(step, 0.0)) for step in steps]

    def factor(step: int) -> float:
        after = bisect_right(steps, step)
        if after == len(steps):
            return values[-1]
        begin, end = steps[after - 1], steps[after]
        return values[after - 1] + (values[after] - values[after - 1]) * (step - begin) / (end - begin)

    return factor
