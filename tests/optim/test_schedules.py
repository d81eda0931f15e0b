"""Schedules: known values, peaks, ends, and refusals."""

from __future__ import annotations

import pytest

from fishpaw.errors import ConfigError
from fishpaw.optim.schedules import linear, piecewise


def test_known_values() -> None:
    wanted = [1 / 4, 2 / 4, 3 / 4, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0]
    assert [linear(10, warmup=0.4)(step) for step in range(11)] == pytest.approx(wanted)
    assert [linear(4, warmup=0)(step) for step in range(6)] == pytest.approx([1, 3 / 4, 2 / 4, 1 / 4, 0, 0])


@pytest.mark.parametrize("steps", [1, 2, 7, 1009])
@pytest.mark.parametrize("warmup", [0, 0.1, 0.5, 0.97])
def test_every_step_learns_and_none_more_than_the_peak(steps: int, warmup: float) -> None:
    factor = linear(steps, warmup=warmup)
    values = [factor(step) for step in range(steps)]
    assert all(0 < value <= 1 for value in values) and max(values) == 1
    peak = values.index(1.0)
    assert values[: peak + 1] == sorted(values[: peak + 1]) and values[peak:] == sorted(values[peak:], reverse=True)


@pytest.mark.parametrize("warmup", [-0.1, 1, 100, float("nan")])
def test_a_warmup_that_is_no_share_is_refused(warmup: float) -> None:
    with pytest.raises(ConfigError, match="warmup is"):
        linear(10, warmup=warmup)


def test_piecewise_has_the_values_of_its_source() -> None:
    factor = piecewise({1000: 1, 2000: 0.1})
    assert [factor(step) for step in (0, 500, 1000, 1500, 2000, 5000)] == pytest.approx([0, 0.5, 1, 0.55, 0.1, 0.1])
    assert [piecewise({0: 1})(step) for step in (0, 7)] == [1, 1]
    assert [piecewise({2: 0, 0: 1})(step) for step in range(4)] == [1, 0.5, 0, 0]                # in any order


@pytest.mark.parametrize(("knots", "says"), [({}, "no steps"), ({-1: 1}, "step -1"), ({0.5: 1}, "step 0.5"), ({0: -1}, "0 is -1"),
                                             ({True: 1}, "step True"), ({0: float("inf")}, "0 is inf")])  # fmt: skip
def test_knots_that_make_no_schedule_are_refused(knots: dict[int, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        piecewise(knots)
