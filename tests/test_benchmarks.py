"""The harness of the benchmarks: turns, ratios, memory, what is printed. Slow: each script runs with --smoke, and its JSON parses."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks"
SCRIPTS = {
    "forward": ["--sizes", "2x16"],
    "short_texts": [],
    "train_step fp32": ["--parts", "fp32"],
    "train_step bf16": ["--parts", "bf16"],
    "train_step memory": ["--parts", "memory"],
    "train_step recompute": ["--parts", "recompute"],
    "tokenize": [],
    "encode": ["--skip-memory"],
    "encode memory": [],
    "one_pass": [],
    "long_attention": ["--skip-memory", "--train"],
    "long_attention memory": ["--lengths", "32"],
    "load": ["--runs", "1"],
    "optimizers": [],
    "integrated_gradients": ["--layers", "2", "--tokens", "17", "--skip-memory"],
    "pretrain": ["--sizes", "2x16"],
    "shuffle": ["--leave-out", "sort"],
    "generate": ["--parts", "greedy,sample,beam"],
    "generate parts": ["--parts", "limit,outside,unilm"],
}


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import harness

    return harness


@pytest.fixture
def given():
    return argparse.Namespace(runs=3, threads=1, json=None, smoke=True, data=None, child=None)


# The harness

def test_contenders_take_turns_and_the_order_turns_round(harness):
    said = []
    seconds = harness.interleave({name: lambda name=name: said.append(name) for name in "abc"}, runs=3, warm_up=1)
    assert "".join(said) == "abc" + "abc" + "cba" + "abc"
    assert {name: len(runs) for name, runs in seconds.items()} == {"a": 3, "b": 3, "c": 3}


@pytest.mark.parametrize(
    ("better", "ours", "theirs"),
    [("less", [1.0, 2.0, 4.0], [2.0, 6.0, 20.0]), ("more", [2.0, 6.0, 20.0], [1.0, 2.0, 4.0])],
)
def test_ratio_above_one_says_that_ours_is_ahead(better, ours, theirs, harness, given):
    report = harness.Report("name", "claim", given)
    report.table("title", {"a peer": theirs, "fishpaw": ours}, unit="ms", better=better)
    (peer, mine) = report.tables[0].rows
    assert (peer.ratio, peer.ratio_least, peer.ratio_most) == (3.0, 2.0, 5.0)
    assert mine.ratio is None and (mine.least, mine.median, mine.most) == tuple(ours)


def test_times_become_milliseconds_or_work_a_second(harness, given):
    report = harness.Report("name", "claim", given)
    report.timed("times", {"fishpaw": [0.5, 0.25]})
    report.timed("speed", {"fishpaw": [0.5, 0.25]}, unit="tokens/s", work=8)
    assert [(table.rows[0].least, table.rows[0].most, table.better) for table in report.tables] == [(250, 500, "less"), (16, 32, "more")]


def test_outputs_that_differ_stop_a_benchmark(harness):
    a = torch.randn(3, 5, 7)
    assert "smallest cosine 1.000000" in harness.same("the same", a, a.clone(), most=0.0, cosine=0.999)
    planted = a.clone()
    planted[1, 2] = planted[1, 2].flip(0)                            # one token of fifteen: neither mean nor sum changes
    with pytest.raises(harness.Different, match="planted"):
        harness.same("planted", a, planted, most=1e-3)
    with pytest.raises(harness.Different, match="planted"):
        harness.same("planted", a, planted, cosine=0.99)
    with pytest.raises(harness.Different, match="shapes"):
        harness.same("a shape", a, a[:2], cosine=0.99)


def test_a_peer_that_is_missing_is_named(harness, given):
    report = harness.Report("name", "claim", given)
    assert report.needs("torch") and not report.notes
    assert not report.needs("torch", "no-such-package") and "no-such-package" in report.notes[0]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_memory_counts_what_was_held_for_a_moment_and_forgets(harness):
    size = 64 * 2**20
    harness.reset_peak()
    before = harness.resting()
    held = bytearray(os.urandom(1024)) * (size // 1024)              # written, else it takes no memory
    del held
    assert harness.peak() - before > 0.9 * size
    harness.reset_peak()
    assert harness.peak() - harness.resting() < 0.5 * size


@pytest.mark.parametrize("where", ["-", "file"])
def test_json_parses_and_tables_say_where_they_ran(where, harness, given, tmp_path, capfd):
    given.json = "-" if where == "-" else str(tmp_path / "found.json")
    report = harness.Report("name", "claim", given)
    report.timed("fp32", {"fishpaw": [1.0, 1.0], "a peer": [2.0, 3.0]})
    report.note("鱼")
    report.finish()
    printed = capfd.readouterr().out
    found = json.loads(printed if where == "-" else Path(given.json).read_text(encoding="utf-8"))
    assert found["environment"]["threads"] == 1 and found["environment"]["versions"]["torch"] and found["notes"] == ["鱼"]
    assert found["tables"][0]["rows"][1]["ratio"] == 2.5
    assert ("ours 2.50x [2.00-3.00]" in printed) == (where == "file") == ("threads: 1" in printed)


# Texts

def test_generated_text_has_the_size_and_the_lengths_asked_for(harness):
    from benchmarks import texts

    lines, _ = texts.corpus(None, 10_000)
    assert 10_000 <= sum(len(line.encode()) + 1 for line in lines) < 10_400
    some, _ = texts.sentences(None, 50)
    assert len(set(some)) == 50 and all(8 <= len(text) <= 60 for text in some) and some == texts.sentences(None, 50)[0]
    assert len(texts.vocabulary(None)) == 21128


# Documents and scripts

def test_each_script_is_explained_in_both_languages_and_says_its_claim():
    scripts = {path.name for path in FOLDER.glob("*.py") if "\nif __name__" in path.read_text(encoding="utf-8")}
    assert scripts == {f"{name.split()[0]}.py" for name in SCRIPTS}
    for page in ("README.md", "README_zh.md"):
        assert set(re.findall(r"^\| `(\w+\.py)`", (FOLDER / page).read_text(encoding="utf-8"), re.M)) == scripts
    for name in scripts:
        assert "\nClaim: " in (FOLDER / name).read_text(encoding="utf-8")


def test_documents_stand_side_by_side():
    def shape(name: str) -> list[str]:
        lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
        return [mark.group() for line in lines if (mark := re.match(r"#+ |```\w*|\||- ", line))]

    assert shape("README.md") == shape("README_zh.md")


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_runs_and_its_json_parses(name):
    if name == "load" and find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    script = FOLDER / f"{name.split()[0]}.py"
    command = [sys.executable, str(script), "--smoke", "--threads", "1", "--json", *SCRIPTS[name]]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=ROOT.parent, timeout=380, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["benchmark"] == script.stem and found["environment"]["smoke"] is True
    rows = [row for table in found["tables"] for row in table["rows"]]
    assert rows and all(row["median"] >= 0 and row["runs"] >= 1 for row in rows)
    for table in found["tables"]:
        assert table["rows"][0]["name"].startswith("fishpaw") or "left out: fishpaw" in " ".join(found["notes"])
