"""Words from what neighbours do to each other: d_t = (f(t, t+1) + f(t+1, t)) / 2, and a border where it is low (kexue.fm/archives/7476).

f is perturbed masking's impact. The article joins t and t + 1 iff d_t is a threshold or more, 8 for Google's Chinese BERT-base; the scale
of vectors differs from model to model, and so does the threshold. A valley needs none: a border where d is lower than beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import Tensor

from fishpaw.errors import ConfigError, DataError
from fishpaw.metrics import Counts

__all__ = ["below", "correlations", "spans", "valleys", "word_counts"]


def correlations(impacts: Tensor) -> list[float]:
    """f(t, t + 1) and f(t + 1, t), [n - 1, 2] -> d_t, n - 1 numbers: one a border between two units."""
    found: list[float] = impacts.mean(1).tolist()
    return found


def below(values: Sequence[float], threshold: float) -> list[bool]:
    """d -> where to cut: iff d_t < threshold. -inf cuts nowhere, inf everywhere; a higher threshold never joins. ConfigError for NaN."""
    if math.isnan(threshold):
        raise ConfigError("threshold is nan.", fix="Give a number, or leave it out.")
    return [value < threshold for value in values]


def valleys(values: Sequence[float]) -> list[bool]:
    """d -> where to cut: where d_t is no higher than either neighbour and lower than one; at an end there is one neighbour. A single border
    has none, and is no valley. Two valleys never touch but where values are equal, so that a word between two of them has two units
    at least: single ones come of thresholds only."""
    cuts = []
    for at, value in enumerate(values):
        beside = [*values[max(0, at - 1) : at], *values[at + 1 : at + 2]]
        cuts.append(all(value <= other for other in beside) and any(value < other for other in beside))
    return cuts


def spans(cuts: Sequence[bool]) -> list[tuple[int, int]]:
    """n - 1 borders -> (start, end) of each word, in units."""
    places = [at + 1 for at, cut in enumerate(cuts) if cut]
    return list(zip([0, *places], [*places, len(cuts) + 1], strict=True))


def word_counts(predicted: Iterable[str], true: Iterable[str]) -> Counts:
    """Words found at their place, found elsewhere, and not found: precision, recall and F1 as SIGHAN counts them. Add the counts of several
    texts up. DataError for words of different texts."""
    found, wanted = [*predicted], [*true]
    if "".join(found) != "".join(wanted):
        raise DataError(f"The words {found[:9]} are of another text than {wanted[:9]}.", fix="Compare two segmentations of one text.")
    one, other = _places(found), _places(wanted)
    return Counts(len(one & other), len(one - other), len(other - one))


def _places(words: Sequence[str]) -> set[tuple[int, int]]:
    places, end = set(), 0
    for word in words:
        places.add((end, end + len(word)))
        end += len(word)
    return places
