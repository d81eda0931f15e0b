"""Conversations of every kind of file, and a sentence with file and line for each that is none."""

from __future__ import annotations

import gzip
import io
import sys

import pytest

from fishpaw.data.conversations import Conversation, read_conversations
from fishpaw.errors import DataError


@pytest.fixture
def written(tmp_path):
    def write(name: str, content: str):
        data = content.encode("utf-8")
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"turns": ["你好", "你好呀"], "id": 3}\n\n["吃了吗", "没有"]\n'),
        ("a.jsonl.gz", '["你好", " 你好呀 "]\n["吃了吗", "没有"]\n'),
        ("a.tsv", "你好\t你好呀\n\n吃了吗\t没有\n"),
        ("a.txt", "你好\t你好呀\n吃了吗\t没有"),
        ("a.csv", "你好,你好呀\n吃了吗,没有\n"),
    ],
)
def test_every_kind_of_file(written, name, content):
    found = list(read_conversations(written(name, content)))
    assert [one.turns for one in found] == [("你好", "你好呀"), ("吃了吗", "没有")]
    assert found[0].file.endswith(name) and found[0].line == 1


@pytest.mark.parametrize("content", ['["你好", "你好呀"]\n', ' {"turns": ["你好", "你好呀"]}\n', "你好\t你好呀\n"])
def test_standard_input_is_known_by_its_first_line(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode("utf-8"))))
    (one,) = read_conversations("-")
    assert one == Conversation(("你好", "你好呀"), "standard input", 1)


@pytest.mark.parametrize(
    ("name", "line", "says"),
    [
        ("a.jsonl", '{"turn": ["a", "b"]}', "no turns"),
        ("a.jsonl", '{"turns": "ab"}', "'turns' is \"ab\""),
        ("a.jsonl", '["a", "b"', "not JSON"),
        ("a.jsonl", '{"turns": ["a", "b"}', "not JSON"),
        ("a.jsonl", '"a"', "a JSON string"),
        ("a.jsonl", '["a", 3]', "turn 2 is 3"),
        ("a.jsonl", '["a", "b", " "]', "turn 3 is blank"),
        ("a.jsonl", '["a"]', "1 turn in"),
        ("a.jsonl", "[]", "0 turns in"),
        ("a.tsv", "a", "1 cell in a row"),
        ("a.tsv", "a\tb\tc", "3 cells in a row"),
        ("a.tsv", "a\t", "turn 2 is blank"),
    ],
)
def test_a_bad_line_is_named_or_left_out(written, name, line, says):
    good = '["a", "b"]' if name == "a.jsonl" else "a\tb"
    path = written(name, f"{good}\n{line}\n{good}\n")
    with pytest.raises(DataError, match="a.*line 2.*") as error:
        list(read_conversations(path))
    assert says in str(error.value)
    with pytest.warns(UserWarning, match="1 bad records left out"):
        assert [one.line for one in read_conversations(path, skip_bad=1)] == [1, 3]


def test_half_a_surrogate_and_turns_backwards(written):
    (one,) = read_conversations(written("a.jsonl", '["a\\ud83d", "b", "c"]'))
    assert one.turns[0] == "a\ufffd" and one.backwards.turns == ("c", "b", "a\ufffd") and one.backwards.line == 1
    assert [one.turns for one in read_conversations(written("b.jsonl", '["a"]'), least=1)] == [("a",)]
