"""Labelled texts: the same records whatever the format, and errors that name file, line and field."""

from __future__ import annotations

import gzip
import io
import json
import sys
from pathlib import Path

import pytest

from fishpaw.data.labelled import LabelledText, format_of, read_labelled, read_texts
from fishpaw.errors import DataError

SINGLE = [("味道, 不错", None, ("1",)), ('他说"一般"', None, ("0",)), ("", None, ("1",))]
PAIRED = [("甲", "乙", ("同",)), ("丙 ", "", ("异",))]


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def plain(records: list[LabelledText]) -> list[tuple[str, str | None, tuple[str, ...]]]:
    return [(record.text, record.pair, record.labels) for record in records]


@pytest.mark.parametrize("name", ["a.tsv", "a.txt", "a.data.gz", "a"])
@pytest.mark.parametrize("wanted", [SINGLE, PAIRED])
def test_tabs(tmp_path: Path, name: str, wanted: list[tuple[str, str | None, tuple[str, ...]]]) -> None:
    text = "".join("\t".join([a, *([b] if b is not None else []), label]) + "\n\n" for a, b, (label,) in wanted)
    found = list(read_labelled(write(tmp_path, name, text)))
    assert plain(found) == wanted
    assert [record.line for record in found] == [1, 3, 5][: len(found)]


@pytest.mark.parametrize(
    "header",
    ["label\ttext_a\ttext_b", "label\tReview\tpair", "label\tcontent\ttext_b", "label\ttitle\tsentence2",
     "Label\tsentence1\tsentence2", " label \ttext\tpair"],
)  # fmt: skip
def test_a_row_of_names_gives_the_order(tmp_path: Path, header: str) -> None:
    text = header + "\n" + "".join(f"{label}\t{a}\t{b}\n" for a, b, (label,) in PAIRED)
    assert plain(list(read_labelled(write(tmp_path, "a.tsv", text)))) == PAIRED
    assert plain(list(read_labelled(write(tmp_path, "a.csv", text.replace("\t", ","))))) == PAIRED


def test_json_lines(tmp_path: Path) -> None:
    rows = [
        {"text": "甲", "label": 3, "id": 7},
        {"text_a": "甲", "text_b": "乙", "label": "x"},
        {"sentence": "\ud800", "labels": ["a", "b"], "pair": None},
        {"text": "", "labels": [], "more": {"a": 1}},
        {"text": "甲", "label": True},
        {"text": "甲", "title": "not read", "label": "x"},
        {"content": "乙", "label": "x"},
    ]
    path = write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)))
    wanted = [("甲", None, ("3",)), ("甲", "乙", ("x",)), ("\ufffd", None, ("a", "b")), ("", None, ()), ("甲", None, ("true",))]
    wanted += [("甲", None, ("x",)), ("乙", None, ("x",))]
    assert plain(list(read_labelled(path))) == wanted


BAD_ROWS = {
    "no label": ("a.tsv", "甲\t1\n乙", "line 2: 1 cell, but the first row has 2"),
    "only texts": ("a.tsv", "甲\n乙", "line 1: 1 cell in a row.*text<TAB>label"),
    "four cells": ("a.tsv", "a\tb\tc\td", "line 1: 4 cells in a row"),
    "empty label": ("a.tsv", "甲\t1\n乙\t ", "line 2: 'label' is empty"),
    "column twice": ("a.tsv", "text\ttext\tlabel\n", "line 1: a column twice"),
    "unknown column": ("a.csv", "label,remark\n1,a", "line 1: looks like names of columns, but 'remark' is not known.*Use text, "),
    "one column too many": ("a.csv", "id,text,label\n1,a,b", "line 1: .*'id' is not known"),
    "no column of texts": ("a.csv", "label,pair\n1,a", "line 1: no column for the text"),
    "two columns of texts": ("a.csv", "title,text,label\na,b,1", "line 1: both 'title' and 'text'"),
    "title and content": ("a.jsonl", '{"title": "a", "content": "b", "label": 1}', "line 1: both 'content' and 'title'"),
    "two texts": ("a.jsonl", '{"text": "a", "sentence": "b", "label": 1}', "line 1: both 'text' and 'sentence'"),
    "no text": ("a.jsonl", '{"txt": "a", "label": 1}', "line 1: no text"),
    "text is a number": ("a.jsonl", '{"text": 5, "label": 1}', "line 1: 'text' is 5"),
    "no label in json": ("a.jsonl", '{"text": "a"}', "line 1: no label"),
    "label is null": ("a.jsonl", '{"text": "a", "label": null}', "line 1: 'label' holds null"),
    "label is a share": ("a.jsonl", '{"text": "a", "label": 0.5}', "line 1: 'label' holds 0.5"),
    "label twice": ("a.jsonl", '{"text": "a", "labels": ["x", " x"]}', "line 1: a label twice"),
}


@pytest.mark.parametrize(("name", "text", "message"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_record_is_named_by_file_line_and_field(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=f"{name}, {message}"):
        list(read_labelled(write(tmp_path, name, text)))


def test_one_budget_covers_every_kind_of_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes("甲\t1\n乙\n".encode() + b"\xff\t1\n" + "丙\t2\n".encode())
    with pytest.warns(UserWarning, match="2 bad records"):
        assert plain(list(read_labelled(path, skip_bad=2))) == [("甲", None, ("1",)), ("丙", None, ("2",))]
    with pytest.raises(DataError, match="line 3"):
        list(read_labelled(path, skip_bad=1))


def test_texts_to_label_keep_their_lines(tmp_path: Path) -> None:
    found = list(read_texts(write(tmp_path, "a.txt", "text\n\n甲\n")))
    assert [(record.line, record.text) for record in found] == [(1, "text"), (2, ""), (3, "甲")]
    assert plain(list(read_texts(write(tmp_path, "b.txt", "\n甲\t乙\n")))) == [("", None, ()), ("甲", "乙", ())]
    assert plain(list(read_texts(write(tmp_path, "a.jsonl", '{"text": "甲", "label": null}\n{"text": "乙"}')))) == [
        ("甲", None, ()),
        ("乙", None, ()),
    ]
    assert plain(list(read_texts(write(tmp_path, "a.tsv", "label\ttext\n1\t甲\n")))) == [("甲", None, ("1",))]


def test_standard_input_tells_json_from_tabs(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ('{"text": "甲", "label": 1}\n', "甲\t1\n"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert plain(list(read_labelled("-"))) == [("甲", None, ("1",))]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert list(read_labelled("-")) == []


def test_another_suffix_is_refused() -> None:
    assert [format_of(name) for name in ("a.JSONL.gz", "b.csv", "c", "d.data")] == ["jsonl", "csv", "txt", "txt"]
    with pytest.raises(DataError, match="a.parquet: .parquet is no known kind"):
        list(read_labelled("a.parquet"))
