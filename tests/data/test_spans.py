"""Spans: as many as the paper's rates say, none touch, each choice as probable as any other."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy
import pytest

from fishpaw.data.spans import choose_spans, count_spans
from fishpaw.errors import ConfigError


def drawn(length, seed=0, **options):
    return choose_spans(length, numpy.random.default_rng(seed), **options).tolist()


@pytest.mark.parametrize("length", [2, 3, 5, 13, 127, 512])
@pytest.mark.parametrize("rate, mean", [(0.15, 3.0), (0.5, 1.0), (0.9, 3.0), (0.15, 1000.0)])
def test_spans_are_apart_and_as_many_as_counted(length, rate, mean):
    hidden, count = count_spans(length, rate=rate, mean=mean)
    for seed in range(20):
        spans = drawn(length, seed, rate=rate, mean=mean)
        assert len(spans) == count and sum(end - start for start, end in spans) == hidden
        assert all(start < end for start, end in spans) and spans[0][0] >= 0 and spans[-1][1] <= length
        assert all(before[1] < after[0] for before, after in zip(spans, spans[1:], strict=False))


def test_the_numbers_are_those_of_the_paper():
    assert count_spans(512, rate=0.15, mean=3.0) == (77, 26) and count_spans(100, rate=0.15, mean=3.0) == (15, 5)
    assert count_spans(512, rate=0.15, mean=3.0, most=9)[1] == len(drawn(512, most=9)) == 9


def test_every_choice_is_equally_probable():
    """Of 8 tokens 4 in 2 spans: all ways are counted by hand; the original's program never leaves the last token."""
    every = set()
    for hidden in combinations(range(8), 4):
        starts = [at for at in hidden if at - 1 not in hidden]
        if len(starts) == 2:
            every.add(hidden)
    draw, found = numpy.random.default_rng(1), Counter()
    for _ in range(6000):
        spans = choose_spans(8, draw, rate=0.5, mean=2.0).tolist()
        found[tuple(at for start, end in spans for at in range(start, end))] += 1
    assert set(found) == every
    expected = 6000 / len(every)
    assert sum((found[one] - expected) ** 2 / expected for one in every) < 70            # chi-square, 29 free: p = 3e-5
    assert 0 < sum(number for hidden, number in found.items() if hidden[-1] == 7) < 6000


@pytest.mark.parametrize("options", [{"length": 1}, {"length": 9, "rate": 0.0}, {"length": 9, "rate": 1.0}, {"length": 9, "mean": 0.5}])
def test_what_can_not_be_is_refused(options):
    with pytest.raises(ConfigError):
        drawn(**options)
