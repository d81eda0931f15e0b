"""train and evaluate dialogue: what they print where, runs that go on, and a sentence for each mistake."""

from __future__ import annotations

import json
import re

import pytest

LETTERS = "今天气我们去公园玩吧房间前台很热情下次"
SMALL = ["--model", "new", "--change", "layers=1", "--change", "hidden_size=16", "--change", "intermediate_size=16", "--max-length", 24]


@pytest.fixture
def talks(files):
    rows = [{"turns": [LETTERS[at % 17], LETTERS[(at + 1) % 17], LETTERS[(at + 2) % 17]]} for at in range(34)]
    files("talks.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    files("pairs.tsv", "".join(f"{row['turns'][0]}\t{row['turns'][1]}\n" for row in rows))
    return files.folder / "talks.jsonl"


def test_train_evaluate_chat_and_go_on(fishpaw_, talks, files):
    out = files.folder / "run"
    words = ["train", "dialogue", "--data", talks, "--dev", files.folder / "pairs.tsv", "--out", out, *SMALL, "--epochs", 2,
             "--batch-size", 8, "--learning-rate", 0.01, "--json"]  # fmt: skip
    done = fishpaw_(*words)
    (figures,) = done.objects
    assert done.code == 0 and figures["model"] == str(out / "model") and figures["best"] is not None, done
    assert "34 conversations of 102 turns, on " in done.err
    assert len(re.findall(r"step +\d+  loss \d\.\d{3}  perplexity \d+\.\d", done.err)) == 2
    again = fishpaw_(*words)
    assert again.objects == [figures] and "nothing was trained (--restart begins anew)" in again.err

    measured = fishpaw_("evaluate", "dialogue", "--model", out / "model", "--data", talks, "--samples", 9, "--max-new", 4)
    names = [line.split()[0] for line in measured.lines]
    assert names == ["loss", "perplexity", "relevance", "relevance_mutual", "distinct_1", "distinct_2"]
    same = fishpaw_("evaluate", "dialogue", "--model", out / "model", "--data", "-", "--samples", 9, "--max-new", 4, "--json",
                    stdin=talks.read_bytes())  # fmt: skip
    assert f"{same.objects[0]['perplexity']:.4f}" in measured.lines[1]

    more = fishpaw_("train", "dialogue", "--data", talks, "--model", out / "model", "--out", files.folder / "more", "--steps", 1,
                    "--speaker", 1)  # fmt: skip
    assert more.code == 0 and re.search(r"step +1\n", more.out), more
    back = fishpaw_("train", "dialogue", "--data", files.folder / "pairs.tsv", "--out", files.folder / "back", *SMALL, "--steps", 1,
                    "--backward")  # fmt: skip
    assert back.code == 0
    said = fishpaw_("chat", "--model", out / "model", "--rerank", 3, "--backward", files.folder / "back" / "model", "--max-new", 4,
                    stdin="今\n")  # fmt: skip
    assert said.code == 0 and len(said.lines) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--data", "missing.jsonl"], "missing.jsonl: can't be opened"),
        (["--data", "BAD"], "bad.jsonl, line 1: no turns"),
        (["--data", "EMPTY"], "empty.jsonl: no conversation"),
        (["--learning-rate", 0], "--learning-rate is 0"),
        (["--max-length", 3], "--max-length is 3"),
        (["--family", "bert"], "with --model"),
        (["--change", "vocab_size=3"], "the task sets it"),
        (["--change", "mask=full"], "--change mask=causal"),
        (["--dev", "-", "--data", "-"], "both read standard input"),
        (["--out", "talks.jsonl"], "is a file, not a folder"),
        (["--model", "nowhere/at-all"], "nowhere/at-all"),
    ],
)
def test_training_refuses_in_one_sentence(fishpaw_, talks, files, options, says, monkeypatch):
    monkeypatch.chdir(files.folder)
    bad, empty = files("bad.jsonl", '{"text": "a"}\n'), files("empty.jsonl", "\n")
    options = [{"BAD": bad, "EMPTY": empty}.get(one, one) for one in options]
    defaults = [] if "--data" in options else ["--data", talks]
    defaults += [] if "--out" in options else ["--out", files.folder / "run"]
    shape = [] if "--model" in options else SMALL[:-2] if "--max-length" in options else SMALL
    done = fishpaw_("train", "dialogue", *defaults, *options, *shape)
    told = [line for line in done.err.splitlines() if not re.match(r"fishpaw: \d+ conversations", line)]
    assert done.code == (3 if "--model" in options else 2) and len(told) == 1 and says in told[0] and not done.out, done


def test_a_share_beyond_all_is_refused_before_anything_is_read(fishpaw_, talks, files, refused):
    words = ["train", "dialogue", "--data", "missing.jsonl", "--out", files.folder / "run"]
    for share in (2, -0.1, "nan"):
        refused(fishpaw_(*words, "--alone", share), rf"--alone is {share}.*; allowed: 0 to 1\. Change --alone\.$")


def test_evaluating_refuses_in_one_sentence(fishpaw_, models, talks, files, refused):
    one = files("one.jsonl", '["今", "天"]\n')
    refused(fishpaw_("evaluate", "dialogue", "--model", models / "gpt2", "--data", one), "of one conversation")
    refused(fishpaw_("evaluate", "dialogue", "--model", models / "gpt2", "--data", talks, "--max-new", 90), "leave none to a turn")
    refused(fishpaw_("evaluate", "dialogue", "--model", models / "t5", "--data", talks), "encoder-decoder")
