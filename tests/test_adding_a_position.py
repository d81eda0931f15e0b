"""The page on adding a position: its file is taken out of the page, put where Python finds it, and must keep what the page promises."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch
from fishpaw.errors import ConfigError
from fishpaw.model.transformer import Transformer

torch.set_num_threads(1)
PAGES = [Path(__file__).resolve().parent.parent / "docs" / language / "adding_a_position.md" for language in ("en", "zh")]
SHAPE = {"vocab_size": 37, "hidden_size": 23, "layers": 2, "attention_heads": 3, "head_size": 10, "intermediate_size": 29, "init_std": 0.6,
         "heads": ("lm",), "dropout": 0.0, "attention_dropout": 0.0}


def code(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


@pytest.fixture(params=PAGES, ids=lambda page: page.parent.name)
def page(request, tmp_path, monkeypatch):
    """A page whose file `alibi.py` can be imported while the test runs; for whatever other check wants it, too."""
    (tmp_path / "alibi.py").write_text(code(request.param)[0], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "alibi", raising=False)
    importlib.invalidate_caches()
    yield request.param
    sys.modules.pop("alibi", None)


def model(**changes):
    torch.manual_seed(0)
    return Transformer(ModelConfig(**{**SHAPE, "position": "alibi:build", **changes})).double().eval().requires_grad_(False)


def test_the_bias_is_the_formula_of_the_paper(page):
    position = model(attention_heads=8, head_size=3).position
    q_pos, k_pos = torch.randint(0, 97, (2, 5)), torch.randint(0, 97, (2, 7))
    found = position.bias(q_pos, k_pos)
    slopes = [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]                         # the paper's, for eight heads
    for b in range(2):
        for h, slope in enumerate(slopes):
            for i in range(5):
                for j in range(7):
                    assert float(found[b, h, i, j]) == -slope * abs(int(q_pos[b, i]) - int(k_pos[b, j]))
    assert position.hooks() == {"bias"} and not list(position.state_dict()) and position.length is None


@pytest.mark.parametrize("mask", ["full", "causal", "unilm"])
def test_texts_alone_padded_and_packed_are_the_same(page, mask):
    alibi = model(mask=mask)
    texts = [torch.randint(37, (length,)) for length in (11, 4, 7, 1)]
    packed = Batch.packed(texts)
    alone = [alibi(text[None]).logits[0] for text in texts]
    for text, expected, one in zip(texts, alone, packed.unpack(alibi(packed).logits), strict=True):
        left = torch.cat((torch.zeros(5, dtype=torch.long), text))[None]
        padded = alibi(left, padding=torch.arange(left.shape[1])[None] >= 5).logits[0, 5:]
        assert max(float((other - expected).abs().max()) for other in (one, padded)) < 1e-10
    other = model(mask=mask, position={"name": "alibi:build", "steepness": 1.0})
    assert float((other(texts[0][None]).logits[0] - alone[0]).abs().max()) > 1e-3                   # it does something


def test_cached_decoding_is_the_full_pass(page):
    alibi, ids = model(mask="causal"), torch.randint(37, (2, 11))
    full, cache = alibi(ids).logits, alibi.new_cache()
    found = [alibi(ids[:, :4], cache=cache).logits, *(alibi(ids[:, place], cache=cache).logits for place in range(4, 11))]
    assert float((torch.cat([one.view(2, -1, 37) for one in found], dim=1) - full).abs().max()) < 1e-10


def test_the_ways_to_name_it_are_one_model_and_a_config_file_has_none_of_them(page):
    build = importlib.import_module("alibi").build
    ids = torch.randint(37, (2, 7))
    named, called = model(position={"name": "alibi:build", "steepness": 8.0}), model(position=build)
    assert torch.equal(named(ids).logits, called(ids).logits) and torch.equal(named(ids).logits, model()(ids).logits)
    with pytest.raises(ConfigError, match="steepness=8.0"):
        model(position={"name": "alibi:build", "steep": 8.0})
    with pytest.raises(ConfigError, match="names code"):
        ModelConfig.from_dict({**SHAPE, "position": "alibi:build"})
    for config in (named.config, called.config):
        with pytest.raises(ConfigError, match="part of your own"):
            config.to_dict()


def test_the_program_of_the_page_runs(page, capsys):
    exec(compile(code(page)[1], str(page), "exec"), {})
    assert capsys.readouterr().out == "torch.Size([2, 7, 1000])\n"


def test_the_hooks_of_the_page_are_those_of_a_position(page):
    from fishpaw.contracts import Position

    named = re.findall(r"^\| `(\w+)\(([\w, ]+)\)` \|", page.read_text(encoding="utf-8"), re.M)
    assert {name for name, _ in named} == {"embed", "rotate", "bias", "score", "mix", "at"}
    for name, arguments in named:
        wanted = getattr(Position, name).__code__
        assert arguments.split(", ") == list(wanted.co_varnames[1 : wanted.co_argcount])
