"""Read conversations, the turns of two speakers in their order: JSON lines with any number of turns, tables of question and answer."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from fishpaw.data.labelled import Format, format_of
from fishpaw.data.records import Budget, Line, parse_object, read_lines, rows_of_csv, rows_of_tsv
from fishpaw.errors import DataError

__all__ = ["Conversation", "read_conversations"]

_SURROGATES = re.compile("[\ud800-\udfff]")
_SHAPE = 'Write {"turns": ["…", "…"]} or ["…", "…"] on each line.'


@dataclass(frozen=True, slots=True)
class Conversation:
    """What was said, turn after turn: the first speaker has turns 0, 2, 4 …, the second 1, 3 … file, line: where it stood."""

    turns: tuple[str, ...]
    file: str = ""
    line: int = 0

    @property
    def backwards(self) -> Conversation:
        """The last turn first: what a model learns from that is to guess at the question."""
        return replace(self, turns=self.turns[::-1])


def read_conversations(
    path: str | Path, *, format: Format | None = None, skip_bad: int | Budget = 0, least: int = 2
) -> Iterator[Conversation]:
    """Conversations of at least `least` turns, none of them blank.

    jsonl: {"turns": ["…", "…"]}, where other names are not read, or the bare list. tsv, txt: question<TAB>answer; csv: question,answer.
    format: None: by the suffix; for "-" (standard input) jsonl if its first line begins with "{" or "[", else txt. skip_bad: see
    data/records. Raises DataError that names file and line.
    """
    if not isinstance(skip_bad, Budget):
        with Budget(skip_bad).told() as budget:
            yield from read_conversations(path, format=format, skip_bad=budget, least=least)
        return
    lines: Iterator[Line] = read_lines(path, skip_bad=skip_bad)
    if format is None and str(path) == "-":
        first = list(itertools.islice(lines, 1))
        lines = itertools.chain(first, lines)
        format = "jsonl" if first and first[0].text.lstrip().startswith(("{", "[")) else "txt"
    for line, turns in _parsed(lines, format or format_of(path), skip_bad):
        try:
            conversation = Conversation(tuple(_turn(turn, number, line) for number, turn in enumerate(turns)), line.file, line.line)
            if len(turns) < least:
                few = f"{len(turns)} turn{'s' * (len(turns) != 1)}"
                raise DataError(f"{line.file}, line {line.line}: {few} in a conversation.", fix=f"Give {least} or more.")
        except DataError as error:
            skip_bad.spend(error)
            continue
        yield conversation


def _parsed(lines: Iterable[Line], format: Format, budget: Budget) -> Iterator[tuple[Line, list[object]]]:
    """Where it stood, and what should be turns."""
    if format != "jsonl":
        for row in rows_of_csv(lines, budget) if format == "csv" else rows_of_tsv(lines):
            if len(row.cells) != 2:
                what = f"{row.file}, line {row.line}: {len(row.cells)} cell{'s' * (len(row.cells) > 1)} in a row."
                budget.spend(DataError(what, fix="Write question<TAB>answer; longer conversations, or texts with tabs, need JSONL."))
                continue
            yield Line(row.file, row.line, ""), list(row.cells)
        return
    for line in lines:
        if line.text.strip():
            try:
                yield line, _list(line)
            except DataError as error:
                budget.spend(error)


def _list(line: Line) -> list[object]:
    if not line.text.lstrip().startswith("["):
        found = parse_object(line).get("turns")
        if not isinstance(found, list):
            what = "no turns" if found is None else f"'turns' is {json.dumps(found, ensure_ascii=False)[:80]}"
            raise DataError(f"{line.file}, line {line.line}: {what}.", fix=_SHAPE)
        return found
    try:
        value = json.loads(line.text)
    except (ValueError, RecursionError) as error:
        said = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"{line.file}, line {line.line}: not JSON ({said}).", fix=_SHAPE) from None
    assert isinstance(value, list)
    return value


def _turn(value: object, number: int, line: Line) -> str:
    where = f"{line.file}, line {line.line}: turn {number + 1}"
    if not isinstance(value, str):
        raise DataError(f"{where} is {json.dumps(value, ensure_ascii=False)[:80]}.", fix="Give each turn as a string.")
    if not value.strip():
        raise DataError(f"{where} is blank.", fix="Leave it out, or join its neighbours.")
    return _SURROGATES.sub("\ufffd", value.strip())                  # JSON can spell half a pair, which no file of text can hold
