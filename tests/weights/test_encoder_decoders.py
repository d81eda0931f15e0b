"""What a config.json of T5 says, in every spelling, and which table it is read by."""

from __future__ import annotations

import pytest

from fishpaw.errors import ConfigError
from fishpaw.model.transformer import Transformer
from fishpaw.weights.encoder_decoders import FAMILIES as TABLES
from fishpaw.weights.names import FAMILIES
from fishpaw.weights.translate import export_config, heads_of, read_config, recognise

SHARED = {"shared.weight": None}
BERT4KERAS = {"hidden_act": "gelu", "hidden_size": 21, "intermediate_size": 17, "num_attention_heads": 3, "attention_head_size": 5,
              "num_hidden_layers": 4, "vocab_size": 31, "relative_attention_num_buckets": 8}  # fmt: skip


@pytest.mark.parametrize(("family", "said", "activation"), [
    ("t5", {}, "relu"), ("t5", {"feed_forward_proj": "relu"}, "relu"), ("t5", {"feed_forward_proj": "gelu"}, "gelu"),
    ("t5", {"feed_forward_proj": "silu", "dense_act_fn": "silu", "is_gated_act": False}, "silu"),
    ("t5.1.1", {"feed_forward_proj": "gated-gelu"}, "geglu_tanh"), ("t5.1.1", {"feed_forward_proj": "gated-silu"}, "swiglu"),
    ("mt5", {}, "geglu_tanh"), ("mt5", {"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"}, "geglu"),
])  # fmt: skip
def test_activations_both_ways(family, said, activation):
    config = read_config(said, FAMILIES[family])
    assert config.activation == activation == config.encoder.activation
    written = export_config(config, FAMILIES[family])
    assert read_config(written, FAMILIES[family]) == config
    assert recognise(written, [])[0].name == family


@pytest.mark.parametrize(("family", "said"), [
    ("t5", {"feed_forward_proj": "gated-gelu"}), ("t5.1.1", {"feed_forward_proj": "relu"}), ("mt5", {"feed_forward_proj": "gated-selu"}),
    ("t5", {"feed_forward_proj": 3}), ("t5", {"num_decoder_layers": 0}), ("t5", {"num_layers": True}), ("mt5", {"is_gated_act": "yes"}),
    ("t5", {"dropout_rate": "little"}), ("t5", {"relative_attention_num_buckets": 7}),
])  # fmt: skip
def test_a_value_that_is_none_of_the_family_is_refused(family, said):
    with pytest.raises(ConfigError):
        Transformer(read_config({"vocab_size": 31, "d_model": 21, **said}, FAMILIES[family]))


@pytest.mark.parametrize("family", [family.name for family in TABLES])
@pytest.mark.parametrize("depth", [{"num_layers": 3}, {"num_layers": 3, "num_decoder_layers": 5}])
def test_depths(family, depth):
    config = read_config(depth, FAMILIES[family])
    if family.endswith("_encoder"):
        assert (config.layers, config.encoder, config.mask) == (3, None, "full")
    else:
        assert (config.layers, config.encoder.layers) == (depth.get("num_decoder_layers", 3), 3)
        assert (config.mask, config.encoder.mask) == ("causal", "full") and config.shared_embedding


@pytest.mark.parametrize(("said", "family"), [
    ({"model_type": "t5"}, "t5"), ({"model_type": "t5", "feed_forward_proj": "gated-gelu"}, "t5.1.1"), ({"model_type": "mt5"}, "mt5"),
    ({"model_type": "t5", "architectures": ["T5EncoderModel"]}, "t5_encoder"),
    ({"model_type": "t5", "is_gated_act": True, "architectures": ["T5EncoderModel"]}, "t5.1.1_encoder"),
    ({"model_type": "mt5", "architectures": ["MT5EncoderModel"]}, "mt5_encoder"),
])  # fmt: skip
def test_which_family(said, family):
    assert recognise(said, [])[0].name == family


@pytest.mark.parametrize(("family", "said", "head"), [
    ("t5", {}, {"name": "lm", "scale": 512**-0.5}), ("t5", {"d_model": 64}, {"name": "lm", "scale": 0.125}),
    ("t5.1.1", {"scale_decoder_outputs": False}, {"name": "lm"}),
    ("t5.1.1", {"tie_word_embeddings": True, "scale_decoder_outputs": True, "d_model": 64}, {"name": "lm", "scale": 0.125}),
    ("mt5", {"d_model": 64}, {"name": "lm"}), ("mt5", {"decoder_start_token_id": 101}, {"name": "lm", "start": 101}),
    ("mt5", {"decoder_start_token_id": 2, "pad_token_id": 2}, {"name": "lm"}),
    ("t5", {"scale_decoder_outputs": False, "decoder_start_token_id": 101}, {"name": "lm", "start": 101}),
])  # fmt: skip
def test_the_head_both_ways(family, said, head):
    """Scale and first token: of published models neither is the same everywhere."""
    assert heads_of(said, SHARED, FAMILIES[family]) == (head,)
    config = read_config(said, FAMILIES[family]).change({"heads": (head,)})
    written = export_config(config, FAMILIES[family])
    assert written is not None and heads_of(written, SHARED, FAMILIES[family]) == (head,)
    assert written["decoder_start_token_id"] == head.get("start", config.pad_id)


def test_mt5_has_no_scale():
    config = read_config({}, FAMILIES["mt5"]).change({"heads": ({"name": "lm", "scale": 0.5},)})
    assert export_config(config, FAMILIES["mt5"]) is None


@pytest.mark.parametrize(("family", "kind", "activation"), [("t5", "relu", "relu"), ("t5.1.1", "gelu", "geglu"), ("mt5", "gelu", "geglu")])
def test_bert4keras_names_the_fields_as_berts(family, kind, activation):
    config = read_config(BERT4KERAS | {"hidden_act": kind}, FAMILIES[family])
    assert (config.hidden_size, config.width, config.intermediate_size, config.attention_heads) == (21, 5, 17, 3)
    assert (config.layers, config.encoder.layers, config.activation) == (4, 4, activation)
    assert FAMILIES[family].told(BERT4KERAS | {"hidden_act": kind})


def test_other_families_are_not_told_so():
    assert not any(table.told({"hidden_size": 21, "use_relative_position": True}) for table in TABLES)
