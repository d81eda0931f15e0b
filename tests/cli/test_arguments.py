"""What verbs read and where they write: every kind of file, standard input, and a sentence for each that can't be."""

from __future__ import annotations

import gzip
import json

import pytest

from fishpaw.cli.arguments import changes_of
from fishpaw.errors import ConfigError

LETTERS = "今天气我们去公园玩吧房间前台很热情下次"


@pytest.mark.parametrize("name", ["x.tsv", "x.csv", "x.jsonl", "x.txt", "x.tsv.gz", "x.jsonl.gz", "-"])
@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_every_kind_of_data_gives_the_same(fishpaw_, models, files, verb, name):
    rows = [("今天好", "pos"), ("房间，坏", "neg"), ("好", "neg")]
    if ".jsonl" in name:
        text = "".join(json.dumps({"text": text, "label": label}, ensure_ascii=name.endswith(".gz")) + "\n" for text, label in rows)
    elif verb == "evaluate":
        text = "".join(f"{text},{label}\n" if ".csv" in name else f"{text}\t{label}\r\n" for text, label in rows)
    else:
        text = "".join(f"{text}\n" for text, _ in rows)
    words = [verb, "classify", "--model", models / "task", "--json", "--data"]
    done = fishpaw_(*words, "-" if name == "-" else files(name, text), stdin=text if name == "-" else b"")
    assert done.code == 0, done
    wanted = fishpaw_(*words, files("plain.jsonl", "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)))
    assert done.objects == wanted.objects and len(done.lines) == (3 if verb == "predict" else 1)


def test_stdin_is_the_default_and_limit_limits(fishpaw_, models):
    lines = "".join(f"今天{letter}\n" for letter in LETTERS)
    done = fishpaw_("predict", "classify", "--model", models / "task", "--limit", 3, stdin=lines)
    assert [line.split("\t")[2] for line in done.lines] == ["今天今", "今天天", "今天气"]
    alone = fishpaw_("predict", "classify", "--model", models / "task", "--batch-size", 1, stdin=lines)
    assert [line.split("\t")[0] for line in alone.lines][:3] == [line.split("\t")[0] for line in done.lines]
    nothing = fishpaw_("predict", "classify", "--model", models / "task", stdin="")
    assert (nothing.code, nothing.out, nothing.err) == (2, "", "fishpaw: standard input: no text. Write a text on each line.\n")


def data_mistakes(write) -> dict[str, tuple[object, str]]:
    return {
        "missing": ("nowhere.tsv", "nowhere.tsv: can't be opened"),
        "folder": (write.folder, "can't be opened"),
        "empty": (write("e.tsv", ""), r"e.tsv: no example"),
        "one cell": (write("c.tsv", "好\tpos\n坏\n"), r"c.tsv, line 2: 1 cell"),
        "no label": (write("n.jsonl", '{"text": "好"}\n'), r"n.jsonl, line 1: no label"),
        "not JSON": (write("j.jsonl", '{"text": "好", "label": "pos"}\n{\n'), r"j.jsonl, line 2: not JSON"),
        "GBK": (write("g.tsv", "你好\tpos\n".encode("gbk")), r"g.tsv, line 1: not UTF-8 .*iconv"),
        "binary": (write("b.tsv", bytes(range(256)) * 9), r"b.tsv, line \d+"),
        "UTF-16": (write("u.tsv", "你好\tpos\n".encode("utf-16")), r"u.tsv, line 1: not UTF-8 .*utf-16"),
        "no gzip": (write("plain.txt", "好\tpos\n").rename(write.folder / "z.tsv.gz"), r"z.tsv.gz.*damaged gzip"),
        "torn gzip": (write("t.gz", gzip.compress(b"a\tpos\n" * 9999)[:-20]).rename(write.folder / "t.tsv"), "t.tsv, line 1: .*is gzip"),
        "other kind": (write("x.xlsx", "好"), r"\.xlsx is no known kind"),
        "blank lines": (write("l.tsv", "\n\n\n"), "no example"),
    }


@pytest.mark.parametrize("verb", ["train", "evaluate"])
@pytest.mark.parametrize("mistake", ["missing", "folder", "empty", "one cell", "no label", "not JSON", "GBK", "binary", "UTF-16", "no gzip",
                                     "torn gzip", "other kind", "blank lines"])  # fmt: skip
def test_data_that_cannot_be_read_is_one_sentence(fishpaw_, models, files, verb, mistake, refused):
    data, says = data_mistakes(files)[mistake]
    rest = ["--model", models / "task"] if verb == "evaluate" else ["--out", files.folder / "run"]
    refused(fishpaw_(verb, "classify", "--data", data, *rest), says)
    assert not (files.folder / "run").exists()


def test_out_is_looked_at_before_the_data(fishpaw_, files, refused):
    done = fishpaw_("train", "classify", "--data", files.folder / "nowhere.tsv", "--out", files.folder / "dev.tsv" / "run")
    refused(done, "--out .*dev.tsv is a file, not a folder")


@pytest.mark.parametrize("out", ["reviews.tsv", "reviews.tsv/run"])
def test_an_out_that_cannot_be_written_is_one_sentence(fishpaw_, models, files, out, refused):
    words = ["train", "classify", "--data", files.folder / "reviews.tsv", "--model", models / "bert", "--steps", 1]
    refused(fishpaw_(*words, "--out", files.folder / out), "can't be written|is a file")
    assert (files.folder / "reviews.tsv").read_text(encoding="utf-8").startswith("今好")


@pytest.mark.parametrize(
    ("given", "changes"),
    [
        (None, {}),
        (["attention=linear"], {"attention": "linear"}),
        (['position={"name": "hierarchical", "alpha": 0.4}', " dropout = 0.2 "],
         {"position": {"name": "hierarchical", "alpha": 0.4}, "dropout": 0.2}),
        (["residual_scores=true", "position=a=b"], {"residual_scores": True, "position": "a=b"}),
    ],
)  # fmt: skip
def test_changes_are_json_or_names(given, changes):
    assert changes_of(given) == changes


@pytest.mark.parametrize(("given", "says"), [(["attention"], "no FIELD=JSON"), (["=3"], "no FIELD=JSON"), (["a="], "no FIELD=JSON"),
                                             (["a=1", "a=2"], "given twice"), (["a={name: none}"], "no JSON")])
def test_changes_of_other_forms_are_refused(given, says):
    with pytest.raises(ConfigError, match=says):
        changes_of(given)


def test_a_dash_in_the_place_of_a_text_is_standard_input(fishpaw_, models):
    text = "今天好\n房间坏\n"
    done = [fishpaw_("predict", "classify", "--model", models / "task", *words, stdin=text) for words in (["-"], ["--data", "-"], [])]
    assert done[0].code == 0 and done[0].out == done[1].out == done[2].out and done[0].out.count("\n") == 2
