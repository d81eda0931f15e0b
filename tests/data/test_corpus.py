"""Files to documents: lines, blocks, cells, fields; gz and standard input; bad lines named by file and line."""

from __future__ import annotations

import gzip
import io
import json
import sys

import pytest

from fishpaw.data.corpus import read_documents
from fishpaw.errors import ConfigError, DataError


def texts(*paths, **options):
    return [one.text for one in read_documents(paths, **options)]


def test_lines_or_blocks_of_lines(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("\n鱼\n我所欲也\n \n\n熊掌\n亦我所欲也", encoding="utf-8")
    assert texts(file) == ["鱼", "我所欲也", "熊掌", "亦我所欲也"]
    found = list(read_documents([file], unit="block"))
    assert [(one.line, one.text) for one in found] == [(2, "鱼\n我所欲也"), (6, "熊掌\n亦我所欲也")] and found[0].file == str(file)


def test_fields_and_columns(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "一", "title": "甲"}\n\n{"text": ["二", "三"], "title": "乙"}\n', encoding="utf-8")
    (tmp_path / "b.tsv").write_text("id\ttext\n1\t四\n2\t五\n", encoding="utf-8")
    (tmp_path / "c.csv").write_text('"六,七",x\n八,y\n', encoding="utf-8")
    assert texts(tmp_path / "a.jsonl") == ["一", "二\n三"] and texts(tmp_path / "a.jsonl", field="title") == ["甲", "乙"]
    assert texts(tmp_path / "b.tsv", field="text") == ["四", "五"] and texts(tmp_path / "c.csv") == ["六,七", "八"]
    assert texts(tmp_path / "b.tsv", tmp_path / "a.jsonl", field="text") == ["四", "五", "一", "二\n三"]


def test_packed_files_and_standard_input(tmp_path, monkeypatch):
    with gzip.open(tmp_path / "a.txt.gz", "wt", encoding="utf-8") as file:
        file.write("鱼\n熊掌\n")
    assert texts(tmp_path / "a.txt.gz") == ["鱼", "熊掌"]
    for written, expected in (("鱼\n熊掌\n", ["鱼", "熊掌"]), (json.dumps({"text": "鱼"}) + "\n", ["鱼"])):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(written.encode())))
        assert texts("-") == expected


def test_nothing_is_read_ahead(tmp_path):
    (tmp_path / "a.txt").write_text("鱼\n" * 3, encoding="utf-8")
    assert next(read_documents([tmp_path / "a.txt", tmp_path / "missing.txt"])).text == "鱼"


@pytest.mark.parametrize("name, raw, options, said", [
    ("a.txt", "鱼\n".encode() + b"\xff\n", {}, "a.txt, line 2: not UTF-8"),
    ("a.jsonl", b'{"text": "x"}\n{"body": "y"}\n', {}, "a.jsonl, line 2: no field 'text'; there are body"),
    ("a.jsonl", b'{"text": 3}\n', {}, "a.jsonl, line 1, field 'text'"),
    ("a.jsonl", b'{"text": ["x", 3]}\n', {}, "a.jsonl, line 1, field 'text'"),
    ("a.jsonl", b"x\n", {}, "a.jsonl, line 1: not JSON"),
    ("a.tsv", b"id\ttext\n", {"field": "body"}, "a.tsv, line 1: no column 'body'; there are id, text"),
    ("a.tsv", b"id\ttext\n1\n", {"field": "text"}, "a.tsv, line 2: 1 cells"),
    ("a.parquet", b"", {}, "parquet is no known kind"),
])  # fmt: skip
def test_what_can_not_be_read_is_named(tmp_path, name, raw, options, said):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=said):
        texts(tmp_path / name, **options)


def test_bad_lines_may_be_left_out_and_are_counted_over_all_files(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"text": "鱼"}\n{"body": "y"}\n', encoding="utf-8")
    both = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    with pytest.warns(UserWarning, match="2 bad records left out; the first: .*a.jsonl, line 2"):
        assert texts(*both, skip_bad=2) == ["鱼", "鱼"]
    with pytest.raises(DataError, match="b.jsonl, line 2"):
        texts(*both, skip_bad=1)


def test_another_unit_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="unit is 'page'"):
        texts(tmp_path / "a.txt", unit="page")
    with pytest.raises(DataError, match=r"a\.txt: can't be opened"):
        texts(tmp_path / "a.txt")
