"""How right predictions are: of labels accuracy, precision, recall, F1 and AUC, of scores Spearman's correlation, of texts ROUGE, BLEU and
distinct n-grams. Plain values in, plain numbers out.

Definitions: van Rijsbergen, Information Retrieval (1979), chapter 7. Macro F1 is the mean of the labels' F1, not the F1 of the mean
precision and recall, which is another number (arXiv:1911.03347). A share of nothing, 0 / 0, is 0. A text is a sequence of tokens; a
string is one of characters, as Chinese is commonly measured; for words give lists of words.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fishpaw.errors import DataError

__all__ = ["Counts", "Report", "Rouge", "Threshold", "accuracy", "auc", "best_threshold", "bleu", "classification", "confusion",
           "distinct", "majority_accuracy", "multilabel", "rouge", "spearman"]

Text = Sequence[Hashable]


@dataclass(frozen=True)
class Counts:
    """Of one label, or of several added up: found and right, found but wrong, not found."""

    right: int = 0
    wrong: int = 0
    missed: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.right + other.right, self.wrong + other.wrong, self.missed + other.missed)

    @property
    def support(self) -> int:
        """How many there were to find."""
        return self.right + self.missed

    @property
    def precision(self) -> float:
        """Of what was found, the share that is right."""
        return _share(self.right, self.right + self.wrong)

    @property
    def recall(self) -> float:
        """Of what there was to find, the share that was found."""
        return _share(self.right, self.right + self.missed)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return _share(2 * self.right, 2 * self.right + self.wrong + self.missed)


@dataclass(frozen=True)
class Report:
    """`labels`: the counts of each, in the order given or else sorted; `accuracy`: share of examples that are right throughout."""

    labels: Mapping[Hashable, Counts]
    accuracy: float
    examples: int

    @property
    def micro(self) -> Counts:
        """All labels added up: each decision weighs the same. With one label an example its F1 is the accuracy."""
        return sum(self.labels.values(), Counts())

    @property
    def macro_precision(self) -> float:
        """Mean of the labels' precision: each label weighs the same."""
        return _share(sum(counts.precision for counts in self.labels.values()), len(self.labels))

    @property
    def macro_recall(self) -> float:
        """Mean of the labels' recall."""
        return _share(sum(counts.recall for counts in self.labels.values()), len(self.labels))

    @property
    def macro_f1(self) -> float:
        """Mean of the labels' F1."""
        return _share(sum(counts.f1 for counts in self.labels.values()), len(self.labels))


@dataclass(frozen=True)
class Rouge:
    """Means over the texts of the F scores of shared tokens, shared pairs of neighbours and the longest common subsequence, 0 to 1."""

    rouge1: float
    rouge2: float
    rougeL: float

    @property
    def main(self) -> float:
        """0.2 ROUGE-1 + 0.4 ROUGE-2 + 0.4 ROUGE-L: the one number of CAIL2020's track of summaries."""
        return 0.2 * self.rouge1 + 0.4 * self.rouge2 + 0.4 * self.rougeL


@dataclass(frozen=True)
class Threshold:
    """Say yes where a score is `value` or more; `score`: what that reached on the examples it was chosen by."""

    value: float
    score: float


def accuracy(predicted: Iterable[Any], true: Iterable[Any]) -> float:
    """Share of examples where both are equal. Errors: DataError where there are none, or not equally many."""
    found, wanted = _pair(predicted, true)
    return _share(sum(a == b for a, b in zip(found, wanted, strict=True)), len(wanted))


def majority_accuracy(true: Iterable[Any], *, training: Iterable[Any] | None = None) -> float:
    """Accuracy of always answering with the most frequent label of `training` (of `true` itself where that isn't given).

    What any classifier has to beat. Of labels that are equally frequent the one that comes first is taken.
    """
    wanted = _plain(true, "true")
    seen = wanted if training is None else _plain(training, "training")
    if not wanted or not seen:
        raise DataError("There is no label to count.", fix="Give at least one example.")
    answer = Counter(seen).most_common(1)[0][0]
    return _share(wanted.count(answer), len(wanted))


def confusion(predicted: Iterable[Any], true: Iterable[Any], *, labels: Sequence[Any] | None = None) -> list[list[int]]:
    """Counts of each pair of labels: row = true, column = predicted, both in the order of `labels` (default: sorted)."""
    found, wanted = _pair(predicted, true)
    order = _order([*wanted, *found], labels)
    pairs = Counter(zip(wanted, found, strict=True))
    return [[pairs[row, column] for column in order] for row in order]


def classification(predicted: Iterable[Any], true: Iterable[Any], *, labels: Sequence[Any] | None = None) -> Report:
    """Report on one label an example.

    labels: all there are, in the order to report them; default: those that occur, sorted. One that never occurs counts 0 in the
        macro means, so give `labels` wherever two reports are to be compared.
    Errors: DataError where nothing is to be compared, the lengths differ or a label isn't among `labels`.
    """
    found, wanted = _pair(predicted, true)
    return _report([{label} for label in found], [{label} for label in wanted], labels)


def multilabel(predicted: Iterable[Iterable[Any]], true: Iterable[Iterable[Any]], *, labels: Sequence[Any] | None = None) -> Report:
    """Report on a set of labels an example (none, one or several), such as {"camera", "price"}; not rows of zeros and ones.

    labels, errors: as for classification. `accuracy` is the share of examples whose whole set is right.
    """
    return _report(_sets(predicted, "predicted"), _sets(true, "true"), labels)


def rouge(predicted: Iterable[Text], true: Iterable[Text], *, repeats: Literal["counted", "once"] = "counted") -> Rouge:
    """ROUGE-1, ROUGE-2 and ROUGE-L, with F1 as the F score, against one reference a text.

    repeats: an n-gram is "counted" as often as both texts hold it, which is ROUGE (Lin, aclanthology.org/W04-1013, sections 2 and 3.1);
    "once" each, as the Python packages rouge and rouge-chinese do unless told otherwise, and many published figures: higher on
    characters. A text without tokens scores 0, as does ROUGE-2 of a single token. ROUGE-L costs the lengths' product / 64.
    Errors: DataError where nothing is to be compared, the numbers of texts differ, or a text isn't a sequence of tokens.
    """
    if repeats not in ("counted", "once"):
        raise DataError(f"repeats is {repeats!r}.", fix='Choose "counted" or "once".')
    found, wanted = _texts(predicted, "predicted"), _texts(true, "true")
    _same_length(found, wanted)
    sums = [0.0, 0.0, 0.0]
    for one, other in zip(found, wanted, strict=True):
        for index, n in enumerate((1, 2)):
            a, b = _ngrams(one, n), _ngrams(other, n)
            if repeats == "once":
                a, b = Counter(a.keys()), Counter(b.keys())
            sums[index] += _share(2 * (a & b).total(), a.total() + b.total())
        sums[2] += _share(2 * _common(one, other), len(one) + len(other))
    return Rouge(*(_share(part, len(wanted)) for part in sums))


def bleu(predicted: Iterable[Text], true: Iterable[Text], *, most: int = 4, smoothing: Literal["exp", "none"] = "exp") -> float:
    """Corpus BLEU, 0 to 1: geometric mean of the precisions of 1- to `most`-grams of all texts together, times the brevity penalty.

    One reference a text. smoothing, where no n-gram of an order is right: "exp" takes 1/2, 1/4, … of one, as mteval and sacrebleu do
    (whose number / 100 this is); "none" gives 0. Orders of which no text of `predicted` has a single n-gram are left out of the mean, as
    sacrebleu does with use_effective_order: three characters that are right give 1, not 0. It is no mean of the texts' scores. Source:
    aclanthology.org/P02-1040, arXiv:1804.08771.
    Errors: as for rouge; DataError for `most` below 1 or another smoothing.
    """
    found, wanted = _texts(predicted, "predicted"), _texts(true, "true")
    _same_length(found, wanted)
    _check_order("most", most)
    if smoothing not in ("exp", "none"):
        raise DataError(f"smoothing is {smoothing!r}.", fix='Choose "exp" or "none".')
    precisions: list[float] = []
    half = 1.0
    for n in range(1, most + 1):
        right = sum((_ngrams(one, n) & _ngrams(other, n)).total() for one, other in zip(found, wanted, strict=True))
        all_of_them = sum(max(0, len(one) - n + 1) for one in found)
        if not all_of_them:
            break
        if not right and (n == 1 or smoothing == "none"):
            return 0.0
        half /= 1 if right else 2
        precisions.append((right or half) / all_of_them)
    if not precisions:
        return 0.0                                                # nothing was said
    length, wanted_length = sum(map(len, found)), sum(map(len, wanted))
    brevity = min(0.0, 1 - wanted_length / length)
    return math.exp(brevity + sum(map(math.log, precisions)) / len(precisions))


def distinct(texts: Iterable[Text], n: int) -> float:
    """Different n-grams / n-grams, of all texts together: how little a generator repeats itself. arXiv:1510.03055, section 5.

    It falls with the amount of text, so compare equal numbers of texts only. 0 where no text has n tokens.
    """
    _check_order("n", n)
    counts: Counter[Hashable] = Counter()
    for text in _texts(texts, "texts"):
        counts.update(_ngrams(text, n))
    return _share(len(counts), counts.total())


def auc(positive: Iterable[float], negative: Iterable[float]) -> float:
    """Area under the ROC curve from the scores of positive and of negative examples: the share of pairs whose positive one scores higher,
    ties counted half (Mann and Whitney's U / (m n)). Errors: DataError where either is empty or a score is no number."""
    above, below = _scores(positive, "positive"), sorted(_scores(negative, "negative"))
    twice = sum(bisect_left(below, score) + bisect_right(below, score) for score in above)
    return twice / (2 * len(above) * len(below))


def spearman(predicted: Iterable[float], true: Iterable[float]) -> float:
    """Spearman's rank correlation, from -1 to 1: Pearson's of the ranks, of equal scores their mean rank. 0 where one side is all equal.
    Errors: DataError for sides of different lengths, none at all, or a score that is no number."""
    one, other = _scores(predicted, "predicted"), _scores(true, "true")
    _same_length(one, other)
    first, second = _ranks(one), _ranks(other)
    middle = (len(one) + 1) / 2
    product = math.fsum((a - middle) * (b - middle) for a, b in zip(first, second, strict=True))
    spread = math.sqrt(math.fsum((a - middle) ** 2 for a in first)) * math.sqrt(math.fsum((b - middle) ** 2 for b in second))
    return product / spread if spread else 0.0


def best_threshold(
    positive: Iterable[float], negative: Iterable[float], *, measure: Literal["f1", "balanced_accuracy"] = "f1"
) -> Threshold:
    """The threshold that is best for the scores of positive and of negative examples; take held-out ones, as many of a kind as there will
    be.

    measure: "f1" of the positives, or "balanced_accuracy", the mean of both recalls. Halfway between two scores; of several that are
    equally good the highest. For several labels search one a label: that is best for macro F1, not for micro F1. For true probabilities
    the best threshold of F1 is half of that F1 (arXiv:1402.1892). Errors: DataError as `auc`, and for another measure.
    """
    if measure not in ("f1", "balanced_accuracy"):
        raise DataError(f"measure is {measure!r}.", fix='Choose "f1" or "balanced_accuracy".')
    above, below = (sorted(_scores(scores, name), reverse=True) for scores, name in ((positive, "positive"), (negative, "negative")))
    kinds = sorted({*above, *below}, reverse=True)
    best = Threshold(math.inf, -math.inf)
    right = wrong = 0
    for score, following in zip(kinds, [*kinds[1:], None], strict=True):
        while right < len(above) and above[right] >= score:
            right += 1
        while wrong < len(below) and below[wrong] >= score:
            wrong += 1
        reached = Counts(right, wrong, len(above) - right).f1 if measure == "f1" else (1 + right / len(above) - wrong / len(below)) / 2
        if reached > best.score:
            middle = score if following is None else score / 2 + following / 2
            best = Threshold(middle if following is not None and following < middle < score else score, reached)
    return best


def _report(predicted: list[set[Hashable]], true: list[set[Hashable]], labels: Sequence[Any] | None) -> Report:
    _same_length(predicted, true)
    order = _order([label for group in (*true, *predicted) for label in group], labels)
    right: Counter[Hashable] = Counter()
    wrong: Counter[Hashable] = Counter()
    missed: Counter[Hashable] = Counter()
    for found, wanted in zip(predicted, true, strict=True):
        right.update(found & wanted)
        wrong.update(found - wanted)
        missed.update(wanted - found)
    whole = sum(found == wanted for found, wanted in zip(predicted, true, strict=True))
    return Report({label: Counts(right[label], wrong[label], missed[label]) for label in order}, _share(whole, len(true)), len(true))


def _share(part: float, whole: int) -> float:
    return part / whole if whole else 0.0


def _pair(predicted: Iterable[Any], true: Iterable[Any]) -> tuple[list[Hashable], list[Hashable]]:
    found, wanted = _plain(predicted, "predicted"), _plain(true, "true")
    _same_length(found, wanted)
    return found, wanted


def _same_length(predicted: Sequence[Any], true: Sequence[Any]) -> None:
    if len(predicted) != len(true):
        raise DataError(f"{len(predicted)} predictions are given for {len(true)} examples.", fix="Give one prediction an example.")
    if not true:
        raise DataError("There is no example to measure.", fix="Give at least one.")


def _texts(texts: Iterable[Text], name: str) -> list[Text]:
    if isinstance(texts, str):
        raise DataError(f"{name} is one string.", fix="Give a list of texts.")
    read: list[Text] = []
    for at, text in enumerate(texts):
        if not isinstance(text, Iterable):
            raise DataError(f"{name}[{at}] is {text!r}, not a text.", fix="Give a string, or a list of tokens.")
        read.append(text if isinstance(text, str) else _plain(text, f"{name}[{at}]"))
    return read


def _scores(values: Iterable[float], name: str) -> list[float]:
    found: list[float] = []
    for at, value in enumerate(_plain(values, name)):
        if not isinstance(value, int | float) or math.isnan(value):
            raise DataError(f"{name}[{at}] is {value!r}, not a score.", fix="Give a number an example.")
        found.append(value)
    if not found:
        raise DataError(f"There is no {name} example.", fix="Give at least one of either kind.")
    return found


def _ranks(scores: Sequence[float]) -> list[float]:
    """From 1; equal scores share the mean of their ranks."""
    order = sorted(scores)
    return [(bisect_left(order, score) + bisect_right(order, score) + 1) / 2 for score in scores]


def _check_order(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DataError(f"{name} is {value!r}.", fix="Give a whole number, 1 or more.")


def _ngrams(text: Text, n: int) -> Counter[Hashable]:
    grams: Iterable[Hashable] = text if n == 1 else zip(*(text[start:] for start in range(n)), strict=False)
    return Counter(grams)


def _common(one: Text, other: Text) -> int:
    """Length of the longest common subsequence; the rows of the table are bits of whole numbers (Hyyrö 2004, after Crochemore 2001)."""
    places: dict[Hashable, int] = {}
    for at, token in enumerate(one):
        places[token] = places.get(token, 0) | 1 << at
    every = (1 << len(one)) - 1
    row = every                                                   # bit i is 0 where the length grows from one[:i] to one[:i + 1]
    for token in other:
        met = row & places.get(token, 0)
        row = (row + met | row - met) & every
    return len(one) - row.bit_count()


def _plain(values: Iterable[Any], name: str) -> list[Hashable]:
    # Arrays and tensors say what they hold by tolist(); a tensor's elements would otherwise count as different labels each.
    plain = [value.tolist() if hasattr(value, "tolist") else value for value in values]
    for at, value in enumerate(plain):
        if not isinstance(value, Hashable):
            raise DataError(f"{name}[{at}] is a {type(value).__name__}, not a label.",
                            fix="Give one label an example (of logits, the argmax), or use multilabel.")
    return plain


def _sets(groups: Iterable[Iterable[Any]], name: str) -> list[set[Hashable]]:
    sets = []
    for at, group in enumerate(groups):
        if isinstance(group, (str, bytes)) or not isinstance(group, Iterable):
            raise DataError(f"{name}[{at}] is {group!r}, not a set of labels.", fix='Give a set an example, such as {"price"}.')
        plain = _plain(group, f"{name}[{at}]")
        if len(set(plain)) != len(plain):
            raise DataError(f"{name}[{at}] holds a label twice.", fix="Give the labels that apply, not a row of zeros and ones.")
        sets.append(set(plain))
    return sets


def _order(seen: Iterable[Hashable], labels: Sequence[Any] | None) -> list[Hashable]:
    if labels is None:
        kinds: set[Any] = set(seen)
        try:
            return sorted(kinds)
        except TypeError:                                         # labels of several types have no order of their own
            return sorted(kinds, key=lambda label: (type(label).__name__, repr(label)))
    order = _plain(labels, "labels")
    if len(set(order)) != len(order):
        raise DataError("labels names a label twice.", fix="Name each once.")
    known = set(order)
    for label in seen:
        if label not in known:
            raise DataError(f"The label {label!r} is not among the labels {order[:20]}.", fix="Add it to labels, or correct the data.")
    return order
