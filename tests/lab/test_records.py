"""Records: there and back, whole or absent, and each way in which a file can be damaged."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date

import pytest

from fishpaw.errors import DataError
from fishpaw.lab import records
from fishpaw.lab.findings import Found, Row, Words
from fishpaw.lab.records import kept, make, place, read, write

ROWS = (Row(Words("a <claim>", "论断"), 0.1, 0.1 + 1e-17, "=", 1e-9), Row(Words("b", "乙"), 2.0, 1.5, "<=", 0.0, (1.25, 1.75)))


@pytest.fixture
def record():
    return make("planted", Found(ROWS, {"x": (1, 2.5), "名": {"y": [None, "z"]}}), seed=7, size={"steps": 3}, seconds=1.23456)


def test_a_record_says_what_it_takes_to_make_it_again(record):
    assert (record.name, record.seed, record.size, record.seconds) == ("planted", 7, {"steps": 3}, 1.235)
    assert set(record.versions) == {"fishpaw", "python", "torch", "numpy"} and all(record.versions.values())
    assert record.processor and abs((date.fromisoformat(record.date) - date.today()).days) <= 1
    assert record.series == {"x": [1, 2.5], "名": {"y": [None, "z"]}}      # as JSON gives it back


def test_a_list_of_numbers_is_one_line_and_a_string_stays_as_it_is(record, tmp_path):
    series = {"grid": [[1, -2.5e-7], [3]], "said": ["[\n 1,\n 2 ]", "[  1 ]"], "none": []}
    write(tmp_path / "a.json", replace(record, series=series))
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "[1, -2.5e-07]" in text and "[3]" in text and read(tmp_path / "a.json").series == series


def test_there_and_back(record, tmp_path):
    write(tmp_path / "deep" / "a.json", record)
    assert read(tmp_path / "deep" / "a.json") == record
    assert [row.verdict for row in read(tmp_path / "deep" / "a.json").rows] == ["holds", "holds"]
    assert "verdict" not in (tmp_path / "deep" / "a.json").read_text(encoding="utf-8")
    write(tmp_path / "again.json", read(tmp_path / "deep" / "a.json"))
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "deep" / "a.json").read_bytes()


@pytest.mark.parametrize("number", [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -2.0 ** -1074, 123456789.123456789])
def test_numbers_come_back_to_the_last_bit(record, tmp_path, number):
    write(tmp_path / "a.json", replace(record, rows=(Row(Words("a", "b"), number, -number, ">=", abs(number)),)))
    (row,) = read(tmp_path / "a.json").rows
    assert (row.claimed, row.measured, row.within) == (number, -number, abs(number))


@pytest.mark.parametrize("series", [{"x": [float("nan")]}, {"x": float("inf")}, {"x": {1, 2}}, {"x": 1j}])
def test_series_that_json_does_not_carry_are_refused(series):
    with pytest.raises(ValueError, match="planted: the series can't be written as JSON"):
        make("planted", Found(ROWS, series), seed=0, size={}, seconds=0.0)


def test_a_write_that_fails_leaves_the_old_file(record, tmp_path):
    write(tmp_path / "a.json", record)
    before = (tmp_path / "a.json").read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        write(tmp_path / "a.json", replace(record, series={"x": float("nan")}))
    assert (tmp_path / "a.json").read_bytes() == before and [one.name for one in tmp_path.iterdir()] == ["a.json"]


MISSING = object()
FIELDS = ["name", "seed", "size", "versions", "processor", "date", "seconds", "rows", "series"]
NUMBERS = ["claimed", "measured", "within", "interval"]
DAMAGED = [
    *(((field,), MISSING, f"no field {field}") for field in FIELDS),
    *(((field,), True, f"{field} is 'True'") for field in FIELDS),
    (("seed",), 1.5, "seed is '1.5'"), (("verdict",), "holds", "unknown field verdict"), (("date",), "gestern", "date is 'gestern'"),
    (("versions", "torch"), 2, "versions holds"), (("rows", 0), 3, r"rows\[0\] is no object"),
    *((("rows", 1, field), MISSING, rf"rows\[1\] has no field {field}") for field in ("claim", *NUMBERS)),
    (("rows", 1, "claim"), "b", r"rows\[1\]: claim is 'b'"), (("rows", 1, "claim", "zh"), MISSING, r"rows\[1\]\.claim has no field zh"),
    (("rows", 1, "measured"), "1", r"rows\[1\]: measured is '1'"), (("rows", 1, "relation"), "<", r"rows\[1\]: relation is '<'"),
    (("rows", 1, "interval"), [1.0], r"rows\[1\]: interval"), (("rows", 1, "interval"), [2.0, 1.0], "the lower one first"),
    (("rows", 1, "interval"), [True, 2], r"rows\[1\]: interval"), (("rows", 1, "measured"), 10**400, r"rows\[1\]: "),
]  # fmt: skip


@pytest.mark.parametrize(("at", "value", "says"), DAMAGED, ids=lambda part: ".".join(map(str, part)) if isinstance(part, tuple) else None)
def test_a_damaged_record_is_told_by_file_and_field(record, tmp_path, at, value, says):
    path = tmp_path / "a.json"
    write(path, record)
    content = json.loads(path.read_text(encoding="utf-8"))
    inner = content
    for step in at[:-1]:
        inner = inner[step]
    if value is MISSING:
        del inner[at[-1]]
    else:
        inner[at[-1]] = value
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match=rf"a\.json: .*{says}"):
        read(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"seed": NaN}', "[" * 100_000, b"\xff\xfe"])
def test_what_is_no_record_at_all_is_told(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    with pytest.raises(DataError, match=r"a\.json"):
        read(path)


def test_infinite_numbers_are_damage(record, tmp_path):
    path = tmp_path / "a.json"
    write(path, record)
    path.write_text(path.read_text(encoding="utf-8").replace('"measured": 1.5', '"measured": 1e999'), encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\[1\]: b: claimed .*not measured"):
        read(path)
    with pytest.raises(DataError, match="can't be read"):
        read(tmp_path / "nowhere.json")


@pytest.mark.parametrize("folder", ["src/fishpaw/lab/recorded", "docs/lab"])
def test_records_are_found_in_the_package_and_in_a_checkout(record, tmp_path, monkeypatch, folder):
    monkeypatch.setattr(records, "__file__", str(tmp_path / "src" / "fishpaw" / "lab" / "records.py"))
    assert kept("planted") is None and place("planted") is None
    write(tmp_path / folder / "planted.json", record)
    assert kept("planted") == record and kept("other") is None
    write(tmp_path / folder / "other.json", record)
    with pytest.raises(DataError, match=r"other\.json: name is 'planted', not 'other'"):
        kept("other")


def test_the_records_that_come_with_fishpaw_are_sound():
    from fishpaw.lab.catalogue import with_full

    named = {entry for entry in with_full() if place(entry) is not None}
    assert all(kept(name).size for name in named)                       # each of a full form


def test_the_processor_is_named_where_the_kernel_does_not_tell(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "CPUINFO", tmp_path / "cpuinfo")
    assert records._processor()
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A Processor @ 3 GHz\n", encoding="utf-8")
    assert records._processor() == "A Processor @ 3 GHz"
