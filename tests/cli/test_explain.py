"""explain: a line or an object a text, colours and pages, where texts come from, and one sentence for each mistake."""

from __future__ import annotations

import io
import json
import re

import pytest

from fishpaw.tasks.explain import Explain, masks


@pytest.fixture
def texts():
    return ["今天天气", "今天房间很好", "气去玩"]


def told(line: str) -> tuple[str, float, str]:
    label, value, text = line.split("\t")
    return label, float(value), text


def test_lines_files_and_arguments_are_explained_alike(fishpaw_, models, files, texts):
    task = Explain.load(models / "task")
    expected = [task.explain(text) for text in texts]
    joined = "\n".join(texts) + "\n"
    objects = "".join(f'{{"text": "{text}"}}\n' for text in texts)
    read = [["--data", files(name, content)] for name, content in (("x.txt", joined), ("x.txt.gz", joined), ("x.jsonl", objects))]
    for words, stdin in [([], joined), (["-"], joined), (texts, ""), *((words, "") for words in read)]:
        done = fishpaw_("explain", "--model", models / "task", *words, stdin=stdin)
        assert done.code == 0 and not done.err, done
        for line, one in zip(done.lines, expected, strict=True):
            label, value, text = told(line)
            assert (label, value) == (one.label, pytest.approx(one.value, abs=1e-4))
            assert text == " ".join(f"{each.token}{each.score:+.3f}" for each in one.tokens)
    assert len(fishpaw_("explain", "--model", models / "task", "--limit", 2, stdin=joined).lines) == 2
    assert len(fishpaw_("explain", "--model", models / "task", "--limit", 2, *texts).lines) == 2


def test_json_says_everything_and_blank_lines_keep_their_places(fishpaw_, models):
    done = fishpaw_("explain", "--model", models / "task", "--json", "--label", "neg", stdin="今天 气\n\n好\n")
    first, blank, _ = done.objects
    assert [*first] == ["text", "pair", "label", "value", "baseline", "error", "points", "tokens"] == [*blank]
    assert first["label"] == "neg" and first["points"] == 50 and [one["start"] for one in first["tokens"]] == [0, 1, 3]
    assert blank == {"text": "", **dict.fromkeys([*blank][1:])}
    lines = fishpaw_("explain", "--model", models / "task", stdin="今\n \n好\n").lines
    assert len(lines) == 3 and not lines[1] and lines[2].endswith(lines[2].split("\t")[2])


@pytest.mark.parametrize(("words", "points"), [
    (["--method", "integrated", "--points", 7], 7), (["--method", "complete"], 12), (["--method", "expected", "--points", 20], 20),
    (["--method", "smooth", "--points", 20], 20), (["--method", "input"], 1), (["--baseline", "pad"], 50), (["--baseline", "mask"], 50),
])  # fmt: skip
def test_each_method_and_baseline_has_its_name(fishpaw_, models, words, points):
    (one,) = fishpaw_("explain", "--model", models / "task", "--json", *words, "今天很好").objects
    assert one["points"] == points and len(one["tokens"]) == 4
    plain = Explain.load(models / "task").explain("今天很好")
    mask = Explain.load(models / "task").explain("今天很好", baseline=masks)
    assert (one["baseline"] == pytest.approx(plain.baseline, abs=1e-6)) == (not {"pad", "mask", "expected"} & set(words))
    assert (one["baseline"] == pytest.approx(mask.baseline, abs=1e-6)) == ("mask" in words)


def test_a_seed_says_what_is_random(fishpaw_, models):
    def run(seed: int) -> str:
        return fishpaw_("explain", "--model", models / "task", "--json", "--method", "expected", "--points", 8, "--seed", seed, "今天").out

    assert run(1) == run(1) != run(2)


def test_pairs_stand_beside_each_other(fishpaw_, models, files):
    for words in (["今天\t很好"], ["--data", files("x.tsv", "今天\t很好\n")], ["--data", files("x.txt", "今天\t很好\n")]):
        (one,) = fishpaw_("explain", "--model", models / "several", "--json", *words).objects
        assert (one["text"], one["pair"]) == ("今天", "很好") and [each["second"] for each in one["tokens"]] == [False] * 2 + [True] * 2
        (line,) = fishpaw_("explain", "--model", models / "several", *words).lines
        assert re.fullmatch(r"[ab]\t0\.\d+\t今[+-]\S+ 天\S+\t很\S+ 好\S+", line)


def test_a_masked_language_model_is_asked_about_its_mask(fishpaw_, models):
    (one,) = fishpaw_("explain", "--model", models / "bert", "--json", "--label", "天", "今[MASK]气").objects
    assert one["label"] == "天" and [each["token"] for each in one["tokens"]] == ["今", "气"]


@pytest.mark.parametrize(("terminal", "quiet", "colours"), [(True, "", True), (True, "1", False), (False, "", False)])
def test_colours_are_for_terminals_that_want_them(fishpaw_, models, monkeypatch, terminal, quiet, colours):
    class Screen(io.BytesIO):
        def isatty(self):
            return terminal

    monkeypatch.setenv("NO_COLOR", quiet)
    done = fishpaw_("explain", "--model", models / "task", "今天天气房间", stdout=Screen())
    assert ("\x1b[30;48;5;" in done.out) == colours and ("今+" in done.out or "今-" in done.out) != colours
    if colours:
        assert re.sub("\x1b\\[[0-9;]*m", "", done.lines[0]).split("\t")[2] == "今天天气房间"
    assert "\x1b" not in fishpaw_("explain", "--model", models / "task", "--json", "今天", stdout=Screen()).out


def test_a_page_has_every_text_and_is_whole_or_absent(fishpaw_, models, files):
    page = files.folder / "new" / "why.html"
    done = fishpaw_("explain", "--model", models / "task", "--html", page, "--json", stdin="今<b>天\n\n好\n")
    assert done.code == 0 and len(done.objects) == 3
    text = page.read_text(encoding="utf-8")
    assert text.count("<section>") == 2 and text.endswith("</html>\n") and text.startswith("<!DOCTYPE html>")
    assert "<b>" not in re.sub("<span[^>]*>", "", text).replace("</span>", "") and "integrated, 50 points" in text
    other = files.folder / "other.html"
    done = fishpaw_("explain", "--model", models / "task", "--html", other, stdin="今\n\u200b\n")
    assert done.code == 2 and "line 2: The text has no token to explain" in done.err and not list(files.folder.glob("*other*"))
    done = fishpaw_("explain", "--model", models / "task", "--html", files("file", "") / "x.html", "今")
    assert done.code == 2 and not done.out
    assert fishpaw_("explain", "--model", models / "task", "--html", other, "今\udcff天").code == 0          # a byte that is no UTF-8
    assert "</span>?<span" in other.read_text(encoding="utf-8")


def test_scores_that_miss_their_sum_are_told_and_what_is_as_probable_as_the_baseline(fishpaw_, models, monkeypatch):
    task = ["explain", "--model", models / "task"]
    few = fishpaw_(*task, "--points", 1, "今天房间很好", "今天")
    assert few.code == 0 and "the scores of 2 texts miss their sum by more than 1%: use --method complete, or raise --points" in few.err
    assert not fishpaw_(*task, "--method", "complete", "今天房间很好").err
    assert not fishpaw_(*task, "--method", "input", "今天房间很好").err                                 # never meant to add up
    monkeypatch.setattr("fishpaw.cli.explain._ALIKE", 0.5)
    assert "fishpaw: 1 texts are as probable as the baseline" in fishpaw_(*task, "今天房间很好").err


def test_mistakes_are_one_sentence(fishpaw_, models, files, refused):
    task = ["explain", "--model", models / "task"]
    refused(fishpaw_(*task, ""), "The text is blank")
    refused(fishpaw_(*task, "今", " "), "A text is blank")
    refused(fishpaw_(*task, "\u200b"), "The text has no token to explain")
    refused(fishpaw_(*task, stdin=""), "standard input: no text")
    refused(fishpaw_(*task, "--data", files.folder / "nowhere.txt"), "nowhere.txt")
    refused(fishpaw_(*task, "今", "--data", files("x.txt", "今\n")), "--data are given")
    refused(fishpaw_(*task, "今", "天", "--data", files("x.txt", "今\n")), "--data are given")
    refused(fishpaw_(*task, "今", "--label", "pso"), "no label 'pso'.*Did you mean 'pos'")
    refused(fishpaw_(*task, "今", "--method", "input", "--points", 5), "--points with --method input")
    refused(fishpaw_(*task, "今", "--method", "expected", "--baseline", "pad"), "--baseline with --method expected")
    refused(fishpaw_(*task, "今", "--method", "guess"), "guess")
    refused(fishpaw_(*task, "今", "--points", 2001), "points is 2001. Give a whole number from 1 to 2000")
    refused(fishpaw_(*task, "今", "--method", "complete", "--points", 11), "--points 11 with --method complete, which takes 12")
    refused(fishpaw_(*task, "今", "--html", files.folder), "is a folder")
    refused(fishpaw_("explain", "--model", models / "bert", "今"), r"no \[MASK\]")
    refused(fishpaw_("explain", "--model", models / "gpt2", "今"), "no classifier")
    refused(fishpaw_("explain", "--model", models / "t5", "今"), "encoder-decoder")
    refused(fishpaw_("explain", "--model", files.folder / "none", "今"), "none")
    assert json.loads(fishpaw_(*task, "--json", "今").out)["text"] == "今"
