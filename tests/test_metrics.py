"""Metrics against values computed by hand, laws that hold for any data, and scikit-learn (parity)."""

from __future__ import annotations

import difflib
import math
import random
from collections.abc import Sequence
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fishpaw.errors import DataError
from fishpaw.metrics import (
    Counts,
    Rouge,
    Threshold,
    accuracy,
    auc,
    best_threshold,
    bleu,
    classification,
    confusion,
    distinct,
    majority_accuracy,
    multilabel,
    rouge,
    spearman,
)

TRUE = ["cat", "cat", "cat", "cat", "dog", "dog", "hen"]
GROUPS = (multilabel, rouge, bleu)
FOUND = ["cat", "cat", "dog", "hen", "dog", "cat", "cat"]

labels = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=41)
sets = st.lists(st.tuples(st.frozensets(st.integers(0, 4)), st.frozensets(st.integers(0, 4))), min_size=1, max_size=41)
characters = st.text("的一是了我", max_size=17)
texts = st.lists(st.tuples(characters, characters), min_size=1, max_size=7)
scores = st.lists(st.integers(0, 5), min_size=1, max_size=23)
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


def test_rouge_by_hand() -> None:
    # of 11 and 6 characters 6 are shared, of 10 and 5 pairs 4 (爱我, 我的, 的祖, 祖国); the second text is a subsequence of the first
    report = rouge(["我真的非常热爱我的祖国"], ["我爱我的祖国"])
    assert report == Rouge(2 * 6 / 17, 2 * 4 / 15, 2 * 6 / 17)
    assert report.main == pytest.approx(0.2 * 12 / 17 + 0.4 * 8 / 15 + 0.4 * 12 / 17)
    assert rouge([["the", "cat"], ["sat"]], [["the", "cat"], ["ran"]]) == Rouge(0.5, 0.5, 0.5)                # the mean over texts


def test_repeating_a_shared_token_is_not_rewarded() -> None:
    assert rouge(["的的的的"], ["的"]).rouge1 == 2 * 1 / 5
    assert rouge(["的的的的"], ["的的一"]).rouge1 == 2 * 2 / 7
    assert rouge(["的的的的"], ["的的一"], repeats="once").rouge1 == 2 * 1 / 3                                # what the packages make of it


def test_rouge_of_order_and_of_nothing() -> None:
    assert rouge(["abcd"], ["dcba"]) == Rouge(1.0, 0.0, 1 / 4)
    assert rouge([""], ["abc"]) == rouge(["abc"], [""]) == rouge([""], [""]) == Rouge(0.0, 0.0, 0.0)
    assert rouge(["a"], ["a"]) == Rouge(1.0, 0.0, 1.0)                                                        # no pair in one token


def test_bleu_by_hand() -> None:
    # precisions 4/5, 2/4, 1/3, and half of one of 2; not shorter
    assert bleu(["abcxe"], ["abcde"]) == pytest.approx((4 / 5 * 2 / 4 * 1 / 3 * 0.5 / 2) ** (1 / 4))
    assert bleu(["abcxe"], ["abcde"], smoothing="none") == 0.0
    assert bleu(["abc"], ["abcdef"], most=2) == pytest.approx(math.exp(1 - 6 / 3))                            # all right, but short
    assert bleu(["abcd", "x"], ["abcd", "y"], most=1) == 4 / 5                                                # of all texts together
    assert bleu([""], ["a"]) == bleu([""], [""]) == bleu(["xyzw"], ["abcd"]) == 0.0


@pytest.mark.parametrize("smoothing", ["exp", "none"])
def test_bleu_of_short_texts_leaves_out_the_orders_that_they_lack(smoothing: Any) -> None:
    for text in ("a", "ab", "abc"):
        assert bleu([text, "a"], [text, "a"], smoothing=smoothing) == 1.0
    assert bleu(["abx", "abc"], ["abc", "abc"], smoothing=smoothing) == pytest.approx((5 / 6 * 3 / 4 * 1 / 2) ** (1 / 3))
    assert bleu(["abc", "abc"], ["abc", "abcdef"], smoothing=smoothing) == pytest.approx(math.exp(1 - 9 / 6))
    # One text that has an order is enough for it to count: 7 of 8, 5 of 6, 3 of 4, 1 of 2
    assert bleu(["abcde", "abc"], ["abcdx", "abc"], smoothing=smoothing) == pytest.approx((7 / 8 * 5 / 6 * 3 / 4 * 1 / 2) ** (1 / 4))


def test_distinct_by_hand() -> None:
    assert distinct(["abab", "ab"], 1) == 2 / 6 and distinct(["abab", "ab"], 2) == 2 / 4                       # no pair across two texts
    assert distinct([["我", "们"]], 1) == 1.0 and distinct(["a", ""], 2) == 0.0


def test_auc_by_hand() -> None:
    assert auc([3, 1], [2, 1]) == (1 + 1 + 0 + 0.5) / 4
    assert auc([0.5], [0.5]) == 0.5 and auc([math.inf], [-math.inf]) == 1.0


# -- mistakes ---------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("measure", [accuracy, confusion, classification, multilabel, rouge, bleu])
def test_nothing_and_unequal_lengths_are_refused(measure: Any) -> None:
    with pytest.raises(DataError, match="no example"):
        measure([], [])
    with pytest.raises(DataError, match="2 predictions are given for 3 examples"):
        measure([[1], [2]] if measure in GROUPS else [1, 2], [[1], [2], [3]] if measure in GROUPS else [1, 2, 3])


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
    (lambda: rouge("ab", "ab"), "predicted is one string"),
    (lambda: bleu(["ab"], cast(Any, [3])), r"true\[0\] is 3, not a text"),
    (lambda: rouge([[["a"]]], cast(Any, [["a"]])), r"predicted\[0\]\[0\] is a list"),
    (lambda: bleu(["ab"], ["ab"], most=0), "most is 0"),
    (lambda: bleu(["ab"], ["ab"], smoothing=cast(Any, "add-k")), "smoothing is 'add-k'"),
    (lambda: rouge(["ab"], ["ab"], repeats=cast(Any, True)), "repeats is True"),
    (lambda: distinct(["ab"], 0), "n is 0"),
    (lambda: auc([], [1.0]), "no positive example"),
    (lambda: auc([1.0], [math.nan]), r"negative\[0\] is nan"),
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


def longest_common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """The table of the textbook."""
    before = [0] * (len(other) + 1)
    for a in one:
        row = [0]
        for at, b in enumerate(other):
            row.append(before[at] + 1 if a == b else max(before[at + 1], row[at]))
        before = row
    return before[-1]


@quick
@given(characters, characters)
def test_rouge_l_counts_the_longest_common_subsequence(one: str, other: str) -> None:
    wanted = 2 * longest_common(one, other) / (len(one) + len(other)) if one or other else 0.0
    assert rouge([one], [other]).rougeL == wanted
    assert rouge([list(one)], [list(other)]).rougeL == wanted


def test_rouge_l_of_texts_longer_than_a_machine_word() -> None:
    draw = random.Random(5)
    one, other = (draw.choices(range(13), k=length) for length in (311, 197))
    assert rouge([one], [other]).rougeL == 2 * longest_common(one, other) / 508
    blocks = sum(block.size for block in difflib.SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks())
    assert blocks <= longest_common(one, other)
    with pytest.raises(AssertionError):                           # planted: common blocks instead
        assert rouge([one], [other]).rougeL == 2 * blocks / 508


@quick
@given(texts)
def test_texts_laws(pairs: list[tuple[str, str]]) -> None:
    found, true = (list(column) for column in zip(*pairs, strict=True))
    report, swapped = rouge(found, true), rouge(true, found)
    assert report == swapped                                      # an F score doesn't tell the two apart
    assert 0 <= report.rouge2 <= report.rouge1 <= 1 and report.rougeL <= report.rouge1
    assert 0 <= bleu(found, true, smoothing="none") <= bleu(found, true) <= 1
    assert rouge(found, found).rougeL == sum(map(bool, found)) / len(found)
    names = {"的": 7, "一": 0, "是": -1, "了": 3, "我": 2}              # only equality matters
    assert rouge([[names[c] for c in text] for text in found], [[names[c] for c in text] for text in true]) == report
    backwards = rouge([text[::-1] for text in found], [text[::-1] for text in true])
    assert backwards.main == pytest.approx(report.main)
    assert bleu(found[::-1], true[::-1]) == bleu(found, true)
    assert 0 <= distinct(found, 2) <= 1 and (distinct(found, 1) < 1 or len(set("".join(found))) == len("".join(found)))


@quick
@given(st.lists(st.text("的一是了我", min_size=4, max_size=17), min_size=1, max_size=5))
def test_bleu_of_the_right_texts_is_one(given_texts: list[str]) -> None:
    assert bleu(given_texts, given_texts) == pytest.approx(1.0)
    assert bleu([text[:-1] for text in given_texts], given_texts, most=2) < 1


@quick
@given(scores, scores)
def test_auc_is_the_share_of_pairs_in_order(above: list[int], below: list[int]) -> None:
    pairs = [(a > b) + (a == b) / 2 for a in above for b in below]
    assert auc(above, below) == pytest.approx(sum(pairs) / len(pairs))
    assert auc(above, below) + auc(below, above) == pytest.approx(1.0)
    assert auc([math.exp(a) for a in above], [math.exp(b) for b in below]) == auc(above, below)


# -- other packages ---------------------------------------------------------------------------------------------------------------

ALPHABET = "的一是了我不人在他有"


def corrupted(seed: int, count: int = 23) -> tuple[list[str], list[str]]:
    """Texts and the same with holes, changes and repetitions."""
    draw = random.Random(seed)
    true = ["".join(draw.choices(ALPHABET, k=draw.randint(1, 29))) for _ in range(count)]
    found = ["".join(draw.choice([c, c, c, c, c + c, "", draw.choice(ALPHABET)]) for c in text) or "的" for text in true]
    return found, true


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("tokenize", ["zh", "char"])
@pytest.mark.parametrize("smoothing", ["exp", "none"])
def test_bleu_as_sacrebleu(seed: int, tokenize: str, smoothing: Any) -> None:
    oracle = pytest.importorskip("sacrebleu", reason="sacrebleu comes with the extra parity")
    for size in (23, 2, 1):                                        # few texts: an order without a right n-gram
        found, true = corrupted(seed, size)
        theirs = oracle.corpus_bleu(found, [true], tokenize=tokenize, smooth_method=smoothing).score / 100
        assert bleu(found, true, smoothing=smoothing) == pytest.approx(theirs, abs=1e-9)
    found, true = corrupted(seed)
    with pytest.raises(AssertionError):                           # planted: a mean of the texts' scores
        theirs = oracle.corpus_bleu(found, [true], tokenize=tokenize, smooth_method=smoothing).score / 100
        assert sum(bleu([a], [b]) for a, b in zip(found, true, strict=True)) / len(true) == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parity
@pytest.mark.parametrize("longest", [1, 2, 3, 5])
def test_bleu_of_short_texts_as_sacrebleu_with_effective_order(longest: int) -> None:
    package = pytest.importorskip("sacrebleu.metrics", reason="sacrebleu comes with the extra parity")
    chance = random.Random(longest)
    oracle = package.BLEU(tokenize="char", effective_order=True)
    for _ in range(20):
        found, true = (["".join(chance.choices(ALPHABET[:3], k=chance.randint(1, longest))) for _ in range(4)] for _ in range(2))
        assert bleu(found, true) == pytest.approx(oracle.corpus_score(found, [true]).score / 100, abs=1e-9)


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(5))
def test_rouge_as_rouge_chinese(seed: int) -> None:
    package = pytest.importorskip("rouge_chinese", reason="rouge-chinese comes with the extra parity")
    found, true = corrupted(seed)
    spaced = [[" ".join(text) for text in column] for column in (found, true)]
    for repeats, exclusive in (("counted", False), ("once", True)):
        scores = package.Rouge(exclusive=exclusive).get_scores(*spaced, avg=True)
        theirs = pytest.approx([scores[f"rouge-{kind}"]["f"] for kind in ("1", "2", "l")], abs=1e-7)      # F / (p + r + 1e-8) there
        ours = rouge(found, true, repeats=cast(Any, repeats))
        assert [ours.rouge1, ours.rouge2, ours.rougeL] == theirs
        with pytest.raises(AssertionError):                       # planted: the other way to count
            other = rouge(found, true, repeats="once" if repeats == "counted" else "counted")
            assert [other.rouge1, other.rouge2, other.rougeL] == theirs


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(5))
def test_auc_as_scikit_learn(seed: int) -> None:
    oracle = pytest.importorskip("sklearn.metrics")
    draw = random.Random(seed)
    above, below = ([draw.randint(low, 9) for _ in range(size)] for low, size in ((2, 41), (0, 67)))
    theirs = oracle.roc_auc_score([1] * len(above) + [0] * len(below), above + below)
    assert auc(above, below) == pytest.approx(theirs, abs=1e-12)
    with pytest.raises(AssertionError):                           # planted: ties lost
        assert sum(a > b for a in above for b in below) / (41 * 67) == pytest.approx(theirs, abs=1e-12)


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


# -- thresholds -------------------------------------------------------------------------------------------------------------------

def reached(positive: Sequence[float], negative: Sequence[float], threshold: float, measure: str) -> float:
    right, wrong = (sum(score >= threshold for score in group) for group in (positive, negative))
    if measure == "f1":
        return 2 * right / (right + wrong + len(positive))
    return (right / len(positive) + 1 - wrong / len(negative)) / 2


def test_threshold_by_hand() -> None:
    assert best_threshold([0.9, 0.8, 0.3], [0.4, 0.2, 0.1]) == Threshold(0.25, 6 / 7)
    assert best_threshold([0.9, 0.8, 0.3], [0.4, 0.2, 0.1], measure="balanced_accuracy").score == pytest.approx(5 / 6)
    assert best_threshold([1.0], [0.0]) == Threshold(0.5, 1.0)
    assert best_threshold([2.0], [2.0]) == Threshold(2.0, 2 / 3)      # all or nothing
    assert best_threshold([math.inf], [-math.inf]) == Threshold(math.inf, 1.0)


@quick
@given(scores, scores, st.sampled_from(["f1", "balanced_accuracy"]))
def test_no_threshold_is_better_and_it_reaches_what_it_says(positive: list[int], negative: list[int], measure: Any) -> None:
    best = best_threshold(positive, negative, measure=measure)
    assert reached(positive, negative, best.value, measure) == pytest.approx(best.score, abs=1e-12)
    every = [reached(positive, negative, score, measure) for score in [*positive, *negative]]
    assert best.score == pytest.approx(max(every), abs=1e-12)
    if set(positive) & set(negative) and min(every) < max(every):   # planted: the worst is not taken for the best
        assert best.score > min(every)


def test_of_true_probabilities_the_best_threshold_is_half_the_f1() -> None:
    times = {share: 8 if share < 20 else 1 for share in range(100)}   # most examples are unlikely ones
    positive = [share / 100 for share, often in times.items() for _ in range(share * often)]
    negative = [share / 100 for share, often in times.items() for _ in range((100 - share) * often)]
    best = best_threshold(positive, negative)
    assert best.value == pytest.approx(best.score / 2, abs=0.01)      # between two of the hundredths
    assert reached(positive, negative, 0.5, "f1") < best.score - 0.01        # where one would have cut without looking


def test_adjusting_by_the_prior_and_searching_meet() -> None:
    """Of true log-odds the border for balanced accuracy is the log prior: post-hoc logit adjustment."""
    draw = random.Random(0)
    positive, negative = [draw.gauss(1, 1) for _ in range(4000)], [draw.gauss(-1, 1) for _ in range(20_000)]
    log_odds = [[2 * x + math.log(1 / 5) for x in group] for group in (positive, negative)]
    assert best_threshold(*log_odds, measure="balanced_accuracy").value == pytest.approx(math.log(1 / 5), abs=0.25)


@pytest.mark.parametrize("call", [
    lambda: best_threshold([], [1.0]), lambda: best_threshold([1.0], []), lambda: best_threshold([math.nan], [1.0]),
    lambda: best_threshold([1.0], [0.0], measure=cast(Any, "accuracy")),
])  # fmt: skip
def test_a_threshold_of_nothing_is_refused(call: Any) -> None:
    with pytest.raises(DataError):
        call()


def test_spearman_by_hand() -> None:
    assert spearman([1, 2, 3], [10, 20, 30]) == pytest.approx(1.0) and spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert spearman([1, 2, 2, 4], [1, 3, 2, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5.0))
    assert spearman([5, 5], [1, 2]) == 0.0
    with pytest.raises(DataError):
        spearman([1.0], [1.0, 2.0])
    with pytest.raises(DataError):
        spearman([], [])


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=40))
def test_spearman_is_pearson_of_ranks_and_sees_order_alone(pairs: list[tuple[int, int]]) -> None:
    one, other = [a for a, _ in pairs], [b for _, b in pairs]

    def ranks(values: list[int]) -> list[float]:
        return [sum(v < value for v in values) + (1 + sum(v == value for v in values)) / 2 for value in values]

    a, b = ranks(one), ranks(other)
    mean = sum(a) / len(a)
    spread = math.sqrt(sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b))
    expected = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True)) / spread if spread else 0.0
    assert spearman(one, other) == pytest.approx(expected, abs=1e-9)
    assert spearman([math.exp(x) for x in one], other) == spearman(one, other)
