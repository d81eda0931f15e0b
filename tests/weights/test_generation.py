"""The ids that begin and end a text: read from both files, kept by surgery, written again, and opened by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.errors import ConfigError
from fishpaw.model.transformer import Transformer
from fishpaw.weights.generation import follow, read_generation
from fishpaw.weights.load import load_model
from fishpaw.weights.save import save
from fishpaw.weights.surgery import add_rows, keep_layers, keep_rows
from fishpaw.weights.to_tensorflow import save_tensorflow

SIZES = {"vocab_size": 23, "hidden_size": 12, "layers": 2, "attention_heads": 3, "intermediate_size": 17, "max_positions": 13}
GPT2 = {"family": "gpt2", "norm_at": "pre", "embedding_norm": False, "segments": 0, "mask": "causal", "heads": ("lm",)}
T5_FIELDS = {"model_type": "t5", "vocab_size": 23, "d_model": 12, "d_kv": 4, "d_ff": 17, "num_layers": 2, "num_heads": 3}


def make(**values: Any) -> Transformer:
    torch.manual_seed(1)
    return Transformer(ModelConfig(**SIZES | values)).eval()


def said(folder: Path, name: str, **values: Any) -> dict[str, Any]:
    """The fields of a file, after these are written into it."""
    path = folder / name
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(found | values), encoding="utf-8")
    return found


@pytest.mark.parametrize(("config", "generation", "expected"), [
    ({}, {}, {}),
    ({"bos_token_id": 1, "eos_token_id": 2}, {}, {"bos_token_id": 1, "eos_token_id": 2}),
    ({"bos_token_id": 1, "eos_token_id": 2}, {"eos_token_id": [2, 5]}, {"bos_token_id": 1, "eos_token_id": [2, 5]}),
    ({"eos_token_id": 2}, {"eos_token_id": None}, {"eos_token_id": 2}),
    ({"eos_token_id": None}, {}, {"eos_token_id": None}),
    ({"eos_token_id": None}, {"eos_token_id": 3}, {"eos_token_id": 3}),
    ({"bos_token_id": 50256, "eos_token_id": 50256}, {}, {}),         # GPT-2's, in a smaller vocabulary
    ({"bos_token_id": [1], "eos_token_id": [2, 23]}, {"eos_token_id": True}, {}),
    ({"bos_token_id": -1, "eos_token_id": []}, {"temperature": 0.7, "eos_token_id": "</s>"}, {}),
])  # fmt: skip
def test_what_is_no_id_of_the_vocabulary_is_dropped(config, generation, expected):
    assert read_generation(config, generation, 23) == expected


@pytest.mark.parametrize("values", [GPT2, {**GPT2, "attention": "linear"}, {"heads": ("mlm",), "mask": "unilm"}])
def test_they_are_read_saved_and_read_again(tmp_path, values):
    """In a family's layout and in our own, which says model_type fishpaw."""
    save(make(**values), tmp_path / "a")
    assert not (tmp_path / "a" / "generation_config.json").exists() and load_model(tmp_path / "a").generation == {}
    said(tmp_path / "a", "config.json", bos_token_id=1, eos_token_id=2)
    said(tmp_path / "a", "generation_config.json", eos_token_id=[2, 5], temperature=0.7)
    model = load_model(tmp_path / "a", verify=False)
    assert model.generation == {"bos_token_id": 1, "eos_token_id": [2, 5]}
    save(model, tmp_path / "b")
    assert load_model(tmp_path / "b").generation == model.generation
    written, config = said(tmp_path / "b", "generation_config.json"), said(tmp_path / "b", "config.json")
    assert {**written, "pad_token_id": 0} == {"bos_token_id": 1, "eos_token_id": [2, 5], "pad_token_id": 0}
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, [2, 5])


def test_an_encoder_needs_no_second_file(tmp_path):
    model = make(heads=("mlm",))
    model.generation = {"bos_token_id": None, "eos_token_id": 2}
    for write in (save, save_tensorflow):
        write(model, tmp_path / "m")
        assert not (tmp_path / "m" / "generation_config.json").exists() and load_model(tmp_path / "m").generation == model.generation


def test_a_t5_ends_as_its_file_says(tmp_path):
    from fishpaw.weights.names import FAMILIES
    from fishpaw.weights.translate import read_config

    model = Transformer(read_config(T5_FIELDS, FAMILIES["t5"]).change({"heads": ({"name": "lm", "scale": 12**-0.5},)}))
    save(model, tmp_path / "a")
    assert load_model(tmp_path / "a").generation == {"eos_token_id": 1}          # transformers' own
    model.generation = {"eos_token_id": 7}
    save(model, tmp_path / "b")
    assert said(tmp_path / "b", "config.json")["model_type"] == "t5"
    assert said(tmp_path / "b", "generation_config.json") == {"eos_token_id": 7, "pad_token_id": 0, "decoder_start_token_id": 0}


def test_surgery_keeps_them_where_the_tokens_are(tmp_path):
    model = make(**GPT2)
    model.generation = {"bos_token_id": 3, "eos_token_id": [5, 7]}
    for other in (add_rows(model, 2), keep_layers(model, [0])):
        assert other.generation == model.generation and other.generation is not model.generation
    assert keep_rows(model, [0, 7, 3]).generation == {"bos_token_id": 2, "eos_token_id": [1]}
    smaller = keep_rows(model, [0, 1, 2])
    assert smaller.generation == {"bos_token_id": None, "eos_token_id": None}
    save(smaller, tmp_path / "m")                                     # null: GPT-2's defaults would be other tokens, or none
    assert load_model(tmp_path / "m").generation == smaller.generation
    assert follow({"eos_token_id": 4}, [4, 0]) == {"eos_token_id": 0}


def test_a_second_file_that_is_damaged_is_named(tmp_path):
    save(make(**GPT2), tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="generation_config.json, line 1: invalid JSON"):
        load_model(tmp_path / "m", verify=False)


@pytest.mark.parity
def test_transformers_reads_them(tmp_path):
    from transformers import AutoModelForCausalLM

    model = make(**GPT2)
    model.generation = {"bos_token_id": 3, "eos_token_id": [5, 7]}
    save(model, tmp_path / "m")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert (theirs.generation_config.bos_token_id, theirs.generation_config.eos_token_id) == (3, [5, 7])
    assert (theirs.config.bos_token_id, theirs.config.eos_token_id) == (3, [5, 7])
