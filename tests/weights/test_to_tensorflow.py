"""Models saved as TensorFlow checkpoints: Google's names, Google's shapes, and the same model back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.errors import ConfigError
from fishpaw.model.transformer import Transformer
from fishpaw.text.load import load_tokenizer
from fishpaw.text.vocab import Vocab
from fishpaw.text.wordpiece import WordPiece
from fishpaw.weights import to_tensorflow as module
from fishpaw.weights.load import inspect, load_model
from fishpaw.weights.names import FAMILIES
from fishpaw.weights.tensorflow import open_bundle
from fishpaw.weights.to_tensorflow import save_tensorflow, to_tensorflow

BUNDLES = Path(__file__).resolve().parent / "bundles"
SIZES = {"vocab_size": 23, "hidden_size": 12, "layers": 2, "attention_heads": 3, "intermediate_size": 17, "max_positions": 13}
ROFORMER = {"family": "roformer", "position": "rotary"}
CLASSIFIER = {"name": "classifier", "labels": ["负", "正", "中"]}
MODELS: dict[str, dict[str, Any]] = {
    "bert": {},
    "bert pretraining": {"heads": ("pooler", "nsp", "mlm"), "segments": 3},
    "bert classifier": {"heads": ("pooler", CLASSIFIER)},
    "bert unilm": {"heads": ("mlm",), "mask": "unilm"},
    "roformer": {**ROFORMER, "heads": ("pooler", "nsp", "mlm")},
    "roformer factorised": {**ROFORMER, "embedding_size": 7, "heads": ("mlm",)},
    "roformer classifier": {**ROFORMER, "heads": ({"name": "pooler", "activation": "gelu"}, CLASSIFIER)},
}


def make(values: dict[str, Any]) -> Transformer:
    torch.manual_seed(1)
    model = Transformer(ModelConfig(**SIZES | values)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.6)
    return model


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_bit_for_bit(tmp_path, name):
    model = make(MODELS[name])
    model.origin = "fish/paw@" + "a" * 40
    save_tensorflow(model, tmp_path / "out")
    found, report = inspect(tmp_path / "out")
    assert found.config == model.config and same(found.state_dict(), model.state_dict())
    assert report.new == () and report.unused == () and report.origin == model.origin
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "bert_config.json", "bert_model.ckpt.data-00000-of-00001", "bert_model.ckpt.index", "checkpoint", "manifest.json",
    ]  # fmt: skip
    ids = torch.tensor([[2, 3, 5, 7]])
    assert torch.equal(found(ids).hidden, model(ids).hidden)


def test_googles_own_checkpoint_is_written_as_it_was(tmp_path):
    """TensorFlow's file -> our model -> a file: every variable of the model under its name, in its shape, with its numbers."""
    theirs = open_bundle(BUNDLES / "bert" / "bert_model.ckpt")
    save_tensorflow(load_model(BUNDLES / "bert"), tmp_path / "out")
    ours = open_bundle(tmp_path / "out" / "bert_model.ckpt")
    left = set(theirs) - set(ours)
    assert set(ours) <= set(theirs) and left == {"global_step", "bert/pooler/dense/kernel/adam_m", "bert/pooler/dense/kernel/adam_v"}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    config, before = (json.loads((folder / "bert_config.json").read_text("utf-8")) for folder in (tmp_path / "out", BUNDLES / "bert"))
    assert all(config[field] == value for field, value in before.items() if field != "directionality")


def test_bert4kerass_names_of_a_factorised_roformer(tmp_path):
    """It reads `bert/encoder/layer_0/…` for RoFormer, too; the names are in its variable_mapping."""
    save_tensorflow(make(MODELS["roformer factorised"]), tmp_path / "out")
    bundle = open_bundle(tmp_path / "out" / "bert_model.ckpt")
    assert bundle.shape("bert/encoder/embedding_hidden_mapping_in/kernel") == (7, 12)
    assert bundle.shape("bert/encoder/layer_1/intermediate/dense/kernel") == (12, 17)
    assert bundle.shape("bert/embeddings/LayerNorm/gamma") == (7,) and "cls/predictions/output_bias" in bundle
    assert not any("position" in name or "roformer" in name or "/weight" in name for name in bundle)


def test_nsp_is_not_turned_and_kernels_are(tmp_path):
    model = make(MODELS["bert pretraining"])
    save_tensorflow(model, tmp_path / "out")
    bundle, state = open_bundle(tmp_path / "out" / "bert_model.ckpt"), model.state_dict()
    assert torch.equal(bundle["cls/seq_relationship/output_weights"], state["heads.nsp.dense.weight"])
    assert torch.equal(bundle["bert/pooler/dense/kernel"], state["heads.pooler.dense.weight"].t())
    assert not torch.equal(bundle["bert/pooler/dense/kernel"], state["heads.pooler.dense.weight"])


def test_with_a_tokenizer_and_in_half_precision(tmp_path):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"天地玄黄宇宙洪荒日月盈昃辰宿列张寒来"]
    model = make({}).to(torch.bfloat16)
    save_tensorflow(model, tmp_path / "out", WordPiece(Vocab(tokens)))
    assert load_tokenizer(tmp_path / "out").encode("天地").ids == WordPiece(Vocab(tokens)).encode("天地").ids
    assert (tmp_path / "out" / "vocab.txt").read_text("utf-8").split("\n")[:5] == tokens[:5]
    bundle = open_bundle(tmp_path / "out" / "bert_model.ckpt")
    assert {bundle[name].dtype for name in bundle} == {torch.bfloat16}
    assert same(load_model(tmp_path / "out", dtype=torch.bfloat16).state_dict(), model.state_dict())


@pytest.mark.parametrize(("values", "message"), [
    ({"heads": ("mlm",), "tie_embeddings": False}, "decoder of its own"),
    ({"position": "rotary"}, "has no layout in TensorFlow: position='rotary'.*bert, roformer"),
    ({"attention": "linear", "dropout": 0.3}, "has no layout in TensorFlow: attention='linear'[.]"),
    ({"norm": "rms"}, "This bert model has no layout"),
    ({"family": "gpt2", "norm_at": "pre", "embedding_norm": False, "segments": 0, "mask": "causal", "heads": ("lm",)}, "This gpt2 model"),
])  # fmt: skip
def test_what_has_no_layout_there_is_refused_and_nothing_is_written(tmp_path, values, message):
    with pytest.raises(ConfigError, match=message):
        save_tensorflow(make(values), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_familys_own_rules_come_first():
    """Stars: the number, with at least as many digits; `^`: turned."""
    family = replace(FAMILIES["bert"], tensorflow={
        "bert.encoder.layer.*.output.dense.weight": "^brain/block_***/w", "cls.predictions.decoder.bias": "brain/logits/b",
    })  # fmt: skip
    tensors = {"bert.encoder.layer.7.output.dense.weight": torch.arange(6.0).reshape(3, 2), "cls.predictions.decoder.bias": torch.ones(3)}
    variables = to_tensorflow(tensors, family)
    assert list(variables) == ["brain/block_007/w", "brain/logits/b"] and torch.equal(variables["brain/block_007/w"].t(), tensors[
        "bert.encoder.layer.7.output.dense.weight"])  # fmt: skip


def test_a_name_that_would_not_be_read_back_is_refused(monkeypatch):
    """A table that is wrong in one direction only can't write a file."""
    tensors = {"roformer.embeddings_project.weight": torch.ones(3, 2)}
    assert list(to_tensorflow(tensors, FAMILIES["roformer"])) == ["bert/encoder/embedding_hidden_mapping_in/kernel"]
    monkeypatch.setattr(module, "TENSORFLOW_MODULES", {"encoder.project": "embeddings_project"})
    with pytest.raises(ConfigError, match="would not be read back"):
        to_tensorflow(tensors, FAMILIES["roformer"])
