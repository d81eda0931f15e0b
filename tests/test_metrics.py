"""Metrics against values computed by hand, laws that hold for any data, and scikit-learn (parity)."""

from __future__ import annotations

import random
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fishpaw.errors import DataError
from fishpaw.metrics import Counts, accuracy, classification, confusion, majority_accuracy, multilabel

TRUE = ["cat", "cat", "cat", "cat", "dog", "dog", "hen"]
FOUND = ["cat", "cat", "dog", "hen", "dog", "cat", "cat"]

labels = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=41)
sets = st.lists(st.tuples(st.frozensets(st.integers(0, 4)), st.frozensets(st.integers(0, 4))), min_size=1, max_size=41)
quick = settings(max_examples=100, deadline=None, derandomize=True)


# -- by hand ----------------------------------------------------------------------------------------------------------------------

def test_three_labels_by_hand() -> None:
    report = classification(FOUND, TRUE)
    assert report.labels == {"cat": Counts(2, 2, 2), "dog": Counts(1, 1, 1), "hen": Counts(0, 1, 1)}
    assert list(report.labels) == ["cat", "dog", "hen"]
    assert (report.labels["cat"].precision, report.labels["dog"].recall, report.labels["hen"].f1) == (0.5, 0.5, 0.0)
    assert (report.accuracy, report.micro.f1, report.examples) == (3 / 7, 3 / 7, 7)
    assert (report.macro_precision, report.macro_recall, report.macro_f1) == (1 / 3, 1 / 3, 1 / 3)
    assert [counts.support for counts in report.labels.values()] == [4, 2, 1]


def test_precision_recall_and_f1_are_told_apart() -> None:
    counts = Counts(right=3, wrong=1, missed=6)
    assert (counts.precision, counts.recall, counts.f1) == (3 / 4, 3 / 9, 6 / 13)


def test_macro_f1_is_the_mean_of_f1_and_not_the_f1_of_the_means() -> None:
    report = classification([0, 0, 0, 1], [0, 1, 1, 1])           # F1: 2·1/(2+2+0) = 1/2 and 2·1/(2+0+2) = 1/2
    assert report.macro_f1 == 1 / 2
    assert report.macro_precision == report.macro_recall == 2 / 3  # of which the harmonic mean would be 2/3


def test_confusion_has_the_truth_in_rows() -> None:
    assert confusion(FOUND, TRUE) == [[2, 1, 1], [1, 1, 0], [1, 0, 0]]
    assert confusion(FOUND, TRUE, labels=["hen", "dog", "cat", "fox"]) == [[0, 0, 1, 0], [0, 1, 1, 0], [1, 1, 2, 0], [0, 0, 0, 0]]


def test_majority() -> None:
    assert majority_accuracy(TRUE) == 4 / 7
    assert majority_accuracy(TRUE, training=["dog", "dog", "cat"]) == 2 / 7
    assert majority_accuracy(TRUE, training=["fox"]) == 0.0
    assert majority_accuracy([1, 0], training=[0, 1]) == 1 / 2


def test_several_labels_by_hand() -> None:
    found = [{"price", "camera"}, set(), {"camera"}, {"price"}]
    true = [{"price"}, {"camera"}, {"camera"}, set()]
    report = multilabel(found, true)
    assert report.labels == {"camera": Counts(1, 1, 1), "price": Counts(1, 1, 0)}
    assert (report.micro, report.micro.f1) == (Counts(2, 2, 1), 4 / 7)
    assert report.macro_f1 == pytest.approx((1 / 2 + 2 / 3) / 2) and report.accuracy == 1 / 4


def test_a_label_that_never_occurs_counts_in_the_macro_means() -> None:
    assert classification([0, 1], [0, 1]).macro_f1 == 1.0
    assert classification([0, 1], [0, 1], labels=[0, 1, 2, 3]).macro_f1 == 0.5


def test_a_share_of_nothing_is_zero() -> None:
    assert (Counts().precision, Counts().recall, Counts().f1) == (0.0, 0.0, 0.0)
    report = multilabel([[], []], [[], []])
    assert (report.accuracy, report.micro.f1, report.macro_f1, report.labels) == (1.0, 0.0, 0.0, {})


def test_arrays_and_tensors_are_read_by_value() -> None:
    numpy, torch = pytest.importorskip("numpy"), pytest.importorskip("torch")
    plain = classification([1, 0, 2, 2], [1, 1, 2, 0])
    for found, true in ((numpy.array([1, 0, 2, 2]), torch.tensor([1, 1, 2, 0])), (list(torch.tensor([1, 0, 2, 2])), (1, 1, 2, 0))):
        assert classification(found, true) == plain
        assert accuracy(found, true) == 0.5 and majority_accuracy(true) == 0.5


def test_labels_of_several_types_have_a_fixed_order() -> None:
    assert list(classification(["b", 2], [None, "a"]).labels) == [None, 2, "a", "b"]


# -- mistakes ---------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("measure", [accuracy, confusion, classification, multilabel])
def test_nothing_and_unequal_lengths_are_refused(measure: Any) -> None:
    with pytest.raises(DataError, match="no example"):
        measure([], [])
    with pytest.raises(DataError, match="2 predictions are given for 3 examples"):
        measure([[1], [2]] if measure is multilabel else [1, 2], [[1], [2], [3]] if measure is multilabel else [1, 2, 3])


@pytest.mark.parametrize(("call", "message"), [
    (lambda: classification([0, 7], [0, 1], labels=[0, 1]), "label 7 is not among"),
    (lambda: confusion([0, 1], [0, 7], labels=[0, 1]), "label 7 is not among"),
    (lambda: classification([0], [0], labels=[0, 0]), "names a label twice"),
    (lambda: accuracy([[0.1, 0.9]], [1]), r"predicted\[0\] is a list, not a label"),
    (lambda: multilabel(["price"], [{"price"}]), r"predicted\[0\] is 'price', not a set"),
    (lambda: multilabel(cast(Any, [{1}, 3]), [{1}, {3}]), r"predicted\[1\] is 3, not a set"),
    (lambda: classification([None], ["a"], labels=["a"]), "label None is not among"),
    (lambda: multilabel([{1}], [[0, 1, 1]]), r"true\[0\] holds a label twice"),
    (lambda: majority_accuracy([]), "no label"),
    (lambda: majority_accuracy([1], training=[]), "no label"),
])
def test_mistakes_are_named(call: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()


# -- laws -------------------------------------------------------------------------------------------------------------------------

@quick
@given(labels)
def test_micro_f1_is_accuracy_with_one_label_an_example(pairs: list[tuple[int, int]]) -> None:
    found, true = zip(*pairs, strict=True)
    report = classification(found, true)
    assert report.micro.precision == report.micro.recall == pytest.approx(report.accuracy) and report.accuracy == accuracy(found, true)


@quick
@given(labels)
def test_confusion_adds_up(pairs: list[tuple[int, int]]) -> None:
    found, true = zip(*pairs, strict=True)
    table, report = confusion(found, true), classification(found, true)
    assert [sum(row) for row in table] == [counts.support for counts in report.labels.values()]
    assert [sum(column) for column in zip(*table, strict=True)] == [counts.right + counts.wrong for counts in report.labels.values()]
    assert sum(table[at][at] for at in range(len(table))) / len(true) == accuracy(found, true)
    assert confusion(true, found) == [list(column) for column in zip(*table, strict=True)]


@quick
@given(sets, st.randoms(use_true_random=False))
def test_order_does_not_matter_and_roles_swap(pairs: list[tuple[frozenset[int], frozenset[int]]], shuffle: random.Random) -> None:
    found, true = zip(*pairs, strict=True)
    report = multilabel(found, true)
    mixed = list(pairs)
    shuffle.shuffle(mixed)
    assert multilabel(*zip(*mixed, strict=True)) == report
    swapped = multilabel(true, found)
    ours, theirs = report.micro, swapped.micro
    assert (theirs.precision, theirs.recall, theirs.f1) == (ours.recall, ours.precision, ours.f1)
    assert (swapped.macro_precision, swapped.macro_f1) == (report.macro_recall, report.macro_f1)


@quick
@given(sets)
def test_f1_is_the_harmonic_mean_and_lies_between(pairs: list[tuple[frozenset[int], frozenset[int]]]) -> None:
    for counts in multilabel(*zip(*pairs, strict=True)).labels.values():
        p, r = counts.precision, counts.recall
        assert min(p, r) - 1e-12 <= counts.f1 <= max(p, r) + 1e-12
        assert counts.f1 == pytest.approx(2 * p * r / (p + r) if p + r else 0.0)


@quick
@given(labels)
def test_one_label_an_example_is_a_set_of_one(pairs: list[tuple[int, int]]) -> None:
    found, true = zip(*pairs, strict=True)
    assert multilabel([{a} for a in found], [{b} for b in true]) == classification(found, true)


@quick
@given(labels)
def test_the_right_answers_score_one(pairs: list[tuple[int, int]]) -> None:
    true = [pair[1] for pair in pairs]
    report = classification(true, true)
    assert (report.accuracy, report.micro.f1, report.macro_f1) == (1.0, 1.0, 1.0) and majority_accuracy(true) >= 1 / len(set(true))


# -- scikit-learn -----------------------------------------------------------------------------------------------------------------

def compare(found: list[int], true: list[int], known: list[int]) -> None:
    oracle = pytest.importorskip("sklearn.metrics")
    report = classification(found, true, labels=known)
    assert report.accuracy == pytest.approx(oracle.accuracy_score(true, found))
    assert confusion(found, true, labels=known) == oracle.confusion_matrix(true, found, labels=known).tolist()
    for average, ours in (("micro", (report.micro.precision, report.micro.recall, report.micro.f1)),
                          ("macro", (report.macro_precision, report.macro_recall, report.macro_f1))):
        theirs = oracle.precision_recall_fscore_support(true, found, labels=known, average=average, zero_division=0)[:3]
        assert ours == pytest.approx(theirs)
    theirs = oracle.precision_recall_fscore_support(true, found, labels=known, zero_division=0)
    each = [(counts.precision, counts.recall, counts.f1, counts.support) for counts in report.labels.values()]
    assert each == [pytest.approx(row) for row in zip(*theirs, strict=True)]


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(5))
def test_one_label_as_scikit_learn(seed: int) -> None:
    draw = random.Random(seed)
    known = list(range(7))                                        # label 6 is never drawn
    true = [draw.randrange(6) for _ in range(97)]
    found = [label if draw.random() < 0.6 else draw.randrange(6) for label in true]
    compare(found, true, known)
    with pytest.raises(AssertionError):                           # planted: truth and prediction exchanged
        oracle = pytest.importorskip("sklearn.metrics")
        assert confusion(true, found, labels=known) == oracle.confusion_matrix(true, found, labels=known).tolist()


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(5))
def test_several_labels_as_scikit_learn(seed: int) -> None:
    oracle, numpy = pytest.importorskip("sklearn.metrics"), pytest.importorskip("numpy")
    draw = random.Random(seed)
    true, found = ([{label for label in range(5) if draw.random() < 0.4} for _ in range(53)] for _ in range(2))
    hot_true, hot_found = (numpy.array([[label in group for label in range(5)] for group in groups], dtype=int) for groups in (true, found))
    report = multilabel(found, true, labels=range(5))
    assert report.accuracy == pytest.approx(oracle.accuracy_score(hot_true, hot_found))
    for average, ours in (("micro", (report.micro.precision, report.micro.recall, report.micro.f1)),
                          ("macro", (report.macro_precision, report.macro_recall, report.macro_f1))):
        theirs = oracle.precision_recall_fscore_support(hot_true, hot_found, average=average, zero_division=0)[:3]
        assert ours == pytest.approx(theirs)
