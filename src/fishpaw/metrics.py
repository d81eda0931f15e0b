"""How right a classifier is: accuracy, precision, recall and F1 from counts. Plain labels in, plain numbers out.

Definitions: van Rijsbergen, Information Retrieval (1979), chapter 7. Macro F1 is the mean of the labels' F1, not the F1 of the mean
precision and recall, which is another number (arXiv:1911.03347). A share of nothing, 0 / 0, is 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fishpaw.errors import DataError

__all__ = ["Counts", "Report", "accuracy", "classification", "confusion", "majority_accuracy", "multilabel"]


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
