"""Claimed, measured, holds: rows as a table of text, in two languages, with as many digits as the comparison takes."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from fishpaw.lab.findings import Row, Verdict, Words
from fishpaw.lab.records import Record

__all__ = ["HEADS", "VERDICTS", "Cells", "Kind", "Language", "cells", "circumstances", "counted", "kind", "lines", "number", "say", "wide"]

Language = Literal["en", "zh"]
Kind = Literal["mathematical", "empirical"]

HEADS = (Words("claim", "论断"), Words("claimed", "应为"), Words("measured", "实测"), Words("verdict", "结论"))
VERDICTS: dict[Verdict, Words] = {"holds": Words("holds", "成立"), "fails": Words("fails", "不成立"), "open": Words("open", "未定")}

_SIGNS = {"=": ("", " ± "), "<=": ("≤ ", " + "), ">=": ("≥ ", " − ")}
_MARKS = "、。〉》」』】〕！），．：；？,.:;!?)"                            # a line begins with none of them
_PIECES = re.compile(rf"[⺀-鿿豈-﫿＀-￯][{_MARKS}]*|[^\s⺀-鿿豈-﫿＀-￯]+[{_MARKS}]*\s?|\s")  # a wide character or a word, with them
_RECORDED = Words("recorded {date}: seed {seed}, {size}; {versions}; {processor}; {seconds:.0f} s",
                  "记录于 {date}：种子 {seed}，{size}；{versions}；{processor}；{seconds:.0f} 秒")  # fmt: skip


class Cells(NamedTuple):
    """A row in words."""

    claim: str
    claimed: str
    measured: str
    verdict: str


def say(words: Words, language: Language) -> str:
    """The words of a language."""
    return words.zh if language == "zh" else words.en


def kind(row: Row) -> Kind:
    """mathematical: it must hold; empirical: it was measured on samples, and has an interval."""
    return "mathematical" if row.interval is None else "empirical"


def counted(rows: Iterable[Row]) -> Counter[tuple[Kind, Verdict]]:
    """How many rows of each kind hold, fail, are open."""
    return Counter((kind(row), row.verdict) for row in rows)


def number(value: float, digits: int = 6) -> str:
    """A whole number as it is, others with so many significant digits."""
    if float(value).is_integer() and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.{digits}g}"


def cells(row: Row, language: Language) -> Cells:
    """A row in words. Six significant digits; more where a tolerance is told apart by eleven at most, or where the verdict wouldn't follow
    from fewer; as many as an interval's width leaves a meaning. A difference that they don't show stands behind the measured number."""
    digits = next((count for count in range(_least(row), 17) if _rounded(row, count).verdict == row.verdict), 17)
    before, between = _SIGNS[row.relation]
    claimed = number(row.claimed, digits)
    measured = number(row.measured, digits)
    if measured == claimed and row.measured != row.claimed and row.interval is None:
        measured += f" ({row.measured - row.claimed:+.2g})"
    if row.interval is not None:
        measured += f" [{number(row.interval[0], digits)}, {number(row.interval[1], digits)}]"
    slack = between + number(row.within, digits) if row.within else ""
    return Cells(say(row.claim, language), before + claimed + slack, measured, say(VERDICTS[row.verdict], language))


def lines(rows: Sequence[Row], language: Language, *, width: int = 140) -> list[str]:
    """The table, heads first, its columns aligned where wide characters count two. width: columns at most, if the claims can be broken so
    that they leave room for the numbers; a claim gets 24 at least."""
    table = [Cells(*(say(head, language) for head in HEADS)), *(cells(row, language) for row in rows)]
    others = [max(wide(one[at]) for one in table) for at in (1, 2, 3)]
    room = max(24, width - sum(others) - 6)
    broken = [(_broken(one.claim, room), one) for one in table]
    first = max(wide(part) for parts, _ in broken for part in parts)
    out = []
    for parts, one in broken:
        ends = [one.claimed, one.measured, one.verdict]
        out.append("  ".join(_padded(cell, size) for cell, size in zip([parts[0], *ends], [first, *others], strict=True)).rstrip())
        out += parts[1:]
    return out


def circumstances(record: Record, language: Language) -> str:
    """When, how large, with what and on what a record was made, in a line."""
    size = ", ".join(f"{name} {value}" for name, value in record.size.items()) or "-"
    versions = ", ".join(f"{name} {value}" for name, value in record.versions.items())
    return say(_RECORDED, language).format(date=record.date, seed=record.seed, size=size, versions=versions, processor=record.processor,
                                           seconds=record.seconds)  # fmt: skip


def wide(text: str) -> int:
    """Columns that a text takes on a terminal: two a wide character, none a mark that combines with the one before it."""
    return sum(0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text)


def _least(row: Row) -> int:
    """Digits that reach one place beyond the tolerance, six at least; six, too, where that were more than eleven. Of an interval, digits
    that show two places of its width, four at least."""
    if row.interval is not None:
        low, high = row.interval
        width, size = high - low, max(abs(low), abs(high))
        return min(11, max(4, math.floor(math.log10(size)) - math.floor(math.log10(width)) + 2)) if width else 6
    if not row.within or not row.claimed:
        return 6
    reach = math.ceil(-math.log10(row.within)) + math.floor(math.log10(abs(row.claimed))) + 2
    return reach if 6 <= reach <= 11 else 6


def _rounded(row: Row, digits: int) -> Row:
    """The row that somebody reads who sees so many digits."""
    numbers = (row.claimed, row.measured, row.within, *(row.interval or ()))
    claimed, measured, within, *bounds = (float(number(one, digits)) for one in numbers)
    return Row(row.claim, claimed, measured, row.relation, within, (bounds[0], bounds[1]) if bounds else None)


def _padded(text: str, size: int) -> str:
    return text + " " * (size - wide(text))


def _broken(text: str, room: int) -> list[str]:
    """Lines of so many columns at most, but for a word that is longer. A line begins with no punctuation."""
    out = [""]
    for piece in _PIECES.findall(text):
        if out[-1] and wide(out[-1]) + wide(piece.rstrip()) > room:
            out.append("")
        out[-1] += piece
    return [one.rstrip() for one in out]
