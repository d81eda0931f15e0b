"""The tables of the encoders: those in BERT's layout (weights/bert_layout.py), ALBERT (arXiv:1909.11942), ELECTRA (arXiv:2003.10555) and
ModernBERT (arXiv:2412.13663); see weights/family.py."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fishpaw.config import ModelConfig
from fishpaw.errors import ConfigError
from fishpaw.switch import spec_name, spec_options
from fishpaw.weights.bert_layout import (
    BACKBONE,
    BERT,
    CAMEMBERT,
    ENCODER_CONFIG,
    ERNIE,
    NEZHA,
    NEZHA_GEN,
    ROBERTA,
    ROFORMER,
    ROFORMER_V2,
    XLM_ROBERTA,
    always_gelu,
    elsewhere,
)
from fishpaw.weights.family import ACTIVATIONS, GATED, Family, Values, period, truth, whole
from fishpaw.weights.rope import read_rope, write_rope

__all__ = ["ALBERT", "ELECTRA", "FAMILIES", "MODERNBERT"]

_INNER = re.compile(r"(albert\.encoder\.albert_layer_groups\.)(\d{1,6})(\.albert_layers\.)(\d{1,6})(\..+)")


def _read_albert(values: Values) -> Values:
    """Their groups are applied in turn to runs of layers, each with its inner layers one after another."""
    layers, groups = whole(values, "num_hidden_layers", 12, least=1), whole(values, "num_hidden_groups", 1, least=1)
    inner = whole(values, "inner_group_num", 1, least=1)
    if layers % groups or (inner > 1 and groups < layers):
        raise ConfigError(
            f"{layers} layers of {groups} groups of {inner} layers.", fix="The groups must divide the layers, and of groups with inner "
            "layers there must be as many as layers.",
        )  # fmt: skip
    if whole(values, "embedding_size", 128) == whole(values, "hidden_size", 4096):
        raise ConfigError("embedding_size equals hidden_size: ALBERT has a matrix between them.", fix="Use another model.")
    return {"layers": layers * inner, "distinct_layers": groups * inner}


def _write_albert(config: ModelConfig) -> Values:
    return {
        "num_hidden_layers": config.layers, "num_hidden_groups": config.blocks, "inner_group_num": 1, "embedding_size": config.embedding,
    }  # fmt: skip


def _inner_layers(names: Sequence[str]) -> Mapping[str, str]:
    """Layer i of the n of group g -> the only one of group g n + i."""
    found = {name: match for name in names if (match := _INNER.fullmatch(name))}
    count = 1 + max((int(match[4]) for match in found.values()), default=0)
    return {} if count == 1 else {
        name: f"{match[1]}{int(match[2]) * count + int(match[4])}{match[3]}0{match[5]}" for name, match in found.items()
    }  # fmt: skip


_ALBERT_LAYER = "albert.encoder.albert_layer_groups.*.albert_layers.0"
_ALBERT_VARIABLES: Mapping[str, str] = {
    "attention.query": "attention_1/self/query",
    "attention.key": "attention_1/self/key",
    "attention.value": "attention_1/self/value",
    "attention.dense": "attention_1/output/dense",
    "attention.LayerNorm": "LayerNorm",
    "ffn": "ffn_1/intermediate/dense",
    "ffn_output": "ffn_1/intermediate/output/dense",
    "full_layer_layer_norm": "LayerNorm_1",
}


def _variables(modules: Mapping[str, str]) -> dict[str, str]:
    """Modules of theirs -> Google's, with their leaves."""
    found = {}
    for theirs, module in modules.items():
        leaves = ("gamma", "beta") if "norm" in module.lower() else ("kernel", "bias")
        found[f"{theirs}.weight"] = f"{'' if leaves[0] == 'gamma' else '^'}{module}/{leaves[0]}"
        found[f"{theirs}.bias"] = f"{module}/{leaves[1]}"
    return found


ALBERT = Family(
    name="albert",
    prefix="albert.",
    variables="bert.",
    config={
        **ENCODER_CONFIG,
        "vocab_size": ("vocab_size", 30000),
        "embedding_size": ("embedding_size", 128),
        "hidden_size": ("hidden_size", 4096),
        "num_attention_heads": ("attention_heads", 64),
        "intermediate_size": ("intermediate_size", 16384),
        "hidden_act": ("activation", "gelu_new"),
        "hidden_dropout_prob": ("dropout", 0.0),
        "attention_probs_dropout_prob": ("attention_dropout", 0.0),
    },
    fixed={"position": "learned", "norm_at": "post"},
    only={"position_embedding_type": ("absolute",)},
    read=_read_albert,
    write=_write_albert,
    weights={
        "embedding.tokens.weight": "albert.embeddings.word_embeddings.weight",
        "embedding.segments.weight": "albert.embeddings.token_type_embeddings.weight",
        "embedding.norm": "albert.embeddings.LayerNorm",
        "embedding.project": "albert.encoder.embedding_hidden_mapping_in",
        "positions.0.table.weight": "albert.embeddings.position_embeddings.weight",
        "layers.*.attention.project": f"{_ALBERT_LAYER}.attention.query + {_ALBERT_LAYER}.attention.key + {_ALBERT_LAYER}.attention.value",
        "layers.*.attention.output": f"{_ALBERT_LAYER}.attention.dense",
        "layers.*.attention_norm": f"{_ALBERT_LAYER}.attention.LayerNorm",
        "layers.*.feed_forward.up": f"{_ALBERT_LAYER}.ffn",
        "layers.*.feed_forward.down": f"{_ALBERT_LAYER}.ffn_output",
        "layers.*.feed_forward_norm": f"{_ALBERT_LAYER}.full_layer_layer_norm",
        "heads.pooler.dense": "albert.pooler",
        "heads.nsp.dense": "sop_classifier.classifier",
        "heads.classifier.dense": "classifier",
        "heads.mlm.dense": "predictions.dense",
        "heads.mlm.norm": "predictions.LayerNorm",
        "heads.mlm.decoder.weight": "predictions.decoder.weight",
        "heads.mlm.bias": "predictions.bias | predictions.decoder.bias",
    },
    ignored=("*.position_ids", "*.token_type_ids", "predictions.decoder.*"),
    heads=(
        ("pooler", "albert.pooler.weight", {}),
        ("nsp", "sop_classifier.classifier.weight", {}),
        ("mlm", "predictions.dense.weight", {}),
        ("classifier", "classifier.weight", {}),
    ),
    classes=(
        (frozenset({"pooler", "classifier"}), "AlbertForSequenceClassification"),
        (frozenset({"pooler", "nsp", "mlm"}), "AlbertForPreTraining"),
        (frozenset({"mlm"}), "AlbertForMaskedLM"),
        (frozenset(), "AlbertModel"),
    ),
    respelled=_inner_layers,
    tensorflow={
        **_variables({
            "albert.encoder.embedding_hidden_mapping_in": "bert/encoder/embedding_hidden_mapping_in",
            "albert.pooler": "bert/pooler/dense",
            "predictions.dense": "cls/predictions/transform/dense",
            "predictions.LayerNorm": "cls/predictions/transform/LayerNorm",
            **{f"{_ALBERT_LAYER}.{theirs}": f"bert/encoder/transformer/group_*/inner_group_0/{module}"
               for theirs, module in _ALBERT_VARIABLES.items()},
        }),
        "predictions.bias": "cls/predictions/output_bias",
        "sop_classifier.classifier.weight": "cls/seq_relationship/output_weights",
        "sop_classifier.classifier.bias": "cls/seq_relationship/output_bias",
    },
)  # fmt: skip

ELECTRA = Family(
    name="electra",
    prefix="electra.",
    variables="electra.",
    config={
        **ENCODER_CONFIG,
        "embedding_size": ("embedding_size", 128),
        "hidden_size": ("hidden_size", 256),
        "num_attention_heads": ("attention_heads", 4),
        "intermediate_size": ("intermediate_size", 1024),
    },
    fixed={"position": "learned", "norm_at": "post"},
    only={"position_embedding_type": ("absolute",), "add_cross_attention": (False,)},
    write=lambda config: {"embedding_size": config.embedding},
    weights={
        **elsewhere(BACKBONE, "electra."),
        "embedding.project": "electra.embeddings_project",
        "positions.0.table.weight": "electra.embeddings.position_embeddings.weight",
        "heads.rtd.dense": "discriminator_predictions.dense",
        "heads.rtd.score": "discriminator_predictions.dense_prediction",
        "heads.mlm.dense": "generator_predictions.dense",
        "heads.mlm.norm": "generator_predictions.LayerNorm",
        "heads.mlm.decoder.weight": "generator_lm_head.weight",
        "heads.mlm.bias": "generator_lm_head.bias",
        "heads.pooler.dense": "classifier.dense",
        "heads.classifier.dense": "classifier.out_proj",
    },
    ignored=("*.position_ids", "*.token_type_ids", "generator_lm_head.weight"),
    heads=(
        ("rtd", "discriminator_predictions.dense.weight", {}),
        ("mlm", "generator_lm_head.bias", always_gelu),
        ("pooler", "classifier.dense.weight", {"activation": "gelu"}),
        ("classifier", "classifier.out_proj.weight", {}),
    ),
    classes=(
        (frozenset({"pooler", "classifier"}), "ElectraForSequenceClassification"),
        (frozenset({"rtd"}), "ElectraForPreTraining"),
        (frozenset({"mlm"}), "ElectraForMaskedLM"),
        (frozenset(), "ElectraModel"),
    ),
    decoder="is_decoder",
    causal_class="ElectraForCausalLM",
    tensorflow=_variables({
        "electra.embeddings_project": "electra/embeddings_project",
        "discriminator_predictions.dense_prediction": "discriminator_predictions/dense_1",
    }),
)  # fmt: skip

_THETA = {"full_attention": ("global_rope_theta", 160_000.0), "sliding_attention": ("local_rope_theta", 10_000.0)}


def _read_modernbert(values: Values) -> Values:
    layers, every = whole(values, "num_hidden_layers", 22, least=1), whole(values, "global_attn_every_n_layers", 3, least=1)
    kinds = values.get("layer_types", ["sliding_attention" if index % every else "full_attention" for index in range(min(layers, 10**4))])
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in list(_THETA) for kind in kinds):
        raise ConfigError(f"layer_types is {kinds!r}.", fix=f"Give a list of {layers} of {' and '.join(_THETA)}.")
    tables = values.get("rope_parameters", {})
    if not isinstance(tables, Mapping):
        raise ConfigError(f"rope_parameters is {tables!r}.", fix="Give an object.")
    places: dict[str, Any] = {}
    for kind, (field, theta) in _THETA.items():
        given = {"rope_parameters": tables.get(kind), "rope_theta": values.get(field, theta)}
        places[kind] = read_rope(given, theta=theta, positions=whole(values, "max_position_embeddings", 8192, least=1))
    window = {"name": "full", "window": whole(values, "local_attention", 128) // 2}
    attention, mlp = truth(values, "attention_bias", False), truth(values, "mlp_bias", False)
    return {
        "mask": period([window if kind == "sliding_attention" else "full" for kind in kinds]),
        "position": period([places[kind] for kind in kinds]),
        "biases": (("qkv", "output") if attention else ()) + (("feed_forward",) if mlp else ()),
    }


def _write_modernbert(config: ModelConfig) -> Values:
    masks, places = ([turns[index % len(turns)] for index in range(config.layers)]
                     for turns in (config.turns("mask"), config.turns("position")))  # fmt: skip
    windows = [spec_options(mask).get("window") for mask in masks]
    kinds = ["full_attention" if window is None else "sliding_attention" for window in windows]
    tables = {kind: {"rope_type": "default", "rope_theta": theta} for kind, (_, theta) in _THETA.items()}
    tables |= {kind: write_rope(place) for kind, place in zip(kinds, places, strict=True)}
    head: Mapping[str, Any] = next((spec_options(head) for head in config.heads if spec_name(head) == "mlm"), {"dense_bias": False})
    own = next((theirs for theirs, ours in GATED.items() if ours == config.activation), None)
    other = head.get("activation")
    return {
        "layer_types": kinds,
        "local_attention": max((2 * window for window in windows if window is not None), default=128),
        "rope_parameters": tables,
        "attention_bias": "qkv" in config.biases,
        "mlp_bias": "feed_forward" in config.biases,
        "classifier_activation": own if other is None else ACTIVATIONS.get(other, other),
        "classifier_bias": head.get("dense_bias", True),
    }


def _modernbert_head(values: Values) -> Values:
    own = values.get("classifier_activation", "gelu")
    bias = {"dense_bias": truth(values, "classifier_bias", False)}
    return bias if own == values.get("hidden_activation", "gelu") else {**bias, "activation": own}


MODERNBERT = Family(
    name="modernbert",
    prefix="model.",
    config={
        "vocab_size": ("vocab_size", 50368),
        "hidden_size": ("hidden_size", 768),
        "intermediate_size": ("intermediate_size", 1152),
        "num_hidden_layers": ("layers", 22),
        "num_attention_heads": ("attention_heads", 12),
        "hidden_activation": ("activation", "gelu"),
        "max_position_embeddings": ("max_positions", 8192),
        "initializer_range": ("init_std", 0.02),
        "norm_eps": ("norm.eps", 1e-5),
        "norm_bias": ("norm.bias", False),
        "mlp_dropout": ("dropout", 0.0),
        "attention_dropout": ("attention_dropout", 0.0),
        "pad_token_id": ("pad_id", 50283),
        "tie_word_embeddings": ("tie_embeddings", True),
    },
    fixed={"norm": "layer", "norm_at": "pre", "segments": 0},
    only={"decoder_bias": (True,), "rope_scaling": (None,)},
    activations=GATED,
    read=_read_modernbert,
    write=_write_modernbert,
    weights={
        "embedding.tokens.weight": "model.embeddings.tok_embeddings.weight",
        "embedding.norm": "model.embeddings.norm",
        "layers.*.attention_norm": "model.layers.*.attn_norm",
        "layers.*.attention.project": "model.layers.*.attn.Wqkv",
        "layers.*.attention.output": "model.layers.*.attn.Wo",
        "layers.*.feed_forward_norm": "model.layers.*.mlp_norm",
        "layers.*.feed_forward.up": "model.layers.*.mlp.Wi",
        "layers.*.feed_forward.down": "model.layers.*.mlp.Wo",
        "final_norm": "model.final_norm",
        "heads.mlm.dense": "head.dense",
        "heads.mlm.norm": "head.norm",
        "heads.mlm.decoder.weight": "decoder.weight",
        "heads.mlm.bias": "decoder.bias",
    },
    ignored=("decoder.weight",),
    heads=(("mlm", "decoder.bias", _modernbert_head),),
    classes=((frozenset({"mlm"}), "ModernBertForMaskedLM"), (frozenset(), "ModernBertModel")),
)

FAMILIES: tuple[Family, ...] = (
    BERT, ROFORMER, ROFORMER_V2, NEZHA, NEZHA_GEN, ERNIE, ROBERTA, XLM_ROBERTA, CAMEMBERT, ALBERT, ELECTRA, MODERNBERT,
)  # fmt: skip
