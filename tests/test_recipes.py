"""Each recipe runs from top to bottom with --smoke, and ends with its line of result."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_sentiment_runs_on_the_bundled_reviews(tmp_path):
    pytest.importorskip("sklearn", reason="the recipe's baseline needs scikit-learn (extra recipes)")
    environment = {name: value for name, value in os.environ.items() if name != "FISHPAW_DATA"}
    command = [sys.executable, "-W", "error", str(ROOT / "recipes" / "sentiment.py"), "--smoke", "--seeds", "3", "--out", str(tmp_path)]
    done = subprocess.run(command, env={**environment, "PYTHONPATH": str(ROOT / "src")}, capture_output=True, encoding="utf-8", timeout=150)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "200 used to train, 50 to evaluate" in lines[0] and re.match(r"RoFormer from nothing, seed 3  0\.\d{4}  \(4 steps, ", lines[-2])
    last = re.fullmatch(r"RoFormer from nothing, mean    (0\.\d{4}) ± 0\.0000 of 1 seeds", lines[-1])
    assert last, lines[-1]
    summary = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert f"{summary['mean']:.4f}" == last[1] and summary["accuracy"] == [summary["mean"]] and 0.5 < summary["baseline"] < 1


def test_variants_of_a_masked_language_model_run_and_are_read_again(tmp_path):
    command = [sys.executable, "-W", "error", str(ROOT / "recipes" / "mlm_variants.py"), "--smoke", "--out", str(tmp_path), "--only",
               "post-LN", "Performer"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    for turn in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=150)
        assert done.returncode == 0, done.stderr
        assert ("trial post-LN" in done.stdout) == (turn == 0)       # the second time everything is there
    table = json.loads((tmp_path / "smoke" / "result.json").read_text(encoding="utf-8"))
    assert [len(table[name]["losses"]) for name in ("post-LN", "Performer")] == [3, 1] and len(table["abrupt"]) == 3
    assert 0 <= table["swap"]["after"]["accuracy"] <= 1 and table["Performer"]["tokens_per_second"] > 0
