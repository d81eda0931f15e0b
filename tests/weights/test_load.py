"""Which family, which tensors, which heads: what loading decides, says and leaves alone."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fishpaw.config import ModelConfig
from fishpaw.contracts import Position
from fishpaw.errors import CheckpointError, ConfigError
from fishpaw.model.transformer import Transformer
from fishpaw.positions.sinusoidal import sinusoids
from fishpaw.weights.formats import read_folder, write_safetensors
from fishpaw.weights.load import inspect, load_model, tell
from fishpaw.weights.save import save

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SIZES = {"vocab_size": 23, "hidden_size": 12, "layers": 2, "attention_heads": 3, "intermediate_size": 17, "max_positions": 13}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {"heads": ("pooler", "nsp", "mlm")},
    "roformer": {"position": "rotary", "embedding_size": 7, "heads": ("mlm",)},
    "gpt2": {"norm_at": "pre", "embedding_norm": False, "segments": 0, "mask": "causal", "heads": ("lm",)},
}
LABELS = ["neg", "pos", "none"]


def make(family: str, **changes: Any) -> Transformer:
    torch.manual_seed(1)
    model = Transformer(ModelConfig(**SIZES | {"family": family} | FAMILIES[family] | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


def write(folder: Path, values: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    write_safetensors(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("saved")
    for family in FAMILIES:
        save(make(family), root / family)
    return {family: root / family for family in FAMILIES}


@pytest.fixture
def parts(saved: dict[str, Path]) -> Any:
    """(config.json, tensors) of a family, to spoil."""

    def get(family: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        values = json.loads((saved[family] / "config.json").read_text(encoding="utf-8"))
        return values, {name: tensor.clone() for name, tensor in read_folder(saved[family]).items()}

    return get


def same(one: Transformer, other: Transformer) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


# which family

@pytest.mark.parametrize("family", FAMILIES)
def test_the_config_names_the_family(saved, family):
    report = inspect(saved[family])[1]
    assert (report.family, report.reason) == (family, f"config.json says model_type {family!r}")


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_else_the_names_of_the_tensors_do(parts, family, bare, tmp_path):
    """With the prefix of the backbone or, as a bare backbone is saved, without."""
    values, tensors = parts(family)
    del values["model_type"]
    prefix = {"bert": "bert.", "roformer": "roformer.", "gpt2": "transformer."}[family]
    if bare:
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        values["fishpaw"] = {}
    model, report = inspect(write(tmp_path / "m", values, tensors))
    table = "without" if family == "roformer" else "with"
    assert report.family == family and report.reason == f"its tensors are named as a {family} model's, {table} a table of positions"
    assert not report.new and not report.unused
    full = make(family).state_dict()
    assert all(torch.equal(value, full[name]) for name, value in model.state_dict().items())


def tensorflow(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As bert4keras and Google name them; RoFormer's lie under bert/, too."""
    found = {}
    for name, value in tensors.items():
        if "embed_positions" in name:
            continue
        *path, last = name.replace("roformer.", "bert.").replace("layer.", "layer_").split(".")
        if path[-1].endswith("embeddings"):
            found["/".join(path)] = value
        elif path[-1] == "LayerNorm":
            found["/".join([*path, {"weight": "gamma", "bias": "beta"}[last]])] = value
        elif name == "cls.predictions.bias":
            found["cls/predictions/output_bias"] = value
        elif path[-1] == "seq_relationship":
            found[f"cls/seq_relationship/output_{last}s".replace("biass", "bias")] = value
        else:
            stem = "/".join(path).replace("embeddings_project", "encoder/embedding_hidden_mapping_in")
            found[f"{stem}/{'kernel' if last == 'weight' else last}"] = value.T if last == "weight" else value
    return found


@pytest.mark.parametrize("family", ["bert", "roformer"])
def test_tensorflow_names_with_and_without_a_table_of_positions(parts, family, tmp_path):
    values, tensors = parts(family)
    values = {key: value for key, value in values.items() if key not in ("model_type", "architectures", "fishpaw")}
    named = tensorflow(tensors) | {"global_step": torch.tensor(3), "bert/pooler/dense/kernel/adam_m": torch.ones(2)}
    model, report = inspect(write(tmp_path / "m", values, named))
    assert report.family == family and not report.new and not report.unused
    assert same(model, make(family))


def test_only_the_missing_table_tells_roformer_from_bert(tmp_path):
    """The published Chinese RoFormers: TensorFlow, every name as BERT's, no factorised embedding."""
    model = make("roformer", embedding_size=12)
    save(model, tmp_path / "m")
    values = json.loads((tmp_path / "m" / "config.json").read_text(encoding="utf-8"))
    values = {key: value for key, value in values.items() if key not in ("model_type", "architectures", "fishpaw")}
    named = tensorflow(dict(read_folder(tmp_path / "m")))
    loaded, report = inspect(write(tmp_path / "t", values, named))
    assert report.reason == "its tensors are named as a roformer model's, without a table of positions" and same(loaded, model)
    named["bert/embeddings/position_embeddings"] = torch.zeros(13, 12)
    assert inspect(write(tmp_path / "t", values, named))[1].family == "bert"


def test_an_untransposed_kernel_would_be_seen(parts, tmp_path):
    """The planted fault: TensorFlow's matrices taken as they lie."""
    values, tensors = parts("bert")
    named = {name: value.T.contiguous() if name.endswith("kernel") else value for name, value in tensorflow(tensors).items()}
    with pytest.raises(CheckpointError, match="intermediate/dense/kernel"):
        load_model(write(tmp_path / "m", values, named))


def test_you_may_say_which(parts, tmp_path):
    values, tensors = parts("bert")
    folder = write(tmp_path / "m", values | {"model_type": "deberta"}, tensors)
    with pytest.raises(ConfigError, match=r"config\.json: model_type is 'deberta'.*Known: bert, roformer, .*gpt2"):
        load_model(folder)
    model, report = inspect(folder, family="bert")
    assert report.reason == "you said so" and same(model, make("bert"))


@pytest.mark.parametrize("values", [{}, {"use_relative_position": True}])
def test_unknown_families(values, tmp_path):
    said = r"safetensors: No known family has tensors named a\.b ….*family= one of bert, roformer, .*gpt2"
    with pytest.raises(CheckpointError, match=said):
        load_model(write(tmp_path / "m", values, {"a.b": torch.ones(2)}))


# which tensors

def test_old_names_of_norms(parts, tmp_path):
    values, tensors = parts("bert")
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
           for name, value in tensors.items()}  # fmt: skip
    assert old.keys() != tensors.keys()
    model, report = inspect(write(tmp_path / "m", values, old))
    assert same(model, make("bert")) and not report.new and not report.unused


def test_what_holds_nothing_is_not_reported(parts, tmp_path):
    values, tensors = parts("bert")
    tensors |= {"bert.embeddings.position_ids": torch.arange(13)[None], "cls.predictions.decoder.bias": torch.zeros(23),
                "cls.predictions.decoder.weight": torch.zeros(23, 12)}  # fmt: skip
    model, report = inspect(write(tmp_path / "m", values, tensors))
    assert same(model, make("bert")) and not report.unused


def test_heads_that_we_lack_are_listed_as_unused(parts, tmp_path, caplog):
    values, tensors = parts("bert")
    tensors |= {"qa_outputs.weight": torch.zeros(2, 12), "qa_outputs.bias": torch.zeros(2)}
    folder = write(tmp_path / "m", values, tensors)
    assert inspect(folder)[1].unused == ("qa_outputs.bias", "qa_outputs.weight")
    with caplog.at_level(logging.INFO, "fishpaw"):
        load_model(folder)
    assert "a bert model, because config.json says model_type 'bert'" in caplog.text
    told = [record for record in caplog.records if "2 tensors have no place, and are not used: qa_outputs.bias, qa_" in record.getMessage()]
    assert [record.levelname for record in told] == ["WARNING"]
    said = caplog.text
    with caplog.at_level(logging.INFO, "fishpaw"):
        caplog.clear()
        found = inspect(folder)[1]
        assert caplog.text == ""
        tell(found)                                                # what load_model wrote
    assert [line.split("load.py")[0] for line in caplog.text.splitlines()] == [line.split("load.py")[0] for line in said.splitlines()]


@pytest.mark.parametrize("architecture", ["BertForTokenClassification", None])
def test_a_classifier_of_tokens_is_none_of_texts(parts, architecture, tmp_path):
    values, tensors = parts("bert")
    values = {key: value for key, value in values.items() if key != "fishpaw"} | {"architectures": architecture and [architecture]}
    tensors |= {"classifier.weight": torch.zeros(7, 12), "classifier.bias": torch.zeros(7)}
    if architecture is None:
        tensors = {name: value for name, value in tensors.items() if "pooler" not in name and "seq_" not in name}
    model, report = inspect(write(tmp_path / "m", values, tensors))
    assert "classifier" not in model.heads and not report.new
    assert report.unused == report.unbuilt == ("classifier.bias", "classifier.weight")


def test_the_bias_of_an_untied_decoder_is_the_decoders(tmp_path):
    model = make("bert", tie_embeddings=False)
    save(model, tmp_path / "m")
    values = json.loads((tmp_path / "m" / "config.json").read_text(encoding="utf-8"))
    tensors = dict(read_folder(tmp_path / "m"))
    assert torch.equal(tensors["cls.predictions.bias"], tensors["cls.predictions.decoder.bias"])
    tensors["cls.predictions.bias"] = torch.full((23,), 9.0)
    assert same(load_model(write(tmp_path / "n", values, tensors)), model)


# heads and switches

def test_heads_removed_and_added(saved, caplog):
    full = make("bert")
    assert set(load_model(saved["bert"], heads=()).heads) == set()
    model, report = inspect(saved["bert"], changes={"heads": ("mlm",)})
    assert list(model.heads) == ["mlm"] and torch.equal(model.heads["mlm"].bias, full.heads["mlm"].bias)
    assert len(report.unused) == 4 and not report.new
    torch.manual_seed(5)
    model = load_model(saved["bert"], heads=("pooler", {"name": "classifier", "labels": LABELS}))
    assert "2 new tensors start from random values: heads.classifier.dense.weight, heads.classifier.dense.bias" in caplog.text
    assert torch.equal(model.heads["pooler"].dense.weight, full.heads["pooler"].dense.weight)
    drawn = model.heads["classifier"].dense
    assert drawn.weight.shape == (3, 12) and 0.005 < drawn.weight.std() < 0.05 and not drawn.bias.any()
    torch.manual_seed(5)
    again = load_model(saved["bert"], heads=("pooler", {"name": "classifier", "labels": LABELS}))
    assert same(model, again)


@pytest.mark.parametrize(("asked", "kept"), [
    (LABELS, True), (["a", "b", "c"], False), (["pos", "neg", "none"], False), (["neg", "pos"], False), (None, True),
])  # fmt: skip
@pytest.mark.parametrize("numbered", [False, True])
def test_a_classifier_of_other_labels_is_new(tmp_path, asked, kept, numbered):
    """Weights of the same shape under other names would answer confidently and wrong. LABEL_0 … are no names."""
    old = ["LABEL_0", "LABEL_1", "LABEL_2"] if numbered else LABELS
    model = make("bert", heads=("pooler", {"name": "classifier", "labels": old}))
    save(model, tmp_path / "m")
    changes = {} if asked is None else {"heads": ("pooler", {"name": "classifier", "labels": asked})}
    other, report = inspect(tmp_path / "m", changes=changes)
    kept = kept or (numbered and asked is not None and len(asked) == 3)
    assert other.heads["classifier"].labels == tuple(asked or old)
    assert torch.equal(other.heads["pooler"].dense.weight, model.heads["pooler"].dense.weight)
    assert (not report.new and not report.unused and same(other, model)) if kept else (len(report.new) == len(report.unused) == 2)


@pytest.mark.parametrize("own", [False, True])
def test_switches_change_what_is_computed_and_keep_the_weights(tmp_path, own):
    """Of the family's layout, and of ours, which a saved residual_scores=True has."""
    model = make("bert", residual_scores=own)
    save(model, tmp_path / "m")
    ids, seen = torch.arange(7)[None], []
    for changes in ({}, {"mask": "causal"}, {"mask": "unilm"}, {"position": "rotary"}, {"position": "none"},
                    {"residual_scores": not own}, {"mask": {"name": "full", "window": 1}}):  # fmt: skip
        other, report = inspect(tmp_path / "m", changes=changes)
        assert not report.new, changes
        assert [name for name in report.unused if "position" not in name] == []
        with torch.no_grad():
            seen.append(other(ids, segments=(ids > 3).long()).hidden)
    assert all((one - other).abs().max() > 1e-3 for i, one in enumerate(seen) for other in seen[:i])
    assert same(load_model(tmp_path / "m"), model)


def test_a_table_of_positions_that_the_file_lacks_is_new(saved, caplog):
    model = load_model(saved["roformer"], position="learned")
    assert "1 new tensors start from random values: positions.0.table.weight" in caplog.text
    assert model.position.table.weight.shape == (13, 7)


@pytest.mark.parametrize(("norm", "eps"), [({"name": "layer", "bias": True}, 1e-5), ({"name": "layer", "eps": 1e-3}, 1e-3)])
def test_another_norm_keeps_the_eps_of_the_file(tmp_path, norm, eps):
    save(make("bert", norm={"name": "layer", "eps": 1e-5}), tmp_path / "m")
    assert load_model(tmp_path / "m", norm=norm).config.norm["eps"] == eps
    assert "eps" not in load_model(tmp_path / "m", norm={"name": "rms", "scale": False}).config.norm     # of another kind


def test_new_norms_alone_are_built(saved, monkeypatch):
    """A conditional norm: each starts as the norm that it was, without a whole model being made for it."""
    monkeypatch.setattr("fishpaw.weights.load._tensors_of", lambda part, prefix: _only_norms(part, prefix))
    model, report = inspect(saved["roformer"], changes={"norm": {"name": "conditional", "condition": 5}, "heads": ()})
    assert report.new and all("norm" in name for name in report.new) and model.conditional


def _only_norms(part: torch.nn.Module, prefix: str) -> dict[str, Tensor]:
    assert prefix and not isinstance(part, Transformer)
    return {prefix + name: value.detach() for name, value in part.named_parameters()}


def test_two_streams_of_ttta_share_the_backbone(saved):
    model, report = inspect(saved["bert"], changes={"stream": "positions", "mask": {"name": "full", "exclude_self": True}})
    assert report.new == ("embedding.query",) and not report.unused
    project = make("bert").layers[0].attention.project.weight
    assert torch.equal(torch.cat((model.layers[0].attention.query.weight, model.layers[0].attention.key_value.weight)), project)


def test_a_turned_switch_excuses_only_its_own_tensors(parts, tmp_path):
    values, tensors = parts("bert")
    tensors["bert.encoder.layer.2.output.dense.bias"] = torch.zeros(12)
    with pytest.raises(CheckpointError, match=r"no place for: bert\.encoder\.layer\.2\.output\.dense\.bias"):
        load_model(write(tmp_path / "m", values, tensors), position="rotary")
    del tensors["bert.encoder.layer.2.output.dense.bias"], tensors["bert.encoder.layer.1.output.dense.bias"]
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors: bert\.encoder\.layer\.1\.output\.dense\.bias"):
        load_model(write(tmp_path / "m", values, tensors), position="rotary")


def test_our_own_layout_is_strict(tmp_path):
    save(make("bert", residual_scores=True), tmp_path / "m")
    values = json.loads((tmp_path / "m" / "config.json").read_text(encoding="utf-8"))
    tensors = dict(read_folder(tmp_path / "m"))
    with pytest.raises(CheckpointError, match="no place for: layers.9.a"):
        load_model(write(tmp_path / "n", values, tensors | {"layers.9.a": torch.ones(1)}))
    del tensors["layers.0.attention.project.bias"]
    with pytest.raises(CheckpointError, match="lacks 1 tensors: layers.0.attention.project.bias"):
        load_model(write(tmp_path / "n", values, tensors))
    assert set(load_model(tmp_path / "m", heads=("mlm",)).heads) == {"mlm"}


def test_a_table_that_no_file_holds_is_counted_too(tmp_path):
    save(make("bert", position="rotary", attention_heads=1, head_size=128), tmp_path / "m")
    with pytest.raises(ConfigError, match="reach.*asks for about 16,7"):
        load_model(tmp_path / "m", position={"name": "nezha", "reach": 2**16})


def test_dropout_and_dtype(saved):
    model = load_model(saved["bert"], dropout=0.3, dtype=torch.bfloat16, heads=("pooler", {"name": "classifier", "labels": LABELS}))
    assert model.config.dropout == model.config.attention_dropout == 0.3 and not model.training
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.embedding.tokens.weight, make("bert").embedding.tokens.weight.bfloat16())
    assert all(value.requires_grad for value in model.parameters())


# what loading costs and leaves alone

def test_nothing_is_drawn_when_nothing_is_new(saved, parts, tmp_path):
    state = torch.get_rng_state()
    for family, folder in saved.items():
        load_model(folder)
        values, tensors = parts(family)
        (tmp_path / family).mkdir()
        (tmp_path / family / "config.json").write_text(json.dumps(values), encoding="utf-8")
        torch.save(tensors, tmp_path / family / "pytorch_model.bin")
        load_model(tmp_path / family)
    assert torch.equal(torch.get_rng_state(), state)


def test_only_what_is_new_is_initialised(saved, monkeypatch):
    """Random values for tables that are overwritten next would take most of the time and twice the memory."""
    sizes = []
    draw = torch.nn.init.normal_

    def watched(tensor: Tensor, *rest: Any, **options: Any) -> Tensor:
        if not tensor.is_meta:
            sizes.append(tensor.numel())
        return draw(tensor, *rest, **options)

    monkeypatch.setattr(torch.nn.init, "normal_", watched)
    load_model(saved["bert"])
    assert sizes == []
    load_model(saved["bert"], heads=("pooler", {"name": "classifier", "labels": LABELS}))
    assert sizes == [36]
    make("bert")
    assert sum(sizes) > 1_000                                      # what the watch would see


def test_no_parameter_is_left_without_memory_and_none_is_shared(saved):
    for folder in saved.values():
        model = load_model(folder)
        tensors = [*model.parameters(), *model.buffers()]
        assert not any(value.is_meta for value in tensors)
        assert len({value.data_ptr() for value in tensors}) == len(tensors)


class Waves(Position):
    """A table that is computed, and a number that counts nothing."""

    def __init__(self, length: int, size: int, persistent: bool) -> None:
        super().__init__()
        self.register_buffer("table", sinusoids(torch.arange(length), size).float(), persistent=persistent)
        self.register_buffer("first", torch.zeros((), dtype=torch.int64), persistent=persistent)

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        return x + self.table[pos + self.first]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("persistent", [False, True])
def test_buffers_that_the_file_lacks_are_computed(saved, persistent, dtype):
    """They hold nothing learned: neither missing nor new. fp32 equals fishpaw's own sinusoidal position but for its fp64."""
    changes: dict[str, Any] = {"position": lambda config: Waves(config.max_positions, config.embedding, persistent)}
    model, report = inspect(saved["bert"], changes=changes, dtype=dtype)
    other, _ = inspect(saved["bert"], changes={"position": "sinusoidal"}, dtype=dtype)
    assert report.new == () and not any(value.is_meta for value in model.buffers())
    assert model.position.table.dtype == dtype and model.position.first.dtype == torch.int64
    ids = torch.arange(13)[None]
    with torch.no_grad():
        found, wanted, plain = (one(ids, all_hidden=True).all_hidden[0] for one in (model, other, load_model(saved["bert"], dtype=dtype)))
        assert model(ids).hidden.isfinite().all()
    torch.testing.assert_close(found, wanted, atol=1e-5 if dtype == torch.float32 else 0, rtol=0)
    assert (found - plain).abs().max() > 0.1


def test_buffers_that_the_file_holds_are_read(tmp_path):
    """Written by hand: a config file can't name a part of your own."""
    model = Transformer(ModelConfig(**SIZES, position=lambda config: Waves(13, 12, True)))
    model.position.table.mul_(2)
    model.position.first.add_(3)
    values = {"model_type": "fishpaw", "fishpaw": ModelConfig(**SIZES).to_dict()}
    folder = write(tmp_path / "m", values, dict(model.state_dict()))
    back, report = inspect(folder, changes={"position": lambda config: Waves(13, 12, True)})
    assert same(back, model) and back.position.first.item() == 3 and not report.new and not report.unused


@pytest.mark.parametrize("tied", [False, True])
def test_matrices_that_share_memory_in_a_bin_are_apart_here(tied, tmp_path):
    """torch.save keeps what is shared; trained apart, an untied decoder must not drag the embedding along."""
    model = make("gpt2", tie_embeddings=tied)
    save(model, tmp_path / "m")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").write_bytes((tmp_path / "m" / "config.json").read_bytes())
    tensors = dict(read_folder(tmp_path / "m"))
    torch.save(tensors | {"lm_head.weight": tensors["transformer.wte.weight"]}, tmp_path / "b" / "pytorch_model.bin")
    loaded, report = inspect(tmp_path / "b")
    assert not report.new and not report.unused
    before = loaded.embedding.tokens.weight.clone()
    if not tied:
        with torch.no_grad():
            loaded.heads["lm"].decoder.weight.zero_()
    assert torch.equal(loaded.embedding.tokens.weight, before) and torch.equal(before, model.embedding.tokens.weight)


def test_training_a_loaded_model_leaves_the_file(saved):
    before = (saved["gpt2"] / "model.safetensors").read_bytes()
    model = load_model(saved["gpt2"])
    with torch.no_grad():
        for value in model.parameters():
            value.add_(1)
    assert (saved["gpt2"] / "model.safetensors").read_bytes() == before
