"""docs/*/losses.md: the code runs as it stands, and every loss and penalty has its place on the page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from fishpaw.losses import classification, imbalance, penalties, weissi, zlpr

torch.set_num_threads(1)
PAGES = {language: (Path(__file__).resolve().parent.parent / "docs" / language / "losses.md").read_text(encoding="utf-8")
         for language in ("en", "zh")}  # fmt: skip
NOT_THERE = {"Loss", "counted"}


@pytest.mark.parametrize("language", PAGES)
def test_the_page_runs_and_does_what_it_says(language):
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGES[language], re.S):
        exec(block, names)
    assert names["result"].step == 2 and names["holds"] and names["balanced_logits"].shape == (8, 3)
    batch = names["collate"](names["examples"])
    for name in ("hardened", "virtual", "smooth", "steady", "lean"):
        total, count = names[name](names["model"].train(), batch)
        assert total.isfinite() and float(count) == 4
    (one, other), (first, second) = ([weight.norm().item() for weight in names[name]] for name in ("weights", "even"))
    assert first == pytest.approx(second, rel=1e-5) and one * other == pytest.approx(first * second, rel=1e-5)


@pytest.mark.parametrize("language", PAGES)
def test_everything_has_its_place(language):
    public = {name for module in (classification, imbalance, penalties, weissi, zlpr) for name in module.__all__}
    assert not {name for name in public - NOT_THERE if f"`{name}`" not in PAGES[language] and f"{name}(" not in PAGES[language]}
