"""train, evaluate and predict seq2seq: what they print where, and a sentence for each mistake."""

from __future__ import annotations

import json
import re

import pytest

LETTERS = "今天气我们去公园玩吧"


@pytest.fixture
def pairs(files):
    """pairs.tsv: two letters, and the second of them."""
    lines = [f"{LETTERS[at % 10]}{LETTERS[at * 3 % 10]}\t{LETTERS[at * 3 % 10]}\n" for at in range(50)]
    return files("pairs.tsv", "".join(lines))


@pytest.fixture
def start(tmp_path):
    """A saved task that was never trained: one layer, 12 tokens a source, 5 new ones."""
    from fishpaw.config import ModelConfig
    from fishpaw.data.pairs import Pair
    from fishpaw.tasks.seq2seq import Seq2Seq

    shape = ModelConfig(1, 16, 1, 2, 24, family="roformer", position="rotary", init_std=0.2, dropout=0.0, attention_dropout=0.0)
    Seq2Seq.new([Pair(LETTERS, LETTERS)], config=shape, max_length=12, max_new=5).save(tmp_path / "start")
    return tmp_path / "start"


def test_train_evaluate_predict(fishpaw_, files, pairs, start):
    out = files.folder / "run"
    words = ["train", "seq2seq", "--data", pairs, "--dev", pairs, "--model", start, "--out", out, "--epochs", 30, "--batch-size", 10,
             "--learning-rate", 0.02, "--monitor", "exact", "--evaluate-every", 30]  # fmt: skip
    done = fishpaw_(*words, "--json")
    (figures,) = done.objects
    assert done.code == 0 and figures["best"] == 1.0 and figures["model"] == str(out / "model"), done
    assert "50 examples, on " in done.err
    assert len(re.findall(r"step +\d+  loss \d\.\d{3}  dev loss \d\.\d{3}  dev rouge \d\.\d{3}  dev bleu .*  dev exact \d", done.err)) == 5
    again = fishpaw_(*words, "--json")
    assert again.objects == [figures] and "nothing was trained (--restart begins anew)" in again.err

    measure = ["evaluate", "seq2seq", "--model", out / "model", "--data", pairs]
    (measured,) = fishpaw_(*measure, "--json", "--beams", 2, "--length-penalty", 0.5).objects
    assert list(measured) == ["loss", "rouge1", "rouge2", "rougeL", "rouge", "bleu", "exact"] and measured["exact"] == 1.0
    assert [line.split()[0] for line in fishpaw_(*measure).lines] == list(measured)

    texts = files("texts.txt", f"{LETTERS[:2]}\n\n我们\t不读\n")
    answers = fishpaw_("predict", "seq2seq", "--model", out / "model", "--data", texts)
    assert len(answers.lines) == 3 and not answers.err
    whole = fishpaw_("predict", "seq2seq", "--model", out / "model", "--data", pairs, "--limit", 20, "--batch-size", 3, "--beams", 2)
    assert whole.lines == [LETTERS[at * 3 % 10] for at in range(20)]
    (one,) = fishpaw_("predict", "seq2seq", "--model", out / "model", LETTERS[0] + LETTERS[0], "--json").objects
    assert one["source"] == LETTERS[0] * 2 and one["text"] == LETTERS[0] and one["ended"] is True and one["score"] < 0
    (cut,) = fishpaw_("predict", "seq2seq", "--model", out / "model", "--json", "--max-new", 1, stdin=LETTERS[0] * 2 + "\n").objects
    assert cut["ended"] is False


def test_other_names_and_a_run_from_nothing(fishpaw_, files):
    data = files("papers.jsonl", "".join(json.dumps({"abst": "今天气好" * at, "title": "好"}) + "\n" for at in range(1, 9)))
    small = ["--model", "new", "--change", "hidden_size=16", "--change", "intermediate_size=24", "--change", "attention_heads=2"]
    done = fishpaw_("train", "seq2seq", "--data", data, "--fields", "abst, title", "--out", files.folder / "run", "--steps", 1,
                    "--max-length", 9, "--max-new", 3, *small)  # fmt: skip
    assert done.code == 0 and done.lines[-1].split() == ["model", str(files.folder / "run" / "model")], done
    settings = json.loads((files.folder / "run" / "model" / "task.json").read_text(encoding="utf-8"))
    assert settings == {"task": "seq2seq", "max_length": 9, "max_new": 3}
    answers = fishpaw_("predict", "seq2seq", "--model", files.folder / "run" / "model", "--data", data, "--fields", "abst,title")
    assert answers.code == 0 and len(answers.lines) == 8


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_from_a_checkpoint(fishpaw_, models, files, pairs, kind):
    done = fishpaw_("train", "seq2seq", "--data", pairs, "--out", files.folder / "run", "--model", models / kind, "--steps", 2,
                    "--max-new", 8, "--limit", 9)  # fmt: skip
    assert done.code == 0, done
    assert fishpaw_("predict", "seq2seq", "--model", files.folder / "run" / "model", "今天").code == 0


def test_targets_that_are_cut_are_counted(fishpaw_, files, pairs, start, caplog):
    done = fishpaw_("train", "seq2seq", "--data", pairs, "--out", files.folder / "run", "--model", start, "--steps", 1, "--max-new", 2)
    assert done.code == 0 and not caplog.messages
    long = files("long.tsv", "今\t今天气我们去\n天\t天\n")
    done = fishpaw_("train", "seq2seq", "--data", long, "--out", files.folder / "other", "--model", start, "--steps", 1)
    assert done.code == 0 and caplog.messages == ["1 of 2 targets have more than 5 tokens (max_new): the rest is left out"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--monitor", "accuracy"], "--monitor accuracy is no figure. Choose loss, rouge, bleu or exact"),
        (["--monitor", "rouge"], "--monitor rouge is given without --dev"),
        (["--fields", "abst"], "--fields abst: two names are wanted"),
        (["--fields", "abst,title"], r"pairs\.tsv, line 1: 0 columns named 'abst'"),
        (["--max-length", "2"], "--max-length is 2"),
        (["--max-new", "1"], "--max-new is 1"),
        (["--family", "bert"], "--family is given for a new model"),
        (["--change", "mask=causal"], "--change mask: the task sets it"),
        (["--dev", "nowhere.tsv"], "nowhere.tsv: can't be opened"),
        (["--epochs", "0"], "epochs is 0"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else "",
)
def test_mistakes_of_training(fishpaw_, files, pairs, refused, options, says):
    refused(fishpaw_("train", "seq2seq", "--model", "new", "--data", pairs, "--out", files.folder / "run", *options), says)


def test_other_mistakes(fishpaw_, models, files, pairs, start, refused):
    train = ["train", "seq2seq", "--out", files.folder / "run", "--model"]
    refused(fishpaw_(*train, models / "bert", "--data", pairs, "--max-new", 70), "70 new tokens, but the model has 61 positions")
    refused(fishpaw_(*train, start, "--data", files("bad.tsv", "今天\n")), r"bad\.tsv, line 1: 1 cell in a row")
    refused(fishpaw_(*train, start, "--data", files("empty.tsv", "\n")), r"empty\.tsv: no pair")
    refused(fishpaw_(*train, start, "--data", "-", "--dev", "-"), "both read standard input")
    predict = ["predict", "seq2seq", "--model", start]
    refused(fishpaw_(*predict, "今", "--length-penalty", 1), "--length-penalty is for the beam search")
    refused(fishpaw_(*predict, "今", "--beams", 0), "--beams is 0")
    refused(fishpaw_(*predict, "今", "--data", pairs), "A text and --data are given")
    fishpaw_("convert", models / "bert", files.folder / "headless", "--change", "heads=[]")
    headless = fishpaw_("evaluate", "seq2seq", "--model", files.folder / "headless", "--data", pairs)
    refused(headless, r"headless holds no head that scores tokens\. Take a checkpoint that has one")


def test_the_fix_for_too_few_positions_works(fishpaw_, models, pairs, refused):
    gpt2, bert = (["predict", "seq2seq", "--model", models / name, "今"] for name in ("gpt2", "bert"))
    evaluate = ["evaluate", "seq2seq", "--model", models / "bert", "--data", pairs, "--limit", 3]
    refused(fishpaw_(*gpt2, "--max-new", 99), r"99 new tokens, but the model has 61 positions\. Ask for fewer \(--max-new\)\.$")
    refused(fishpaw_(*evaluate), r"64 new tokens, but the model has 61 positions\. Ask for fewer \(--max-new\)\.$")
    refused(fishpaw_(*evaluate, "--max-new", 0), "--max-new is 0")
    for new in (8, 58):
        assert fishpaw_(*evaluate, "--max-new", new).code == fishpaw_(*bert, "--max-new", new).code == 0
