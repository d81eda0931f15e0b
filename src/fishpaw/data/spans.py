"""Which stretches of a text a model that reads and writes must find again: span corruption (T5, arXiv:1910.10683, section 3.1.4)."""

from __future__ import annotations

import numpy
from numpy.typing import NDArray

from fishpaw import checks

__all__ = ["choose_spans", "count_spans"]


def count_spans(length: int, *, rate: float, mean: float, most: int | None = None) -> tuple[int, int]:
    """(tokens to hide, spans that they stand in) of a text of `length` tokens, 2 at least: both rounded, at least 1; at least one token
    stays, and one between two spans."""
    hidden = min(max(round(length * rate), 1), length - 1)
    spans = min(max(round(hidden / mean), 1), hidden, length - hidden + 1)
    return hidden, spans if most is None else min(spans, most)


def choose_spans(
    length: int, generator: numpy.random.Generator, *, rate: float = 0.15, mean: float = 3.0, most: int | None = None
) -> NDArray[numpy.int64]:
    """Where spans begin and end in a text of `length` tokens, [spans 2], ascending. `rate` of the tokens are hidden, in spans of `mean`
    tokens on average, of which no two touch; every such choice is equally probable. most: spans at most. Unlike T5's own program, which
    always hides the last token, and like the paper, it may begin and end anywhere. ConfigError for a rate or a mean that is none.
    """
    checks.number("The rate of hidden tokens", rate, below=1)
    checks.number("The mean length of a span", mean, least=1)
    checks.whole("The length of a text to corrupt", length, least=2)
    hidden, spans = count_spans(length, rate=rate, mean=mean, most=most)
    sizes = _parts(hidden, spans, generator)                                                       # [spans]
    gaps = _parts(length - hidden + 2, spans + 1, generator)                                       # [spans + 1]; the outer ones may be 0
    gaps[0] -= 1
    ends = numpy.cumsum(gaps[:-1] + sizes)
    return numpy.stack([ends - sizes, ends], axis=1)


def _parts(total: int, count: int, generator: numpy.random.Generator) -> NDArray[numpy.int64]:
    """`total` in `count` whole parts of 1 and more, each way equally probable."""
    cuts = numpy.sort(generator.choice(total - 1, count - 1, replace=False)) + 1
    return numpy.diff(numpy.concatenate([[0], cuts, [total]]))
