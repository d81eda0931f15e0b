"""Pairs from tables and JSON lines: every form that is understood, and a sentence with file and line for those that aren't."""

from __future__ import annotations

import gzip
import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fishpaw.data.pairs import Pair, read_pairs, read_sources
from fishpaw.errors import DataError

WANTED = [("今天天气很好", "天气"), ("我们去公园", "公园")]


@pytest.fixture
def file(tmp_path):
    def write(name: str, text: str) -> Path:
        data = text.encode("utf-8", "surrogatepass")
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", "今天天气很好\t天气\n我们去公园\t公园\n"),
        ("a.txt", "今天天气很好\t天气\n\n我们去公园\t公园"),
        ("a.tsv.gz", "Source\ttarget\n今天天气很好\t天气\n我们去公园\t公园\n"),
        ("a.tsv", "summary\tcontent\n天气\t今天天气很好\n公园\t我们去公园\n"),
        ("a.csv", '"今天天气很好",天气\n我们去公园,"公园"\n'),
        ("a.jsonl", '{"source": "今天天气很好", "target": "天气", "id": 3}\n{"title": "公园", "text": "我们去公园"}\n'),
    ],
    ids=["tsv", "txt with an empty line", "names", "names the other way round", "csv", "jsonl"],
)
def test_forms(file, name, text):
    path = file(name, text)
    found = list(read_pairs(path))
    assert [(one.source, one.target) for one in found] == WANTED
    assert all(one.file == str(path) and one.line > 0 for one in found) and found[1].line > found[0].line
    assert [(one.source, one.target) for one in read_sources(path) if one.source] == [(source, "") for source, _ in WANTED]


def test_other_names(file):
    jsonl = file("a.jsonl", '{"abst": "今天天气很好", "title": "天气", "text": 3}\n{"abst": "我们去公园", "title": "公园"}\n')
    table = file("a.tsv", "title\tid\tabst\n天气\t1\t今天天气很好\n公园\t2\t我们去公园\n")
    for path in (jsonl, table):
        assert [(one.source, one.target) for one in read_pairs(path, fields=("abst", "title"))] == WANTED
        assert [one.source for one in read_sources(path, fields=("abst", "title"))] == [source for source, _ in WANTED]
    with pytest.raises(DataError, match=r"a\.tsv, line 1: 0 columns named 'summary'"):
        list(read_pairs(table, fields=("abst", "summary")))


def test_sources_stand_beside_their_lines(file):
    path = file("a.txt", "一\n\n二\t不读\n")
    assert list(read_sources(path)) == [Pair("一", "", str(path), 1), Pair("", "", str(path), 2), Pair("二", "", str(path), 3)]
    assert [one.source for one in read_sources(file("a.jsonl", '{"question": "一"}\n'))] == ["一"]


@pytest.mark.parametrize(("text", "source"), [(b'{"source": "\\ud800x", "target": "y"}\n', "\ufffdx"), (b"x\ty\n", "x")])
def test_standard_input_is_looked_at(monkeypatch, text, source):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text)))
    (pair,) = read_pairs("-")
    assert (pair.source, pair.target, pair.file) == (source, "y", "standard input")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.tsv", "一\t二\n一\n", r"a\.tsv, line 2: 1 cell in a row.*source<TAB>target"),
        ("a.tsv", "一\t二\t三\n", r"a\.tsv, line 1: 3 cells in a row"),
        ("a.tsv", "一\t \n", r"a\.tsv, line 1: the target is empty"),
        ("a.tsv", "text\ttitle\tid\n", r"a\.tsv, line 1: 3 columns \(text, title, id\).*--fields"),
        ("a.csv", "text,title\n一\n", r"a\.csv, line 2: 1 cell, but the first row has 2"),
        ("a.jsonl", '{"source": "一"}\n', r"a\.jsonl, line 1: no target.*title, summary, answer"),
        ("a.jsonl", '{"target": "一"}\n', r"a\.jsonl, line 1: no source"),
        ("a.jsonl", '{"text": "一", "content": "一", "title": "二"}\n', r"line 1: both 'text' and 'content'"),
        ("a.jsonl", '{"text": "一", "title": 2}\n', r"line 1: 'title' is 2"),
        ("a.jsonl", '{"text": "一", "title": "二"}\n[]\n', r"line 2: a JSON array"),
        ("a.doc", "", r"\.doc is no known kind"),
    ],
)
def test_mistakes_are_named(file, name, text, says):
    with pytest.raises(DataError, match=says):
        list(read_pairs(file(name, text)))


def test_as_many_bad_ones_as_allowed_are_left_out(file):
    path = file("a.tsv", "一\t二\n坏\n\t三\n坏\n")
    with pytest.warns(UserWarning, match="2 bad records left out; the first: .*line 2"):
        assert [one.target for one in read_pairs(path, skip_bad=2)] == ["二", "三"]
    with pytest.raises(DataError, match="line 4.*1 bad records were left out"):
        list(read_pairs(path, skip_bad=1))
    with pytest.warns(UserWarning), pytest.raises(AssertionError):  # planted: a swapped pair
        assert [one.source for one in read_pairs(path, skip_bad=2)] == ["二", "三"]
