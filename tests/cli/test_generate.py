"""generate: the same whatever reads it, streamed or whole, and every field out of range."""

from __future__ import annotations

from collections import deque

import pytest


@pytest.mark.parametrize(
    "options",
    [["gpt2"], ["bert", "--mask", "causal"], ["bert", "--mask", "unilm"], ["gpt2", "--beams", "3", "--n", "2", "--length-penalty", "1"],
     ["gpt2", "--sample", "--temperature", "0.7", "--top-k", "9", "--top-p", "0.9", "--n", "3", "--seed", "5"], ["gpt2", "--min-new", "5"],
     ["gpt2", "--contrastive-k", "4", "--contrastive-alpha", "0.5"], ["bert", "--mask", "unilm", "--contrastive-k", "3"],
     ["gpt2", "--repetition-penalty", "1.3", "--frequency-penalty", "0.4", "--presence-penalty", "0.2"],
     ["gpt2", "--no-repeat-ngram", "2", "--dry", "1"],
     ["gpt2", "--sample", "--min-p", "0.05", "--typical", "0.9", "--eta", "0.001", "--epsilon", "0.0005"]],
    ids=" ".join,
)  # fmt: skip
def test_generate(fishpaw_, models, files, options):
    words = ["generate", "--model", models / options[0], "--max-new", 6, *options[1:], "--json"]
    done = fishpaw_(*words, "今天")
    count = int(options[options.index("--n") + 1]) if "--n" in options else 1
    assert done.code == 0 and len(done.objects) == count and not done.err
    assert all(one["prompt"] == "今天" and 1 <= len(one["tokens"]) <= 6 and one["score"] <= 0 for one in done.objects)
    assert fishpaw_(*words, stdin="今天\n") == fishpaw_(*words, "--data", files("x.txt.gz", "今天\n")) == done
    lines = fishpaw_(*words, "--limit", 2, stdin="今天\n好\t坏\n\n").objects
    assert [one["prompt"] for one in lines[::count]] == ["今天", "好\t坏"]
    plain = fishpaw_(*words[:-1], "今天")
    assert plain.out == "".join(one["text"] + "\n" for one in done.objects)


@pytest.mark.parametrize("options", [[], ["--sample", "--seed", "3"]])
def test_streamed_is_what_is_printed_at_once(fishpaw_, models, options):
    words = ["generate", "--model", models / "gpt2", "--max-new", 20, *options, "今天"]
    assert fishpaw_(*words, "--stream") == fishpaw_(*words)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--temperature", "0", "--sample"], "--temperature is 0"),
        (["--temperature", "nan", "--sample"], "temperature is nan"),
        (["--temperature", "-1", "--sample"], "temperature is -1"),
        (["--temperature", "0.5"], "Add --sample"),
        (["--top-p", "0", "--sample"], "--top-p is 0"),
        (["--top-p", "1.1", "--sample"], "--top-p is 1.1"),
        (["--top-k", "0", "--sample"], "--top-k is 0"),
        (["--top-k", "5"], "--top-k is for sampling. Add --sample"),
        (["--top-k", "100000", "--sample"], "--top-k is 100000, but there are"),
        (["--min-p", "0", "--sample"], "--min-p is 0"),
        (["--min-p", "2", "--sample"], "--min-p is 2"),
        (["--typical", "nan", "--sample"], "--typical is nan"),
        (["--eta", "1", "--sample"], "--eta is 1"),
        (["--epsilon", "1", "--sample"], "--epsilon is 1"),
        (["--epsilon", "0.1"], "--epsilon is for sampling"),
        (["--consistent", "--sample"], "--consistent is for"),
        (["--repetition-penalty", "0"], "--repetition-penalty is 0"),
        (["--frequency-penalty", "nan"], "--frequency-penalty is nan"),
        (["--presence-penalty", "inf"], "--presence-penalty is inf"),
        (["--no-repeat-ngram", "0"], "--no-repeat-ngram is 0"),
        (["--dry", "-1"], "--dry is -1"),
        (["--contrastive-k", "0"], "--contrastive-k is 0"),
        (["--contrastive-k", "3", "--contrastive-alpha", "1.5"], "--contrastive-alpha is 1.5"),
        (["--contrastive-alpha", "0.5"], "Add --contrastive-k 5"),
        (["--contrastive-k", "3", "--sample"], "--sample and --contrastive-k exclude each other"),
        (["--stop", ""], "stop strings"),
        (["--stop", "<|endoftext|>"], "special token"),
        (["--regex", "(a"], "[(]a"),
        (["--choices", "好,坏", "--beams", "2"], "--choices are scored"),
        (["--choices", "好,坏", "--stop", "好"], "--choices are scored"),
        (["--choices", "好,坏", "--max-new", "5"], "--choices are scored"),
        (["--choices", "好,坏", "--min-new", "1", "--max-new", "5"], "--choices are scored"),
        (["--choices", "好,坏,好"], "好 is given twice"),
        (["--choices", "好,,坏"], "an answer is empty"),
        (["--choices", "好"], "one answer alone is no choice"),
        (["--calibrate", "mean"], "--calibrate is for --choices"),
        (["--choices", "好,坏", "--calibrate", "pmi"], "--calibrate pmi is no calibration"),
        (["--choices", "好,坏", "--calibrate", "contextual"], "Add --shots"),
        (["--regex", "a{9}", "--max-new", "5"], "but --max-new is 5. Raise --max-new."),
        (["--shots", "nowhere.tsv"], "nowhere.tsv"),
        (["--sample", "--beams", "2"], "exclude each other"),
        (["--stream", "--n", "2"], "Leave them out"),
        (["--stream", "--json"], "Leave them out"),
        (["--n", "2"], "--n is 2; so many answers need sampling"),
        (["--n", "0"], "--n is 0"),
        (["--n", "0", "--sample"], "--n is 0"),
        (["--beams", "0"], "--beams is 0"),
        (["--beams", "2", "--length-penalty", "nan"], "--length-penalty is nan"),
        (["--length-penalty", "1"], "for the beam search"),
        (["--max-new", "0"], "--max-new is 0"),
        (["--max-new", "1000000000"], "--max-new is 1000000000"),
        (["--max-new", "100"], "100 new tokens, but the model has 61 positions"),
        (["--min-new", "-1"], "--min-new is -1"),
        (["--min-new", "9", "--max-new", "5"], "--min-new is 9"),
        (["--mask", "sideways"], "sideways"),
        (["--mask", "full"], "--mask causal"),
        (["--device", "cuda:99"], "not on this machine"),
        (["--data", "x.txt"], "A text and --data are given"),
    ],
)
def test_generate_refuses_each_field_out_of_range(fishpaw_, models, options, says, refused):
    more = [] if {"--max-new", "--choices"} & {*options} else ["--max-new", "5"]
    refused(fishpaw_("generate", "--model", models / "gpt2", "今天", *more, *options), says)


def test_prompts_that_were_cut_are_counted_in_one_line(fishpaw_, models):
    words = ["generate", "--model", models / "gpt2", "--max-new", 5]
    done = fishpaw_(*words, stdin="a\n" + "b" * 70 + "\n" + "c" * 56 + "\n" + "d" * 99 + "\n")
    assert done.code == 0
    assert done.err == "fishpaw: 2 of 4 prompts lost their beginning: the model has 61 positions, --max-new included\n"
    assert not fishpaw_(*words, "a").err


def test_a_switch_is_turned_for_generating_and_filling(fishpaw_, models, refused):
    words = ["generate", "--model", models / "gpt2", "--max-new", 5, "今天", "--json"]
    assert fishpaw_(*words, "--change", "attention=softmax").out == fishpaw_(*words).out
    assert fishpaw_(*words, "--change", "attention=linear").out != fishpaw_(*words).out
    refused(fishpaw_(*words, "--change", "attention=liner"), "'liner'")
    refused(fishpaw_("fill", "--model", models / "bert", "今[MASK]", "--change", "mask=causal"), "full mask")


def test_an_empty_prompt_is_refused(fishpaw_, models, refused):
    for text in ("", "  "):
        refused(fishpaw_("generate", "--model", models / "gpt2", text), "The text is blank")


@pytest.mark.parametrize("options", [[], ["--sample", "--n", "2"], ["--beams", "2"], ["--contrastive-k", "3"]], ids=" ".join)
def test_batches_of_a_file_are_its_lines_one_by_one_in_order(fishpaw_, models, files, options):
    lines = "今天\n好\n我们去公园玩\n下次\n热\n很热情\n去\n天气我们去公园房间\n前台\n今\n"
    words = ["generate", "--model", models / "gpt2", "--max-new", 6, *options, "--json"]
    expected = fishpaw_(*words, stdin=lines)
    assert expected.code == 0 and [one["prompt"] for one in expected.objects][:: 2 if "--n" in options else 1] == lines.split()
    for size in ([], ["--batch-size", 1], ["--batch-size", 4]):
        done = fishpaw_(*words, *size, "--data", files("lines.txt", lines))
        assert [{**one, "score": 0, "log_probabilities": 0} for one in done.objects] \
            == [{**one, "score": 0, "log_probabilities": 0} for one in expected.objects]


def test_json_tells_all_of_an_answer(fishpaw_, models):
    words = ["generate", "--model", models / "gpt2", "今天", "--max-new", 12]
    (whole,) = fishpaw_(*words, "--json").objects
    assert set(whole) == {"prompt", "text", "score", "ended", "why", "tokens", "log_probabilities"} and whole["why"] == "length"
    assert len(whole["tokens"]) == len(whole["log_probabilities"]) == 12 and abs(sum(whole["log_probabilities"]) - whole["score"]) < 1e-6
    stop = whole["text"][3:5]
    (one,) = fishpaw_(*words, "--json", "--stop", "nowhere", "--stop", stop).objects
    assert one["why"] == "stop" and one["ended"] and one["text"] == whole["text"][: whole["text"].index(stop)]
    assert fishpaw_(*words, "--stop", stop).out == fishpaw_(*words, "--stop", stop, "--stream").out == one["text"] + "\n"


def test_answers_have_a_form(fishpaw_, models, files):
    words = ["generate", "--model", models / "bert", "--mask", "causal"]
    assert fishpaw_(*words, "今天", "--max-new", 9, "--regex", "(我们|下次)去公园").out.strip() in ("我们去公园", "下次去公园")
    (chosen,) = fishpaw_(*words, "今天", "--choices", "天气, 公园", "--json").objects
    assert set(chosen["probabilities"]) == {"天气", "公园"}
    assert chosen["text"] == max(chosen["probabilities"], key=chosen["probabilities"].get)
    several = fishpaw_(*words, "--choices", "天气,公园", stdin="今天\n我们去\n前台\n")
    assert several.code == 0 and len(several.lines) == 3 and several.lines[0] == chosen["text"]
    shots = files("shots.tsv", "今天\t天气\n我们\t公园\n")
    asked = [*words, "今天", "--choices", "天气,公园吧", "--shots", shots, "--json"]
    first, *others = (fishpaw_(*asked, *more).objects[0]["probabilities"]
                      for more in ([], *(["--calibrate", name] for name in ("mean", "sum", "contextual"))))
    assert first in others and len({str(one) for one in others}) == 3
    words += ["--max-new", 9]
    shown = fishpaw_(*words, "下次", "--shots", shots, "--json")
    assert shown.code == 0 and shown.objects[0]["prompt"] == "下次" and "\n" not in shown.objects[0]["text"]
    assert shown.out != fishpaw_(*words, "下次", "--json").out


def test_endings_and_loops(fishpaw_, models):
    words = ["generate", "--model", models / "gpt2", "今天", "--max-new", 50]
    told = fishpaw_(*words, "--sample", "--top-k", 4, "--consistent")
    assert told.code == 0 and told.err.startswith("fishpaw: Sampling") and told.err.count("\n") == 1
    assert not fishpaw_(*words).err
    loops = ["--presence-penalty", "-1000", "--json"]            # below 0 it favours what was there
    (one,) = fishpaw_(*words, *loops, "--loop-stop").objects
    (whole,) = fishpaw_(*words, *loops).objects
    assert one["why"] == "loop" and one["ended"] and whole["why"] == "length"
    assert len(one["tokens"]) < 50 and one["tokens"] == whole["tokens"][: len(one["tokens"])]


@pytest.mark.parametrize("more", [["--max-new", 3], ["--choices", "天气,公园", "--batch-size", 1], ["--max-new", 3, "--stream"]])
def test_a_text_that_is_no_question_is_named_with_its_line(fishpaw_, models, files, more):
    data = files("texts.jsonl", '{"text": "今天"}\n{"text": "今天\\n好"}\n')
    shots = files("shots.tsv", "今天\t天气\n")
    done = fishpaw_("generate", "--model", models / "gpt2", "--shots", shots, "--data", data, "--batch-size", 1, *more)
    assert done.code == 2 and done.out.count("\n") == 1 and "texts.jsonl, line 2: The text has several lines" in done.err


def test_what_was_answered_is_forgotten(fishpaw_, models, monkeypatch):
    """A pipe may be without end."""
    from fishpaw.cli import answers

    most = []

    class Watched(deque):
        def append(self, one):
            super().append(one)
            most.append(len(self))

    monkeypatch.setattr(answers, "deque", Watched)
    for more in (["--stream", "--max-new", 2], ["--max-new", 2], ["--choices", "今,好"]):
        most.clear()
        assert fishpaw_("generate", "--model", models / "gpt2", *more, stdin="今天\n" * 9).code == 0
        assert len(most) == 9 and max(most) == 1
