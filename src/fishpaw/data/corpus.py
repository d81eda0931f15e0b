"""Files of text as a stream of documents, each of which knows where it stood: lines or blocks of lines, cells of tables, fields of JSON.

As data/records.py reads them: UTF-8, `.gz` unpacked on the way, "-" for standard input. Nothing is held but one document.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, get_args

from fishpaw.data.labelled import lines_of
from fishpaw.data.records import Budget, Line, Row, mended, parse_object, rows_of_csv, rows_of_tsv
from fishpaw.errors import ConfigError, DataError

__all__ = ["Unit", "read_documents"]

Unit = Literal["line", "block"]
"""What a document is in a txt file: a line, or lines up to an empty one."""


def read_documents(
    paths: Iterable[str | Path], *, unit: Unit = "line", field: str | None = None, skip_bad: int | Budget = 0
) -> Iterator[Line]:
    """The documents of all files, in their order; empty ones are left out. `line` is a document's first.

    The format follows from the suffix, of standard input from its first character. txt: see Unit. jsonl: the text in `field`, default
    "text"; a list of strings is its lines. tsv, csv: the column that `field` names in the first row; default the first column, every row.
    skip_bad: see data/records. Errors: DataError that names file, line and field; ConfigError for another unit.
    """
    if unit not in get_args(Unit):
        raise ConfigError(f"unit is {unit!r}.", fix='Choose "line" or "block".')
    with Budget.of(skip_bad) as budget:
        for path in paths:
            found, lines = lines_of(path, None, budget)
            match found:
                case "jsonl":
                    documents = _of_objects(lines, field or "text", budget)
                case "tsv" | "csv":
                    rows = rows_of_tsv(lines) if found == "tsv" else rows_of_csv(lines, budget)
                    documents = _of_rows(rows, field, budget)
                case _:
                    documents = lines if unit == "line" else _blocks(lines)
            yield from (one for one in documents if one.text.strip())


def _blocks(lines: Iterable[Line]) -> Iterator[Line]:
    held: list[Line] = []
    for line in lines:
        if line.text.strip():
            held.append(line)
        elif held:
            yield _joined(held)
            held = []
    if held:
        yield _joined(held)


def _joined(lines: list[Line]) -> Line:
    return Line(lines[0].file, lines[0].line, "\n".join(line.text for line in lines))


def _of_objects(lines: Iterable[Line], field: str, budget: Budget) -> Iterator[Line]:
    for line in lines:
        if line.text.strip():
            try:
                text = _text(parse_object(line), field, line)
            except DataError as error:
                budget.spend(error)
                continue
            yield Line(line.file, line.line, mended(text))


def _text(fields: dict[str, object], field: str, line: Line) -> str:
    where = f"{line.file}, line {line.line}"
    if field not in fields:
        names = ", ".join(sorted(fields)[:8]) or "none"
        raise DataError(f"{where}: no field {field!r}; there are {names}.", fix="Name the one that holds the text (field; --field).")
    value = fields[field]
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return "\n".join(value)
    raise DataError(f"{where}, field {field!r}: no string, nor a list of strings.", fix="Write the text as a string.")


def _of_rows(rows: Iterable[Row], field: str | None, budget: Budget) -> Iterator[Line]:
    place: int | None = None
    for row in rows:
        where = f"{row.file}, line {row.line}"
        if place is None and field is not None:
            if field not in row.cells:
                what = f"{where}: no column {field!r}; there are {', '.join(row.cells[:8])}."
                raise DataError(what, fix="Name the one that holds the text (field; --field).")
            place = row.cells.index(field)
        elif (place or 0) >= len(row.cells):
            budget.spend(DataError(f"{where}: {len(row.cells)} cells, but the text is in column {(place or 0) + 1}.", fix="Mend the row."))
        else:
            yield Line(row.file, row.line, row.cells[place or 0])
