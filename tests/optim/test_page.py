"""docs/*/optimizers.md: the code runs as it stands, and each optimizer and transform has its place on the page."""

from __future__ import annotations

import re
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fishpaw.optim import transforms

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = {language: (ROOT / "docs" / language / "optimizers.md").read_text(encoding="utf-8") for language in ("en", "zh")}
SMALL = run_path(str(Path(__file__).with_name("small.py")))
CONTRACTS = {"OWN", "Exclusion", "Moves", "Transform", "copy_each", "named_by"}


def given() -> dict[str, Any]:
    """What the page takes for granted: a model, batches, losses."""
    noise = torch.Generator().manual_seed(1)
    batches = [torch.randint(7, (n,), generator=noise) for n in (3, 5, 2, 7, 1, 4)]

    def summed(model: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
        return model(ids).square().sum(), torch.tensor(len(ids))

    def loss(model: nn.Module, ids: Tensor) -> Tensor:
        return summed(model, ids)[0] / len(ids)

    return {"model": SMALL["net"](), "batches": batches, "examples": list(range(1, 7)), "summed": summed, "loss": loss,
            "evaluate": lambda model: 0, "collate": torch.tensor, "length": lambda example: 1}  # fmt: skip


@pytest.mark.parametrize("language", PAGES)
def test_the_page_runs(language: str) -> None:
    names = given()
    before = SMALL["weights"](names["model"])
    for block in re.findall(r"```python\n(.*?)```", PAGES[language], re.S):
        exec(block.replace("collate=collate,", "collate=collate, length=length,"), names)
    assert names["result"].step == 2 and names["optimizer"].updates == 6
    assert SMALL["gap"](SMALL["weights"](names["model"]), before) > 0


@pytest.mark.parametrize("language", PAGES)
def test_everything_has_its_place(language: str) -> None:
    page = PAGES[language]
    assert not [name for name in {*transforms.__all__} - CONTRACTS if not re.search(rf"\b{name}\b", page)]
    parts = {"__init__", "adapted", "derive", "parameters", "schedules", "transforms"}
    modules = {path.stem for path in (ROOT / "src/fishpaw/optim").glob("*.py")} - parts
    assert {module for module in modules if f"`{module}.{module}`" in page} == modules
