"""Texts and pairs of texts, with labels or to be labelled, from tables and JSON lines."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fishpaw.data.records import Budget, Line, Row, mended, parse_object, read_lines, rows_of_csv, rows_of_tsv
from fishpaw.errors import DataError

__all__ = ["Format", "LabelledText", "format_of", "lines_of", "read_labelled", "read_texts"]

Format = Literal["jsonl", "tsv", "csv", "txt"]

_SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".tsv": "tsv", ".csv": "csv", ".txt": "txt", ".data": "txt",
}  # fmt: skip
_TEXT, _PAIR, _LABEL = ("text", "text_a", "sentence", "sentence1"), ("pair", "text_b", "sentence2"), ("label", "labels")
_WEAK = ("review", "content", "title")                            # the text, if nothing else is: often columns beside it


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text or a pair of texts, with its labels: one, several, or none where none were given. file, line: where it stood."""

    text: str
    pair: str | None = None
    labels: tuple[str, ...] = ()
    file: str = ""
    line: int = 0


def format_of(path: str | Path) -> Format:
    """The format by the suffix before ".gz"; a name without a suffix is txt. Raises DataError for another suffix."""
    suffix = Path(Path(path).name.lower().removesuffix(".gz")).suffix
    if suffix and suffix not in _SUFFIXES:
        raise DataError(f"{path}: {suffix} is no known kind of file.", fix=f"Use {', '.join(_SUFFIXES)}, each also with .gz.")
    return _SUFFIXES.get(suffix, "txt")


def lines_of(path: str | Path, format: Format | None, budget: Budget, *, json: tuple[str, ...] = ("{",)) -> tuple[Format, Iterator[Line]]:
    """The lines of a file and their format: the one given, or by the suffix; of "-" jsonl if the first line begins as `json` says, else
    txt."""
    lines = read_lines(path, skip_bad=budget)
    if format is not None or str(path) != "-":
        return format or format_of(path), lines
    first = list(itertools.islice(lines, 1))
    return "jsonl" if first and first[0].text.lstrip().startswith(json) else "txt", itertools.chain(first, lines)


def read_labelled(path: str | Path, *, format: Format | None = None, skip_bad: int | Budget = 0) -> Iterator[LabelledText]:
    """Texts with labels, to train and to evaluate on.

    tsv, txt: text<TAB>label, or a<TAB>b<TAB>label; csv the same with commas. If the first row holds names (text, text_a, sentence,
    sentence1, review, content, title; pair, text_b, sentence2; label), they give the order; one with such a name and others is refused.
    jsonl: {"text": …, "pair": …, "label": …} by the same names, several labels as "labels": […]; other names are not read, and review,
    content and title only where there is no other text. Labels are strings; a whole number or true becomes one.
    format: None: by the suffix; for "-" (standard input) jsonl if its first line begins with "{", else txt. skip_bad: see records.
    Raises DataError that names file, line and field.
    """
    yield from _read(path, format, skip_bad, labelled=True)


def read_texts(path: str | Path, *, format: Format | None = None, skip_bad: int | Budget = 0) -> Iterator[LabelledText]:
    """Texts to be labelled: a text, or a<TAB>b, a row (csv: a,b); jsonl as in `read_labelled`. Labels are read only where named.

    A txt file gives one record a line, for empty lines too, so that answers stand beside their lines.
    """
    yield from _read(path, format, skip_bad, labelled=False)


def _read(path: str | Path, format: Format | None, skip_bad: int | Budget, *, labelled: bool) -> Iterator[LabelledText]:
    with Budget.of(skip_bad) as budget:
        found, lines = lines_of(path, format, budget)
        match found:
            case "jsonl":
                yield from _from_json(lines, budget, labelled)
            case "csv":
                yield from _from_rows(rows_of_csv(lines, budget), budget, labelled)
            case "txt" if not labelled:
                rows = (Row(line.file, line.line, tuple(line.text.split("\t"))) for line in lines)
                yield from _from_rows(rows, budget, labelled)
            case _:
                yield from _from_rows(rows_of_tsv(lines), budget, labelled)


def _from_json(lines: Iterable[Line], budget: Budget, labelled: bool) -> Iterator[LabelledText]:
    for line in lines:
        if line.text.strip():
            try:
                text = _from_fields(parse_object(line), line.file, line.line, labelled)
            except DataError as error:
                budget.spend(error)
                continue
            yield text


def _from_rows(rows: Iterable[Row], budget: Budget, labelled: bool) -> Iterator[LabelledText]:
    names: tuple[str, ...] = ()
    width = 0
    for row in rows:
        if (len(row.cells) == 1 or not labelled) and not any(map(str.strip, row.cells)):
            if not labelled:
                yield LabelledText("", file=row.file, line=row.line)
            continue
        if not width:
            width = len(row.cells)
            names = _header(row)
            if names:
                continue
        try:
            text = _from_cells(row, names, width, labelled)
        except DataError as error:
            budget.spend(error)
            continue
        yield text


def _header(row: Row) -> tuple[str, ...]:
    """The names of the columns, if this row holds names. One column is a text: it needs no name. DataError where only some are known."""
    names, known = tuple(cell.strip().lower() for cell in row.cells), (*_TEXT, *_WEAK, *_PAIR, *_LABEL)
    where = f"{row.file}, line {row.line}"
    if len(names) < 2 or not set(names).intersection(known):
        return ()
    if unknown := [name for name in names if name not in known]:
        what = f"{where}: looks like names of columns, but {unknown[0][:40]!r} is not known."
        raise DataError(what, fix=f"Use {', '.join(known)}, without other columns; if this row is data, write the names above it.")
    if len(set(names)) < len(names):
        raise DataError(f"{where}: a column twice ({', '.join(names)}).", fix="Name each column once.")
    texts = [name for name in names if name in _TEXT + _WEAK]
    if len(texts) != 1:
        what = f"both {texts[0]!r} and {texts[1]!r}" if texts else f"no column for the text among {', '.join(names)}"
        raise DataError(f"{where}: {what}.", fix=f"Name one column {_TEXT[0]!r}; a second text is {_PAIR[0]!r}.")
    return names


def _from_cells(row: Row, names: tuple[str, ...], width: int, labelled: bool) -> LabelledText:
    where, cells = f"{row.file}, line {row.line}", row.cells
    if len(cells) != width:
        what = f"{where}: {len(cells)} cell{'s' * (len(cells) > 1)}, but the first row has {width}."
        raise DataError(what, fix="Give each row the same cells; texts that hold the separator need JSONL.")
    if not names:
        least = 2 if labelled else 1
        if not least <= width <= least + 1:
            wanted = "text<TAB>label or a<TAB>b<TAB>label" if labelled else "one text, or two with a tab between them"
            what = f"{where}: {width} cell{'s' * (width > 1)} in a row."
            raise DataError(what, fix=f"Write {wanted}, or name the columns in the first row.")
        names = (_TEXT[0], _PAIR[0])[: width - labelled] + (_LABEL[0],) * labelled
    return _from_fields(dict(zip(names, cells, strict=True)), row.file, row.line, labelled)


def _from_fields(fields: dict[str, Any], file: str, line: int, labelled: bool) -> LabelledText:
    where = f"{file}, line {line}"
    text_name, pair_name, label_name = (_one_of(fields, names, where) for names in (_TEXT, _PAIR, _LABEL))
    text_name = text_name or _one_of(fields, _WEAK, where)
    if text_name is None:
        raise DataError(f"{where}: no text.", fix=f"Name it {_TEXT[0]!r} ({', '.join(_TEXT[1:] + _WEAK)} are understood, too).")
    text = _text(fields[text_name], where, text_name)
    pair = None if pair_name is None or fields[pair_name] is None else _text(fields[pair_name], where, pair_name)
    if label_name is None or (fields[label_name] is None and not labelled):
        if labelled:
            raise DataError(f"{where}: no label.", fix="Give one as 'label', or several as 'labels'.")
        return LabelledText(text, pair, (), file, line)
    given = fields[label_name]
    labels = tuple(_label(value, where, label_name) for value in (given if isinstance(given, list) else [given]))
    if len(set(labels)) < len(labels):
        raise DataError(f"{where}: a label twice in {label_name!r}.", fix="Give each label once.")
    return LabelledText(text, pair, labels, file, line)


def _one_of(fields: dict[str, Any], names: tuple[str, ...], where: str) -> str | None:
    found = [name for name in names if name in fields]
    if len(found) > 1:
        raise DataError(f"{where}: both {found[0]!r} and {found[1]!r}.", fix="Keep one of them.")
    return found[0] if found else None


def _text(value: object, where: str, name: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: {name!r} is {json.dumps(value, ensure_ascii=False)[:80]}.", fix="Give a string.")
    return mended(value)


def _label(value: object, where: str, name: str) -> str:
    if isinstance(value, str) and value.strip():
        return mended(value.strip())
    if isinstance(value, int):
        return json.dumps(value)
    said = "is empty" if isinstance(value, str) else f"holds {json.dumps(value, ensure_ascii=False)[:80]}"
    raise DataError(f"{where}: {name!r} {said}.", fix="A label is a string or a whole number.")
