"""parse: brackets and CoNLL-U, words from segment, drawings, and one sentence for each mistake."""

from __future__ import annotations

from xml.etree import ElementTree

from fishpaw.interpret.constituency import code
from fishpaw.interpret.dependency import chu_liu_edmonds
from fishpaw.tasks.parse import Parse

TEXT = "今天 天气 很 热情"


def test_brackets_and_columns(fishpaw_, models, files):
    bert, task = ["parse", "-m", models / "bert"], Parse.load(models / "bert")
    assert fishpaw_(*bert, TEXT).lines == [task.constituency(TEXT).shown]
    assert fishpaw_(*bert, "--objective", "code", TEXT, "今天气").lines == \
        [task.constituency(text, objective=code).shown for text in (TEXT, "今天气")]  # fmt: skip
    assert fishpaw_(*bert, "--tree", "dependency", "--data", files("x.txt", f"{TEXT}\n\n今天\n")).out == \
        task.dependency(TEXT).shown + "\n" + "\n" + task.dependency("今天").shown + "\n"  # fmt: skip
    (*rows, last) = fishpaw_(*bert, "--tree", "dependency", "--algorithm", "chu-liu-edmonds", "--root", 3, TEXT).lines
    assert last == "" and rows[2].split("\t")[6:8] == ["0", "root"]
    assert [int(row.split("\t")[6]) - 1 for row in rows] == list(task.dependency(TEXT, algorithm=chu_liu_edmonds, root=2).heads)


def test_words_may_come_from_segment(fishpaw_, models):
    segmented = fishpaw_("segment", "-m", models / "bert", "今天天气很热").out
    (line,) = fishpaw_("parse", "-m", models / "bert", stdin=segmented).lines
    assert " ".join(line.replace("(", "").replace(")", "").split()) == segmented.strip()


def test_json_says_everything(fishpaw_, models):
    bert = ["parse", "-m", models / "bert", "--json"]
    empty, one = fishpaw_(*bert, stdin=f"\n{TEXT}\n").objects
    assert sorted(empty) == sorted(one) == ["heads", "impact", "text", "tree", "words"] and set(empty.values()) == {"", None}
    assert one["text"] == TEXT and one["words"] == TEXT.split() and one["heads"] is None and len(one["tree"]) == 2
    assert [len(row) for row in one["impact"]] == [4] * 4 and one["impact"][2][2] == 0
    (other,) = fishpaw_(*bert, "--tree", "dependency", "--metric", "cosine", "--layer", 1, TEXT).objects
    assert other["tree"] is None and sorted(other["heads"])[0] == -1 and other["impact"] != one["impact"]


def test_drawings(fishpaw_, models, files):
    folder, bert = files.folder, ["parse", "-m", models / "bert", TEXT]
    assert fishpaw_(*bert, "--svg", folder / "phrases.svg", "--heat", folder / "heat.svg").code == 0
    assert fishpaw_(*bert, "--tree", "dependency", "--svg", folder / "heads.svg").code == 0
    pages = [(folder / name).read_text(encoding="utf-8") for name in ("phrases.svg", "heat.svg", "heads.svg")]
    assert [page.count("<path") for page in pages] == [6, 0, 8] and pages[1].count("<title>") == 16
    assert all(ElementTree.fromstring(page.encode("utf-8")).tag.endswith("svg") for page in pages)


def test_who_gives_a_long_text_is_told_what_it_costs(fishpaw_, models, monkeypatch):
    assert not fishpaw_("parse", "-m", models / "bert", TEXT, "今" * 5).err
    monkeypatch.setattr("fishpaw.cli.parse._LONG", 4)
    assert fishpaw_("parse", "-m", models / "bert", TEXT, "今" * 5, "今 天 天 天 天 天").err == \
        "fishpaw: 5 units mean 15 reads\nfishpaw: 6 units mean 21 reads\n"  # fmt: skip
    assert "mean" not in fishpaw_("parse", "-m", models / "bert", "今" * 60).err               # refused


def test_mistakes_are_one_sentence(fishpaw_, models, files, refused):
    bert = ["parse", "-m", models / "bert"]
    refused(fishpaw_(*bert, "--root", 1, TEXT), "--root is for --tree dependency. Add --tree dependency, or leave --root out")
    refused(fishpaw_(*bert, "--svg", "-", TEXT), "--svg - is no file")
    refused(fishpaw_(*bert, "--heat", "-", TEXT), "--heat - is no file")
    refused(fishpaw_(*bert, "--algorithm", "eisner", TEXT), "--algorithm is for --tree dependency")
    refused(fishpaw_(*bert, "--tree", "dependency", "--objective", "article", TEXT), "--objective is for --tree constituency")
    refused(fishpaw_(*bert, "--tree", "dependency", "--root", 5, TEXT), "The root is word 5, but the text has 4")
    refused(fishpaw_(*bert, "--svg", files.folder / "x.svg", "今", "天"), "--svg is for one text")
    refused(fishpaw_(*bert, "--svg", files.folder, TEXT), "--svg .* is a folder")
    refused(fishpaw_(*bert, "--svg", files.folder / "x.svg", "--heat", files.folder / "x.svg", TEXT), "--svg and --heat are both")
    refused(fishpaw_(*bert, "--layer", -3, TEXT), "layer is -3")
    refused(fishpaw_(*bert, "今" * 60), "60 tokens, but the model reads 59")
    refused(fishpaw_(*bert, "--data", files("x.tsv", "今\t天\n")), "line 1: a pair of texts")
    refused(fishpaw_("parse", "-m", models / "gpt2", TEXT), "needs a masked language model")
    refused(fishpaw_("parse", "-m", models / "t5", TEXT), "needs a masked language model")
    refused(fishpaw_("parse", "-m", models / "several", TEXT), "trained for classify")
    done = fishpaw_(*bert, "--heat", files.folder / "x.svg", stdin="今 天\n天 气\n")
    assert done.code == 2 and "--heat is for one text. Add --limit 1." in done.err
    assert not done.out and not (files.folder / "x.svg").exists()      # nor is the first drawn
    done = fishpaw_(*bert, stdin="今 天\n今 \u200b\n")
    assert done.code == 2 and len(done.lines) == 1 and "standard input, line 2: The word '\\u200b' has no token" in done.err
