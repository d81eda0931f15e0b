"""Texts in, answers out, each in the place of its line; a blank line is not asked about, and its answer is an empty one."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from fishpaw.errors import DataError

if TYPE_CHECKING:
    from fishpaw.data.labelled import LabelledText

__all__ = ["answered", "bar_beside", "in_chunks", "typed"]

Answer = TypeVar("Answer")


def answered(
    lines: Iterable[LabelledText], answer: Callable[[Iterator[LabelledText]], Iterable[Answer]],
    write: Callable[[LabelledText, Answer | None], None], *, source: str,
) -> None:  # fmt: skip
    """Write the answer of each line, in their order; None is that of a blank one. `answer` is given the others, and gives as many answers.
    A blank line behind which nothing waits is answered before the next one is read. source: as of source_of; DataError if there is one that
    holds no text."""
    asked: deque[LabelledText] = deque()                               # read, and not yet answered; the first one is not blank
    found = False

    def skip() -> None:
        while asked and _blank(asked[0]):
            write(asked.popleft(), None)

    def texts() -> Iterator[LabelledText]:
        nonlocal found
        for line in lines:
            asked.append(line)
            if not _blank(line):
                found = True
                yield line
            skip()

    for one in answer(texts()):
        write(asked.popleft(), one)
        skip()
    if source and not found:
        raise DataError(f"{'standard input' if source == '-' else source}: no text.", fix="Write a text on each line.")


def in_chunks(
    lines: Iterator[LabelledText], size: int, predict: Callable[[list[LabelledText]], Iterable[Answer]], *, source: str
) -> Iterator[Answer]:
    """The answers of `size` lines at once, of one by one to who types, with a bar."""
    with bar_beside(lines) as done:
        while chunk := list(islice(lines, 1 if typed(source) else size)):
            yield from predict(chunk)
            done(len(chunk))


def bar_beside(lines: Iterable[LabelledText]) -> AbstractContextManager[Callable[[int], object]]:
    """A progress bar, but for those whose terminal shows the answers."""
    from fishpaw.tasks.encode import bar

    return bar(lines, False if sys.stdout is None or sys.stdout.isatty() else None)


def typed(source: str) -> bool:
    """Whether somebody types the texts, and wants to see each answer."""
    return source == "-" and sys.stdin.isatty()


def _blank(line: LabelledText) -> bool:
    return not line.text.strip() and not (line.pair or "").strip()
