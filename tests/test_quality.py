"""ruff and mypy --strict find nothing, and would find a planted fault."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def ask(*command: object) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-m", *map(str, command)], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=600)
    return done.returncode, done.stdout + done.stderr


def test_ruff_finds_nothing():
    code, said = ask("ruff", "check", "--quiet", ".")
    assert code == 0, said


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        ("import os\n", "F401"),
        ("print(undefined)\n", "F821"),
        ("import sys\nimport os\n\nprint(os, sys)\n", "I001"),
        ("from typing import List\n\nx: List[int] = []\n", "UP035"),
        ("def f(x=[]):\n    return x\n", "B006"),
        ("x = 1 \n", "W291"),
        (f"x = '{'鱼' * 70}'\n", "E501"),                            # a Chinese character is two columns wide
    ],
)
def test_ruff_would_find(fault, rule, tmp_path):
    planted = tmp_path / "planted.py"
    planted.write_text(fault, encoding="utf-8")
    code, said = ask("ruff", "check", "--no-cache", "--config", ROOT / "pyproject.toml", planted)
    assert code == 1 and rule in said


def test_each_ignored_rule_says_why():
    """`# noqa: CODE (reason)` and `# type: ignore[code]  # reason`; never F821, an undefined name."""
    for path in (*ROOT.glob("*.py"), *(ROOT / "src").rglob("*.py")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            noqa, ignore = line.partition("# noqa")[2], line.partition("# type: ignore")[2]
            assert not noqa or ("(" in noqa and "F821" not in noqa), f"{path}:{number}: {line}"
            assert not ignore or (ignore.startswith("[") and "#" in ignore), f"{path}:{number}: {line}"


@pytest.mark.timeout(600)
def test_mypy_finds_nothing():
    code, said = ask("mypy")
    assert code == 0, said


@pytest.mark.timeout(600)
def test_mypy_would_find_an_unannotated_function_and_a_wrong_type(tmp_path):
    planted = tmp_path / "planted.py"
    planted.write_text("def f(x):\n    return x\n\ny: int = 'text'\n", encoding="utf-8")
    code, said = ask("mypy", "--config-file", ROOT / "pyproject.toml", "--cache-dir", tmp_path / "cache", planted)
    assert code == 1 and "[no-untyped-def]" in said and "[assignment]" in said
