"""What comes with a model: the commit that it is from, and its tokenizer."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fishpaw import hub
from fishpaw.config import ModelConfig
from fishpaw.errors import CheckpointError, ConfigError
from fishpaw.hub import Found
from fishpaw.model.transformer import Transformer
from fishpaw.text.vocab import SPECIAL, Vocab
from fishpaw.text.wordpiece import WordPiece
from fishpaw.weights.formats import read_folder, write_safetensors
from fishpaw.weights.load import inspect, load, load_model
from fishpaw.weights.save import save

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SIZES = {"vocab_size": 23, "hidden_size": 12, "layers": 2, "attention_heads": 3, "intermediate_size": 17, "max_positions": 13}


def make(family: str, **changes: Any) -> Transformer:
    torch.manual_seed(1)
    return Transformer(ModelConfig(**SIZES | {"family": family, "heads": ("pooler", "nsp", "mlm")} | changes)).eval()


def write(folder: Path, values: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    write_safetensors(tensors, folder / "model.safetensors")
    return folder


def same(one: Transformer, other: Transformer) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("saved") / "bert"
    save(make("bert"), folder)
    return {"bert": folder}


@pytest.fixture
def parts(saved: dict[str, Path]) -> Any:
    """(config.json, tensors) of a family, to spoil."""
    return lambda family: (json.loads((saved[family] / "config.json").read_text(encoding="utf-8")), dict(read_folder(saved[family])))


def test_the_commit_is_written_down_and_stays(saved, monkeypatch, tmp_path):
    def find(name: str | Path, *, revision: str | None = None) -> Found:
        if name != "owner/model":
            return real(name, revision=revision)
        return Found(saved["bert"], "hub", "owner/model", COMMIT, note="owner/model: offline; an earlier copy is used.")

    real = hub.find
    monkeypatch.setattr(hub, "find", find)
    model, report = inspect("owner/model", revision="main")
    assert report.origin == f"owner/model@{COMMIT}" and report.notes == ("owner/model: offline; an earlier copy is used.",)
    save(model, tmp_path / "one")
    save(load_model(tmp_path / "one", mask="causal"), tmp_path / "two")
    values = json.loads((tmp_path / "two" / "config.json").read_text(encoding="utf-8"))
    assert values["origin"] == f"owner/model@{COMMIT}" == inspect(tmp_path / "two")[1].origin
    save(load_model(saved["bert"]), tmp_path / "three")
    assert "origin" not in json.loads((tmp_path / "three" / "config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("origin", ["x", 3, {"a": 1}, "owner/model@main", "../x@" + COMMIT, "a\nb@" + COMMIT])
def test_an_origin_that_is_none_is_dropped(parts, tmp_path, origin):
    values, tensors = parts("bert")
    assert inspect(write(tmp_path / "m", values | {"origin": origin}, tensors))[1].origin is None


def test_the_hub_is_asked_once(saved, monkeypatch):
    asked = []

    def find(name: str | Path, *, revision: str | None = None) -> Found:
        asked.append(revision)
        return Found(saved["bert"], "hub", "owner/model", COMMIT)

    monkeypatch.setattr(hub, "find", find)
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        load("owner/model", revision="v1")
    assert asked == ["v1"]


def test_a_tokenizer_comes_along(tmp_path):
    tokens = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"鱼与熊掌兼得一二三四五六七八九十百千")
    save(make("bert"), tmp_path / "m", WordPiece(Vocab(tokens)))
    model, tokenizer = load(tmp_path / "m")
    assert same(model, make("bert")) and tokenizer.encode("熊掌").tokens == ["[CLS]", "熊", "掌", "[SEP]"]
    again, _ = load(tmp_path / "m" / "model.safetensors")
    assert same(again, model)


def test_a_tokenizer_of_another_model_is_refused_or_named(tmp_path, caplog):
    vocab = Vocab((*SPECIAL, *"今天气很好"))
    for rows, says in ((9, "the tokenizer has 10 tokens, but the model only 9"), (10, ""), (11, ""), (12, "10 tokens, the model 12")):
        folder = tmp_path / str(rows)
        model = Transformer(ModelConfig(**{**SIZES, "vocab_size": rows}, heads=("mlm",)))
        if rows < 10:
            with pytest.raises(ConfigError, match=f"{says}; nothing is written"):
                save(model, folder, WordPiece(vocab))
            assert not folder.exists()
            save(model, folder)
            WordPiece(vocab).save(folder)
            with pytest.raises(CheckpointError, match=says):
                load(folder, verify=False)
            continue
        for act in (partial(save, model, folder, WordPiece(vocab)), partial(load, folder)):
            caplog.clear()
            act()
            told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
            assert len(told) == bool(says) and all(says in line for line in told)


def test_a_folder_of_a_run_names_the_model_in_it(saved, tmp_path):
    shutil.copytree(saved["bert"], tmp_path / "run" / "model")
    with pytest.raises(CheckpointError, match=r"holds a run: give .*run.model\."):
        load_model(tmp_path / "run")
