"""train, evaluate and predict classify: what they print where, runs that go on, and a sentence for each mistake."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest

import fishpaw

LETTERS = "今天气我们去公园玩吧房间前台很热情下次"


def test_train_evaluate_predict(fishpaw_, models, files):
    out = files.folder / "run"
    words = ["train", "classify", "--data", files.folder / "reviews.tsv", "--dev", files.folder / "dev.tsv", "--model", models / "bert",
             "--out", out, "--epochs", 8, "--batch-size", 8, "--learning-rate", 0.01]  # fmt: skip
    done = fishpaw_(*words, "--json")
    (figures,) = done.objects
    assert done.code == 0 and figures["best"] == 1.0 and figures["model"] == str(out / "model"), done
    assert "48 examples, 2 labels (neg, pos), on " in done.err
    assert len(re.findall(r"step +\d+  loss \d\.\d{3}  accuracy \d\.\d{3}", done.err)) == 8

    again = fishpaw_(*words, "--json")                                # a run that ended is not run again
    assert again.objects == [figures] and "nothing was trained (--restart begins anew)" in again.err

    measured = fishpaw_("evaluate", "classify", "--model", out / "model", "--data", files.folder / "dev.tsv", "--json")
    assert measured.objects[0]["accuracy"] == 1.0 and measured.objects[0]["majority"] == 0.5 and not measured.err
    plain = fishpaw_("evaluate", "classify", "--model", out / "model", "--data", files.folder / "dev.tsv")
    assert [line.split()[0] for line in plain.lines] == ["accuracy", "micro_f1", "macro_f1", "loss", "majority"]

    texts = files("texts.txt", "天好\n天坏\n\n气好\n")
    answers = fishpaw_("predict", "classify", "--model", out / "model", "--data", texts)
    assert answers.lines[2] == "" and [line.split("\t")[::2] for line in answers.lines if line] == \
        [["pos", "天好"], ["neg", "天坏"], ["pos", "气好"]]  # fmt: skip
    assert all(0.5 <= float(line.split("\t")[1]) <= 1 for line in answers.lines if line)
    (one,) = fishpaw_("predict", "classify", "--model", out / "model", "天好", "--json").objects
    assert one["text"] == "天好" and one["pair"] is None and one["labels"] == ["pos"]
    assert sum(one["probabilities"].values()) == pytest.approx(1)


@pytest.mark.parametrize("terminal", [False, True])
def test_one_bar_for_all_lines_and_none_beside_answers(fishpaw_, models, monkeypatch, terminal):
    from fishpaw.tasks import encode

    class Screen(io.BytesIO):
        def isatty(self):
            return terminal

    bars, told = [], []

    @contextmanager
    def bar(texts, progress):
        bars.append(progress)
        yield told.append

    monkeypatch.setattr(encode, "bar", bar)
    done = fishpaw_("predict", "classify", "--model", models / "task", "--batch-size", 2, stdin="好\n" * 75, stdout=Screen())
    assert len(done.lines) == 75 and bars == [False if terminal else None] and told == [32, 32, 11]


def test_pairs(fishpaw_, models, files, refused):
    done = fishpaw_("predict", "classify", "--model", models / "task", "--json", stdin="今天\t好\n房间\t坏\n")
    assert [one["pair"] for one in done.objects] == ["好", "坏"]
    mixed = files("mixed.jsonl", '{"text": "好", "pair": "坏"}\n{"text": "好"}\n')
    refused(fishpaw_("predict", "classify", "--model", models / "task", "--data", mixed), r"mixed.jsonl, line 2: one text where others")


@pytest.mark.parametrize("kind", ["jsonl", "tsv"])
def test_several_labels(fishpaw_, models, files, kind):
    rows = [("好", ["good"]), ("坏", ["bad"]), ("好坏", ["good", "bad"])]
    text = "".join(json.dumps({"text": text, "labels": labels}) + "\n" if kind == "jsonl" else f"{text}\t{', '.join(labels)}\n"
                   for text, labels in rows * 8)  # fmt: skip
    if kind == "jsonl":
        text += '{"text": "今", "labels": []}\n' * 8
    data, out = files(f"several.{kind}", text), files.folder / "run"
    done = fishpaw_("train", "classify", "--data", data, "--out", out, "--model", models / "bert", "--multi-label", "--steps", 120,
                    "--batch-size", 16, "--learning-rate", 0.01)  # fmt: skip
    assert done.code == 0 and "2 labels (bad, good)" in done.err, done
    assert fishpaw_("evaluate", "classify", "--model", out / "model", "--data", data, "--json").objects[0]["accuracy"] == 1.0
    answers = fishpaw_("predict", "classify", "--model", out / "model", stdin="好坏\n坏\n" + "今\n" * (kind == "jsonl"))
    assert [line.split("\t")[0] for line in answers.lines] == ["bad,good", "bad", ""][: len(answers.lines)]


def test_a_run_from_nothing_says_what_it_saved(fishpaw_, files):
    done = fishpaw_("train", "classify", "--data", files.folder / "reviews.tsv", "--out", files.folder / "run", "--steps", 1, "--limit", 4,
                    "--model", "new")  # fmt: skip
    assert done.code == 0 and done.lines[-1].split() == ["model", str(files.folder / "run" / "model")], done
    assert not [line for line in done.lines if "None" in line]


def test_another_run_is_refused_with_what_differs_until_restart(fishpaw_, models, files, refused):
    words = ["train", "classify", "--data", files.folder / "reviews.tsv", "--out", files.folder / "run", "--model", models / "bert"]
    assert fishpaw_(*words, "--steps", 2).code == 0
    refused(fishpaw_(*words, "--steps", 3), "steps was 2, now 3")
    refused(fishpaw_(*words, "--steps", 2, "--limit", 40), "examples was 48, now 40")
    refused(fishpaw_(*words, "--steps", 2, "--labels", "pos,neg"), r"labels was \['neg', 'pos'\]")
    refused(fishpaw_(*words, "--steps", 2, "--dev", files.folder / "dev.tsv"), "dev was none.*--restart")
    refused(fishpaw_(*words, "--steps", 2, "--seed", 1), "seed was 0, now 1")
    refused(fishpaw_(*words[:-1], models / "task", "--steps", 2, "--max-length", 61), "starting weights was")
    assert fishpaw_(*words, "--steps", 3, "--restart", "--json").objects[0]["step"] == 3


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_the_same_command_goes_on_after_a_kill(fishpaw_, models, files):
    words = ["train", "classify", "--data", files.folder / "reviews.tsv", "--model", models / "bert", "--steps", "300", "--batch-size", "4",
             "--dev", files.folder / "dev.tsv", "--evaluate-every", "10", "--seed", "3", "--out"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(Path(fishpaw.__file__).parents[1])}
    process = subprocess.Popen([sys.executable, "-m", "fishpaw", *map(str, words), str(files.folder / "killed")], env=environment,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    checkpoint = files.folder / "killed" / "checkpoint" / "manifest.json"
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL                        # it was still running
    second = fishpaw_(*words, files.folder / "killed", "--json")
    whole = fishpaw_(*words, files.folder / "whole", "--json")
    assert second.code == whole.code == 0, second
    events = [json.loads(line)["event"] for line in (files.folder / "killed" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert "resume" in events and re.search(r"fishpaw: going on from step \d+\n", second.err)
    (one,), (other,) = second.objects, whole.objects
    assert {**one, "seconds": 0, "model": ""} == {**other, "seconds": 0, "model": ""}
    name = "model/model.safetensors"
    assert (files.folder / "killed" / name).read_bytes() == (files.folder / "whole" / name).read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_ends_with_130_and_no_traceback(models, files):
    words = ["train", "classify", "--data", files.folder / "reviews.tsv", "--model", models / "bert", "--steps", "100000",
             "--out", files.folder / "run"]  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", "fishpaw", *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env={**os.environ, "PYTHONPATH": str(Path(fishpaw.__file__).parents[1])})  # fmt: skip
    log = files.folder / "run" / "log.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and b'"step"' in log.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == b"" and err.decode().splitlines()[-1] .startswith("fishpaw: stopped at step "), err
    assert b"Traceback" not in err and (files.folder / "run" / "checkpoint" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--labels", "good,bad"], r"reviews.tsv, line 1: unknown label 'pos'\. The labels are good, bad"),
        (["--labels", "neg"], "nothing to choose"),
        (["--labels", "neg,neg"], "different names"),
        (["--labels", ","], "different names"),
        (["--epochs", "0"], "epochs is 0"),
        (["--epochs", "nan"], "epochs is nan"),
        (["--steps", "0"], "steps is 0"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--accumulate", "-3"], "accumulate is -3"),
        (["--learning-rate", "inf"], "--learning-rate is inf"),
        (["--warmup", "1"], "warmup is 1"),
        (["--weight-decay", "-1"], "--weight-decay is -1"),
        (["--precision", "fp8"], "precision is 'fp8'"),
        (["--evaluate-every", "0"], "--evaluate-every is 0"),
        (["--patience", "0"], "patience is 0"),
        (["--max-length", "3"], "--max-length is 3"),
        (["--device", "abacus"], "--device abacus is no device"),
        (["--device", "cuda:99"], "not on this machine"),
        (["--device", "cpu:1"], "not on this machine"),
        (["--dev", "nowhere.tsv"], "nowhere.tsv: can't be opened"),
        (["--model", "./nowhere"], "no such file or folder"),
        (["--model", "a/b/c/d"], "no such file or folder|neither a file"),
    ],
)
def test_train_refuses_each_option_that_cannot_be(fishpaw_, models, files, options, says, refused):
    model = [] if "--model" in options else ["--model", models / "bert"]
    refused(fishpaw_("train", "classify", "--data", files.folder / "reviews.tsv", "--out", files.folder / "run", *model, *options), says)


def test_train_refuses_a_dev_with_another_label_before_it_trains(fishpaw_, models, files, refused):
    dev = files("mid.tsv", "好\tpos\n好\tmid\n")
    words = ["train", "classify", "--data", files.folder / "reviews.tsv", "--out", files.folder / "run", "--model", models / "bert"]
    refused(fishpaw_(*words, "--dev", dev), "mid.tsv, line 2: unknown label 'mid'")
    refused(fishpaw_(*words, "--data", "-", "--dev", "-"), "both read standard input")
    one = files("one.tsv", "好\tpos\n坏\tpos\n")
    refused(fishpaw_(*words, "--data", one), r"\['pos'\]: nothing to choose")
    two = files("two.jsonl", '{"text": "好", "labels": ["a", "b"]}\n')
    refused(fishpaw_(*words, "--data", two), "two.jsonl, line 1: 2 labels, where one is wanted.*multi-label")


def test_a_column_of_texts_taken_for_labels_is_refused_before_training(fishpaw_, models, files, refused):
    words = ["train", "classify", "--out", files.folder / "run", "--model", models / "bert", "--steps", 1, "--data"]
    data = files("swapped.tsv", "".join(f"pos\t{first}{second}\n" for first in LETTERS[:5] for second in LETTERS[:5]))
    refused(fishpaw_(*words, data), "swapped.tsv: 25 labels for 25 examples: is the label column the last one")
    refused(fishpaw_(*words, files("named.csv", "label,remark\npos,a\n")), "named.csv, line 1: .*'remark' is not known")
    assert not (files.folder / "run").exists()
    few = files("few.tsv", "".join(f"{letter}\t{letter}\n" for letter in LETTERS[:9]))
    assert fishpaw_(*words, few).code == 0


def test_a_flipped_byte_is_one_sentence_that_names_the_file(fishpaw_, models, files, refused):
    import shutil

    shutil.copytree(models / "task", files.folder / "task")
    weights = files.folder / "task" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-7] ^= 4
    weights.write_bytes(content)
    refused(fishpaw_("predict", "classify", "今", "--model", files.folder / "task"), "model.safetensors")


def test_bad_lines_are_left_out_with_one_message(fishpaw_, models, files, refused):
    data = files("bad.tsv", "好\tpos\n坏\n坏\tneg\n坏\n")
    words = ["train", "classify", "--data", data, "--out", files.folder / "run", "--model", models / "bert", "--steps", 1]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        done = fishpaw_(*words, "--skip-bad", 2)
    lines = done.err.splitlines()
    assert done.code == 0 and [line for line in lines if re.fullmatch(r"fishpaw: 2 bad records left out.*line 2.*", line)], lines
    assert not [line for line in lines if "Warning" in line or "warn(" in line] and not done.out.startswith("fishpaw")
    refused(fishpaw_(*words, "--skip-bad", 1), "bad.tsv, line 4: 1 cell.* 1 bad record")


@pytest.mark.parametrize("task", ["classify", "seq2seq", "dialogue"])
def test_bad_lines_are_left_out_of_an_evaluation_too(fishpaw_, models, files, refused, task):
    good = "好\tpos\n坏\tneg\n"
    bad, clean = files("bad.tsv", good + "坏\n"), files("clean.tsv", good)
    words = ["evaluate", task, "--model", models / ("task" if task == "classify" else "bert"),
             *([] if task == "classify" else ["--max-new", 3]), "--data"]  # fmt: skip
    refused(fishpaw_(*words, bad), "bad.tsv, line 3: 1 cell")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        done = fishpaw_(*words, bad, "--skip-bad", 1)
    assert done.code == 0 and done.out == fishpaw_(*words, clean).out and "1 bad records left out" in done.err


def test_switches_are_turned(fishpaw_, models, files, refused):
    words = ["train", "classify", "--data", files.folder / "reviews.tsv", "--steps", 2, "--batch-size", 4]
    turned = ["--change", "attention=linear", "--change", 'position={"name": "hierarchical", "alpha": 0.3}']
    new = ["--model", "new"]
    for start in (new, ["--model", models / "bert"]):
        out = files.folder / f"run{start == new}"
        assert fishpaw_(*words, *start, *turned, "--out", out).code == 0
        config = (out / "model" / "config.json").read_text(encoding="utf-8")
        assert '"attention": "linear"' in config and '"hierarchical"' in config
        again = fishpaw_(*words, *start, *turned, "--out", out)
        assert again.code == 0 and "nothing was trained" in again.err
        refused(fishpaw_(*words, *start, "--out", out), "model.*--restart")
    for change, says in (("heads=[]", "the task sets it"), ("vocab_size=9", "the task sets it"), ("atention=linear", "attention"),
                         ("attention=liner", "linear"), ("attention", "FIELD=JSON")):
        refused(fishpaw_(*words, *new, "--out", files.folder / "nothing", "--change", change), says)
    refused(fishpaw_(*words, *new, "--out", files.folder / "nothing", "--family", "bert"), "--model")
    assert not (files.folder / "nothing").exists()


def test_an_encoder_decoder_is_one_sentence(fishpaw_, models, files, refused):
    words = ["train", "classify", "--data", files.folder / "reviews.tsv", "--model", models / "t5", "--steps", 1]
    refused(fishpaw_(*words, "--out", files.folder / "new"), 'encoder-decoder can.t classify.*--family t5_encoder')
    assert fishpaw_(*words, "--out", files.folder / "run", "--family", "t5_encoder").code == 0


def test_a_length_beyond_the_positions_is_said(fishpaw_, models, files, caplog):
    words = ["train", "classify", "--data", files.folder / "reviews.tsv", "--model", models / "bert", "--steps", 1]
    assert fishpaw_(*words, "--out", files.folder / "a").code == 0 and "positions" not in caplog.text
    assert fishpaw_(*words, "--out", files.folder / "b", "--max-length", 200).code == 0
    assert "max_length is 200, but the model has 61 positions" in caplog.text
