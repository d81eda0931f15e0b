"""What pages show below `$ fishpaw …` is what the model that ships answers: words are compared, numbers to two hundredths."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fishpaw.cli.program import app

DOCS = Path(__file__).resolve().parent.parent / "docs"
NUMBER = re.compile(r"[-+]?\d+\.\d+")


def shown() -> list[tuple[str, str, list[str]]]:
    """Page, what is typed, and the lines up to the next thing typed or the end of the block; not of a model that the reader trains."""
    found = []
    for path in sorted(DOCS.glob("*/*.md")):
        for block in re.findall(r"```text\n(.*?)```", path.read_text(encoding="utf-8"), re.S):
            for typed, said in re.findall(r"^\$ fishpaw (.*)\n((?:(?!\$ |fishpaw |cat ).*\n)*)", block, re.M):
                if "runs/" not in typed:
                    found.append((f"{path.parent.name}/{path.name}", typed, said.splitlines()))
    return found


def same(shown: str, said: str) -> bool:
    """Letters alike, numbers nearly: processors add in another order."""
    numbers = [[*map(float, NUMBER.findall(line))] for line in (shown, said)]
    return NUMBER.sub("#", shown) == NUMBER.sub("#", said) and numbers[0] == pytest.approx(numbers[1], rel=0.02, abs=0.02)


def test_answers_are_found_and_compared():
    assert len(shown()) >= 8 and all(said for _, _, said in shown())
    assert same("-3.78\t大肠", "-3.79\t大肠") and not same("-3.78\t大肠", "-3.98\t大肠") and not same("-3.78\t大肠", "-3.78\t大")


@pytest.mark.parametrize(("page", "typed", "said"), shown(), ids=[f"{page}: {typed}" for page, typed, _ in shown()])
def test_a_page_shows_what_is_printed(page: str, typed: str, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    command, _, count = typed.partition(" | head -")
    result = CliRunner().invoke(app, shlex.split(command))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()[: int(count) if count else None]
    assert len(lines) == len(said) and all(map(same, said, lines)), "\n".join(lines)
