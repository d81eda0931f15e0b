"""fill: where each blank stands, its candidates, and who can't be asked."""

from __future__ import annotations

import re


def test_fill(fishpaw_, models, files):
    done = fishpaw_("fill", "--model", models / "bert", "今天[MASK]很[MASK]", "--top", 3)
    assert done.code == 0 and [line.split("\t")[0] for line in done.lines] == ["2", "9"]
    assert all(re.fullmatch(r"\d(\t\S+ [01]\.\d{3}){3}", line) for line in done.lines)
    lined = fishpaw_("fill", "--model", models / "bert", "--data", files("x.txt", "[MASK]天\n今[MASK]\n"), "--top", 2)
    assert [line.split("\t")[:2] for line in lined.lines] == [["1", "0"], ["2", "1"]]
    objects = fishpaw_("fill", "--model", models / "bert", "--data", files("x.jsonl", '{"text": "今[MASK]"}\n'), "--json").objects
    assert objects[0]["text"] == "今[MASK]" and objects[0]["start"] == 1 and len(objects[0]["candidates"]) == 5


def test_fill_refuses_and_names_the_line(fishpaw_, models, files, refused):
    refused(fishpaw_("fill", "--model", models / "bert", "今天"), r"no \[MASK\]")
    refused(fishpaw_("fill", "--model", models / "gpt2", "[MASK]"), r"byte-level tokenizer has no \[MASK\]|head mlm")
    data = files("x.txt", "[MASK]\n" + "今" * 99 + "[MASK]\n")
    done = fishpaw_("fill", "--model", models / "bert", "--data", data)
    assert done.code == 2 and len(done.lines) == 1 and "x.txt, line 2: A text of 102 tokens, but the model has 61 positions" in done.err
    refused(fishpaw_("fill", "--model", models / "bert", "--data", files("x.tsv", "[MASK]\tb\n")), "line 1: a pair of texts")
    refused(fishpaw_("fill", "--model", models / "bert", stdin="今\n"), "standard input, line 1: The text has no")
