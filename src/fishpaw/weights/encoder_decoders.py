"""The tables of the encoder-decoders: T5 (arXiv:1910.10683), T5 1.1 (gated feed-forward, a head of its own) and mT5 (arXiv:2010.11934),
and of their encoders alone; see weights/family.py."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from fishpaw.activations import is_gated
from fishpaw.config import ModelConfig
from fishpaw.errors import ConfigError
from fishpaw.switch import nearest, spec_name, spec_options
from fishpaw.weights.family import ACTIVATIONS, GATED, Family, Values, number, truth, whole

__all__ = ["FAMILIES", "MT5", "MT5_ENCODER", "T5", "T5_1_1", "T5_1_1_ENCODER", "T5_ENCODER"]

_PLAIN, _GATED = "relu", "gated-gelu"                             # what feed_forward_proj is in T5 and, if nothing says it, in mT5
_CONFIG: Mapping[str, tuple[str, Any]] = MappingProxyType({
    "vocab_size": ("vocab_size", 32128),
    "d_model": ("hidden_size", 512),
    "d_kv": ("head_size", 64),
    "d_ff": ("intermediate_size", 2048),
    "num_layers": ("encoder.layers", 6),
    "num_decoder_layers": ("layers", None),
    "num_heads": ("attention_heads", 8),
    "relative_attention_num_buckets": ("position.buckets", 32),
    "relative_attention_max_distance": ("position.distance", 128),
    "dropout_rate": ("dropout", 0.1),
    "layer_norm_epsilon": ("norm.eps", 1e-6),
    "pad_token_id": ("pad_id", 0),
    "tie_word_embeddings": ("tie_embeddings", True),
})  # fmt: skip
_MT5_CONFIG: Mapping[str, tuple[str, Any]] = MappingProxyType({
    **_CONFIG,
    "vocab_size": ("vocab_size", 250112),
    "d_ff": ("intermediate_size", 1024),
    "num_layers": ("encoder.layers", 8),
    "num_heads": ("attention_heads", 6),
})  # fmt: skip
# What bert4keras calls them, beside checkpoints of Mesh TensorFlow.
_OTHERWISE = {"hidden_size": "d_model", "attention_head_size": "d_kv", "intermediate_size": "d_ff", "num_hidden_layers": "num_layers",
              "num_attention_heads": "num_heads", "hidden_dropout_prob": "dropout_rate"}  # fmt: skip


def _spelled(values: Values) -> Values:
    """A configuration of bert4keras in transformers' words. There all that isn't relu is gated, and has a head of its own."""
    kind = values.get("hidden_act")
    if "model_type" in values or "feed_forward_proj" in values or not isinstance(kind, str):
        return values
    gated = kind != "relu"
    said = {"feed_forward_proj": f"gated-{kind}" if gated else kind, "dense_act_fn": kind, "tie_word_embeddings": not gated}
    return {**said, **{_OTHERWISE.get(field, field): value for field, value in values.items()}}


def _read(values: Values, config: Mapping[str, tuple[str, Any]], *, gated: bool, default: str) -> dict[str, Any]:
    """What isn't a field for a field. The dropout is one rate; the decoder is as deep as the encoder unless it says so."""
    spelled = _spelled(values)
    said, name = _feed_forward(spelled, default)
    table = GATED if gated else ACTIVATIONS
    if said != gated:
        kind = spelled.get("feed_forward_proj", default)
        raise ConfigError(f"feed_forward_proj is {kind!r}, {'not ' * gated}gated.", fix=f"Give it {'' if gated else 'not '}gated.")
    if name not in table:
        raise ConfigError(f"The activation is {name!r}.", fix=nearest(name, list(table)))
    return {
        **{ours: spelled[field] for field, (ours, _) in config.items() if field in spelled and field not in values},
        "activation": table[name],
        "attention_dropout": number(spelled, "dropout_rate", 0.1),
        "layers": whole(spelled, "num_decoder_layers", whole(spelled, "num_layers", config["num_layers"][1], least=1), least=1),
    }


def _read_t5(values: Values) -> Values:
    return _read(values, _CONFIG, gated=False, default=_PLAIN)


def _read_t5_1_1(values: Values) -> Values:
    return _read(values, _CONFIG, gated=True, default=_GATED)


def _read_mt5(values: Values) -> Values:
    return _read(values, _MT5_CONFIG, gated=True, default=_GATED)


def _write(config: ModelConfig) -> dict[str, Any]:
    gated = is_gated(config.activation)
    plain = str(config.activation)
    name = next((theirs for theirs, ours in GATED.items() if ours == plain), plain) if gated else ACTIVATIONS.get(plain, plain)
    kind = "gated-gelu" if gated and name == "gelu_new" else f"gated-{name}" if gated else name
    return {
        "feed_forward_proj": kind,
        "dense_act_fn": name,
        "is_gated_act": gated,
        "is_encoder_decoder": config.encoder is not None,
        "decoder_start_token_id": _option(config, "start", config.pad_id),
        "eos_token_id": 1,
    }


def _write_t5(config: ModelConfig) -> Values:
    return {**_write(config), "scale_decoder_outputs": _option(config, "scale", 0.0 if config.tie_embeddings else 1.0) != 1}


def _option(config: ModelConfig, name: str, without: float) -> Any:
    """An option of the head "lm"; `without`: where there is no such head. transformers builds one whenever it is asked for it."""
    options = [spec_options(head) for head in config.heads if spec_name(head) == "lm"]
    usual = {"scale": 1.0, "start": config.pad_id}
    return options[0].get(name, usual[name]) if options else without


def _head_mt5(values: Values) -> Values:
    """Answers begin with the padding unless the file says with what."""
    pad = whole(values, "pad_token_id", 0)
    start = whole(values, "decoder_start_token_id", pad)
    return {} if start == pad else {"start": start}


def _head_t5(values: Values) -> Values:
    """T5 scales the logits where the table of tokens makes them. transformers 5 says so apart, for it ties whatever the file holds."""
    spelled = _spelled(values)
    tied = truth(spelled, "tie_word_embeddings", True)
    width = whole(spelled, "d_model", _CONFIG["d_model"][1], least=1)
    return {**({"scale": width**-0.5} if truth(spelled, "scale_decoder_outputs", tied) else {}), **_head_mt5(values)}


def _feed_forward(values: Values, default: str) -> tuple[bool, str]:
    """Whether the layers are gated, and their activation; "gated-gelu" is gelu's approximation unless dense_act_fn says another."""
    kind = str(values.get("feed_forward_proj", default))
    plain = "gelu_new" if kind == "gated-gelu" else kind.removeprefix("gated-")
    return truth(values, "is_gated_act", kind.startswith("gated-")), str(values.get("dense_act_fn", plain))


def _told(values: Values, *, gated: bool, encoder: bool, default: str = _PLAIN) -> bool:
    """Whether these may be of this kind, as far as they say anything."""
    if "model_type" not in values and "relative_attention_num_buckets" not in values:
        return False
    built, spelled = values.get("architectures"), _spelled(values)
    alone = isinstance(built, list) and any(str(one).endswith("EncoderModel") for one in built)
    said = spelled.get("is_gated_act", str(spelled.get("feed_forward_proj", default)).startswith("gated-"))
    return alone == encoder and said == gated


def _weights(*, gated: bool) -> dict[str, str]:
    rows = {
        "embedding.tokens.weight": "shared.weight | encoder.embed_tokens.weight | decoder.embed_tokens.weight",
        "heads.lm.decoder.weight": "lm_head.weight",
    }
    for ours, theirs, last in (("encoder.", "encoder", 1), ("", "decoder", 2)):
        layer = f"{theirs}.block.*.layer"
        own, dense = f"{layer}.0.SelfAttention", f"{layer}.{last}.DenseReluDense"
        rows |= {
            f"{ours}positions.0.bias_table.weight": f"{own}.relative_attention_bias.weight".replace("*", "0"),
            f"{ours}layers.*.attention.project.weight": f"{own}.q.weight + {own}.k.weight + {own}.v.weight",
            f"{ours}layers.*.attention.output.weight": f"{own}.o.weight",
            f"{ours}layers.*.attention_norm.weight": f"{layer}.0.layer_norm.weight",
            f"{ours}layers.*.feed_forward.up.weight": f"{dense}.wi_0.weight + {dense}.wi_1.weight" if gated else f"{dense}.wi.weight",
            f"{ours}layers.*.feed_forward.down.weight": f"{dense}.wo.weight",
            f"{ours}layers.*.feed_forward_norm.weight": f"{layer}.{last}.layer_norm.weight",
            f"{ours}final_norm.weight": f"{theirs}.final_layer_norm.weight",
        }
    cross = "decoder.block.*.layer.1.EncDecAttention"
    return rows | {
        "layers.*.cross.query.weight": f"{cross}.q.weight",
        "layers.*.cross.key_value.weight": f"{cross}.k.weight + {cross}.v.weight",
        "layers.*.cross.output.weight": f"{cross}.o.weight",
        "layers.*.cross_norm.weight": "decoder.block.*.layer.1.layer_norm.weight",
    }


def _tensorflow(weights: Mapping[str, str], *, norm: str, final_norm: str) -> dict[str, str]:
    """Mesh TensorFlow's variables. All matrices lie transposed, the tables of biases, too; only the table of tokens doesn't."""
    found = {"shared.weight": "shared/embedding", "lm_head.weight": "^decoder/logits/kernel"}
    for theirs in (name for row in weights.values() for name in row.split(" + ") if ".embed_tokens." not in name and name not in found):
        path = re.sub(r"layer\.(\d)", r"layer_00\1", theirs.replace("block.*.", "block_***.").replace("block.0.", "block_000."))
        path = path.removesuffix(".weight").replace(".", "/")
        if "norm" in theirs:
            path = path.replace("final_layer_norm", final_norm) if "final" in theirs else path.replace("layer_norm", norm)
            found[theirs] = f"{path}/scale"
        else:
            found[theirs] = f"^{path}/kernel" if "DenseReluDense" in theirs else f"^{path}"
    return found


_TABLES = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")

T5 = Family(
    name="t5",
    prefix="",
    told=lambda values: _told(values, gated=False, encoder=False),
    config=_CONFIG,
    fixed={
        "position": {"name": "buckets"}, "attention": {"name": "softmax", "scale": 1.0}, "norm": "rms", "norm_at": "pre", "mask": "causal",
        "segments": 0, "embedding_norm": False, "biases": (), "shared_embedding": True,
    },
    encoder={"mask": "full", "tie_embeddings": True},
    read=_read_t5,
    write=_write_t5,
    weights=_weights(gated=False),
    ignored=("*.EncDecAttention.relative_attention_bias*", "*_slot_v*", "lm_head.weight"),           # Adafactor's slots
    heads=tuple(("lm", name, _head_t5) for name in ("lm_head.weight", *_TABLES)),
    classes=((frozenset({"lm"}), "T5ForConditionalGeneration"), (frozenset(), "T5Model")),
    untied="lm_head.weight",
    variables="",
    tensorflow=_tensorflow(_weights(gated=False), norm="layer_norm", final_norm="final_layer_norm"),
)  # fmt: skip

T5_1_1 = replace(
    T5,
    name="t5.1.1",
    model_types=("t5",),
    told=lambda values: _told(values, gated=True, encoder=False),
    read=_read_t5_1_1,
    weights=_weights(gated=True),
    tensorflow=_tensorflow(_weights(gated=True), norm="layer_norm", final_norm="final_layer_norm"),
)

MT5 = replace(
    T5_1_1,
    name="mt5",
    model_types=("mt5",),
    told=lambda values: _told(values, gated=True, encoder=False, default=_GATED),
    config=_MT5_CONFIG,
    read=_read_mt5,
    write=_write,
    heads=tuple(("lm", name, _head_mt5) for name in ("lm_head.weight", *_TABLES)),
    classes=((frozenset({"lm"}), "MT5ForConditionalGeneration"), (frozenset(), "MT5Model")),
    tensorflow=_tensorflow(_weights(gated=True), norm="rms_norm", final_norm="rms_norm"),
)


def _alone(family: Family) -> Family:
    """The encoder of a family, as a model; of a checkpoint of both it takes its part."""
    mt5, gated = family.name == "mt5", family.name != "t5"
    rows = {ours.removeprefix("encoder."): theirs for ours, theirs in family.weights.items() if ours.startswith("encoder.")}
    config = {field: ("layers" if ours == "encoder.layers" else ours, default) for field, (ours, default) in family.config.items()}
    del config["num_decoder_layers"]
    return replace(
        family,
        name=f"{family.name}_encoder",
        model_types=family.types,
        told=lambda values: _told(values, gated=gated, encoder=True, default=_GATED if mt5 else _PLAIN),
        config=config,
        fixed={**family.fixed, "mask": "full", "shared_embedding": False},
        encoder=None,
        read=lambda values: {name: value for name, value in (family.read or dict)(values).items() if name != "layers"},
        weights={"embedding.tokens.weight": " | ".join(_TABLES[:2]), **rows},
        ignored=("decoder.*", "lm_head.weight", *family.ignored),
        heads=(),
        classes=((frozenset(), f"{'MT5' if mt5 else 'T5'}EncoderModel"),),
        untied=None,
        variables=None,
        tensorflow={},
    )


T5_ENCODER, T5_1_1_ENCODER, MT5_ENCODER = (_alone(family) for family in (T5, T5_1_1, MT5))

FAMILIES: tuple[Family, ...] = (T5, T5_1_1, MT5, T5_ENCODER, T5_1_1_ENCODER, MT5_ENCODER)
