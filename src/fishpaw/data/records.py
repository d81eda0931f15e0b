"""Read files of lines, tables and JSON as streams; a record knows its file and line, and a bad one is an error that names them.

Text is UTF-8, with or without a byte-order mark, with LF or CRLF; `.gz` is unpacked on the way; "-" is the standard input.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import re
import sys
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fishpaw.errors import DataError

__all__ = [
    "Budget", "Line", "Record", "Row", "mended", "parse_object", "read_csv", "read_jsonl", "read_lines", "read_tsv", "rows_of_csv",
    "rows_of_tsv",
]  # fmt: skip

_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its end; lines count from 1."""

    file: str
    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Row:
    """The cells of one row of a table."""

    file: str
    line: int
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """One JSON object."""

    file: str
    line: int
    fields: dict[str, Any]


class Budget:
    """How many bad records may be left out: `allowed`. `spent` have been, and `first` says what was wrong with the first of them."""

    def __init__(self, allowed: int = 0) -> None:
        self.allowed, self.spent = allowed, 0
        self.first: DataError | None = None

    def spend(self, error: DataError) -> None:
        """Leave one out; raise the error if none may be any more."""
        if self.spent >= self.allowed:
            before = f" {self.spent} bad records were left out before it, as allowed." if self.spent else ""
            raise DataError(error.what + before, fix=error.fix) from error
        self.spent += 1
        self.first = self.first or error

    @classmethod
    @contextmanager
    def of(cls, allowed: int | Budget) -> Iterator[Budget]:
        """A budget as it is; of a number a new one, which warns on leaving, if anything was left out: how many, and the first."""
        budget = allowed if isinstance(allowed, Budget) else cls(allowed)
        yield budget
        if budget is not allowed and budget.first is not None:
            warnings.warn(f"{budget.spent} bad records left out; the first: {budget.first.what}", stacklevel=4)


def read_lines(path: str | Path, *, skip_bad: int | Budget = 0) -> Iterator[Line]:
    """Every line, empty ones too.

    skip_bad: that many bad lines are left out (a warning at the end says how many, and the first of them); one more is an error.
    A Budget instead gives no warning: ask it yourself. Raises DataError that names file and line: not UTF-8, damaged gzip, no such file.
    """
    name, number = "standard input" if str(path) == "-" else str(path), 0
    with Budget.of(skip_bad) as budget, _opened(path) as file:
        while True:
            try:
                raw = file.readline()
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise DataError(f"{name}, after line {number}: damaged gzip ({error}).", fix="Copy or download the file again.") from error
            except OSError as error:
                what = f"{name}, after line {number}: can't be read ({error.strerror})."
                raise DataError(what, fix="Check the file and the disk.") from error
            if not raw:
                return
            number += 1
            text = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            try:
                yield Line(name, number, text.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8"))
            except UnicodeDecodeError as error:
                what = f"{name}, line {number}: not UTF-8 (byte {error.start + 1} is 0x{text[error.start]:02x})."
                budget.spend(DataError(what, fix=_advice(text)))


def _advice(line: bytes) -> str:
    """What to do about bytes that are no UTF-8."""
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "Convert it first: iconv -f utf-16 -t utf-8."
    if line.startswith(b"\x1f\x8b"):
        return "This is gzip: end its name with .gz."
    return "This is no text; name a text file." if b"\0" in line else "Convert it first, e.g. iconv -f gb18030 -t utf-8."


def read_tsv(path: str | Path, *, skip_bad: int | Budget = 0) -> Iterator[Row]:
    """Rows of cells with tabs between them; quotation marks are letters. Blank lines are left out. As many cells as the first row has."""
    with Budget.of(skip_bad) as budget:
        yield from _of_one_width(rows_of_tsv(read_lines(path, skip_bad=budget)), budget)


def read_csv(path: str | Path, *, skip_bad: int | Budget = 0) -> Iterator[Row]:
    """Rows of cells with commas between them, quoted as spreadsheets do, line ends within quotes too; `line` is the row's last."""
    with Budget.of(skip_bad) as budget:
        yield from _of_one_width(rows_of_csv(read_lines(path, skip_bad=budget), budget), budget)


def read_jsonl(path: str | Path, *, skip_bad: int | Budget = 0) -> Iterator[Record]:
    """One JSON object a line; blank lines are left out. A name twice in an object, NaN and Infinity are errors, too."""
    with Budget.of(skip_bad) as budget:
        for line in read_lines(path, skip_bad=budget):
            if line.text.strip():
                try:
                    fields = parse_object(line)
                except DataError as error:
                    budget.spend(error)
                    continue
                yield Record(line.file, line.line, fields)


def rows_of_tsv(lines: Iterable[Line]) -> Iterator[Row]:
    """Cut lines at their tabs; blank lines are left out."""
    return (Row(line.file, line.line, tuple(line.text.split("\t"))) for line in lines if line.text.strip(" \u3000"))


def rows_of_csv(lines: Iterable[Line], budget: Budget) -> Iterator[Row]:
    """Parse lines as CSV; blank lines are left out."""
    last = Line("", 0, "")

    def texts() -> Iterator[str]:
        nonlocal last
        for line in lines:
            last = line
            yield line.text + "\n"                                 # the reader needs the line ends within quotes

    reader = csv.reader(texts(), strict=True)
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            what = f"{last.file}, line {last.line}: {error}."
            budget.spend(DataError(what, fix="Double the quotes within a quoted cell, or use JSONL."))
            continue
        if cells is None:
            return
        if len(cells) > 1 or any(map(str.strip, cells)):
            yield Row(last.file, last.line, tuple(cells))


def parse_object(line: Line) -> dict[str, Any]:
    """The JSON object that a line holds. Raises DataError that names file and line."""
    try:
        value = json.loads(line.text, object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        said = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"{line.file}, line {line.line}: not JSON ({said}).", fix="Write one object a line.") from error
    if not isinstance(value, dict):
        names = {list: "array", str: "string", bool: "boolean", type(None): "null"}
        what = f"{line.file}, line {line.line}: a JSON {names.get(type(value), 'number')}, not an object."
        raise DataError(what, fix="Write one object a line: names and values, in braces.")
    return value


def mended(text: str) -> str:
    """JSON can spell half a surrogate pair, which no file of text can hold: U+FFFD stands for it."""
    return _SURROGATES.sub("\ufffd", text)


@contextmanager
def _opened(path: str | Path) -> Iterator[BinaryIO]:
    if str(path) == "-":
        yield sys.stdin.buffer
        return
    try:
        file: Any = gzip.open(path, "rb") if str(path).lower().endswith(".gz") else open(path, "rb")
    except OSError as error:
        raise DataError(f"{path}: can't be opened ({error.strerror}).", fix="Check the name and its permissions.") from error
    with file:
        yield file


def _of_one_width(rows: Iterable[Row], budget: Budget) -> Iterator[Row]:
    width = 0
    for row in rows:
        width = width or len(row.cells)
        if len(row.cells) == width:
            yield row
        else:
            what = f"{row.file}, line {row.line}: {len(row.cells)} cells, but the first row has {width}."
            budget.spend(DataError(what, fix="Give each row the same cells; texts that hold the separator need JSONL."))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)!r} twice")
    return fields


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
