"""generate: the same whatever reads it, streamed or whole, and every field out of range."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    "options",
    [["gpt2"], ["bert", "--mask", "causal"], ["bert", "--mask", "unilm"], ["gpt2", "--beams", "3", "--n", "2", "--length-penalty", "1"],
     ["gpt2", "--sample", "--temperature", "0.7", "--top-k", "9", "--top-p", "0.9", "--n", "3", "--seed", "5"], ["gpt2", "--min-new", "5"]],
    ids=" ".join,
)  # fmt: skip
def test_generate(fishpaw_, models, files, options):
    words = ["generate", "--model", models / options[0], "--max-new", 6, *options[1:], "--json"]
    done = fishpaw_(*words, "今天")
    count = int(options[options.index("--n") + 1]) if "--n" in options else 1
    assert done.code == 0 and len(done.objects) == count and not done.err
    assert all(one["prompt"] == "今天" and 1 <= one["tokens"] <= 6 and one["score"] <= 0 for one in done.objects)
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
        (["--temperature", "0", "--sample"], "temperature is 0"),
        (["--temperature", "nan", "--sample"], "temperature is nan"),
        (["--temperature", "-1", "--sample"], "temperature is -1"),
        (["--temperature", "0.5"], "Add --sample"),
        (["--top-p", "0", "--sample"], "--top-p is 0"),
        (["--top-p", "1.1", "--sample"], "--top-p is 1.1"),
        (["--top-k", "0", "--sample"], "--top-k is 0"),
        (["--top-k", "5"], "Add --sample"),
        (["--sample", "--beams", "2"], "exclude each other"),
        (["--stream", "--n", "2"], "Leave them out"),
        (["--stream", "--json"], "Leave them out"),
        (["--n", "2"], "need --sample"),
        (["--n", "0"], "n is 0"),
        (["--n", "0", "--sample"], "n is 0"),
        (["--beams", "0"], "beams is 0"),
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
    more = [] if "--max-new" in options else ["--max-new", "5"]
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
