"""docs/*/score.md and doctor.md: the code runs as it stands; every option, way and line has its place on the page."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from fishpaw.cli.score import score
from fishpaw.doctor import MODELS, examine
from fishpaw.tasks.score import Score, Way

torch.set_num_threads(1)
DOCS = Path(__file__).resolve().parent.parent / "docs"


def page(language: str, name: str) -> str:
    return (DOCS / language / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_of_score_runs_and_has_everything(language, capsys):
    text, names = page(language, "score.md"), dict[str, Any]()
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(block, names)
    assert len(names["figures"]) == 2 and names["figures"][0]["way"] == "masked" and "今天天汽很好 masked -" in capsys.readouterr().out
    assert all(f"`{way}`" in text for way in get_args(Way))
    assert all(f"`--{option}`" in text or f"--{option} " in text for option in ("max-length", "margin", "rank", "json", "limit", "data"))
    defaults = inspect.signature(Score).parameters
    for name in ("margin", "rank"):
        assert inspect.signature(score).parameters[name].default == defaults[name].default and f"{defaults[name].default:g}" in text


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_of_the_doctor_has_each_line_and_each_share(language):
    text = page(language, "doctor.md")
    subjects = [one.subject for one in examine(seconds=0.01)]
    wanted = [*subjects[subjects.index("torch") : subjects.index("hub")], "models", "cache", "data"]
    assert {*wanted} - {"gpu"} and all(f"`{subject}`" in text for subject in wanted)
    assert all(f"{share:g}" in text for model in MODELS for share in (model.forward, model.training))
