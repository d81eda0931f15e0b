"""score: a line or an object a text, marks and colours, where texts come from, and one sentence for each mistake."""

from __future__ import annotations

import io
import math
import re

import pytest

from fishpaw.cli.score import marked
from fishpaw.tasks.score import Alternative, Score, Scored, ScoredToken


@pytest.fixture
def texts():
    return ["今天天气", "房间很好", "好"]


def test_lines_files_and_arguments_are_scored_alike(fishpaw_, models, files, texts):
    expected = Score.load(models / "bert").score(texts)
    joined = "\n".join(texts) + "\n"
    objects = "".join(f'{{"text": "{text}"}}\n' for text in texts)
    read = [["--data", files(name, content)] for name, content in (("x.txt", joined), ("x.txt.gz", joined), ("x.jsonl", objects))]
    ways = [([], joined), (["-"], joined), (texts, ""), *((words, "") for words in read)]
    for words, stdin in ways:
        done = fishpaw_("score", "--model", models / "bert", "--margin", 1000, *words, stdin=stdin)
        assert done.code == 0 and not done.err, done
        assert [line.split("\t")[3] for line in done.lines] == texts
        for line, one in zip(done.lines, expected, strict=True):
            assert [float(value) for value in line.split("\t")[:3]] == pytest.approx([one.total, one.mean, one.perplexity], abs=6e-3)
    (one,) = fishpaw_("score", "--model", models / "bert", texts[0]).lines
    assert one.split("\t")[0] == f"{expected[0].total:.2f}"
    for words in (["--data", files("x.txt", joined)], []):
        assert len(fishpaw_("score", "--model", models / "bert", "--limit", 2, *words, stdin=joined).lines) == 2
    assert len(fishpaw_("score", "--model", models / "bert", "--limit", 2, *texts).lines) == 2


@pytest.mark.parametrize("model", ["bert", "gpt2"])
def test_json_says_everything(fishpaw_, models, model):
    done = fishpaw_("score", "--model", models / model, "--json", "--top", 2, "--margin", 0, "--rank", 1, "今天 气")
    (one,) = done.objects
    assert one["text"] == "今天 气" and one["way"] == ("masked" if model == "bert" else "causal") and one["unknown"] == 0
    assert one["total"] == pytest.approx(sum(each["log_probability"] for each in one["tokens"]))
    assert one["perplexity"] == pytest.approx(math.exp(-one["total"] / len(one["tokens"]))) and one["mean"] < 0
    assert [*one["tokens"][0]] == ["start", "end", "token", "log_probability", "rank", "alternatives", "suspect"]
    assert all(len(each["alternatives"]) == 2 and each["suspect"] == (each["rank"] > 1) for each in one["tokens"])
    assert one["tokens"][-1]["end"] == 4


def test_what_is_unknown_is_told_and_not_scored(fishpaw_, models):
    done = fishpaw_("score", "--model", models / "bert", "今犇", "天", "犇")
    assert done.code == 0 and [line.split("\t")[3] for line in done.lines] == ["今犇", "天", "犇"]
    assert done.lines[2] == "-\t-\t-\t犇" and re.search(r"fishpaw: 2 tokens in 2 texts have no probability", done.err)


def test_who_gives_a_long_text_is_told_what_it_costs(fishpaw_, models, monkeypatch):
    monkeypatch.setattr("fishpaw.cli.score.LONG", 9)
    done = fishpaw_("score", "--model", models / "bert", "今天天气" * 3, "今天")
    assert done.code == 0 and len(done.lines) == 2 and done.err == "fishpaw: 12 units mean 12 reads\n"
    assert not fishpaw_("score", "--model", models / "gpt2", "今天天气" * 3).err                            # once, whatever its length


def token(start, end, best="气", suspect=True):
    return ScoredToken(start, end, "汽", -9.0, 50, (Alternative(best, -0.1), Alternative("天", -3.0)), suspect)


def test_suspects_are_marked_by_brackets_or_colours():
    one = Scored("今天天汽 很号", "masked", (token(0, 1, suspect=False), token(3, 4), token(6, 7, " 好")))
    assert marked(one, colours=False) == "今天天[汽→气] 很[号→好]"
    plain = re.sub("\x1b\\[[0-9;]*m", "", shown := marked(one, colours=True))
    assert plain == "今天天汽(气) 很号(好)" and shown.count("\x1b[0m") == 4
    parts = Scored("天汽", "causal", (token(1, 2), token(1, 2), token(0, 0)))              # two tokens of one character, one of none
    assert marked(parts, colours=False) == "天[汽→气]"


@pytest.mark.parametrize(("terminal", "quiet", "colours"), [(True, "", True), (True, "1", False), (False, "", False)])
def test_colours_are_for_terminals_that_want_them(fishpaw_, models, monkeypatch, terminal, quiet, colours):
    class Screen(io.BytesIO):
        def isatty(self):
            return terminal

    monkeypatch.setenv("NO_COLOR", quiet)
    done = fishpaw_("score", "--model", models / "bert", "--margin", 0, "--rank", 1, "今天天气房间", stdout=Screen())
    assert ("\x1b[1;31m" in done.out) == colours and ("→" in done.out) != colours
    assert "\x1b" not in fishpaw_("score", "--model", models / "bert", "--json", "--margin", 0, "今天", stdout=Screen()).out


def test_another_mask_scores_from_left_to_right(fishpaw_, models):
    (one,) = fishpaw_("score", "--model", models / "bert", "--change", "mask=causal", "--json", "今天").objects
    assert one["way"] == "causal"


def test_mistakes_are_one_sentence(fishpaw_, models, files, refused):
    bert = ["score", "--model", models / "bert"]
    refused(fishpaw_(*bert, ""), "The text is blank")
    refused(fishpaw_(*bert, "今", " "), "A text is blank")
    refused(fishpaw_(*bert, "\u200b"), "The text has no token to score")
    refused(fishpaw_(*bert, stdin=""), "standard input: no text")
    refused(fishpaw_(*bert, "--data", files("empty.txt", "")), r"empty.txt: no text")
    refused(fishpaw_(*bert, "--data", files("x.tsv", "今\t天\n")), "line 1: a pair of texts")
    refused(fishpaw_(*bert, "--data", files.folder / "nowhere.txt"), "nowhere.txt")
    refused(fishpaw_(*bert, "今", "--data", files("x.txt", "今\n")), "--data are given")
    refused(fishpaw_(*bert, "今", "天", "--data", files("x.txt", "今\n")), "--data are given")
    refused(fishpaw_(*bert, "今", "--max-length", 2), "--max-length is 2: no room.*Raise --max-length")
    refused(fishpaw_(*bert, "今", "--change", "heads=[]"), "no head that scores tokens")
    refused(fishpaw_(*bert, "今", "--change", "mask=unilm"), "unilm")
    refused(fishpaw_("score", "--model", models / "t5", "今"), "encoder-decoder")
    refused(fishpaw_("score", "--model", files.folder / "none", "今"), "none")
    done = fishpaw_(*bert, "--data", files("gap.txt", "今\n\u200b\n天\n"))
    assert done.code == 2 and len(done.lines) == 1 and "gap.txt, line 2: The text has no token" in done.err
    done = fishpaw_(*bert, stdin="今\n天\n\u200b\n")
    assert done.code == 2 and len(done.lines) == 2 and "standard input, line 3: The text has no token" in done.err


def test_long_lines_and_thousands_of_them(fishpaw_, models):
    done = fishpaw_("score", "--model", models / "bert", "--change", "mask=causal", stdin="今天" * 200 + "\n" + "好天\n" * 3000)
    assert done.code == 0 and len(done.lines) == 3001 and done.lines[1:] == [done.lines[1]] * 3000
