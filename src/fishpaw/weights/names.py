"""One table a checkpoint family, as data, read both ways: the fields of its config.json and the names of its tensors.

In a row of weights, ours stands left. `*` is a layer's number; `a + b` are joined along their rows; `^` is stored transposed; of `a | b`
either is read, and which is written depends on the model. A row without .weight or .bias is a module and stands for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ACTIVATIONS", "BERT", "FAMILIES", "GPT2", "ROFORMER", "TENSORFLOW_ENDINGS", "TENSORFLOW_MODULES", "Family"]


@dataclass(frozen=True)
class Family:
    """prefix: of the backbone's tensors, which a backbone alone is saved without. config: their field -> (ours, their default); ours may
    be an option, "norm.eps". fixed: what the family always is. only: their fields that we serve in these values alone, the first being
    the default. weights: ours -> theirs. ignored: their tensors that hold nothing learned, as patterns. decoder: their field that makes the
    mask causal. heads: ours -> the tensor that shows it and its options. classes: theirs, by the heads, first fit. sines: their
    tensor of fixed sines, which nobody needs and they miss."""

    name: str
    prefix: str
    config: Mapping[str, tuple[str, Any]]
    fixed: Mapping[str, Any]
    only: Mapping[str, tuple[Any, ...]]
    weights: Mapping[str, str]
    ignored: tuple[str, ...]
    heads: tuple[tuple[str, str, Mapping[str, str]], ...]
    classes: tuple[tuple[frozenset[str], str], ...]
    decoder: str | None = None
    causal_class: str | None = None
    sines: str | None = None


_ENCODER_CONFIG: Mapping[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 30522),
    "hidden_size": ("hidden_size", 768),
    "num_hidden_layers": ("layers", 12),
    "num_attention_heads": ("attention_heads", 12),
    "intermediate_size": ("intermediate_size", 3072),
    "hidden_act": ("activation", "gelu"),
    "hidden_dropout_prob": ("dropout", 0.1),
    "attention_probs_dropout_prob": ("attention_dropout", 0.1),
    "max_position_embeddings": ("max_positions", 512),
    "type_vocab_size": ("segments", 2),
    "initializer_range": ("init_std", 0.02),
    "layer_norm_eps": ("norm.eps", 1e-12),
    "pad_token_id": ("pad_id", 0),
    "tie_word_embeddings": ("tie_embeddings", True),
}

_ENCODER_WEIGHTS: Mapping[str, str] = {
    "embedding.tokens.weight": "bert.embeddings.word_embeddings.weight",
    "embedding.segments.weight": "bert.embeddings.token_type_embeddings.weight",
    "embedding.norm": "bert.embeddings.LayerNorm",
    "layers.*.attention.project": "bert.encoder.layer.*.attention.self.query + bert.encoder.layer.*.attention.self.key"
    " + bert.encoder.layer.*.attention.self.value",
    "layers.*.attention.query": "bert.encoder.layer.*.attention.self.query",
    "layers.*.attention.key_value": "bert.encoder.layer.*.attention.self.key + bert.encoder.layer.*.attention.self.value",
    "layers.*.attention.output": "bert.encoder.layer.*.attention.output.dense",
    "layers.*.attention_norm": "bert.encoder.layer.*.attention.output.LayerNorm",
    "layers.*.feed_forward.up": "bert.encoder.layer.*.intermediate.dense",
    "layers.*.feed_forward.down": "bert.encoder.layer.*.output.dense",
    "layers.*.feed_forward_norm": "bert.encoder.layer.*.output.LayerNorm",
    "heads.mlm.dense": "cls.predictions.transform.dense",
    "heads.mlm.norm": "cls.predictions.transform.LayerNorm",
    "heads.mlm.decoder.weight": "cls.predictions.decoder.weight",
    "heads.mlm.bias": "cls.predictions.bias | cls.predictions.decoder.bias",
    "heads.nsp.dense": "cls.seq_relationship",
}

BERT = Family(
    name="bert",
    prefix="bert.",
    config=_ENCODER_CONFIG,
    fixed={"position": "learned", "norm_at": "post"},
    only={"position_embedding_type": ("absolute",), "add_cross_attention": (False,)},
    weights={
        **_ENCODER_WEIGHTS,
        "position.table.weight": "bert.embeddings.position_embeddings.weight",
        "heads.pooler.dense": "bert.pooler.dense",
        "heads.classifier.dense": "classifier",
    },
    ignored=("*.position_ids", "*.token_type_ids", "cls.predictions.decoder.*"),
    heads=(
        ("pooler", "bert.pooler.dense.weight", {}),
        ("nsp", "cls.seq_relationship.weight", {}),
        ("mlm", "cls.predictions.transform.dense.weight", {}),
        ("classifier", "classifier.weight", {}),
    ),
    classes=(
        (frozenset({"pooler", "classifier"}), "BertForSequenceClassification"),
        (frozenset({"pooler", "nsp", "mlm"}), "BertForPreTraining"),
        (frozenset({"mlm"}), "BertForMaskedLM"),
        (frozenset({"pooler", "nsp"}), "BertForNextSentencePrediction"),
        (frozenset(), "BertModel"),
    ),
    decoder="is_decoder",
    causal_class="BertLMHeadModel",
)

ROFORMER = Family(
    name="roformer",
    prefix="roformer.",
    config={**_ENCODER_CONFIG, "vocab_size": ("vocab_size", 50000), "max_position_embeddings": ("max_positions", 1536),
            "embedding_size": ("embedding_size", None)},
    fixed={"position": "rotary", "norm_at": "post"},
    only={"rotary_value": (False,), "add_cross_attention": (False,)},
    weights={
        **{ours: theirs.replace("bert.", "roformer.") for ours, theirs in _ENCODER_WEIGHTS.items()},
        "embedding.project": "roformer.embeddings_project",
        "heads.pooler.dense": "roformer.pooler.dense | classifier.dense",
        "heads.classifier.dense": "classifier.out_proj",
    },
    ignored=("*.embed_positions.weight", "*.position_ids", "cls.predictions.decoder.*"),
    heads=(
        ("pooler", "classifier.dense.weight", {"activation": "hidden_act"}),
        ("pooler", "roformer.pooler.dense.weight", {}),
        ("nsp", "cls.seq_relationship.weight", {}),
        ("mlm", "cls.predictions.transform.dense.weight", {}),
        ("classifier", "classifier.out_proj.weight", {}),
    ),
    classes=(
        (frozenset({"pooler", "classifier"}), "RoFormerForSequenceClassification"),
        (frozenset({"mlm"}), "RoFormerForMaskedLM"),
        (frozenset(), "RoFormerModel"),
    ),
    decoder="is_decoder",
    causal_class="RoFormerForCausalLM",
    sines="roformer.encoder.embed_positions.weight",
)

GPT2 = Family(
    name="gpt2",
    prefix="transformer.",
    config={
        "vocab_size": ("vocab_size", 50257),
        "n_embd": ("hidden_size", 768),
        "n_layer": ("layers", 12),
        "n_head": ("attention_heads", 12),
        "n_inner": ("intermediate_size", None),
        "n_positions": ("max_positions", 1024),
        "activation_function": ("activation", "gelu_new"),
        "resid_pdrop": ("dropout", 0.1),
        "attn_pdrop": ("attention_dropout", 0.1),
        "initializer_range": ("init_std", 0.02),
        "layer_norm_epsilon": ("norm.eps", 1e-5),
        "pad_token_id": ("pad_id", 0),
        "tie_word_embeddings": ("tie_embeddings", True),
    },
    fixed={"position": "learned", "norm_at": "pre", "mask": "causal", "segments": 0, "embedding_norm": False},
    only={
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "reorder_and_upcast_attn": (False, True),
        "add_cross_attention": (False,),
    },
    weights={
        "embedding.tokens.weight": "transformer.wte.weight",
        "position.table.weight": "transformer.wpe.weight",
        "layers.*.attention_norm": "transformer.h.*.ln_1",
        "layers.*.attention.project": "^transformer.h.*.attn.c_attn",
        "layers.*.attention.output": "^transformer.h.*.attn.c_proj",
        "layers.*.feed_forward_norm": "transformer.h.*.ln_2",
        "layers.*.feed_forward.up": "^transformer.h.*.mlp.c_fc",
        "layers.*.feed_forward.down": "^transformer.h.*.mlp.c_proj",
        "final_norm": "transformer.ln_f",
        "heads.lm.decoder.weight": "lm_head.weight",
    },
    ignored=("*.attn.bias", "*.attn.masked_bias", "lm_head.weight"),
    heads=(("lm", "transformer.wte.weight", {}),),
    classes=((frozenset({"lm"}), "GPT2LMHeadModel"), (frozenset(), "GPT2Model")),
)

FAMILIES: Mapping[str, Family] = {family.name: family for family in (BERT, ROFORMER, GPT2)}

# What a config.json may say -> what is written: transformers' names, and ours for the same functions.
ACTIVATIONS: Mapping[str, str] = {
    **{name: name for name in ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "relu2", "silu", "swish", "tanh")},
    "gelu_tanh": "gelu_pytorch_tanh",
    "squared_relu": "relu2",
}

# Google's and bert4keras's TensorFlow variables, in BERT's layout: `bert/encoder/layer_0/output/dense/kernel`.
TENSORFLOW_ENDINGS: Mapping[str, str] = {
    "kernel": "^weight",
    "gamma": "weight",
    "beta": "bias",
    "output_weights": "weight",
    "output_bias": "bias",
    "word_embeddings": "word_embeddings.weight",
    "position_embeddings": "position_embeddings.weight",
    "token_type_embeddings": "token_type_embeddings.weight",
}
TENSORFLOW_MODULES: Mapping[str, str] = {"encoder.embedding_hidden_mapping_in": "embeddings_project"}
