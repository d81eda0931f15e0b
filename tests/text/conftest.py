"""What the tests of text/ share: a small vocabulary, the hard lines, and the naive reference."""

from __future__ import annotations

import gzip
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


@pytest.fixture(scope="session")
def google_vocab(data_folder):
    return Vocab.load(data_folder / "vocab" / "uer" / "google_zh_vocab.txt")


@pytest.fixture(scope="session")
def real_lines(data_folder):
    """20,000 lines of four corpora: laws, technical prose with code, poems, and news with classical Chinese."""
    lines, count = [], 20_000
    for name in ("laws_lawrefbook/docs.jsonl", "oi_wiki/docs.jsonl", "chinese_poetry/poems.jsonl", "classical_modern_bitext/docs.jsonl"):
        path, quota = data_folder / "corpus" / name, []
        opened = gzip.open(f"{path}.gz", "rt", encoding="utf-8") if not path.exists() else path.open(encoding="utf-8")
        with opened as records:
            for record in records:
                fields = [value for value in json.loads(record).values() if isinstance(value, str)]
                quota += [line for value in fields for line in value.split("\n") if line.strip()]
                if len(quota) >= count // 4:
                    break
        lines += quota[:count // 4]
    assert len(lines) == count
    return lines


@pytest.fixture(params=OPTIONS, ids=lambda option: "-".join(f"{key}={value}" for key, value in option.items()))
def option(request):
    return request.param
