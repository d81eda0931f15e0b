"""Streams of lines, rows and objects: exact content, and for each kind of damage an error that names file and line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fishpaw.data.records import Budget, Line, parse_object, read_csv, read_jsonl, read_lines, read_tsv
from fishpaw.errors import DataError


def write(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    data = content.encode("utf-8") if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_lines_are_the_same_whatever_mark_line_end_and_packing(tmp_path: Path, name: str, mark: bytes, end: bytes, last: bool) -> None:
    texts = ["鱼与熊掌", "", "a\tb \u2028 c", "\ufeff inside", "\x00", "x"]
    content = mark + end.join(text.encode() for text in texts) + (end if last else b"")
    lines = list(read_lines(write(tmp_path, name, content)))
    assert [line.text for line in lines] == texts
    assert [line.line for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {line.file for line in lines} == {str(tmp_path / name)}


def test_standard_input_is_read_as_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\ufeff甲\r\n乙".encode())))
    assert [(line.file, line.text) for line in read_lines("-")] == [("standard input", "甲"), ("standard input", "乙")]


def test_an_empty_file_has_no_lines(tmp_path: Path) -> None:
    assert list(read_lines(write(tmp_path, "a.txt", ""))) == []
    assert list(read_csv(write(tmp_path, "a.csv", ""))) == []


def test_a_line_of_ten_megabytes_is_one_line(tmp_path: Path) -> None:
    (line,) = read_lines(write(tmp_path, "a.txt", "字" * 3_400_000))
    assert len(line.text) == 3_400_000


def test_another_encoding_is_named_with_line_and_byte(tmp_path: Path) -> None:
    path = write(tmp_path, "gbk.txt", b"ab\n" + "中文".encode("gbk"))
    with pytest.raises(DataError, match=r"gbk.txt, line 2: not UTF-8 \(byte 1 is 0xd6\).*iconv -f gb18030"):
        list(read_lines(path))


@pytest.mark.parametrize(
    ("content", "advice"),
    [("中文\n".encode("utf-16"), "iconv -f utf-16"), (gzip.compress(b"a\n", mtime=0), r"is gzip: end its name with \.gz"),
     (b"\x89PNG\0\xff\n", "is no text; name a text file")],
)  # fmt: skip
def test_what_is_no_text_at_all_is_not_taken_for_gbk(tmp_path: Path, content: bytes, advice: str) -> None:
    with pytest.raises(DataError, match=f"a.txt, line 1: not UTF-8 .*{advice}"):
        list(read_lines(write(tmp_path, "a.txt", content)))


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(DataError, match="can't be opened"):
            list(read_lines(path))


@pytest.mark.parametrize("keep", [5, 40, -3])
def test_damaged_gzip_is_an_error_not_a_shorter_file(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress("\n".join(str(i * i) for i in range(999)).encode())[:keep])
    with pytest.raises(DataError, match="a.txt.gz, after line .*damaged gzip"):
        list(read_lines(path))
    path.write_bytes(b"no gzip at all")
    with pytest.raises(DataError, match="after line 0: damaged gzip"):
        list(read_lines(path))


def test_tsv_keeps_quotes_and_skips_empty_lines(tmp_path: Path) -> None:
    rows = list(read_tsv(write(tmp_path, "a.tsv", '他说"好\t1\n\n"x\t\n')))
    assert [(row.line, row.cells) for row in rows] == [(1, ('他说"好', "1")), (3, ('"x', ""))]


def test_rows_of_another_width_are_errors(tmp_path: Path) -> None:
    for name, read in (("a.tsv", read_tsv), ("a.csv", read_csv)):
        path = write(tmp_path, name, "a\tb\nc\n".replace("\t", "\t" if name == "a.tsv" else ","))
        with pytest.raises(DataError, match=rf"{name}, line 2: 1 cells, but the first row has 2"):
            list(read(path))


@given(st.lists(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\0")), min_size=3, max_size=3), min_size=1, max_size=7))
def test_csv_gives_back_what_csv_wrote(tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    path = write(tmp_path_factory.mktemp("csv"), "a.csv", "\ufeff" + text.getvalue())
    assert [list(row.cells) for row in read_csv(path)] == rows


def test_csv_rows_carry_the_line_they_end_on_and_broken_quotes_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'a,"two\nlines"\nb,c\n"d"e,f\ng,h\n')
    with pytest.raises(DataError, match="a.csv, line 4: "):
        list(read_csv(path))
    with pytest.warns(UserWarning, match="1 bad records left out; the first: .*line 4"):
        rows = list(read_csv(path, skip_bad=1))
    assert [(row.line, row.cells) for row in rows] == [(2, ("a", "two\nlines")), (3, ("b", "c")), (5, ("g", "h"))]


BAD = {
    "cut": '{"a": 1',
    "array": "[1]",
    "text": '"a"',
    "number": "7",
    "null": "null",
    "nan": '{"a": NaN}',
    "infinity": '{"a": [-Infinity]}',
    "twice": '{"a": 1, "a": 2}',
    "twice within": '{"b": {"a": 1, "a": 2}}',
    "deep": "[" * 200_000,
    "digits": '{"a": ' + "9" * 5000 + "}",
    "two": "{} {}",
    "control": '{"a": "\x01"}',
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_a_bad_object_is_named_by_file_and_line(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, "a.jsonl", '{"a": 1}\n\n' + text + "\n")
    with pytest.raises(DataError, match="a.jsonl, line 3: "):
        list(read_jsonl(path))


def test_a_budget_leaves_out_that_many_and_no_more(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", b'{"n": 1}\n?\n{"n": 2}\n\xff\n{"n": 3}\n')
    with pytest.warns(UserWarning, match="2 bad records left out; the first: .*line 2"):
        assert [record.fields["n"] for record in read_jsonl(path, skip_bad=2)] == [1, 2, 3]
    with pytest.raises(DataError, match="line 4: not UTF-8.* 1 bad records were left out before"):
        list(read_jsonl(path, skip_bad=1))
    budget = Budget(5)
    assert len(list(read_jsonl(path, skip_bad=budget))) == 3
    assert budget.spent == 2 and budget.first is not None and "line 2" in str(budget.first)


def test_records_are_a_stream(tmp_path: Path) -> None:
    """The error of the last line doesn't come before the first record is out."""
    path = write(tmp_path, "a.jsonl", json.dumps({"n": 1}) + "\n?")
    records = read_jsonl(path)
    assert next(records).fields == {"n": 1}
    with pytest.raises(DataError):
        next(records)


def test_readers_need_neither_torch_nor_numpy() -> None:
    code = "import sys, fishpaw.data.records, fishpaw.data.labelled; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_no_object_is_told_without_names_that_only_some_files_have():
    with pytest.raises(DataError, match="x.jsonl, line 3: a JSON array, not an object. Write one object a line") as caught:
        parse_object(Line("x.jsonl", 3, '["text", "label"]'))
    assert "label" not in str(caught.value)
