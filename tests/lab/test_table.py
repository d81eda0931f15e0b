"""Numbers that show the comparison, and columns that stand one below the other in both languages."""

from __future__ import annotations

import math
import random
import re

import pytest

from fishpaw.lab.findings import Found, Row, Words
from fishpaw.lab.records import make
from fishpaw.lab.table import cells, circumstances, counted, lines, number, wide

CLAIM = Words("a claim", "一个论断")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (-0.0, "0"), (3.0, "3"), (-17.0, "-17"), (2_000_000.0, "2000000"), (1e300, "1e+300"), (1 / 3, "0.333333"),
     (123456.789, "123457"), (1.5e-9, "1.5e-09"), (math.pi * 1e9, "3.14159e+09")],
)  # fmt: skip
def test_numbers(value, shown):
    assert number(value) == shown


@pytest.mark.parametrize(
    ("row", "claimed", "measured"),
    [(Row(CLAIM, 0.5, 0.25), "0.5", "0.25"), (Row(CLAIM, 0.5, 0.5), "0.5", "0.5"),
     (Row(CLAIM, 0.5, 0.5 + 3e-9, within=1e-8), "0.5 ± 1e-08", "0.500000003"),
     (Row(CLAIM, 0.5, 0.5 - 3e-9, within=1e-8), "0.5 ± 1e-08", "0.499999997"),
     (Row(CLAIM, 1.0, 1.01000001, within=0.01), "1 ± 0.01", "1.01000001"),        # six digits would look as if it held
     (Row(CLAIM, 2.0, 1.5, "<="), "≤ 2", "1.5"), (Row(CLAIM, 2.0, 1.5, ">=", 0.5), "≥ 2 − 0.5", "1.5"),
     (Row(CLAIM, 2.0, 2.0 - 1e-9, "<="), "≤ 2", "2 (-1e-09)"), (Row(CLAIM, 2.0, 2.0 + 1e-9, "<="), "≤ 2", "2.000000001"),
     (Row(CLAIM, 2.0, 1.5, "<=", 0.1), "≤ 2 + 0.1", "1.5"), (Row(CLAIM, 2.0, 1.5, "=", 0.0, (1.25, 1.75)), "2", "1.5 [1.25, 1.75]"),
     (Row(CLAIM, 1.5238207, 1.52382073, within=5e-9), "1.5238207 ± 5e-09", "1.52382073"), (Row(CLAIM, -53.68, -53.6800003, within=5e-6),
      "-53.68 ± 5e-06", "-53.6800003"), (Row(CLAIM, 123456.7, 123456.8, within=0.5), "123456.7 ± 0.5", "123456.8"),
     (Row(CLAIM, 1 / 3, 1 / 3 + 1e-13, within=1e-12), "0.333333 ± 1e-12", "0.333333 (+1e-13)"),
     (Row(CLAIM, -1.0, -0.0899775, ">=", 0.0, (-0.343580, 0.163625)), "≥ -1", "-0.08998 [-0.3436, 0.1636]"),
     (Row(CLAIM, 1.0, 0.99990712, "=", 0.02, (0.99986134, 0.9999529)), "1 ± 0.02", "0.999907 [0.999861, 0.999953]"),
     (Row(CLAIM, 1 / 3, 1 / 3, "=", 0.02, (1 / 3, 1 / 3)), "0.333333 ± 0.02", "0.333333 [0.333333, 0.333333]"),
     (Row(CLAIM, 0.0, 3.25e-17, within=1e-12), "0 ± 1e-12", "3.25e-17")],
)  # fmt: skip
def test_cells(row, claimed, measured):
    assert cells(row, "en")[1:3] == (claimed, measured)


def test_who_reads_the_table_comes_to_the_same_verdict():
    draw = random.Random(2)
    seen = set()
    for _ in range(997):
        claimed, within = draw.choice([0.0, 1 / 3, -2e6 / 7]), draw.choice([0.0, 1e-12, 1e-3])
        measured = claimed + draw.choice([0.0, within, -within, 1.0000001 * within, 1e-13, draw.gauss(0, 1)])
        width = draw.choice([None, 1e-9, 1e-3])
        row = Row(CLAIM, claimed, measured, draw.choice(["=", "<=", ">="]), within,
                  None if width is None else (measured - width, measured + width))  # fmt: skip
        _, left, right, _ = cells(row, "en")
        text = left.replace("−", "") + " ; " + re.sub(r"\(.*\)", "", right)
        numbers = [float(one) for one in re.findall(r"[-+]?\d[\d.]*(?:e[-+]\d+)?", text)]
        read = [numbers.pop(0), numbers.pop(0) if within else 0.0, numbers.pop(0)]
        assert Row(CLAIM, read[0], read[2], row.relation, read[1], (numbers[0], numbers[1]) if width else None).verdict == row.verdict
        seen.add((row.relation, row.verdict))
    assert len(seen) == 9


@pytest.mark.parametrize(("text", "columns"), [("abc", 3), ("论断", 4), ("（a）", 5), ("é", 1), ("e\u0301", 1), ("≤ ±", 3), ("１", 2)])
def test_columns_of_a_text(text, columns):
    assert wide(text) == columns


LONG = Words("a claim that is rather long, and has words", "一个相当长的论断，其中有标点（也有 ASCII）。")
ROWS = [Row(Words("short", "短"), 1.0, 7.0, ">="), Row(LONG, 0.5, 0.1234567, "<=", 0.0, (0.1, 0.2)),
        Row(Words("fails", "不成立的"), 2.0, 3.0)]  # fmt: skip


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("width", [64, 78, 140])
def test_columns_are_aligned_and_no_line_is_longer_than_it_may_be(language, width):
    shown = lines(ROWS, language, width=width)
    assert max(map(wide, shown)) <= width
    begin = set()
    for row in ROWS:
        claimed, measured, verdict = cells(row, language)[1:]
        (line,) = [one for one in shown if one.endswith(f"  {verdict}") and f"  {claimed}  " in one and f"  {measured}  " in one]
        begin.add((wide(line[: line.index(f"  {claimed}  ")]), wide(line[: line.index(f"  {measured}  ")]), wide(line) - wide(verdict)))
    assert len(begin) == 1                                             # each column begins at one place


def test_a_planted_misalignment_is_seen():
    shown = lines(ROWS, "zh")
    assert len({len(line) - len(line.split()[-1]) for line in shown}) > 1   # characters instead of columns: not aligned
    assert len({wide(line) - wide(line.split()[-1]) for line in shown}) == 1


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_broken_claim_keeps_its_words_and_begins_no_line_with_punctuation(language):
    claim = Words("several words, of which " + "many " * 20 + "follow", "很多字，后面还有很多很多很多很多很多字。" * 3 + "半角,也是" * 20)
    shown = lines([Row(claim, 1.0, 1.0)], language, width=60)
    first = [shown[1][: shown[1].rindex("  1  ")].split("  ")[0], *shown[2:]]
    assert len(shown) > 3 and "".join("".join(first).split()) == "".join((claim.en if language == "en" else claim.zh).split())
    assert not any(line[0] in "，。," for line in shown)


def test_rows_are_counted_by_kind_and_verdict():
    assert counted(ROWS) == {("mathematical", "holds"): 1, ("empirical", "holds"): 1, ("mathematical", "fails"): 1}


def test_circumstances_name_all_that_a_record_depends_on():
    record = make("planted", Found(tuple(ROWS)), seed=7, size={"steps": 300}, seconds=61.2)
    for language in ("en", "zh"):
        said = circumstances(record, language)
        assert all(part in said for part in (record.date, "7", "steps 300", *record.versions.values(), record.processor, "61"))
