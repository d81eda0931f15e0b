"""Rows and their verdicts: each relation on both sides of its bound, intervals, and Student's factors against scipy's."""

from __future__ import annotations

import dataclasses
import math
import random
import statistics

import pytest

from fishpaw.lab.findings import Found, Row, Words, interval, sampled

CLAIM = Words("a claim", "论断")


@pytest.mark.parametrize(
    ("relation", "within", "measured", "verdict"),
    [("=", 0.0, 2.0, "holds"), ("=", 0.0, math.nextafter(2, 3), "fails"), ("=", 0.5, 2.5, "holds"), ("=", 0.5, 1.5, "holds"),
     ("=", 0.5, 2.5000001, "fails"), ("=", 0.5, 1.4999999, "fails"), ("<=", 0.0, 2.0, "holds"), ("<=", 0.0, -9.0, "holds"),
     ("<=", 0.0, math.nextafter(2, 3), "fails"), ("<=", 0.5, 2.5, "holds"), ("<=", 0.5, 2.51, "fails"), (">=", 0.0, 2.0, "holds"),
     (">=", 0.0, 9.0, "holds"), (">=", 0.0, math.nextafter(2, 1), "fails"), (">=", 0.5, 1.5, "holds"), (">=", 0.5, 1.49, "fails")],
)  # fmt: skip
def test_a_mathematical_row_holds_or_fails(relation, within, measured, verdict):
    assert Row(CLAIM, 2.0, measured, relation, within).verdict == verdict


@pytest.mark.parametrize(
    ("relation", "bounds", "verdict"),
    [("=", (1.6, 2.4), "holds"), ("=", (1.4, 2.4), "open"), ("=", (1.6, 2.6), "open"), ("=", (1.0, 3.0), "open"),
     ("=", (2.6, 3.0), "fails"), ("=", (1.0, 1.4), "fails"),
     ("<=", (1.0, 2.5), "holds"), ("<=", (1.0, 2.6), "open"), ("<=", (2.6, 2.7), "fails"),
     (">=", (1.5, 9.0), "holds"), (">=", (1.4, 9.0), "open"), (">=", (1.3, 1.4), "fails")],
)  # fmt: skip
def test_the_interval_of_an_empirical_row_decides_and_may_leave_it_open(relation, bounds, verdict):
    assert Row(CLAIM, 2.0, sum(bounds) / 2, relation, 0.5, bounds).verdict == verdict


@pytest.mark.parametrize("relation", ["=", "<=", ">="])
def test_turning_the_axis_round_turns_the_relation_and_not_the_verdict(relation):
    draw = random.Random(3)
    other = {"=": "=", "<=": ">=", ">=": "<="}[relation]
    for _ in range(211):
        claimed, low, width, within = draw.gauss(0, 1), draw.gauss(0, 1), draw.random(), draw.random()
        row = Row(CLAIM, claimed, low, relation, within, (low, low + width))
        turned = Row(CLAIM, -claimed, -low, other, within, (-low - width, -low))
        assert row.verdict == turned.verdict


@pytest.mark.parametrize("where", ["claimed", "measured", "within", "interval"])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_was_not_measured(where, number):
    given = {"claimed": 1.0, "measured": 1.0, where: (number, 1.0) if where == "interval" else number}
    with pytest.raises(ValueError, match="a claim: .*not measured"):
        Row(CLAIM, **given)


def test_nobody_writes_a_verdict():
    row = Row(CLAIM, 1.0, 1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.measured = 2.0
    with pytest.raises(AttributeError):
        row.verdict = "holds"
    assert Found((row,)).series == {}


def test_an_interval_is_students():
    stats = pytest.importorskip("scipy.stats")
    draw = random.Random(5)
    for count in range(2, 31):                                         # 1 to 29 degrees of freedom: a table of three decimals
        samples = [draw.gauss(7, 3) for _ in range(count)]
        expected = stats.t.interval(0.95, count - 1, statistics.fmean(samples), stats.sem(samples))
        assert interval(samples) == pytest.approx(expected, abs=1e-3 * stats.sem(samples))
    samples = [draw.gauss(7, 3) for _ in range(997)]                   # beyond: 1.96 for 1.9624
    expected = stats.t.interval(0.95, 996, statistics.fmean(samples), stats.sem(samples))
    assert interval(samples) == pytest.approx(expected, abs=3e-3 * stats.sem(samples))
    planted = stats.norm.interval(0.95, statistics.fmean(samples[:3]), stats.sem(samples[:3]))
    assert interval(samples[:3]) != pytest.approx(planted, abs=1e-3 * stats.sem(samples[:3]))          # the normal one is too narrow


def test_an_interval_holds_the_mean_as_often_as_it_says():
    draw = random.Random(11)
    inside = 0
    for _ in range(2003):
        low, high = interval([draw.gauss(0.3, 1) for _ in range(5)])
        inside += low <= 0.3 <= high
    assert abs(inside / 2003 - 0.95) < 0.015                           # three standard errors


def test_samples_shifted_and_scaled_take_their_interval_along():
    samples = [1.0, 4.0, 2.5, 3.5]
    low, high = interval(samples)
    assert interval([2 * one - 7 for one in samples]) == pytest.approx((2 * low - 7, 2 * high - 7), abs=1e-12)
    assert interval([5.0] * 7) == (5.0, 5.0)


def test_sampled_is_the_mean_and_its_interval():
    row = sampled(CLAIM, 2.0, [1.0, 2.0, 6.0], relation=">=", within=0.25)
    assert (row.claimed, row.measured, row.relation, row.within) == (2.0, 3.0, ">=", 0.25)
    assert row.interval == interval([1.0, 2.0, 6.0]) and row.verdict == "open"


@pytest.mark.parametrize("samples", [[], [1.0]])
def test_one_sample_has_no_interval(samples):
    with pytest.raises(ValueError, match="two at least"):
        interval(samples)
