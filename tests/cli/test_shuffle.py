"""shuffle as it is typed: files, pipes, sizes, one sentence about what is wrong, and no torch."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fishpaw
from fishpaw.cli.shuffle import size_of
from fishpaw.data.shuffle import order
from fishpaw.errors import ConfigError

LINES = [b"%d \xff\r\n" % at for at in range(1000)]


@pytest.fixture
def text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"".join(LINES))
    return tmp_path / "a.txt"


def test_files(fishpaw_, text, tmp_path):
    out = tmp_path / "out"
    done = fishpaw_("shuffle", text, "--out", out, "--seed", 4, "--lines-per-file", 600, "--ending", ".log.gz", "--memory", "2G", "--json")
    (found,) = done.objects
    assert done.code == 0 and not done.err and found["lines"] == 1000 and [part["lines"] for part in found["files"]] == [600, 400]
    assert b"".join(gzip.decompress((out / part["name"]).read_bytes()) for part in found["files"]) == \
        b"".join(LINES[at] for at in order(1000, seed=4))  # fmt: skip
    again = fishpaw_("shuffle", text, "-o", out, "--seed", 4, "--lines-per-file", 600, "--ending", ".log.gz", "--memory", "2G")
    assert again.code == 0 and f"digest       {found['digest']}" in again.lines and "files        2" in again.lines


def test_pipes_need_no_torch(text):
    """A Python of its own, for what is imported and held counts."""
    code = "import sys\nfrom fishpaw.cli.program import main\ntry: main()\nfinally: assert not {'torch', 'tokenizers'} & {*sys.modules}"
    env = {**os.environ, "PYTHONPATH": str(Path(fishpaw.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code, "shuffle", "-", "--out", "-", "--memory", "200M"], input=text.read_bytes(),
                          capture_output=True, env=env, timeout=60)  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr.decode()
    assert done.stdout == b"".join(LINES[at] for at in order(1000))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--memory", "much"], "--memory much is no size"),
        (["--memory", "0"], "--memory 0 is no size"),
        (["--memory", "20M"], "memory is 20M, too little"),
        (["--bytes-per-file", "-3"], "--bytes-per-file -3 is no size"),
        (["--bytes-per-file", "1K", "--lines-per-file", "3"], "Leave one out"),
        (["--out", "-", "--json"], "both want standard output"),
        (["--out", "-", "--lines-per-file", "3"], "one file"),
        (["--ending", "zip"], "ending is 'zip'"),
        (["--engine", "ray", "--bytes-per-file", "1K"], "--engine ray knows no --bytes-per-file"),
        (["nowhere.txt"], "nowhere.txt: can't be read"),
        (["-", "-"], "named twice"),
    ],
    ids=str,
)
def test_mistakes_are_one_sentence_and_nothing_is_written(fishpaw_, refused, text, tmp_path, options, says):
    out = [] if "--out" in options else ["--out", tmp_path / "out"]
    refused(fishpaw_("shuffle", text, *out, *options), says)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_damaged_file_leaves_nothing(fishpaw_, refused, text, tmp_path):
    (tmp_path / "b.gz").write_bytes(gzip.compress(os.urandom(5000))[:-20])
    refused(fishpaw_("shuffle", text, tmp_path / "b.gz", "--out", tmp_path / "out", "--memory", "2G"), "b.gz, after line .* damaged")
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "b.gz"}
    refused(fishpaw_("shuffle", text, "--out", text, "--memory", "2G"), "is a file, not a folder")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_bytes(b"")
    refused(fishpaw_("shuffle", text, "--out", tmp_path / "full", "--memory", "2G"), "holds x already")


@pytest.mark.parametrize(("text", "size"), [("512M", 2**29), ("1g", 2**30), ("1.5K", 1536), ("7", 7), ("2GiB", 2**31), (" 3 mb", None)])
def test_sizes(text, size):
    if size is None:
        with pytest.raises(ConfigError):
            size_of("--memory", text)
    else:
        assert size_of("--memory", text) == size


def test_the_summary_is_one_line_of_json(shell, text, tmp_path):
    done = shell("shuffle", text, "--out", tmp_path / "out", "--memory", "200M", "--json")
    assert json.loads(done.stdout)["bytes"] == sum(map(len, LINES)) and not done.stderr
