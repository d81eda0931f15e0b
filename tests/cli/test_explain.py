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


def told(line: str) -> tuple[str, float, float, str]:
    label, value, baseline, text = line.split("\t")
    return label, float(value), float(baseline), text


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
            label, value, baseline, text = told(line)
            assert (label, value, baseline) == (one.label, pytest.approx(one.value, abs=1e-4), pytest.approx(one.baseline, abs=1e-4))
            assert text == " ".join(f"{each.token}{each.score:+.3f}" for each in one.tokens)
    assert len(fishpaw_("explain", "--model", models / "task", "--limit", 2, stdin=joined).lines) == 2
    assert len(fishpaw_("explain", "--model", models / "task", "--limit", 2, *texts).lines) == 2


def test_json_says_everything_and_blank_lines_keep_their_places(fishpaw_, models):
    done = fishpaw_("explain", "--model", models / "task", "--json", "--label", "neg", stdin="今天 气\n\n好\n")
    first, blank, _ = done.objects
    assert [*first] == ["text", "pair", "label", "value", "baseline", "error", "points", "tokens", "cut"] == [*blank]
    assert first["label"] == "neg" and first["points"] == 50 and [one["start"] for one in first["tokens"]] == [0, 1, 3]
    assert blank == {"text": "", **dict.fromkeys([*blank][1:])}
    lines = fishpaw_("explain", "--model", models / "task", stdin="今\n \n好\n").lines
    assert len(lines) == 3 and not lines[1] and len(lines[2].split("\t")) == 4


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
        assert re.fullmatch(r"[ab]\t0\.\d+\t0\.\d+\t今[+-]\S+ 天\S+\t很\S+ 好\S+", line)


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
        assert re.sub("\x1b\\[[0-9;]*m", "", done.lines[0]).split("\t")[3] == "今天天气房间"
    assert "\x1b" not in fishpaw_("explain", "--model", models / "task", "--json", "今天", stdout=Screen()).out


def test_a_page_has_every_text_and_is_whole_or_absent(fishpaw_, models, files):
    page = files.folder / "new" / "why.html"
    done = fishpaw_("explain", "--model", models / "task", "--html", page, "--json", stdin="今<b>天\n\n好\n")
    assert done.code == 0 and len(done.objects) == 3
    text = page.read_text(encoding="utf-8")
    assert text.count("<section>") == 2 and text.endswith("</html>\n") and text.startswith("<!DOCTYPE html>")
    assert "<b>" not in re.sub("<span[^>]*>", "", text).replace("</span>", "") and "integrated, 50 points" in text
    assert re.findall(r"<h2>(neg|pos): 0\.\d{4}, baseline 0\.\d{4}</h2>", text) and "cut" not in text
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
    one, = fishpaw_(*(bert := ["explain", "--model", models / "bert", "--json"]), "--label", "玩", "今[MASK]气").objects
    share = abs(one["value"] - one["baseline"]) / max(one["value"], one["baseline"])
    for above in (1.01, 0.99):                                         # a share of the larger one, however small both are
        monkeypatch.setattr("fishpaw.cli.explain._ALIKE", share * above)
        assert ("as probable" in fishpaw_(*bert, "--label", "玩", "今[MASK]气").err) == (above > 1)
    monkeypatch.setattr("fishpaw.cli.explain._ALIKE", 0.5)
    assert "fishpaw: 1 text is as probable as the baseline" in fishpaw_(*task, "今天房间很好").err


def test_texts_that_are_cut_are_told(fishpaw_, models, files, caplog):
    page, task = files.folder / "cut.html", ["explain", "--model", models / "task", "--method", "input"]
    done = fishpaw_(*task, "--json", "--html", page, "今" * 18, "今" * 19)                             # 20 tokens with [CLS] and [SEP]
    assert [one["cut"] for one in done.objects] == [False, True] and [len(one["tokens"]) for one in done.objects] == [18, 18]
    assert done.err == "fishpaw: 1 text was cut to 20 tokens: the rest has no score\n"
    assert page.read_text(encoding="utf-8").count("cut to 20 tokens: the rest has no score") == 1
    assert "fishpaw: 2 texts were cut to 9 tokens" in fishpaw_(*task, "--max-length", 9, "今" * 18, "今" * 19).err
    assert fishpaw_(*task, "--max-length", 61, "今").code == 0 and not caplog.text
    assert fishpaw_(*task, "--max-length", 99, "今").code == 0
    assert "max_length is 99, but the model has 61 positions: texts are cut there" in caplog.text


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
    refused(fishpaw_(*task, "今", "--html", "-"), "--html - is no file")
    refused(fishpaw_(*task, "今", "--top", 3), "--top is given without --by-examples. Add it, or leave --top out")
    refused(fishpaw_(*task, "今", "--by-examples", "x", "--points", 3), "^fishpaw: --points means nothing to --by-examples. Leave it out")
    refused(fishpaw_(*task, "今", "--by-examples", "x", "--points", 3, "--html", "y", "--change", "mask=full"),
            "^fishpaw: --points, --html and --change mean nothing to --by-examples. Leave them out")
    refused(fishpaw_("explain", "--model", models / "bert", "今"), r"no \[MASK\]")
    refused(fishpaw_("explain", "--model", models / "gpt2", "今"), "no classifier")
    refused(fishpaw_("explain", "--model", models / "t5", "今"), "encoder-decoder")
    refused(fishpaw_("explain", "--model", files.folder / "none", "今"), "none")
    assert json.loads(fishpaw_(*task, "--json", "今").out)["text"] == "今"


def test_a_tab_that_makes_a_pair_is_named(fishpaw_, models, files, refused):
    from fishpaw.tasks.classify import Classify

    task = Classify.load(models / "task")
    task.pairs = False
    task.save(files.folder / "single")
    rows, words = "今\tpos\n天\tneg\n", ["explain", "-m", files.folder / "single"]
    for more in ([], ["--by-examples", files("train.tsv", rows)]):
        says = "x.tsv, line 1: The tab makes this a pair, .*Put a row text<TAB>label on top"
        refused(fishpaw_(*words, *more, "--data", files("x.tsv", rows)), says)
        refused(fishpaw_(*words, *more, "今\t天"), "^fishpaw: The tab makes this a pair, .*in front of the tab")
        refused(fishpaw_(*words, *more, "--data", files("x.csv", "今,天\n")), "single texts; this is another kind|single texts")
        assert fishpaw_(*words, *more, "--data", files("y.tsv", "text\tlabel\n" + rows)).code == 0
