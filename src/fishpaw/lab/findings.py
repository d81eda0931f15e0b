"""What an analysis found: rows of claimed / measured / holds, and the series that its figure is drawn from.

A row holds numbers only, and its verdict is computed from them: nobody writes a verdict down, so a fault in what is measured turns it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Found", "Relation", "Row", "Verdict", "Words", "interval", "sampled"]

Relation = Literal["=", "<=", ">="]
Verdict = Literal["holds", "fails", "open"]

_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101,
            2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045)  # fmt: skip
"""Two-sided 95 % of Student's t with 1, 2, … 29 degrees of freedom; 1.96 beyond."""


@dataclass(frozen=True)
class Words:
    """A sentence or a title in both languages."""

    en: str
    zh: str


@dataclass(frozen=True)
class Row:
    """One claim. claimed `relation` measured: "=" within `within`, "<=" measured is at most claimed, ">=" at least.

    interval: of an empirical row, 95 % of what was measured; None: the row is mathematical. ValueError for a number that is none: what
    wasn't measured has no row.
    """

    claim: Words
    claimed: float
    measured: float
    relation: Relation = "="
    within: float = 0.0
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        numbers = (self.claimed, self.measured, self.within, *(self.interval or ()))
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"{self.claim.en}: claimed {self.claimed}, measured {self.measured}, interval {self.interval}: not measured")

    @property
    def verdict(self) -> Verdict:
        """holds, fails; open: the interval lies on both sides of what is claimed."""
        low, high = self.interval or (self.measured, self.measured)
        least = -math.inf if self.relation == "<=" else self.claimed - self.within
        most = math.inf if self.relation == ">=" else self.claimed + self.within
        if least <= low and high <= most:
            return "holds"
        return "fails" if high < least or low > most else "open"


@dataclass(frozen=True)
class Found:
    """rows of the table, in the order in which they are read. series: what the figure draws, by name: lists of numbers (nested where they
    are tables), names, numbers: all that JSON carries, so that a figure can be drawn again from a record."""

    rows: tuple[Row, ...]
    series: Mapping[str, Any] = field(default_factory=dict)


def interval(samples: Sequence[float]) -> tuple[float, float]:
    """95 % of the mean of independent samples, by Student's t. ValueError for fewer than two."""
    if len(samples) < 2:
        raise ValueError(f"{len(samples)} samples: an interval takes two at least")
    freedom = len(samples) - 1
    half = (_STUDENT[freedom - 1] if freedom <= len(_STUDENT) else 1.96) * statistics.stdev(samples) / math.sqrt(len(samples))
    mean = statistics.fmean(samples)
    return mean - half, mean + half


def sampled(claim: Words, claimed: float, samples: Sequence[float], *, relation: Relation = "=", within: float = 0.0) -> Row:
    """An empirical row: the mean of independent samples (seeds, runs) with its interval."""
    return Row(claim, claimed, statistics.fmean(samples), relation, within, interval(samples))
