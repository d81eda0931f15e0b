"""A few examples before a text: the prompt from which a language model tells what to do (arXiv:2005.14165), a line each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fishpaw.data.records import read_jsonl, read_tsv
from fishpaw.errors import DataError

__all__ = ["Shot", "few_shot", "shots"]


@dataclass(frozen=True)
class Shot:
    """One example: what is given, and the answer to it."""

    input: str
    output: str


def shots(path: str | Path) -> list[Shot]:
    """Examples from a file: input TAB output a line, or, of a .jsonl (or .jsonl.gz), {"input": …, "output": …}.

    Raises DataError that names file and line for what is neither, and for an example that is not one line; for a file without any.
    """
    found = []
    if Path(path).name.removesuffix(".gz").endswith(".jsonl"):
        for record in read_jsonl(path):
            given = tuple(record.fields.get(name) for name in ("input", "output"))
            found.append(_shot(given, f"{record.file}, line {record.line}"))
    else:
        for row in read_tsv(path):
            found.append(_shot(row.cells, f"{row.file}, line {row.line}"))
    if not found:
        raise DataError(f"{path} has no examples.", fix="Write some: the input, a tab, the output.")
    return found


def few_shot(shots: Sequence[Shot], text: str, *, between: str = " ") -> str:
    """-> "input output" a line for each example, then the text, with `between` behind it: what comes next, up to the line's end, is the
    answer. Raises DataError for a text of several lines, which would be several questions."""
    if "\n" in text:
        raise DataError("The text has several lines, but a line is a question.", fix="Put a blank for each line end.")
    lines = [f"{shot.input}{between}{shot.output}\n" for shot in shots]
    return "".join([*lines, text, between])


def _shot(given: Sequence[object], where: str) -> Shot:
    if len(given) != 2 or not all(isinstance(one, str) and one.strip() for one in given):
        raise DataError(f"{where}: no example of an input and an output.", fix="Write the input, a tab, the output; or both as JSON.")
    first, second = map(str, given)
    if "\n" in first + second:
        raise DataError(f"{where}: the example has several lines.", fix="Put a blank for each line end.")
    return Shot(first, second)
