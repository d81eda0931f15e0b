"""Words from correlations: the article's threshold and its limits, valleys by hand, and word F1 as SIGHAN counts it."""

from __future__ import annotations

import math

import pytest
import torch

from fishpaw.errors import ConfigError, DataError
from fishpaw.interpret.segmentation import below, correlations, spans, valleys, word_counts

DRAW = torch.Generator().manual_seed(5)


def test_a_correlation_is_the_mean_of_both_directions():
    assert correlations(torch.tensor([[1.0, 3.0], [0.5, 0.0]])) == [2.0, 0.25]
    assert correlations(torch.empty(0, 2)) == []


def test_a_threshold_joins_what_reaches_it():
    assert below([7.9, 8.0, 8.1], 8.0) == [True, False, False]
    values = torch.randn(31, generator=DRAW).tolist()
    assert spans(below(values, -math.inf)) == [(0, 32)]
    assert spans(below(values, math.inf)) == [(at, at + 1) for at in range(32)]


def test_a_higher_threshold_never_makes_fewer_words():
    values = torch.randn(31, generator=DRAW).tolist()
    thresholds = sorted([*values, *torch.randn(17, generator=DRAW).tolist()])
    counts = [len(spans(below(values, threshold))) for threshold in thresholds]
    assert counts == sorted(counts) and counts[0] == 1 < counts[-1]
    planted = [len(spans([value > threshold for value in values])) for threshold in thresholds]
    assert planted != sorted(planted)


@pytest.mark.parametrize(("values", "expected"), [
    ([], []), ([3.0], [0]), ([3.0, 1.0], [0, 1]), ([1.0, 3.0], [1, 0]), ([2.0, 2.0, 2.0], [0, 0, 0]), ([5.0, 1.0, 5.0], [0, 1, 0]),
    ([5.0, 1.0, 2.0, 1.0, 5.0], [0, 1, 0, 1, 0]), ([1.0, 5.0, 4.0, 3.0], [1, 0, 0, 1]), ([5.0, 1.0, 1.0, 5.0], [0, 1, 1, 0]),
])  # fmt: skip
def test_valleys_by_hand(values, expected):
    assert valleys(values) == [bool(one) for one in expected]


def test_valleys_are_the_same_for_any_scale_and_never_touch():
    values = torch.randn(97, generator=DRAW).tolist()
    cuts = valleys(values)
    assert valleys([2.5 * value + 7 for value in values]) == cuts and 20 < sum(cuts) < 45
    assert not any(one and other for one, other in zip(cuts, cuts[1:], strict=False))
    interior = spans(cuts)[1:-1]
    assert min(end - start for start, end in interior) == 2
    assert below(values, 0.0) != below([2.5 * value + 7 for value in values], 0.0)         # planted: a threshold isn't


def test_spans_cover_each_unit_once():
    assert spans([]) == [(0, 1)] and spans([False, True, True]) == [(0, 2), (2, 3), (3, 4)]


def test_words_are_counted_where_they_stand():
    counts = word_counts(["今天", "天", "气很", "好"], ["今天", "天气", "很", "好"])
    assert (counts.right, counts.wrong, counts.missed) == (2, 2, 2) and counts.f1 == counts.precision == counts.recall == 0.5
    assert word_counts(["天天", "天"], ["天", "天天"]).right == 0      # the same words, elsewhere
    assert word_counts([], []).f1 == 0 and word_counts(["今"], ["今"]).f1 == 1
    total = counts + word_counts(["今天"], ["今天"])
    assert (total.right, total.f1) == (3, 0.6)


def test_what_cannot_be_is_refused():
    with pytest.raises(DataError, match="of another text"):
        word_counts(["今天"], ["天天"])
    with pytest.raises(ConfigError, match="threshold is nan"):
        below([1.0], math.nan)
