"""Examples from files, and the prompt that is made of them."""

from __future__ import annotations

import gzip
import json

import pytest

from fishpaw.errors import DataError
from fishpaw.tasks.shots import Shot, few_shot, shots

PAIRS = [Shot("狗", "dog"), Shot("猫", "a cat"), Shot("'猪\"", "pig")]


@pytest.mark.parametrize("name", ["shots.tsv", "shots", "shots.jsonl", "shots.jsonl.gz"])
def test_lines_and_objects_say_the_same(tmp_path, name):
    path = tmp_path / name
    if "jsonl" in name:
        text = "".join(json.dumps({"input": one.input, "output": one.output, "from": "me"}, ensure_ascii=False) + "\n" for one in PAIRS)
    else:
        text = "\n\n".join(f"{one.input}\t{one.output}" for one in PAIRS) + "\r\n"
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert shots(path) == PAIRS


def test_a_prompt_is_a_line_an_example_and_what_is_asked():
    assert few_shot(PAIRS[:2], "鸟") == "狗 dog\n猫 a cat\n鸟 "
    assert few_shot([Shot("法国的首都是", "巴黎")], "中国的首都是", between="") == "法国的首都是巴黎\n中国的首都是"
    assert few_shot([], "鸟") == "鸟 "


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.tsv", "狗 dog\n", "a.tsv, line 1: no example"), ("a.tsv", "狗\tdog\tx\n", "line 1: no example"),
        ("a.tsv", "狗\tdog\n猫\t \n", "line 2: no example"), ("a.tsv", "狗\tdog\n猫\n", "line 2"), ("a.tsv", "\n", "a.tsv has no examples"),
        ("a.jsonl", '{"input": "狗"}', "line 1: no example"), ("a.jsonl", '{"input": "狗", "output": 3}', "line 1: no example"),
        ("a.jsonl", '{"input": "狗\\n猫", "output": "x"}', "line 1: the example has several lines"),
    ],
)  # fmt: skip
def test_what_is_no_example_is_named(tmp_path, name, text, said):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        shots(path)


def test_a_text_of_several_lines_is_refused():
    with pytest.raises(DataError, match="several lines"):
        few_shot(PAIRS, "鸟\n鱼")
    with pytest.raises(DataError, match="/nowhere/shots.tsv"):
        shots("/nowhere/shots.tsv")
