"""The program as it is typed: run in this process or in a shell, tiny models, and files of reviews."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import re
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

import fishpaw
from fishpaw.cli.program import main

LETTERS = "今天气我们去公园玩吧房间前台很热情下次"


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def objects(self) -> list[dict]:
        return [json.loads(line) for line in self.lines]


@pytest.fixture
def fishpaw_(monkeypatch):
    """fishpaw_("verb", …, stdin=…) -> Done, in this process, on streams of bytes as a shell gives them."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(logging, "lastResort", logging.StreamHandler())

    def run(*words: object, stdin: bytes | str = b"", stdout: io.BytesIO | None = None) -> Done:
        given = stdin.encode("utf-8") if isinstance(stdin, str) else stdin
        out, err = stdout or io.BytesIO(), io.BytesIO()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["fishpaw", *map(str, words)])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), encoding="ascii"))
            patch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="ascii"))          # the program has to ask for UTF-8 itself
            patch.setattr(sys, "stderr", io.TextIOWrapper(err, encoding="ascii"))
            code = 0
            try:
                main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
            sys.stdout.flush()
            sys.stderr.flush()
            return Done(code, out.getvalue().decode("utf-8"), err.getvalue().decode("utf-8"))

    return run


@pytest.fixture(scope="session")
def shell():
    """shell("verb", …, stdin=…) -> the finished process of a Python of its own."""
    def run(*words: object, stdin: bytes = b"", env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-m", "fishpaw", *map(str, words)], input=stdin, capture_output=True, timeout=120,
                              env={**os.environ, "PYTHONPATH": str(Path(fishpaw.__file__).parents[1]), **(env or {})})  # fmt: skip

    return run


@pytest.fixture(scope="session")
def refused():
    """refused(done, says): one sentence on stderr about the mistake, nothing on stdout, no traceback."""
    def check(done: Done, says: str, code: int = 2) -> str:
        assert done.code == code, done
        told = [line for line in done.err.splitlines() if not re.match(r"fishpaw: \d+ examples", line)]
        assert len(told) == 1 and told[0].startswith("fishpaw: ") and not done.out, done
        assert re.search(says, told[0]), told[0]
        return told[0]

    return check


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folders of a tiny BERT, a tiny GPT-2 and a tiny T5, and of a classifier trained on `reviews`."""
    import torch
    from tokenizers import pre_tokenizers

    from fishpaw.config import ModelConfig
    from fishpaw.model.transformer import Transformer
    from fishpaw.tasks.classify import Classify
    from fishpaw.text.bpe import ByteLevel
    from fishpaw.text.learn import characters
    from fishpaw.text.wordpiece import WordPiece
    from fishpaw.weights.names import FAMILIES
    from fishpaw.weights.save import save
    from fishpaw.weights.translate import read_config

    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    vocab = characters([LETTERS + "好坏"], least=1)
    shape = {"layers": 1, "hidden_size": 12, "attention_heads": 2, "intermediate_size": 20, "init_std": 0.3, "max_positions": 61}
    bert = Transformer(ModelConfig(vocab_size=len(vocab), norm={"name": "layer", "eps": 1e-12}, heads=("pooler", "mlm"), **shape))
    save(bert, folder / "bert", WordPiece(vocab))
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>"]
    gpt2 = ModelConfig(family="gpt2", vocab_size=257, norm_at="pre", embedding_norm=False, segments=0, activation="gelu_tanh",
                       mask="causal", heads=("lm",), pad_id=256, **shape)  # fmt: skip
    save(Transformer(gpt2), folder / "gpt2", ByteLevel({letter: number for number, letter in enumerate(letters)}, []))
    sizes = {"vocab_size": len(vocab), "d_model": 12, "d_kv": 6, "num_heads": 2, "num_layers": 1, "d_ff": 20}
    save(Transformer(read_config(sizes, FAMILIES["t5"]).change({"heads": ("lm",)})), folder / "t5", WordPiece(vocab))
    Classify.load(folder / "bert", labels=["neg", "pos"], max_length=20, seed=4).save(folder / "task")
    Classify.load(folder / "bert", labels=["a", "b"], multi_label=True).save(folder / "several")
    return folder


@pytest.fixture
def files(tmp_path):
    """files(name, text) -> a file with it, packed if the name says so; reviews.tsv and dev.tsv are there already."""
    def write(name: str, content: str | bytes) -> Path:
        data = content.encode("utf-8") if isinstance(content, str) else content
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return tmp_path / name

    lines = [f"{LETTERS[at % 17]}{'好坏'[at % 2]}\t{('pos', 'neg')[at % 2]}\n" for at in range(48)]
    write("reviews.tsv", "".join(lines))
    write("dev.tsv", "".join(lines[:12]))
    write.folder = tmp_path  # type: ignore[attr-defined]
    return write
