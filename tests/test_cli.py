"""The program, verb by verb, as it is typed: what it prints where, its exit codes, and a sentence for each mistake."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

import fishpaw
from fishpaw.cli import main

VERBS = [[], ["demo"], ["doctor"], ["train"], ["train", "classify"], ["evaluate", "classify"], ["predict", "classify"], ["fill"],
         ["generate"], ["convert"], ["export"], ["export", "onnx"]]  # fmt: skip
LETTERS = "今天气我们去公园玩吧房间前台很热情下次"


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def objects(self) -> list[dict]:
        return [json.loads(line) for line in self.lines]


@pytest.fixture
def fishpaw_(monkeypatch):
    """fishpaw_("verb", …, stdin=…) -> Done, in this process, on streams of bytes as a shell gives them."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(logging, "lastResort", logging.StreamHandler())

    def run(*words: object, stdin: bytes | str = b"", stdout: io.BytesIO | None = None) -> Done:
        given = stdin.encode("utf-8") if isinstance(stdin, str) else stdin
        out, err = stdout or io.BytesIO(), io.BytesIO()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["fishpaw", *map(str, words)])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), encoding="ascii"))
            patch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="ascii"))          # the program has to ask for UTF-8 itself
            patch.setattr(sys, "stderr", io.TextIOWrapper(err, encoding="ascii"))
            code = 0
            try:
                main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
            sys.stdout.flush()
            sys.stderr.flush()
            return Done(code, out.getvalue().decode("utf-8"), err.getvalue().decode("utf-8"))

    return run


def shell(*words: object, stdin: bytes = b"", env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "fishpaw", *map(str, words)], input=stdin, capture_output=True, timeout=120,
                          env={**os.environ, "PYTHONPATH": str(Path(fishpaw.__file__).parents[1]), **(env or {})})  # fmt: skip


def refused(done: Done, says: str, code: int = 2) -> str:
    """One sentence on stderr about the mistake, nothing on stdout, no traceback."""
    assert done.code == code, done
    told = [line for line in done.err.splitlines() if not re.match(r"fishpaw: \d+ examples", line)]
    assert len(told) == 1 and told[0].startswith("fishpaw: ") and not done.out, done
    assert re.search(says, told[0]), told[0]
    return told[0]


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folders of a tiny BERT and a tiny GPT-2, and of a classifier trained on `reviews`."""
    import torch
    from tokenizers import pre_tokenizers

    from fishpaw.config import ModelConfig
    from fishpaw.model.transformer import Transformer
    from fishpaw.tasks.classify import Classify
    from fishpaw.text.bpe import ByteLevel
    from fishpaw.text.learn import characters
    from fishpaw.text.wordpiece import WordPiece
    from fishpaw.weights.save import save

    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    vocab = characters([LETTERS + "好坏"], least=1)
    shape = {"layers": 1, "hidden_size": 12, "attention_heads": 2, "intermediate_size": 20, "init_std": 0.3, "max_positions": 61}
    bert = Transformer(ModelConfig(vocab_size=len(vocab), norm={"name": "layer", "eps": 1e-12}, heads=("pooler", "mlm"), **shape))
    save(bert, folder / "bert", WordPiece(vocab))
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>"]
    gpt2 = ModelConfig(family="gpt2", vocab_size=257, norm_at="pre", embedding_norm=False, segments=0, activation="gelu_tanh",
                       mask="causal", heads=("lm",), pad_id=256, **shape)  # fmt: skip
    save(Transformer(gpt2), folder / "gpt2", ByteLevel({letter: number for number, letter in enumerate(letters)}, []))
    Classify.load(folder / "bert", labels=["neg", "pos"], max_length=20, seed=4).save(folder / "task")
    Classify.load(folder / "bert", labels=["a", "b"], multi_label=True).save(folder / "several")
    return folder


@pytest.fixture
def files(tmp_path):
    """files(name, text) -> a file with it, packed if the name says so; reviews.tsv and dev.tsv are there already."""
    def write(name: str, content: str | bytes) -> Path:
        data = content.encode("utf-8") if isinstance(content, str) else content
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return tmp_path / name

    lines = [f"{LETTERS[at % 17]}{'好坏'[at % 2]}\t{('pos', 'neg')[at % 2]}\n" for at in range(48)]
    write("reviews.tsv", "".join(lines))
    write("dev.tsv", "".join(lines[:12]))
    write.folder = tmp_path  # type: ignore[attr-defined]
    return write


# Help

@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_each_verb_has_help(fishpaw_, verb):
    done = fishpaw_(*verb, "--help")
    assert done.code == 0 and "Usage" in done.out and not done.err


def test_help_of_every_verb_imports_no_torch():
    code = "\n".join([
        "import io, sys, contextlib", "from fishpaw.cli import main", f"for verb in {VERBS}:",
        "    sys.argv = ['fishpaw', *verb, '--help']", "    with contextlib.redirect_stdout(io.StringIO()):", "        try:",
        "            main()", "        except SystemExit as end:", "            assert not end.code",
        "assert not {'torch', 'numpy', 'tokenizers'} & {*sys.modules}",
    ])  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "PYTHONPATH": str(Path(fishpaw.__file__).parents[1])})
    assert done.returncode == 0, done.stderr


def test_version(fishpaw_):
    assert fishpaw_("--version") == Done(0, fishpaw.__version__ + "\n", "")


@pytest.mark.parametrize(
    "words",
    [["nonsense"], ["--bad"], ["evaluate", "classify"], ["train", "classify", "--data", "x"], ["fill", "--model", "x", "--top", "0"],
     ["fill", "--model", "x", "--top", "many"], ["train", "classify", "--data", "x", "--out", "y", "--seed", "-1"],
     ["evaluate", "classify", "-m", "x", "-d", "y", "--limit", "0"], ["fill", "a", "b", "c"]],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage_ends_with_2(fishpaw_, words):
    done = fishpaw_(*words)
    assert done.code == 2 and not done.out and "Usage" in done.err and "Traceback" not in done.err


# Train, evaluate, predict

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
    assert [line.split("\t")[0] for line in answers.lines] == ["pos", "neg", answers.lines[2].split("\t")[0], "pos"]
    assert [line.split("\t")[2] for line in answers.lines] == ["天好", "天坏", "", "气好"]
    assert all(0.5 <= float(line.split("\t")[1]) <= 1 for line in answers.lines)
    (one,) = fishpaw_("predict", "classify", "--model", out / "model", "天好", "--json").objects
    assert one["text"] == "天好" and one["pair"] is None and one["labels"] == ["pos"]
    assert sum(one["probabilities"].values()) == pytest.approx(1)


@pytest.mark.parametrize("name", ["x.tsv", "x.csv", "x.jsonl", "x.txt", "x.tsv.gz", "x.jsonl.gz", "-"])
@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_every_kind_of_data_gives_the_same(fishpaw_, models, files, verb, name):
    rows = [("今天好", "pos"), ("房间，坏", "neg"), ("好", "neg")]
    if ".jsonl" in name:
        text = "".join(json.dumps({"text": text, "label": label}, ensure_ascii=name.endswith(".gz")) + "\n" for text, label in rows)
    elif verb == "evaluate":
        text = "".join(f"{text},{label}\n" if ".csv" in name else f"{text}\t{label}\r\n" for text, label in rows)
    else:
        text = "".join(f"{text}\n" for text, _ in rows)
    words = [verb, "classify", "--model", models / "task", "--json", "--data"]
    done = fishpaw_(*words, "-" if name == "-" else files(name, text), stdin=text if name == "-" else b"")
    assert done.code == 0, done
    wanted = fishpaw_(*words, files("plain.jsonl", "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)))
    assert done.objects == wanted.objects and len(done.lines) == (3 if verb == "predict" else 1)


def test_stdin_is_the_default_and_limit_limits(fishpaw_, models):
    lines = "".join(f"今天{letter}\n" for letter in LETTERS)
    done = fishpaw_("predict", "classify", "--model", models / "task", "--limit", 3, stdin=lines)
    assert [line.split("\t")[2] for line in done.lines] == ["今天今", "今天天", "今天气"]
    alone = fishpaw_("predict", "classify", "--model", models / "task", "--batch-size", 1, stdin=lines)
    assert [line.split("\t")[0] for line in alone.lines][:3] == [line.split("\t")[0] for line in done.lines]
    assert fishpaw_("predict", "classify", "--model", models / "task", stdin="") == Done(0, "", "")


def test_pairs(fishpaw_, models, files):
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
    done = fishpaw_("train", "classify", "--data", files.folder / "reviews.tsv", "--out", files.folder / "run", "--steps", 1, "--limit", 4)
    assert done.code == 0 and done.lines[-1].split() == ["model", str(files.folder / "run" / "model")], done
    assert not [line for line in done.lines if "None" in line]


def test_another_run_is_refused_with_what_differs_until_restart(fishpaw_, models, files):
    words = ["train", "classify", "--data", files.folder / "reviews.tsv", "--out", files.folder / "run", "--model", models / "bert"]
    assert fishpaw_(*words, "--steps", 2).code == 0
    refused(fishpaw_(*words, "--steps", 3), "steps was 2, now 3")
    refused(fishpaw_(*words, "--steps", 2, "--limit", 40), "examples was 48, now 40")
    refused(fishpaw_(*words, "--steps", 2, "--labels", "pos,neg"), r"labels was \['neg', 'pos'\]")
    refused(fishpaw_(*words, "--steps", 2, "--dev", files.folder / "dev.tsv"), "dev was none.*--restart")
    refused(fishpaw_(*words, "--steps", 2, "--seed", 1), "seed was 0, now 1")
    refused(fishpaw_(*words[:-1], models / "task", "--steps", 2, "--labels", "neg,pos"), "starting weights was")
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


# Fill and generate

def test_fill(fishpaw_, models, files):
    done = fishpaw_("fill", "--model", models / "bert", "今天[MASK]很[MASK]", "--top", 3)
    assert done.code == 0 and [line.split("\t")[0] for line in done.lines] == ["2", "9"]
    assert all(re.fullmatch(r"\d(\t\S+ [01]\.\d{3}){3}", line) for line in done.lines)
    lined = fishpaw_("fill", "--model", models / "bert", "--data", files("x.txt", "[MASK]天\n今[MASK]\n"), "--top", 2)
    assert [line.split("\t")[:2] for line in lined.lines] == [["1", "0"], ["2", "1"]]
    objects = fishpaw_("fill", "--model", models / "bert", "--data", files("x.jsonl", '{"text": "今[MASK]"}\n'), "--json").objects
    assert objects[0]["text"] == "今[MASK]" and objects[0]["start"] == 1 and len(objects[0]["candidates"]) == 5


def test_fill_refuses_and_names_the_line(fishpaw_, models, files):
    refused(fishpaw_("fill", "--model", models / "bert", "今天"), r"no \[MASK\]")
    refused(fishpaw_("fill", "--model", models / "gpt2", "[MASK]"), r"byte-level tokenizer has no \[MASK\]|head mlm")
    data = files("x.txt", "[MASK]\n" + "今" * 99 + "[MASK]\n")
    done = fishpaw_("fill", "--model", models / "bert", "--data", data)
    assert done.code == 2 and len(done.lines) == 1 and "x.txt, line 2: A text of 102 tokens, but the model has 61 positions" in done.err
    refused(fishpaw_("fill", "--model", models / "bert", "--data", files("x.tsv", "[MASK]\tb\n")), "line 1: a pair of texts")
    refused(fishpaw_("fill", "--model", models / "bert", stdin="今\n"), "standard input, line 1: The text has no")


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
def test_generate_refuses_each_field_out_of_range(fishpaw_, models, options, says):
    more = [] if "--max-new" in options else ["--max-new", "5"]
    refused(fishpaw_("generate", "--model", models / "gpt2", "今天", *more, *options), says)


# Convert

def test_convert(fishpaw_, models, files):
    done = fishpaw_("convert", models / "bert", files.folder / "new", "--json")
    assert done.objects[0]["family"] == "bert" and done.objects[0]["model"] == str(files.folder / "new")
    question = ["fill", "今[MASK]", "--model"]
    assert fishpaw_(*question, files.folder / "new") == fishpaw_(*question, models / "bert")
    (files.folder / "new" / "vocab.txt").unlink()
    (files.folder / "new" / "manifest.json").unlink()
    bare = fishpaw_("convert", files.folder / "new", files.folder / "bare")
    assert bare.code == 0 and "without a tokenizer" in bare.err
    refused(fishpaw_("convert", models / "bert", files.folder / "reviews.tsv"), "is a file, not a folder")
    refused(fishpaw_("convert", files.folder / "nowhere", files.folder / "x"), "no such file or folder")


def test_convert_of_a_folder_that_was_changed(fishpaw_, models, files):
    fishpaw_("convert", models / "bert", files.folder / "new")
    with open(files.folder / "new" / "config.json", "ab") as config:
        config.write(b"\n")
    refused(fishpaw_("convert", files.folder / "new", files.folder / "out"), "config.json: .* bytes, but manifest.json says")
    assert fishpaw_("convert", "--no-verify", files.folder / "new", files.folder / "out").code == 0
    assert fishpaw_("convert", files.folder / "out", files.folder / "again").code == 0


# Mistakes

def data_mistakes(write) -> dict[str, tuple[object, str]]:
    return {
        "missing": ("nowhere.tsv", "nowhere.tsv: can't be opened"),
        "folder": (write.folder, "can't be opened"),
        "empty": (write("e.tsv", ""), r"e.tsv: no example"),
        "one cell": (write("c.tsv", "好\tpos\n坏\n"), r"c.tsv, line 2: 1 cell"),
        "no label": (write("n.jsonl", '{"text": "好"}\n'), r"n.jsonl, line 1: no label"),
        "not JSON": (write("j.jsonl", '{"text": "好", "label": "pos"}\n{\n'), r"j.jsonl, line 2: not JSON"),
        "GBK": (write("g.tsv", "你好\tpos\n".encode("gbk")), r"g.tsv, line 1: not UTF-8 .*iconv"),
        "binary": (write("b.tsv", bytes(range(256)) * 9), r"b.tsv, line \d+"),
        "UTF-16": (write("u.tsv", "你好\tpos\n".encode("utf-16")), r"u.tsv, line 1: not UTF-8"),
        "no gzip": (write("plain.txt", "好\tpos\n").rename(write.folder / "z.tsv.gz"), r"z.tsv.gz.*damaged gzip"),
        "torn gzip": (write("t.gz", gzip.compress(b"a\tpos\n" * 9999)[:-20]).rename(write.folder / "t.tsv"), r"t.tsv, line 1: not UTF-8"),
        "other kind": (write("x.xlsx", "好"), r"\.xlsx is no known kind"),
        "blank lines": (write("l.tsv", "\n\n\n"), "no example"),
    }


@pytest.mark.parametrize("verb", ["train", "evaluate"])
@pytest.mark.parametrize("mistake", ["missing", "folder", "empty", "one cell", "no label", "not JSON", "GBK", "binary", "UTF-16", "no gzip",
                                     "torn gzip", "other kind", "blank lines"])  # fmt: skip
def test_data_that_cannot_be_read_is_one_sentence(fishpaw_, models, files, verb, mistake):
    data, says = data_mistakes(files)[mistake]
    rest = ["--model", models / "task"] if verb == "evaluate" else ["--out", files.folder / "run"]
    refused(fishpaw_(verb, "classify", "--data", data, *rest), says)
    assert not (files.folder / "run").exists()


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
def test_train_refuses_each_option_that_cannot_be(fishpaw_, models, files, options, says):
    model = [] if "--model" in options else ["--model", models / "bert"]
    refused(fishpaw_("train", "classify", "--data", files.folder / "reviews.tsv", "--out", files.folder / "run", *model, *options), says)


def test_train_refuses_a_dev_with_another_label_before_it_trains(fishpaw_, models, files):
    dev = files("mid.tsv", "好\tpos\n好\tmid\n")
    words = ["train", "classify", "--data", files.folder / "reviews.tsv", "--out", files.folder / "run", "--model", models / "bert"]
    refused(fishpaw_(*words, "--dev", dev), "mid.tsv, line 2: unknown label 'mid'")
    refused(fishpaw_(*words, "--data", "-", "--dev", "-"), "both read standard input")
    one = files("one.tsv", "好\tpos\n坏\tpos\n")
    refused(fishpaw_(*words, "--data", one), r"\['pos'\]: nothing to choose")
    two = files("two.jsonl", '{"text": "好", "labels": ["a", "b"]}\n')
    refused(fishpaw_(*words, "--data", two), "two.jsonl, line 1: 2 labels, where one is wanted.*multi-label")


def test_a_column_of_texts_taken_for_labels_is_refused_before_training(fishpaw_, models, files):
    words = ["train", "classify", "--out", files.folder / "run", "--model", models / "bert", "--steps", 1, "--data"]
    data = files("swapped.tsv", "".join(f"pos\t{first}{second}\n" for first in LETTERS[:5] for second in LETTERS[:5]))
    refused(fishpaw_(*words, data), "swapped.tsv: 25 labels for 25 examples: is the label column the last one")
    refused(fishpaw_(*words, files("named.csv", "label,remark\npos,a\n")), "named.csv, line 1: .*'remark' is not known")
    assert not (files.folder / "run").exists()
    few = files("few.tsv", "".join(f"{letter}\t{letter}\n" for letter in LETTERS[:9]))
    assert fishpaw_(*words, few).code == 0


def test_out_is_looked_at_before_the_data(fishpaw_, files):
    done = fishpaw_("train", "classify", "--data", files.folder / "nowhere.tsv", "--out", files.folder / "dev.tsv" / "run")
    refused(done, "--out .*dev.tsv is a file, not a folder")


def test_models_that_are_none_are_one_sentence(fishpaw_, models, files):
    (files.folder / "empty").mkdir()
    (files.folder / "broken").mkdir()
    (files.folder / "broken" / "config.json").write_text("{", encoding="utf-8")
    data = files.folder / "dev.tsv"
    for model, says in ((files.folder / "empty", "holds no"), (files.folder / "broken", "config.json"), (data, "not a file of weights"),
                        (models / "bert", "holds no classifier.*fishpaw train classify"), ("", "no name"),
                        (f"{files.folder}/nowhere", "no such file or folder")):
        refused(fishpaw_("evaluate", "classify", "--model", model, "--data", data), says)
    for verb in (["fill", "[MASK]"], ["generate", "今"], ["predict", "classify", "今"]):
        refused(fishpaw_(*verb, "--model", files.folder / "empty"), "holds no")
    refused(fishpaw_("predict", "classify", "今", "--model", "nobody/nothing"), "nobody/nothing.*HF_ENDPOINT", code=3)


def test_a_flipped_byte_is_one_sentence_that_names_the_file(fishpaw_, models, files):
    import shutil

    shutil.copytree(models / "task", files.folder / "task")
    weights = files.folder / "task" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-7] ^= 4
    weights.write_bytes(content)
    refused(fishpaw_("predict", "classify", "今", "--model", files.folder / "task"), "model.safetensors")


@pytest.mark.parametrize("out", ["reviews.tsv", "reviews.tsv/run"])
def test_an_out_that_cannot_be_written_is_one_sentence(fishpaw_, models, files, out):
    words = ["train", "classify", "--data", files.folder / "reviews.tsv", "--model", models / "bert", "--steps", 1]
    refused(fishpaw_(*words, "--out", files.folder / out), "can't be written|is a file")
    assert (files.folder / "reviews.tsv").read_text(encoding="utf-8").startswith("今好")


# The shell around

@pytest.mark.skipif(os.name == "nt", reason="POSIX locales and pipes")
def test_chinese_is_utf8_in_an_ascii_locale(models):
    plain = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    done = shell("predict", "classify", "--model", models / "task", "今天好", env=plain)
    assert done.returncode == 0 and done.stdout.decode("utf-8").split("\t")[2] == "今天好\n", done.stderr


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_reader_that_has_seen_enough_is_no_mistake(models):
    words = ["predict", "classify", "--model", str(models / "task")]
    process = subprocess.Popen([sys.executable, "-m", "fishpaw", *words], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env={**os.environ, "PYTHONPATH": str(Path(fishpaw.__file__).parents[1])})  # fmt: skip
    with process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write("今天好\n".encode() * 9000)
        process.stdin.close()
        assert process.stdout.readline().endswith("今天好\n".encode())
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait(60) == 0


def test_bad_lines_are_left_out_with_one_message(fishpaw_, models, files):
    data = files("bad.tsv", "好\tpos\n坏\n坏\tneg\n坏\n")
    words = ["train", "classify", "--data", data, "--out", files.folder / "run", "--model", models / "bert", "--steps", 1]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        done = fishpaw_(*words, "--skip-bad", 2)
    lines = done.err.splitlines()
    assert done.code == 0 and [line for line in lines if re.fullmatch(r"fishpaw: 2 bad records left out.*line 2.*", line)], lines
    assert not [line for line in lines if "Warning" in line or "warn(" in line] and not done.out.startswith("fishpaw")
    refused(fishpaw_(*words, "--skip-bad", 1), "bad.tsv, line 4: 1 cell.* 1 bad record")


def test_colours_in_a_text_are_left_alone(fishpaw_, models):
    done = fishpaw_("predict", "classify", "--model", models / "task", stdin="\x1b[31m好\x1b[0m\n")
    assert done.lines[0].endswith("\t\x1b[31m好\x1b[0m")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_behind_stdout_is_one_sentence(models):
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-m", "fishpaw", "--version"], stdout=full, stderr=subprocess.PIPE, timeout=60,
                              env={**os.environ, "PYTHONPATH": str(Path(fishpaw.__file__).parents[1])})  # fmt: skip
    assert done.returncode == 2 and done.stderr.decode() == "fishpaw: standard output: can't be written (No space left on device).\n"


def test_doctor_says_each_line_in_both_ways(fishpaw_):
    plain, objects = fishpaw_("doctor"), fishpaw_("doctor", "--json").objects
    assert plain.code == 0 and [line.split()[0] for line in plain.lines] == [one["subject"] for one in objects]
    assert all(one["found"] in line for one, line in zip(objects, plain.lines, strict=True))
