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
from fishpaw.switch import spec_name
from fishpaw.weights.decoders import GPT2
from fishpaw.weights.encoders import BERT, ROFORMER
from fishpaw.weights.formats import Tensors
from fishpaw.weights.names import FAMILIES
from fishpaw.weights.to_tensorflow import to_tensorflow
from fishpaw.weights.translate import (
    export_config,
    export_tensors,
    heads_of,
    join,
    joined_shape,
    read_config,
    recognise,
    renamed,
    spelled_rows,
)


def mapping(tensors: dict[str, torch.Tensor]) -> Tensors:
    return Tensors(dict.fromkeys(tensors, tensors), (Path("x.safetensors"),))


@pytest.mark.parity
@pytest.mark.parametrize("name", FAMILIES)
def test_an_empty_configuration_is_transformers_default(name):
    known = pytest.importorskip("transformers").CONFIG_MAPPING
    family = FAMILIES[name]
    for kind in family.types:
        if kind in known and family.told is None:                  # a family that is told has no empty configuration
            said = known[kind]().to_dict()
            assert read_config(said, family) == read_config({"model_type": kind}, family)
            for field, (_, default) in family.config.items():
                assert default is None or said.get(field) in (default, None), field


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_the_norm_and_the_mask_of_an_empty_configuration(name):
    config = read_config({}, FAMILIES[name])
    assert config.norm == {"name": "layer", "eps": 1e-5 if name == "gpt2" else 1e-12}
    assert config.mask == ("causal" if name == "gpt2" else "full")


@pytest.mark.parametrize("name", FAMILIES)
def test_null_is_the_default_everywhere(name):
    family = FAMILIES[name]
    known = {*family.config, *family.only, "is_decoder", "architectures", "id2label"}
    empty = dict.fromkeys(known - set(family.nullable))
    assert read_config(empty, family) == read_config({}, family)


@pytest.mark.parametrize("name", FAMILIES)
def test_each_field_is_read_and_written_back(name):
    """Another value in each: none is confused with its neighbour."""
    family = FAMILIES[name]
    values: dict[str, Any] = {}
    for number, (field, (ours, default)) in enumerate(family.config.items()):
        even = 2 * (number + 30)
        values[field] = {float: (number + 1) / 97, int: even, bool: False, str: "relu", type(None): even}[type(default)]
        values[field] = {"vocab_size": 997, "hidden_size": 60, "attention_heads": 5, "key_value_heads": 1}.get(ours, values[field])
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
def test_joining_undoes_splitting(tiny, name):
    torch.manual_seed(2)
    config = tiny(FAMILIES[name])
    state = {key: torch.randn_like(value) for key, value in Transformer(config).state_dict().items()}
    family = FAMILIES[name]
    theirs = export_tensors(state, config, family)
    assert theirs is not None
    tensors, known, rows = mapping(theirs), renamed(list(theirs), family), spelled_rows(family, config)
    for key, value in state.items():
        held = [next(alias for alias in part.names if alias in known) for part in rows[key]]
        sources = [(known[alias][0], part.transposed) for alias, part in zip(held, rows[key], strict=True)]
        assert joined_shape(tensors, sources) == tuple(value.shape)
        assert torch.equal(join(tensors, sources, torch.float32), value)
        if len(sources) > 1:                                       # the planted fault: queries for keys
            assert not torch.equal(join(tensors, [sources[1], sources[0], *sources[2:]], torch.float32), value)


def test_matrices_of_gpt2_lie_the_other_way(tiny):
    config = tiny(GPT2)
    theirs = export_tensors(Transformer(config).state_dict(), config, GPT2)
    assert theirs is not None
    assert theirs["transformer.h.0.attn.c_attn.weight"].shape == (12, 36) and theirs["transformer.h.0.mlp.c_fc.weight"].shape == (12, 17)
    assert theirs["transformer.h.0.attn.c_attn.bias"].shape == (36,) and theirs["transformer.wte.weight"].shape == (23, 12)
    assert "lm_head.weight" not in theirs


def test_the_sines_of_roformer_are_its_own(tiny):
    """Column i < d/2 is sin(p w_i), column d/2 + i is cos(p w_i), w_i = 10000^(-2i/d): written out for d = 4."""
    config = tiny(ROFORMER, max_position_embeddings=7)
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


# Of one layout, so that only model_type can tell them.
ALIKE = [{"bert", "ernie"}, {"llama", "mistral", "qwen2"}, {"roberta", "xlm_roberta", "camembert"}, {"t5.1.1", "mt5"},
         {"t5.1.1_encoder", "mt5_encoder"}]  # fmt: skip
ALIKE_BARE = [*ALIKE, {"bert", "roberta"}, {"bert", "xlm_roberta"}, {"bert", "camembert"}]
def of_tokens(config: ModelConfig) -> ModelConfig:
    """Without the heads that read a whole text, of which there are several kinds in some families."""
    return config.change({"heads": [head for head in config.heads if spec_name(head) not in ("pooler", "nsp", "classifier")]})


UNSAID = ("model_type", "fishpaw")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("bare", [False, True])
def test_a_family_is_recognised_by_its_names(tiny, name, bare):
    family = FAMILIES[name]
    config = of_tokens(tiny(family))
    with torch.device("meta"):
        theirs = export_tensors(Transformer(config).state_dict(), config, family)
    values = export_config(config, family)
    assert theirs is not None and values is not None
    names = [key for key in theirs if not bare or key.startswith(family.prefix)]
    said = {field: value for field, value in values.items() if field not in UNSAID}
    found, reason = recognise(said, [key.removeprefix(family.prefix) if bare else key for key in names])
    alike = [{name}, *(ALIKE_BARE if bare else ALIKE)]
    assert any({found.name, name} <= one for one in alike), f"taken for {found.name}"
    assert "its tensors are named" in reason


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.variables is not None])
def test_a_family_is_recognised_by_its_variables(tiny, name):
    family = FAMILIES[name]
    config = of_tokens(tiny(family))
    theirs, values = export_tensors(Transformer(config).state_dict(), config, family), export_config(config, family)
    assert theirs is not None and values is not None
    said = {field: value for field, value in values.items() if field not in UNSAID}
    found, _ = recognise(said, list(to_tensorflow(theirs, family)))
    assert any({found.name, name} <= alike for alike in [*ALIKE, {name}]), f"taken for {found.name}"


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
