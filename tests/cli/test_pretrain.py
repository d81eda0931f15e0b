"""fishpaw pretrain: texts in, a model out; the same command goes on; mistakes are one sentence."""

from __future__ import annotations

import gzip
import json

import pytest
import torch

from fishpaw.demo import reviews
from fishpaw.weights.load import load

TEXTS = [one.text for one in reviews(None).train][:120]
SMALL = ("--size", "1x16", "--length", 24, "--token-budget", 200, "--log-every", 2)


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(TEXTS[:80]), encoding="utf-8")
    with gzip.open(tmp_path / "b.txt.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(TEXTS[80:]))
    return ["--data", tmp_path / "a.txt", tmp_path / "b.txt.gz"]


def test_texts_become_a_model_and_the_same_command_goes_on(fishpaw_, texts, tmp_path):
    command = ["pretrain", *texts, "--out", tmp_path / "out", *SMALL, "--steps", 6, "--objective", "mlm=0.5", "--objective", "unilm=0.3",
               "--objective", "contrastive=0.2", "--apart", 0.1, "--json"]  # fmt: skip
    done = fishpaw_(*command)
    assert done.code == 0, done.err
    assert done.objects[0]["step"] == 6 and done.objects[0]["model"] == str(tmp_path / "out" / "model")
    assert done.objects[0]["tokens_per_second"] > 0 and 0 < done.objects[0]["utilisation"] < 1
    assert "tokens/s" in done.err and "unseen: loss" in done.err and "masked accuracy" in done.err and "kept apart" in done.err
    model, tokenizer = load(tmp_path / "out" / "model")
    assert (model.config.layers, model.config.hidden_size, model.mask.clock) == (1, 16, "unilm")
    assert tokenizer.size == model.config.vocab_size
    again = fishpaw_(*command)
    assert again.code == 0 and "had ended" in again.err and torch.equal(load(tmp_path / "out" / "model")[0].table, model.table)
    other = fishpaw_("pretrain", "--data", tmp_path / "a.txt", "--out", tmp_path / "out", *SMALL)
    assert other.code == 2 and "of other files" in other.err and "--restart" in other.err
    anew = fishpaw_("pretrain", "--data", tmp_path / "a.txt", "--out", tmp_path / "out", *SMALL, "--steps", 1, "--restart", "--apart", 0)
    assert anew.code == 0 and "nothing to evaluate on" in anew.err


def test_it_goes_on_from_a_model_with_lamb(fishpaw_, texts, tmp_path):
    first = fishpaw_("pretrain", *texts, "--out", tmp_path / "one", *SMALL, "--steps", 2)
    assert first.code == 0, first.err
    second = fishpaw_("pretrain", *texts, "--out", tmp_path / "two", "--model", tmp_path / "one" / "model", "--objective", "gpt",
                      "--length", 24, "--tokens", 500, "--token-budget", 100, "--optimizer", "lamb", "--json")  # fmt: skip
    assert second.code == 0, second.err
    assert second.objects[0]["step"] == 5 and load(tmp_path / "two" / "model")[0].mask.clock == "causal"
    record = json.loads((tmp_path / "two" / "log.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert record["options"]["learning_rate"] == 2e-3


def test_fields_vocabulary_and_standard_input(fishpaw_, tmp_path):
    lines = "".join(json.dumps({"body": text}, ensure_ascii=False) + "\n" for text in TEXTS)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n" + "\n".join(sorted(set("".join(TEXTS)))), encoding="utf-8")
    given = ("pretrain", "--data", "-", "--out", tmp_path / "out", *SMALL, "--steps", 2, "--field", "body")
    refused = fishpaw_(*given, stdin=lines)
    assert refused.code == 2 and "standard input is read only once" in refused.err
    done = fishpaw_(*given, "--vocab", tmp_path / "vocab.txt", stdin=lines)
    assert done.code == 0, done.err
    assert fishpaw_(*given, "--vocab", tmp_path / "vocab.txt", stdin="").code == 0


@pytest.mark.parametrize("words, said", [
    (("--objective", "bert"), "unknown"), (("--objective", "mlm=0"), "share of mlm"), (("--size", "4by256"), "--size 4by256"),
    (("--objective", "nsp", "--objective", "gpt"), "NextSentence, NextToken together"), (("--optimizer", "sgd"), "--optimizer sgd"),
    (("--tokens", "1e3", "--steps", "3"), "--tokens and --steps"), (("--model", "x", "--vocab", "y"), "--vocab"),
    (("--change", "heads=[]"), "--change heads"), (("--unit", "page"), "page"), (("--apart", "1"), "kept apart"),
    (("--data", "missing.txt"), "missing.txt"), (("--length", "7"), "length"), (("--whole-words", "--steps", "0"), "steps"),
    (("--tokens", "nan"), "--tokens is nan"), (("--data", "-", "--dev", "-"), "both read standard input"),
    (("--parallel", "x"), "--parallel is 'x'"), (("--tokens", "1e4", "--token-budget", "0"), "--token-budget is 0"),
    (("--tokens", "1e4", "--accumulate", "0"), "--accumulate is 0"), (("--objective", "mlm=much"), "'much'"),
    (("--change", "mask=causal"), "--change mask: the objectives need 'full'"),
])  # fmt: skip
def test_mistakes_are_one_sentence(fishpaw_, texts, tmp_path, words, said):
    done = fishpaw_("pretrain", *texts, "--out", tmp_path / "out", *words)
    assert done.code == 2 and said in done.err and len(done.err.splitlines()) == 1 and "Traceback" not in done.err
    assert not done.out
