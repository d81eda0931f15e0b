"""Their configuration and tensors to ours and back: defaults, refusals, and that joining undoes splitting."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.errors import CheckpointError, ConfigError
from fishpaw.model.transformer import Transformer
from fishpaw.weights.formats import Tensors
from fishpaw.weights.names import BERT, FAMILIES, GPT2, ROFORMER
from fishpaw.weights.translate import (
    export_config,
    export_tensors,
    heads_of,
    join,
    joined_shape,
    parts,
    read_config,
    recognise,
    renamed,
)

CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {"heads": ("pooler", "nsp", "mlm"), "tie_embeddings": False},
    "roformer": {"position": "rotary", "embedding_size": 5, "heads": ("mlm",)},
    "gpt2": {"norm_at": "pre", "embedding_norm": False, "segments": 0, "mask": "causal", "heads": ("lm",)},
}


def mapping(tensors: dict[str, torch.Tensor]) -> Tensors:
    return Tensors(dict.fromkeys(tensors, tensors), (Path("x.safetensors"),))


@pytest.mark.parametrize("name", FAMILIES)
def test_an_empty_configuration_is_transformers_default(name):
    config = read_config({}, FAMILIES[name])
    sizes = (config.vocab_size, config.hidden_size, config.layers, config.attention_heads, config.intermediate_size, config.max_positions)
    assert sizes == {
        "bert": (30522, 768, 12, 12, 3072, 512), "roformer": (50000, 768, 12, 12, 3072, 1536), "gpt2": (50257, 768, 12, 12, 3072, 1024),
    }[name]  # fmt: skip
    assert config.norm == {"name": "layer", "eps": 1e-5 if name == "gpt2" else 1e-12}
    assert config.mask == ("causal" if name == "gpt2" else "full")


@pytest.mark.parametrize("name", FAMILIES)
def test_null_is_the_default_everywhere(name):
    family = FAMILIES[name]
    empty = dict.fromkeys([*family.config, *family.only, "is_decoder", "architectures", "id2label"])
    assert read_config(empty, family) == read_config({}, family)


@pytest.mark.parametrize("name", FAMILIES)
def test_each_field_is_read_and_written_back(name):
    """Another value in each: none is confused with its neighbour."""
    family = FAMILIES[name]
    values: dict[str, Any] = {}
    for number, (field, (_, default)) in enumerate(family.config.items()):
        even = 2 * (number + 30)
        values[field] = {float: (number + 1) / 97, int: even, bool: False, str: "relu", type(None): even}[type(default)]
    values |= {"vocab_size": 997} | ({"hidden_size": 60, "num_attention_heads": 5} if family.decoder else {"n_embd": 60, "n_head": 5})
    config = read_config(values, family)
    written = export_config(config, family)
    assert written is not None and {field: written[field] for field in values} == values


@pytest.mark.parametrize(("family", "values"), [
    (BERT, {"position_embedding_type": "relative_key_query"}), (ROFORMER, {"rotary_value": True}), (BERT, {"add_cross_attention": True}),
    (GPT2, {"scale_attn_weights": False}), (GPT2, {"scale_attn_by_inverse_layer_idx": True}),
])  # fmt: skip
def test_variants_that_we_do_not_compute_are_refused(family, values):
    with pytest.raises(ConfigError, match=f"{next(iter(values))} is .*can't build"):
        read_config(values, family)


@pytest.mark.parametrize("name", FAMILIES)
def test_joining_undoes_splitting(name):
    torch.manual_seed(2)
    config = ModelConfig(23, 12, 2, 3, 17, family=name, **CONFIGS[name])
    state = {key: torch.randn_like(value) for key, value in Transformer(config).state_dict().items()}
    family = FAMILIES[name]
    theirs = export_tensors(state, config, family)
    assert theirs is not None
    tensors, known, rows = mapping(theirs), renamed(list(theirs), family), dict(parts(family, 2))
    for key, value in state.items():
        sources = [(known[part.names[0]][0], part.transposed) for part in rows[key]]
        assert joined_shape(tensors, sources) == tuple(value.shape)
        assert torch.equal(join(tensors, sources, torch.float32), value)
        if len(sources) > 1:                                       # the planted fault: queries for keys
            assert not torch.equal(join(tensors, [sources[1], sources[0], *sources[2:]], torch.float32), value)


def test_matrices_of_gpt2_lie_the_other_way():
    config = ModelConfig(23, 12, 1, 3, 17, family="gpt2", **CONFIGS["gpt2"])
    theirs = export_tensors(Transformer(config).state_dict(), config, GPT2)
    assert theirs is not None
    assert theirs["transformer.h.0.attn.c_attn.weight"].shape == (12, 36) and theirs["transformer.h.0.mlp.c_fc.weight"].shape == (12, 17)
    assert theirs["transformer.h.0.attn.c_attn.bias"].shape == (36,) and theirs["transformer.wte.weight"].shape == (23, 12)
    assert "lm_head.weight" not in theirs


def test_the_sines_of_roformer_are_its_own():
    """Column i < d/2 is sin(p w_i), column d/2 + i is cos(p w_i), w_i = 10000^(-2i/d): written out for d = 4."""
    config = ModelConfig(23, 12, 1, 3, 17, family="roformer", max_positions=7, **CONFIGS["roformer"])
    theirs = export_tensors(Transformer(config).state_dict(), config, ROFORMER)
    assert theirs is not None
    table = theirs["roformer.encoder.embed_positions.weight"]
    wanted = [[math.sin(p), math.sin(p / 100), math.cos(p), math.cos(p / 100)] for p in range(7)]
    torch.testing.assert_close(table, torch.tensor(wanted), atol=1e-7, rtol=0)


def test_a_tensor_without_a_place_says_so():
    config = ModelConfig(23, 12, 1, 3, 17)
    assert export_tensors({"layers.0.new": torch.ones(1)}, config, BERT) is None


@pytest.mark.parametrize(("shapes", "turned", "whole"), [
    ([(3, 5)], False, (3, 5)), ([(3, 5)], True, (5, 3)), ([(7,)], True, (7,)), ([()], False, ()), ([(2, 5), (3, 5)], False, (5, 5)),
    ([(5, 2), (5, 3)], True, (5, 5)), ([(2, 5), (3, 4)], False, None), ([(2,), ()], False, None), ([(2,), (2, 2)], False, None),
])  # fmt: skip
def test_shapes_are_known_without_reading(shapes, turned, whole):
    tensors = mapping({str(i): torch.zeros(shape) for i, shape in enumerate(shapes)})
    sources = [(name, turned) for name in tensors]
    assert joined_shape(tensors, sources) == whole
    if whole is not None:
        assert tuple(join(tensors, sources, torch.float32).shape) == whole


def test_names_are_spelled_as_the_family_spells_them():
    assert renamed(["bert/encoder/layer_11/output/dense/kernel"], BERT) == {
        "bert.encoder.layer.11.output.dense.weight": ("bert/encoder/layer_11/output/dense/kernel", True)
    }
    assert list(renamed(["bert/encoder/layer_0/output/LayerNorm/gamma", "global_step", "x/adam_v", "y/lamb_m"], ROFORMER)) == [
        "roformer.encoder.layer.0.output.LayerNorm.weight"
    ]
    assert list(renamed(["encoder.layer.0.LayerNorm.beta", "cls.predictions.bias", "classifier.weight"], BERT)) == [
        "bert.encoder.layer.0.LayerNorm.bias", "cls.predictions.bias", "classifier.weight",
    ]  # fmt: skip
    assert list(renamed(["h.0.ln_1.weight", "lm_head.weight"], GPT2)) == ["transformer.h.0.ln_1.weight", "lm_head.weight"]


def test_a_checkpoint_of_nothing_is_no_family():
    with pytest.raises(CheckpointError, match="no tensor"):
        recognise({}, [])


@pytest.mark.parametrize(("values", "labels"), [
    ({"id2label": {"1": "b", "0": "a", "10": "c"}}, ["a", "b", "c"]),
    ({"id2label": {}, "num_labels": 3}, ["LABEL_0", "LABEL_1", "LABEL_2"]),
    ({}, ["LABEL_0", "LABEL_1"]), ({"id2label": {"0": 5}}, ["5"]),
])  # fmt: skip
def test_labels_come_in_the_order_of_their_numbers(values, labels):
    heads = heads_of(values, {"bert.pooler.dense.weight", "classifier.weight"}, BERT)
    assert heads[1] == {"name": "classifier", "labels": labels, "multi_label": False}


@pytest.mark.parametrize("values", [{"id2label": {"a": "x"}}, *({"num_labels": count} for count in (0, "2", 10**9, True))])
def test_labels_that_cannot_be(values):
    with pytest.raises(ConfigError, match="id2label|num_labels"):
        heads_of(values, {"bert.pooler.dense.weight", "classifier.weight"}, BERT)
