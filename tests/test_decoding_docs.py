"""docs/*/decoding.md: the code runs as it stands, and every processor, search, stop and option has its place on the page."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import fishpaw
from fishpaw.cli.generate import generate
from fishpaw.config import ModelConfig
from fishpaw.decoding import contrastive, processors, repetition, sample, search, stops, truncation
from fishpaw.decoding.settings import Settings
from fishpaw.model.transformer import Transformer
from fishpaw.text.learn import characters
from fishpaw.text.wordpiece import WordPiece

torch.set_num_threads(1)
PAGES = {language: (Path(__file__).resolve().parent.parent / "docs" / language / "decoding.md").read_text(encoding="utf-8")
         for language in ("en", "zh")}  # fmt: skip
NOT_THERE = {"Chain", "HiddenStepper", "MinLength", "PerPrompt", "Processor", "StatefulProcessor", "Until", "check_prompts", "full",
             "name_of", "narrowest", "of_prompts", "stream_contrastive", "stream_greedy", "unbeatable", "unpromising"}  # fmt: skip


def run(page: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    torch.manual_seed(0)
    vocab = characters(["今天天气我们去公园很好不好，。"], least=1)
    model = Transformer(ModelConfig(len(vocab), 16, 1, 2, 24, mask="causal", position="rotary", heads=("lm",), init_std=0.3)).eval()
    monkeypatch.setattr(fishpaw, "load", lambda name: (model, WordPiece(vocab)))
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(block, names)
    return names


def test_the_page_runs(monkeypatch, capsys):
    names = run(PAGES["en"], monkeypatch)
    assert names["answer"].why in ("stop", "end", "length") and capsys.readouterr().out
    with pytest.raises(NameError):
        run(PAGES["en"].replace("stepper = task.stepper", ""), monkeypatch)


@pytest.mark.parametrize("language", PAGES)
def test_everything_has_its_place(language):
    page = PAGES[language]
    modules = (contrastive, processors, repetition, sample, search, stops, truncation)
    public = {name for module in modules for name in module.__all__}
    assert not {name for name in public - NOT_THERE if not re.search(rf"\b{name}\b", page)}
    others = {"--stop", "--regex", "--choices", "--calibrate", "--shots", "--loop-stop", "--batch-size"}
    options = {"--" + name.replace("_", "-") for name in vars(Settings())} | others
    assert not {option for option in options if option + "`" not in page and option + " " not in page}
    assert {option[2:].replace("-", "_") for option in options} <= set(inspect.signature(generate).parameters)


def test_headings_and_links_are_the_same_in_both_languages():
    def marks(page: str) -> list[Any]:
        heads = [(len(head), re.findall(r"`[^`]+`", rest)) for head, rest in re.findall(r"^(#+) (.*)$", page, re.M)]
        return [heads, re.findall(r"\]\(([^)]+)\)", page), re.findall(r"```bash\n.*?```", page, re.S)]

    assert marks(PAGES["en"]) == marks(PAGES["zh"])
