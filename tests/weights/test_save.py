"""What is saved comes back bit for bit, in the layout that others open where there is one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch
from fishpaw.errors import CheckpointError, ConfigError
from fishpaw.files import verify_manifest
from fishpaw.model.transformer import Transformer
from fishpaw.text.vocab import Vocab
from fishpaw.text.wordpiece import WordPiece
from fishpaw.weights.formats import read_folder, write_safetensors
from fishpaw.weights.load import inspect, load_model
from fishpaw.weights.save import export, save

SIZES = {"vocab_size": 23, "hidden_size": 12, "layers": 2, "attention_heads": 3, "intermediate_size": 17, "max_positions": 13}
GPT2 = {"family": "gpt2", "norm_at": "pre", "embedding_norm": False, "segments": 0, "mask": "causal", "heads": ("lm",)}
ROFORMER = {"family": "roformer", "position": "rotary"}
CLASSIFIER = {"name": "classifier", "labels": ["负", "正", "中"]}
POOLER = {"name": "pooler", "activation": "gelu"}
# Ours, by the layout that it is saved in.
THEIRS: dict[str, dict[str, Any]] = {
    "bert": {},
    "bert pretraining": {"heads": ("pooler", "nsp", "mlm"), "segments": 3},
    "bert untied": {"heads": ("mlm",), "tie_embeddings": False},
    "bert classifier": {"heads": ("pooler", {**CLASSIFIER, "multi_label": True, "dropout": 0.3})},
    "bert causal": {"heads": ("mlm",), "mask": "causal"},
    "bert unilm": {"heads": ("mlm",), "mask": "unilm"},
    "bert norm": {"norm": {"name": "layer", "eps": 1e-3}, "dropout": 0.0, "init_std": 0.1},
    "bert activation": {"activation": "gelu_tanh", "norm": "layer", "heads": ("mlm",)},
    "roformer": {**ROFORMER, "heads": ("mlm",)},
    "roformer factorised": {**ROFORMER, "embedding_size": 7, "heads": ("mlm",), "mask": "unilm"},
    "roformer pooled": {**ROFORMER, "heads": ("pooler", "nsp", "mlm")},
    "roformer classifier": {**ROFORMER, "heads": (POOLER, CLASSIFIER)},
    "gpt2": GPT2,
    "gpt2 backbone": {**GPT2, "heads": ()},
    "gpt2 untied": {**GPT2, "tie_embeddings": False, "activation": "squared_relu"},
}
OWN: dict[str, dict[str, Any]] = {
    "residual scores": {"residual_scores": True, "heads": ("pooler", "mlm")},
    "another position": {"position": "rotary", "heads": ("mlm",)},
    "rotary options": {**ROFORMER, "position": {"name": "rotary", "theta": 1234.5}},
    "the other rotary": {**ROFORMER, "position": {"name": "rotary", "layout": "half"}},
    "two streams": {"stream": "positions", "mask": {"name": "full", "exclude_self": True}, "heads": ("mlm",)},
    "another norm": {"norm": "rms"},
    "pre norm": {"norm_at": "pre"},
    "squareplus": {"activation": "squareplus"},
    "narrow heads": {"head_size": 2},
    "shared keys": {"key_value_heads": 1},
    "factorised bert": {"embedding_size": 5},
    "no segments": {"segments": 0},
    "a window": {"mask": {"name": "full", "window": 3}},
    "a linear pooler": {"heads": ({"name": "pooler", "activation": "linear"}, "nsp")},
    "the last token": {"heads": ({"name": "pooler", "at": "last"}, CLASSIFIER)},
    "a tanh classifier of roformer": {**ROFORMER, "heads": ("pooler", CLASSIFIER)},
    "lm with bias": {**GPT2, "heads": ({"name": "lm", "bias": True},)},
    "gpt2 classifier": {**GPT2, "heads": ({"name": "pooler", "at": "last"}, CLASSIFIER)},
    "an encoder of gpt2": {**GPT2, "mask": "full"},
    "unknown family": {"family": "mine"},
    "padding beyond the table": {"pad_id": 23},
    "many positions": {**ROFORMER, "position": {"name": "rotary", "layout": "half"}, "max_positions": 131072},
}


def make(values: dict[str, Any]) -> Transformer:
    torch.manual_seed(1)
    model = Transformer(ModelConfig(**SIZES | values)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", [*THEIRS, *OWN])
def test_a_round_trip_is_exact(name, tmp_path):
    model = make((THEIRS | OWN)[name])
    save(model, tmp_path / "m")
    back, report = inspect(tmp_path / "m")
    first, second = model.state_dict(), back.state_dict()
    assert back.config == model.config and first.keys() == second.keys() and not report.new and not report.unused
    assert all(torch.equal(value, second[key]) and value.dtype == second[key].dtype for key, value in first.items())
    assert config_of(tmp_path / "m")["model_type"] == ("fishpaw" if name in OWN else model.config.family)
    ids = torch.arange(7)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).hidden, back(ids).hidden)


@pytest.mark.parametrize("name", ["bert pretraining", "roformer classifier", "gpt2 untied", "two streams"])
def test_a_second_round_trip_gives_the_same_bytes(name, tmp_path):
    """The same model twice, what was loaded from it, and over an older one."""
    model = make((THEIRS | OWN)[name])
    save(model, tmp_path / "a")
    save(model, tmp_path / "b")
    save(load_model(tmp_path / "a"), tmp_path / "c")
    save(make({}), tmp_path / "d")
    save(model, tmp_path / "d")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["config.json", "manifest.json", "model.safetensors"]
    for other in "bcd":
        assert sorted(path.name for path in (tmp_path / other).iterdir()) == names
        assert all((tmp_path / "a" / one).read_bytes() == (tmp_path / other / one).read_bytes() for one in names)


def test_one_other_bit_gives_other_bytes(tmp_path):
    """The planted fault."""
    model = make({})
    save(model, tmp_path / "a")
    with torch.no_grad():
        bits = model.embedding.norm.bias.view(torch.int32)
        bits[5] ^= 1
    save(model, tmp_path / "b")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() != (tmp_path / "b" / "model.safetensors").read_bytes()
    assert verify_manifest(tmp_path / "a") != verify_manifest(tmp_path / "b")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_type_is_kept(dtype, tmp_path):
    save(make(THEIRS["roformer"]).to(dtype), tmp_path / "m")
    assert {tensor.dtype for tensor in read_folder(tmp_path / "m").values()} == {dtype}
    assert {value.dtype for value in load_model(tmp_path / "m", dtype=dtype).parameters()} == {dtype}


def test_the_configuration_in_their_words(tmp_path):
    save(make(THEIRS["bert classifier"]), tmp_path / "m")
    content = (tmp_path / "m" / "config.json").read_bytes()
    assert b"\r" not in content and "负".encode() in content and content.endswith(b"}\n")
    assert config_of(tmp_path / "m") == {
        "model_type": "bert", "vocab_size": 23, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3,
        "intermediate_size": 17, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "max_position_embeddings": 13,
        "type_vocab_size": 2, "initializer_range": 0.02, "layer_norm_eps": 1e-12, "pad_token_id": 0, "tie_word_embeddings": True,
        "is_decoder": False, "architectures": ["BertForSequenceClassification"], "id2label": {"0": "负", "1": "正", "2": "中"},
        "label2id": {"负": 0, "正": 1, "中": 2}, "problem_type": "multi_label_classification",
        "fishpaw": {"norm": "layer", "heads": ["pooler", {**CLASSIFIER, "multi_label": True, "dropout": 0.3}]},
    }  # fmt: skip


def test_a_mask_that_they_take_as_an_argument_is_ours_to_remember(tmp_path):
    save(make(THEIRS["bert unilm"]), tmp_path / "m")
    values = config_of(tmp_path / "m")
    assert values["model_type"] == "bert" and values["fishpaw"]["mask"] == "unilm" and values["is_decoder"] is False


def test_tokenizer_files_lie_beside(tmp_path):
    tokenizer = WordPiece(Vocab(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"鱼与熊掌")))
    save(make({}), tmp_path / "m", tokenizer)
    assert (tmp_path / "m" / "vocab.txt").is_file()
    listed = json.loads((tmp_path / "m" / "manifest.json").read_bytes())["files"]
    assert set(listed) == {path.name for path in (tmp_path / "m").iterdir()} - {"manifest.json"}
    verify_manifest(tmp_path / "m")


def test_a_decoder_and_the_encoder_it_reads(tmp_path):
    encoder = ModelConfig(**SIZES | {"vocab_size": 29, "hidden_size": 18, "position": "rotary", "layers": 3})
    model = make({**GPT2, "encoder": encoder})
    save(model, tmp_path / "m")
    back, report = inspect(tmp_path / "m")
    first, second = model.state_dict(), back.state_dict()
    assert back.config == model.config and first.keys() == second.keys() and not report.new and not report.unused
    assert any(name.startswith("encoder.layers.2.") for name in first)
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert config_of(tmp_path / "m")["model_type"] == "fishpaw"
    ids, source = torch.arange(7)[None], Batch.padded(torch.arange(28, 17, -1)[None])
    with torch.no_grad():
        first_logits, second_logits = model(ids, encoder_batch=source).logits, back(ids, encoder_batch=source).logits
        of_another = model(ids, encoder_batch=Batch.padded(torch.arange(11)[None])).logits
    assert torch.equal(first_logits, second_logits) and not torch.equal(first_logits, of_another)


@pytest.mark.parametrize("lost", ["encoder.embedding.tokens.weight", "encoder.positions.0.table.weight", "encoder.heads.pooler.dense.bias"])
def test_the_encoder_of_a_decoder_is_never_new(tmp_path, lost):
    save(make({**GPT2, "encoder": ModelConfig(**SIZES, heads=("pooler",))}), tmp_path / "m")
    tensors = dict(read_folder(tmp_path / "m"))
    del tensors[lost]
    write_safetensors(tensors, tmp_path / "m" / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"lacks 1 tensors: {lost}"):
        inspect(tmp_path / "m", changes={"position": "rotary"}, verify=False)


@pytest.mark.parametrize(("rows", "held"), [(8192, True), (8193, False)])
def test_a_table_of_sines_is_written_while_it_is_small(tmp_path, rows, held):
    """RoFormer's table holds nothing learned; transformers misses it, but computes it anew."""
    model = make({**ROFORMER, "max_positions": rows})
    save(model, tmp_path / "m")
    assert ("roformer.encoder.embed_positions.weight" in read_folder(tmp_path / "m")) == held
    assert config_of(tmp_path / "m")["model_type"] == "roformer" and load_model(tmp_path / "m").config == model.config


def test_over_the_folder_that_was_loaded(tmp_path):
    save(make(THEIRS["gpt2"]), tmp_path / "m")
    model = load_model(tmp_path / "m")
    with torch.no_grad():
        model.embedding.tokens.weight.add_(1)
    before = model.embedding.tokens.weight.clone()
    save(model, tmp_path / "m")
    assert torch.equal(load_model(tmp_path / "m").embedding.tokens.weight, before)
    assert torch.equal(model.embedding.tokens.weight, before)


def test_parts_of_your_own_have_no_name_in_a_file(tmp_path):
    save(make({}), tmp_path / "m")
    with pytest.raises(ConfigError, match="activation is .*a part of your own"):
        save(make({"activation": torch.sin}), tmp_path / "m")
    load_model(tmp_path / "m")                                     # the older one is untouched
    with pytest.raises(ConfigError, match="a part of your own"):
        save(make({"activation": torch.sin}), tmp_path / "n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_export_leaves_the_state_alone():
    model = make(THEIRS["bert pretraining"])
    state = model.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    export(model.config, state)
    assert state.keys() == before.keys() and all(torch.equal(value, before[name]) for name, value in state.items())


@pytest.mark.parametrize(("values", "said"), [
    ({"position": "rotary"}, "no counterpart of position='rotary'."), ({"norm": "rms", "activation": "silu"}, "norm='rms'"),
    ({"activation": "squareplus"}, "activation='squareplus'"),
    ({"family": "mine"}, "of family='mine'."), ({"qk_norm": True}, "qk_norm=True"),
    ({**GPT2, "heads": ({"name": "lm", "bias": True},)}, "the head {'name': 'lm', 'bias': True}"),
])  # fmt: skip
def test_one_line_says_what_transformers_can_not_compute(tmp_path, caplog, values, said):
    save(make(values), tmp_path / "m")
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 1 and "saved as model_type 'fishpaw'" in told[0] and said in told[0]
    caplog.clear()
    save(make(THEIRS["bert"]), tmp_path / "n")
    assert not caplog.records


def test_arguments_in_another_order_are_refused(tmp_path):
    tokenizer = WordPiece(Vocab(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"鱼与熊掌")))
    for wrong in ((tmp_path / "m", make({})), (make({}), tokenizer), (make({}), tmp_path / "m", "vocab.txt"), (None, tmp_path / "m")):
        with pytest.raises(ConfigError, match="to save"):
            save(*wrong)
    assert not any(tmp_path.iterdir())


@pytest.mark.parity
@pytest.mark.parametrize("family", ["bert", "modernbert", "electra", "albert"])
def test_transformers_opens_the_tokenizer_beside_any_model(family, tmp_path):
    """The WordPiece of a tokenizer.json beside a ModernBERT: there transformers opens no vocab.txt."""
    import transformers

    tokens = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"鱼与熊掌兼得abc", "##b", "##c")
    tokenizer = WordPiece(Vocab(tokens))
    tokenizer.save(tmp_path)
    kind = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family, "vocab_size": len(tokens), **kind}), encoding="utf-8")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text, pair in (("鱼与ABC 熊", None), ("abc", "掌 [MASK] 兼x")):
        assert theirs(text, pair)["input_ids"] == tokenizer.encode(text, pair).ids
    assert theirs.mask_token_id == 4 and theirs.decode(theirs("abc")["input_ids"], skip_special_tokens=True) == "abc"


@pytest.mark.parametrize("shard_bytes", [1, 2000, 1 << 40])
def test_halves_in_shards_come_back(tmp_path: Path, shard_bytes: int) -> None:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**SIZES, heads=("mlm", "pooler")))
    save(model, tmp_path / "x", dtype=torch.float16, shard_bytes=shard_bytes)
    verify_manifest(tmp_path / "x")
    files = sorted((tmp_path / "x").glob("*.safetensors"))
    assert (len(files) > 1) == (shard_bytes < 1 << 40) == (tmp_path / "x" / "model.safetensors.index.json").exists()
    if shard_bytes == 2000:
        assert all(file.stat().st_size < 2000 + 4096 for file in files)
        index = json.loads((tmp_path / "x" / "model.safetensors.index.json").read_text(encoding="utf-8"))
        assert index["metadata"]["total_size"] == sum(2 * p.numel() for p in model.parameters())
        assert set(index["weight_map"].values()) == {file.name for file in files}
    again = load_model(tmp_path / "x")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.half().float()), name
        assert not torch.equal(tensor, tensor.half().float()) or not tensor.any() or (tensor == 1).all()    # the planted fault: not halved
    assert torch.equal(next(model.parameters()), next(model.parameters()).float())                            # the model itself stays


def test_a_shard_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shard_bytes"):
        save(Transformer(ModelConfig(**SIZES)), tmp_path / "x", shard_bytes=0)
    assert not (tmp_path / "x").exists()
