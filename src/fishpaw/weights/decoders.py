"""The tables of the decoders: GPT, GPT-2 (CPM-LM is one), GPT2-ML, and the modern ones, whose layout Llama (arXiv:2302.13971) has given to
Mistral, Qwen2 and Qwen3; see weights/family.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fishpaw.config import ModelConfig
from fishpaw.errors import ConfigError
from fishpaw.switch import spec_options
from fishpaw.weights.family import GATED, Family, Values, period, truth, whole
from fishpaw.weights.rope import read_rope, write_rope

__all__ = ["FAMILIES", "GPT", "GPT2", "GPT2_BERT4KERAS", "GPT2_ML", "GPT_BERT4KERAS", "LLAMA", "MISTRAL", "QWEN2", "QWEN3"]

_GPT_CONFIG: Mapping[str, tuple[str, Any]] = {
    "n_embd": ("hidden_size", 768),
    "n_layer": ("layers", 12),
    "n_head": ("attention_heads", 12),
    "resid_pdrop": ("dropout", 0.1),
    "attn_pdrop": ("attention_dropout", 0.1),
    "initializer_range": ("init_std", 0.02),
    "layer_norm_epsilon": ("norm.eps", 1e-5),
    "pad_token_id": ("pad_id", 0),
    "tie_word_embeddings": ("tie_embeddings", True),
}

_GPT_LAYER: Mapping[str, str] = {
    "layers.*.attention_norm": "transformer.h.*.ln_1",
    "layers.*.attention.project": "^transformer.h.*.attn.c_attn",
    "layers.*.attention.output": "^transformer.h.*.attn.c_proj",
    "layers.*.feed_forward_norm": "transformer.h.*.ln_2",
    "layers.*.feed_forward.up": "^transformer.h.*.mlp.c_fc",
    "layers.*.feed_forward.down": "^transformer.h.*.mlp.c_proj",
    "heads.lm.decoder.weight": "lm_head.weight",
}


def _as_wide_as_usual(values: Values) -> Values:
    return {"intermediate_size": 4 * whole(values, "n_embd", 768, least=1)}


# transformers' own "gelu" is, in GPT alone, the approximation by tanh.
GPT = Family(
    name="gpt",
    model_types=("openai-gpt",),
    prefix="transformer.",
    config={
        **_GPT_CONFIG,
        "vocab_size": ("vocab_size", 40478),
        "n_positions": ("max_positions", 512),
        "afn": ("activation", "gelu"),
    },
    fixed={"position": "learned", "norm_at": "post", "mask": "causal", "segments": 0, "embedding_norm": False},
    read=_as_wide_as_usual,
    activations={"gelu": "gelu_new", "relu": "relu", "silu": "silu", "swish": "swish"},
    weights={
        "embedding.tokens.weight": "transformer.tokens_embed.weight",
        "positions.0.table.weight": "transformer.positions_embed.weight",
        **_GPT_LAYER,
    },
    ignored=("*.attn.bias", "*.position_ids", "lm_head.weight"),
    heads=(("lm", "lm_head.weight", {}), ("lm", "transformer.tokens_embed.weight", {})),
    classes=((frozenset({"lm"}), "OpenAIGPTLMHeadModel"), (frozenset(), "OpenAIGPTModel")),
)

GPT2 = Family(
    name="gpt2",
    prefix="transformer.",
    config={
        **_GPT_CONFIG,
        "vocab_size": ("vocab_size", 50257),
        "n_inner": ("intermediate_size", None),
        "n_positions": ("max_positions", 1024),
        "activation_function": ("activation", "gelu_new"),
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
        "positions.0.table.weight": "transformer.wpe.weight",
        **_GPT_LAYER,
        "final_norm": "transformer.ln_f",
    },
    ignored=("*.attn.bias", "*.attn.masked_bias", "lm_head.weight"),
    heads=(("lm", "lm_head.weight", {}), ("lm", "transformer.wte.weight", {})),
    classes=((frozenset({"lm"}), "GPT2LMHeadModel"), (frozenset(), "GPT2Model")),
)

# github.com/imcaspar/gpt2-ml, in Grover's layout (arXiv:1905.12616): only its name is GPT-2's. transformers has none such; the names of the
# table are those of the variables.
_NEWSLM: Mapping[str, str] = {
    "embedding.norm": "newslm.embeddings.LayerNorm_embed_norm",
    "layers.*.attention.project": "newslm.layer.*.query_layer + newslm.layer.*.key_layer + newslm.layer.*.value_layer",
    "layers.*.attention.output": "newslm.layer.*.context_projection_layer",
    "layers.*.attention_norm": "newslm.layer.*.LayerNorm_mlp_ln0",
    "layers.*.feed_forward.up": "newslm.layer.*.intermediate",
    "layers.*.feed_forward.down": "newslm.layer.*.output",
    "layers.*.feed_forward_norm": "newslm.layer.*.LayerNorm_mlp_ln1",
}


def _variables(rows: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for module in (piece for row in rows.values() for piece in row.split(" + ")):
        leaves = {"weight": "gamma", "bias": "beta"} if "LayerNorm" in module else {"weight": "kernel", "bias": "bias"}
        for ending, leaf in leaves.items():
            variable = f"{module.replace('.layer.*', '.layer**').replace('.', '/')}/{leaf}"
            found[f"{module}.{ending}"] = f"^{variable}" if leaf == "kernel" else variable
    return found


GPT2_ML = Family(
    name="gpt2_ml",
    prefix="newslm.",
    variables="newslm.",
    config={
        "vocab_size": ("vocab_size", 50270),
        "hidden_size": ("hidden_size", 1024),
        "num_hidden_layers": ("layers", 24),
        "num_attention_heads": ("attention_heads", 16),
        "intermediate_size": ("intermediate_size", 4096),
        "hidden_act": ("activation", "gelu"),
        "hidden_dropout_prob": ("dropout", 0.1),
        "attention_probs_dropout_prob": ("attention_dropout", 0.1),
        "max_position_embeddings": ("max_positions", 1024),
        "initializer_range": ("init_std", 0.02),
        "layer_norm_eps": ("norm.eps", 1e-5),
        "pad_token_id": ("pad_id", 0),
    },
    fixed={"position": "learned", "norm_at": "mixed", "mask": "causal", "segments": 0},
    weights={
        "embedding.tokens.weight": "newslm.embeddings.word_embed",
        "positions.0.table.weight": "newslm.embeddings.pos_embed",
        **_NEWSLM,
    },
    heads=(("lm", "newslm.embeddings.word_embed", {}),),
    classes=((frozenset(), "GPT2ML"),),
    tensorflow={
        "newslm.embeddings.word_embed": "newslm/embeddings/word_embed",
        "newslm.embeddings.pos_embed": "newslm/embeddings/pos_embed",
        **_variables(_NEWSLM),
    },
)

# What bert4keras converts GPT and GPT-2 to (CPM-LM, for one): queries, keys and values apart. Only read; it is then a GPT or a GPT-2.
_BERT4KERAS: Mapping[str, str] = {
    "embedding.tokens.weight": "gpt.embeddings.word_embeddings.weight",
    "embedding.segments.weight": "gpt.embeddings.token_type_embeddings.weight",
    "positions.0.table.weight": "gpt.embeddings.position_embeddings.weight",
    "layers.*.attention.project": "gpt.transformer.layer.*.attention.self.query + gpt.transformer.layer.*.attention.self.key"
    " + gpt.transformer.layer.*.attention.self.value",
    "layers.*.attention.output": "gpt.transformer.layer.*.attention.output.dense",
    "layers.*.attention_norm": "gpt.transformer.layer.*.attention.output.LayerNorm",
    "layers.*.feed_forward.up": "gpt.transformer.layer.*.intermediate.dense",
    "layers.*.feed_forward.down": "gpt.transformer.layer.*.output.dense",
    "layers.*.feed_forward_norm": "gpt.transformer.layer.*.output.LayerNorm",
}

GPT_BERT4KERAS = replace(
    GPT2_ML,
    name="gpt_bert4keras",
    prefix="gpt.",
    variables="gpt.",
    config={**GPT2_ML.config, "type_vocab_size": ("segments", 0), "layer_norm_eps": ("norm.eps", 1e-12)},
    fixed={**GPT.fixed, "family": "gpt"},
    weights=_BERT4KERAS,
    heads=(("lm", "gpt.embeddings.word_embeddings.weight", {}),),
    classes=((frozenset(), "GPT"),),
    tensorflow={},
)

GPT2_BERT4KERAS = replace(
    GPT_BERT4KERAS,
    name="gpt2_bert4keras",
    config={**GPT2_ML.config, "hidden_act": ("activation", "gelu_new")},
    fixed={**GPT2.fixed, "family": "gpt2"},
    weights={
        **{ours: theirs.replace("output.LayerNorm", "input.LayerNorm") for ours, theirs in _BERT4KERAS.items() if "segments" not in ours},
        "final_norm": "gpt.output.LayerNorm",
    },
    classes=((frozenset(), "GPT2"),),
)


# -- the modern decoder ---------------------------------------------------------------------------------------------------------------

def _layers(values: Values, *, window: bool) -> Any:
    """The mask, for each kind of layer: a token sees itself and `sliding_window` - 1 tokens before it, or all."""
    span, layers = values.get("sliding_window"), whole(values, "num_hidden_layers", 32, least=1)
    kinds = values.get("layer_types")
    if kinds is None:
        first = whole(values, "max_window_layers", 28) if "max_window_layers" in values or window else 0
        kinds = ["sliding_attention" if span is not None and index >= first else "full_attention" for index in range(min(layers, 10**4))]
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in known for kind in kinds):
        raise ConfigError(f"layer_types is {kinds!r}.", fix=f"Give a list of {layers} of {' and '.join(known)}.")
    if span is None and "sliding_attention" in kinds:
        raise ConfigError("layer_types has sliding_attention, but there is no sliding_window.", fix="Give one.")
    ahead = None if span is None else {"name": "causal", "window": whole(values, "sliding_window", 1, least=1) - 1}
    return period([ahead if kind == "sliding_attention" else "causal" for kind in kinds])


def _windows(config: ModelConfig) -> Values:
    turns = config.turns("mask")
    masks = [turns[index % len(turns)] for index in range(config.layers)]
    spans = {spec_options(mask)["window"] for mask in masks if spec_options(mask).get("window") is not None}
    kinds = ["sliding_attention" if spec_options(mask).get("window") is not None else "full_attention" for mask in masks]
    return {"sliding_window": max(spans) + 1, "layer_types": kinds} if spans else {"sliding_window": None}


def _read_llama(values: Values) -> Values:
    own, up = truth(values, "attention_bias", False), truth(values, "mlp_bias", False)
    return {
        "biases": (("qkv", "output") if own else ()) + (("feed_forward",) if up else ()),
        "position": read_rope(values, theta=10_000.0, positions=whole(values, "max_position_embeddings", 2048, least=1)),
    }


def _write_llama(config: ModelConfig) -> Values:
    return {"rope_parameters": _turned(config), "attention_bias": "qkv" in config.biases, "mlp_bias": "feed_forward" in config.biases}


def _read_mistral(values: Values) -> Values:
    spans = {"sliding_window": 4096, **values} if "sliding_window" not in values else values
    return {
        "mask": _layers({**spans, "layer_types": None}, window=False),
        "position": read_rope(values, theta=10_000.0, positions=whole(values, "max_position_embeddings", 4096 * 32, least=1)),
    }


def _write_mistral(config: ModelConfig) -> Values:
    return {"rope_parameters": _turned(config), "sliding_window": _windows(config)["sliding_window"]}


def _read_qwen(values: Values) -> Values:
    slides = truth(values, "use_sliding_window", False)
    spans = {"sliding_window": 4096, **values} if slides else {field: value for field, value in values.items() if field != "sliding_window"}
    return {
        "mask": _layers(spans, window=True),
        "position": read_rope(values, theta=10_000.0, positions=whole(values, "max_position_embeddings", 32768, least=1)),
    }


def _write_qwen(config: ModelConfig) -> Values:
    windows = _windows(config)
    return {"rope_parameters": _turned(config), **windows, "use_sliding_window": windows["sliding_window"] is not None}


def _read_qwen3(values: Values) -> Values:
    return {**_read_qwen(values), "biases": ("qkv", "output") if truth(values, "attention_bias", False) else ()}


def _write_qwen3(config: ModelConfig) -> Values:
    return {**_write_qwen(config), "attention_bias": "qkv" in config.biases}


def _turned(config: ModelConfig) -> dict[str, Any] | None:
    turns = config.turns("position")
    return write_rope(turns[0]) if len(turns) == 1 else None


_LLAMA_WEIGHTS: Mapping[str, str] = {
    "embedding.tokens.weight": "model.embed_tokens.weight",
    "layers.*.attention_norm": "model.layers.*.input_layernorm",
    "layers.*.attention.project": "model.layers.*.self_attn.q_proj + model.layers.*.self_attn.k_proj + model.layers.*.self_attn.v_proj",
    "layers.*.attention.output": "model.layers.*.self_attn.o_proj",
    "layers.*.feed_forward_norm": "model.layers.*.post_attention_layernorm",
    "layers.*.feed_forward.up": "model.layers.*.mlp.gate_proj + model.layers.*.mlp.up_proj",
    "layers.*.feed_forward.down": "model.layers.*.mlp.down_proj",
    "final_norm": "model.norm",
    "heads.lm.decoder.weight": "lm_head.weight",
}

LLAMA = Family(
    name="llama",
    prefix="model.",
    config={
        "vocab_size": ("vocab_size", 32000),
        "hidden_size": ("hidden_size", 4096),
        "intermediate_size": ("intermediate_size", 11008),
        "num_hidden_layers": ("layers", 32),
        "num_attention_heads": ("attention_heads", 32),
        "num_key_value_heads": ("key_value_heads", None),
        "head_dim": ("head_size", None),
        "hidden_act": ("activation", "silu"),
        "max_position_embeddings": ("max_positions", 2048),
        "initializer_range": ("init_std", 0.02),
        "rms_norm_eps": ("norm.eps", 1e-6),
        "attention_dropout": ("attention_dropout", 0.0),
        "pad_token_id": ("pad_id", 0),
        "tie_word_embeddings": ("tie_embeddings", False),
    },
    fixed={
        "position": {"name": "rotary", "layout": "half"}, "norm": "rms", "norm_at": "pre", "mask": "causal", "segments": 0,
        "embedding_norm": False, "biases": (), "dropout": 0.0,
    },
    read=_read_llama,
    write=_write_llama,
    activations=GATED,
    weights=_LLAMA_WEIGHTS,
    ignored=("*.rotary_emb.inv_freq", "lm_head.weight"),
    heads=(("lm", "lm_head.weight", {}), ("lm", "model.embed_tokens.weight", {})),
    classes=((frozenset({"lm"}), "LlamaForCausalLM"), (frozenset(), "LlamaModel")),
)  # fmt: skip

MISTRAL = replace(
    LLAMA,
    name="mistral",
    nullable=("sliding_window", "num_key_value_heads"),
    config={
        **LLAMA.config,
        "intermediate_size": ("intermediate_size", 14336),
        "num_key_value_heads": ("key_value_heads", 8),
        "max_position_embeddings": ("max_positions", 4096 * 32),
    },
    read=_read_mistral,
    write=_write_mistral,
    classes=((frozenset({"lm"}), "MistralForCausalLM"), (frozenset(), "MistralModel")),
)

QWEN2 = replace(
    LLAMA,
    name="qwen2",
    nullable=("sliding_window", "num_key_value_heads"),
    config={
        **{field: ours for field, ours in LLAMA.config.items() if field != "head_dim"},
        "vocab_size": ("vocab_size", 151936),
        "intermediate_size": ("intermediate_size", 22016),
        "num_key_value_heads": ("key_value_heads", 32),
        "max_position_embeddings": ("max_positions", 32768),
    },
    fixed={**LLAMA.fixed, "biases": ("qkv",)},
    read=_read_qwen,
    write=_write_qwen,
    classes=((frozenset({"lm"}), "Qwen2ForCausalLM"), (frozenset(), "Qwen2Model")),
)

QWEN3 = replace(
    QWEN2,
    name="qwen3",
    config={**QWEN2.config, "head_dim": ("head_size", 128)},
    fixed={**LLAMA.fixed, "qk_norm": True},
    read=_read_qwen3,
    write=_write_qwen3,
    weights={
        **_LLAMA_WEIGHTS,
        "layers.*.attention.query_norm": "model.layers.*.self_attn.q_norm",
        "layers.*.attention.key_norm": "model.layers.*.self_attn.k_norm",
    },
    classes=((frozenset({"lm"}), "Qwen3ForCausalLM"), (frozenset(), "Qwen3Model")),
)

FAMILIES: tuple[Family, ...] = (GPT2, GPT, GPT2_ML, GPT2_BERT4KERAS, GPT_BERT4KERAS, LLAMA, MISTRAL, QWEN2, QWEN3)
