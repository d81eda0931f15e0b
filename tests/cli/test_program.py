"""The program: help, exit codes, and the shell around it: locales, pipes, a full disk."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fishpaw

VERBS = [[], ["demo"], ["doctor"], ["train"], ["train", "classify"], ["train", "dialogue"], ["train", "seq2seq"],
         ["evaluate", "classify"], ["evaluate", "dialogue"], ["evaluate", "seq2seq"], ["predict", "classify"], ["predict", "seq2seq"],
         ["fill"], ["score"], ["chat"], ["generate"], ["segment"], ["parse"], ["explain"], ["lab"], ["pretrain"], ["convert"], ["export"],
         ["export", "onnx"], ["shuffle"]]  # fmt: skip


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
    done = fishpaw_("--version")
    assert (done.code, done.out, done.err) == (0, fishpaw.__version__ + "\n", "")


def test_the_entry_point_is_the_program():
    from fishpaw import cli
    from fishpaw.cli.program import main

    assert cli.main is main
    with pytest.raises(AttributeError, match="'fishpaw.cli' has no attribute 'nothing'"):
        _ = cli.nothing


@pytest.mark.parametrize(
    "words",
    [["nonsense"], ["--bad"], ["evaluate", "classify"], ["train", "classify", "--data", "x"], ["fill", "--model", "x", "--top", "0"],
     ["fill", "--model", "x", "--top", "many"], ["train", "classify", "--data", "x", "--out", "y", "--seed", "-1"],
     ["evaluate", "classify", "-m", "x", "-d", "y", "--limit", "0"], ["fill", "a", "b", "c"]],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage_ends_with_2(fishpaw_, words):
    done = fishpaw_(*words)
    assert done.code == 2 and not done.out and done.err.count("\n") == 1
    assert re.fullmatch(r"fishpaw: [^`]+\. `.*fishpaw [a-z ]*--help` says what there is\.\n", done.err), done.err


@pytest.mark.parametrize(
    ("words", "says"),
    [(["fill", "--modle", "x"], "No such option: --modle; close to it: --model. `fishpaw fill --help` says what there is."),
     (["fill", "-m", "x", "--top", "many"], "--top should be a valid integer. `fishpaw fill --help` says what there is."),
     (["train", "clasify"], "No such command 'clasify'. Did you mean 'classify'? `fishpaw train --help` says what there is."),
     (["fill", "-m"], "Option '-m' requires an argument.")],
)  # fmt: skip
def test_wrong_usage_says_what_is_wrong(fishpaw_, words, says):
    assert re.sub("`.*fishpaw", "`fishpaw", fishpaw_(*words).err) == f"fishpaw: {says}\n"              # python -m fishpaw


@pytest.mark.parametrize("words", [[], ["train"], ["export"]], ids=" ".join)
def test_a_verb_without_its_word_shows_the_help(fishpaw_, words):
    done = fishpaw_(*words)
    assert done.code == 2 and "Usage" in done.out and "Commands" in done.out and not done.err


def test_doctor_says_each_line_in_both_ways(fishpaw_):
    plain, objects = fishpaw_("doctor"), fishpaw_("doctor", "--json").objects
    assert plain.code == 0 and [line.split()[0] for line in plain.lines] == [one["subject"] for one in objects]
    measured = {"memory", "models", "product", "dtype", "forward", "training"}             # anew each time
    assert all(one["found"] in line for one, line in zip(objects, plain.lines, strict=True) if one["subject"] not in measured)


def test_models_that_are_none_are_one_sentence(fishpaw_, models, files, refused):
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


def test_a_mistyped_folder_is_told_what_lies_beside_it(fishpaw_, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "runs" / "titles").mkdir(parents=True)
    refused(fishpaw_("fill", "今", "-m", "runs/title"), r"; there is no folder runs/title here, but titles\. Unset HF_HUB_OFFLINE", code=3)
    refused(fishpaw_("fill", "今", "-m", "nothing/title"), r"; there is no folder nothing/title here\. Unset", code=3)


@pytest.mark.skipif(os.name == "nt", reason="POSIX locales and pipes")
def test_chinese_is_utf8_in_an_ascii_locale(models, shell):
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


def test_colours_in_a_text_are_left_alone(fishpaw_, models):
    done = fishpaw_("predict", "classify", "--model", models / "task", stdin="\x1b[31m好\x1b[0m\n")
    assert done.lines[0].endswith("\t\x1b[31m好\x1b[0m")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_behind_stdout_is_one_sentence(models):
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-m", "fishpaw", "--version"], stdout=full, stderr=subprocess.PIPE, timeout=60,
                              env={**os.environ, "PYTHONPATH": str(Path(fishpaw.__file__).parents[1])})  # fmt: skip
    assert done.returncode == 2 and done.stderr.decode() == "fishpaw: standard output: can't be written (No space left on device).\n"


@pytest.mark.parametrize("delay", [0.05, 0.3, 1.0])
def test_ctrl_c_while_it_starts_is_one_word(delay):
    """From the first import on; before it Python itself, or the operating system, ends the process."""
    code = "import os, signal, sys, threading; from fishpaw.__main__ import main; " \
        f"threading.Timer({delay}, os.kill, (os.getpid(), signal.SIGINT)).start(); " \
        "sys.argv = ['fishpaw', 'chat', '--model', 'nothing']; sys.stdin = open(os.devnull); main(); threading.Event().wait()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=150)
    assert "Traceback" not in done.stderr and done.returncode in (130, 2, 3), done.stderr
