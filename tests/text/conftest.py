"""What the tests of text/ share: a small vocabulary, the hard lines, and the naive reference."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path

import pytest

from fishpaw.text.vocab import Vocab

HERE = Path(__file__).parent
OPTIONS = [dict(lower=lower, strip_accents=strip, cjk=cjk)
           for lower in (True, False) for strip in (None, True, False) for cjk in (True, False)]


@pytest.fixture(scope="session")
def vocab():
    return Vocab.load(HERE / "vocab.txt")


@pytest.fixture(scope="session")
def hard_lines():
    lines = [json.loads(line) for line in (HERE / "hard_lines.txt").read_text(encoding="utf-8").split("\n")[:-1]]
    assert len(set(lines)) >= 500
    return lines


@pytest.fixture(scope="session")
def mixed_lines(hard_lines):
    """The characters of the hard lines, shaken."""
    pool, dice = sorted(set("".join(hard_lines))), random.Random(7)
    return ["".join(dice.choices(pool, k=dice.randint(1, 31))) for _ in range(997)]


@pytest.fixture(scope="session")
def naive_encode():
    spec = importlib.util.spec_from_file_location("naive_wordpiece", HERE / "naive_wordpiece.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.naive_encode


@pytest.fixture(params=OPTIONS, ids=lambda option: "-".join(f"{key}={value}" for key, value in option.items()))
def option(request):
    return request.param
