"""Read conversations, the turns of two speakers in their order: JSON lines with any number of turns, tables of question and answer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from fishpaw.data.labelled import Format, lines_of
from fishpaw.data.records import Budget, Line, mended, parse_object, rows_of_csv, rows_of_tsv
from fishpaw.errors import DataError

__all__ = ["Conversation", "read_conversations"]

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
    with Budget.of(skip_bad) as budget:
        found, lines = lines_of(path, format, budget, json=("{", "["))
        for line, turns in _parsed(lines, found, budget):
            try:
                conversation = Conversation(tuple(_turn(turn, number, line) for number, turn in enumerate(turns)), line.file, line.line)
                if len(turns) < least:
                    few = f"{len(turns)} turn{'s' * (len(turns) != 1)}"
                    raise DataError(f"{line.file}, line {line.line}: {few} in a conversation.", fix=f"Give {least} or more.")
            except DataError as error:
                budget.spend(error)
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
    return mended(value.strip())
