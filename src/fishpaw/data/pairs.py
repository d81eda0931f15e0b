"""Pairs of a text and what is to be made of it (a summary, a title, an answer), from tables and JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fishpaw.data.labelled import Format, lines_of
from fishpaw.data.records import Budget, Line, Row, mended, parse_object, rows_of_csv, rows_of_tsv
from fishpaw.errors import DataError

__all__ = ["Fields", "Pair", "read_pairs", "read_sources"]

Fields = tuple[str, str]
"""The names of the source and of the target, in JSON or in the first row of a table."""

_SOURCES, _TARGETS = ("source", "text", "content", "question"), ("target", "title", "summary", "answer")


@dataclass(frozen=True, slots=True)
class Pair:
    """source: what is read; target: what is to be written. file, line: where it stood."""

    source: str
    target: str = ""
    file: str = ""
    line: int = 0


def read_pairs(
    path: str | Path, *, format: Format | None = None, fields: Fields | None = None, skip_bad: int | Budget = 0
) -> Iterator[Pair]:
    """Pairs to train and to evaluate on; none has an empty target.

    tsv, txt: source<TAB>target; csv the same with a comma. A first row with one name of either side (source, text, content, question;
    target, title, summary, answer) and no other gives the order. jsonl: {"source": …, "target": …} by the same names, one of each side;
    other names are not read. fields: other names, then also where a table has more columns. format: None: by the suffix; for "-"
    (standard input) jsonl if its first line begins with "{", else txt. skip_bad: see records. DataError that names file, line and field.
    """
    yield from _read(path, format, fields, skip_bad, whole=True)


def read_sources(
    path: str | Path, *, format: Format | None = None, fields: Fields | None = None, skip_bad: int | Budget = 0
) -> Iterator[Pair]:
    """Sources alone: a text a row, or as `read_pairs`, whose targets are then left empty and needn't be there. A txt file gives one a
    line, for empty lines too, so that answers stand beside their lines."""
    yield from _read(path, format, fields, skip_bad, whole=False)


def _read(path: str | Path, format: Format | None, fields: Fields | None, skip_bad: int | Budget, *, whole: bool) -> Iterator[Pair]:
    with Budget.of(skip_bad) as budget:
        found, lines = lines_of(path, format, budget)
        match found:
            case "jsonl":
                yield from _from_json(lines, fields, budget, whole)
            case "csv":
                yield from _from_rows(rows_of_csv(lines, budget), fields, budget, whole)
            case "txt" if not whole and fields is None:
                yield from _from_rows((Row(one.file, one.line, tuple(one.text.split("\t"))) for one in lines), fields, budget, whole)
            case _:
                yield from _from_rows(rows_of_tsv(lines), fields, budget, whole)


def _from_json(lines: Iterable[Line], fields: Fields | None, budget: Budget, whole: bool) -> Iterator[Pair]:
    for line in lines:
        if line.text.strip():
            try:
                pair = _from_values(parse_object(line), fields, line.file, line.line, whole)
            except DataError as error:
                budget.spend(error)
                continue
            yield pair


def _from_rows(rows: Iterable[Row], fields: Fields | None, budget: Budget, whole: bool) -> Iterator[Pair]:
    names: tuple[str, ...] = ()
    width = 0
    for row in rows:
        if row.cells == ("",) and whole:
            continue
        if not width:
            width = len(row.cells)
            names = _header(row, fields)
            if names:
                continue
        try:
            pair = _from_cells(row, names, width, fields, whole)
        except DataError as error:
            budget.spend(error)
            continue
        yield pair


def _header(row: Row, fields: Fields | None) -> tuple[str, ...]:
    """The names of the columns, if this row holds them."""
    where = f"{row.file}, line {row.line}"
    if fields is not None:
        for name in fields:
            if row.cells.count(name) != 1:
                raise DataError(f"{where}: {row.cells.count(name)} columns named {name!r}.", fix="Name the columns in the first row.")
        return row.cells
    names = tuple(cell.strip().lower() for cell in row.cells)
    if len(names) < 2 or sum(name in _SOURCES for name in names) != 1 or sum(name in _TARGETS for name in names) != 1:
        return ()
    if len(names) > 2:
        what = f"{where}: {len(names)} columns ({', '.join(names)[:80]})."
        raise DataError(what, fix="Keep two, or say which with fields (--fields text,title).")
    return names


def _from_cells(row: Row, names: tuple[str, ...], width: int, fields: Fields | None, whole: bool) -> Pair:
    where, cells = f"{row.file}, line {row.line}", row.cells
    if names:
        if len(cells) != width:
            what = f"{where}: {len(cells)} cell{'s' * (len(cells) > 1)}, but the first row has {width}."
            raise DataError(what, fix="Give each row the same cells; texts that hold the separator need JSONL.")
        return _from_values(dict(zip(names, cells, strict=True)), fields, row.file, row.line, whole)
    if len(cells) > 2 or (whole and len(cells) < 2):
        wanted = "source<TAB>target" if whole else "a text, or source<TAB>target"
        what = f"{where}: {len(cells)} cell{'s' * (len(cells) > 1)} in a row."
        raise DataError(what, fix=f"Write {wanted}; texts that hold tabs need JSONL.")
    return _from_values(dict(zip(("source", "target"), cells, strict=False)), None, row.file, row.line, whole)


def _from_values(values: Mapping[str, Any], fields: Fields | None, file: str, line: int, whole: bool) -> Pair:
    where = f"{file}, line {line}"
    sources, targets = ((fields[0],), (fields[1],)) if fields else (_SOURCES, _TARGETS)
    source = _text(values, sources, where)
    if not whole:
        return Pair(source, file=file, line=line)
    target = _text(values, targets, where)
    if not target.strip():
        raise DataError(f"{where}: the target is empty.", fix="Give what is to be written, or leave the pair out.")
    return Pair(source, target, file, line)


def _text(values: Mapping[str, Any], names: tuple[str, ...], where: str) -> str:
    found = [name for name in names if name in values]
    if len(found) != 1:
        what = f"{where}: both {found[0]!r} and {found[1]!r}." if found else f"{where}: no {names[0]}."
        others = f" ({', '.join(names[1:])} are understood, too)" if len(names) > 1 else ""
        raise DataError(what, fix="Keep one of them." if found else f"Name it {names[0]!r}{others}.")
    value = values[found[0]]
    if not isinstance(value, str):
        raise DataError(f"{where}: {found[0]!r} is {json.dumps(value, ensure_ascii=False)[:80]}.", fix="Give a string.")
    return mended(value)
