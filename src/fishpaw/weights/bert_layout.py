"""The tables of the encoders in BERT's layout, which differ in positions, norms and names; see weights/family.py.

BERT arXiv:1810.04805 · RoFormer arXiv:2104.09864, RoFormerV2 kexue.fm/archives/8998 · NEZHA arXiv:1909.00204 · ERNIE 3.0
arXiv:2107.02137 · RoBERTa arXiv:1907.11692, XLM-R arXiv:1911.02116, CamemBERT arXiv:1911.03894
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fishpaw.errors import ConfigError
from fishpaw.weights.family import Family, Values, whole

__all__ = [
    "BACKBONE", "BERT", "CAMEMBERT", "ENCODER_CONFIG", "ERNIE", "NEZHA", "NEZHA_GEN", "ROBERTA", "ROFORMER", "ROFORMER_V2", "XLM_ROBERTA",
    "always_gelu", "elsewhere",
]  # fmt: skip

ENCODER_CONFIG: Mapping[str, tuple[str, Any]] = {
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
    variables="bert.",
    config=ENCODER_CONFIG,
    fixed={"position": "learned", "norm_at": "post"},
    only={"position_embedding_type": ("absolute",), "add_cross_attention": (False,)},
    weights={
        **_ENCODER_WEIGHTS,
        "positions.0.table.weight": "bert.embeddings.position_embeddings.weight",
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

def elsewhere(rows: Mapping[str, str], prefix: str) -> dict[str, str]:
    """BERT's rows under another prefix."""
    return {ours: theirs.replace("bert.", prefix) for ours, theirs in rows.items()}


def _two_poolers(names: Sequence[str]) -> Mapping[str, str]:
    """Classifiers of before 2020 kept the pooler that nothing reads beside the one of the classifier."""
    if "classifier.dense.weight" not in names:
        return {}
    return {name: name.replace(".pooler.dense.", ".pooler.unused.") for name in names if ".pooler.dense." in name}


def _pooled(values: Values) -> Values:
    """RoFormer-Sim pools without an activation, and says so."""
    return {"activation": values["pooler_activation"]} if "pooler_activation" in values else {}


ROFORMER = Family(
    name="roformer",
    prefix="roformer.",
    variables="bert.",
    config={**ENCODER_CONFIG, "vocab_size": ("vocab_size", 50000), "max_position_embeddings": ("max_positions", 1536),
            "embedding_size": ("embedding_size", None)},
    fixed={"position": "rotary", "norm_at": "post"},
    only={"rotary_value": (False,), "add_cross_attention": (False,), "norm_type": ("layer_norm",), "use_bias": (True,)},
    weights={
        **elsewhere(_ENCODER_WEIGHTS, "roformer."),
        "embedding.project": "roformer.embeddings_project",
        "heads.pooler.dense": "roformer.pooler.dense | classifier.dense",
        "heads.classifier.dense": "classifier.out_proj",
    },
    ignored=("*.embed_positions.weight", "*.position_ids", "cls.predictions.decoder.*"),
    heads=(
        ("pooler", "classifier.dense.weight", lambda values: {"activation": values.get("hidden_act", "gelu")}),
        ("pooler", "roformer.pooler.dense.weight", _pooled),
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
    respelled=_two_poolers,
)


def _without_biases(rows: Mapping[str, str]) -> dict[str, str]:
    """The matrices alone: what has no norms with weights, and no biases."""
    found = {}
    for ours, theirs in rows.items():
        if ours.endswith(".weight"):
            found[ours] = theirs
        elif "norm" not in ours:
            found[f"{ours}.weight"] = " + ".join(f"{piece}.weight" for piece in theirs.split(" + "))
    return found


def _second(values: Values) -> bool | None:
    """Where neither field is there, the tensors' names tell: the first has biases."""
    told = values.get("norm_type") == "rms_norm" or values.get("model_type") == "roformer_v2"
    return told if "norm_type" in values or "model_type" in values else None


def _as_wide(values: Values) -> Values:
    """No matrix after the embedding: RoFormerV2 was never published with one."""
    hidden = whole(values, "hidden_size", 768, least=1)
    if whole(values, "embedding_size", hidden, least=1) != hidden:
        raise ConfigError(f"embedding_size is {values['embedding_size']}, hidden_size {hidden}.", fix="Make them equal.")
    return {}


BACKBONE: Mapping[str, str] = {ours: theirs for ours, theirs in _ENCODER_WEIGHTS.items() if not ours.startswith("heads.")}

# The tensors of github.com/JunnYu/RoFormer_pytorch, whose configurations say model_type "roformer". transformers would open that as the
# first RoFormer, with norms and biases of its own: we write another.
ROFORMER_V2 = replace(
    ROFORMER,
    name="roformer_v2",
    model_types=("roformer_v2", "roformer"),
    told=_second,
    config={field: ours for field, ours in ROFORMER.config.items() if field != "embedding_size"},
    fixed={"position": "rotary", "norm_at": "post", "norm": {"name": "rms", "scale": False}, "biases": ()},
    only={"rotary_value": (False,), "add_cross_attention": (False,), "norm_type": ("rms_norm",), "use_bias": (False,)},
    read=_as_wide,
    write=lambda config: {"norm_type": "rms_norm", "use_bias": False, "embedding_size": config.embedding},
    weights={
        **_without_biases(elsewhere(BACKBONE, "roformer.")),
        "heads.pooler.dense": "roformer.pooler.dense | classifier.dense",
        "heads.classifier.dense": "classifier.out_proj",
        "heads.lm.decoder.weight": "cls.predictions.decoder.weight",
    },
    heads=(
        ("lm", "cls.predictions.decoder.weight", {}),
        ("lm", "roformer.embeddings.word_embeddings.weight", {}),
        *(head for head in ROFORMER.heads if head[0] in ("pooler", "classifier")),
    ),
    classes=(
        (frozenset({"pooler", "classifier"}), "RoFormerForSequenceClassification"),
        (frozenset({"lm"}), "RoFormerForMaskedLM"),
        (frozenset(), "RoFormerModel"),
    ),
    causal_class=None,
    sines=None,
)


def _named_bert(names: Sequence[str]) -> Mapping[str, str]:
    """Ports of before transformers had the family kept BERT's prefix."""
    return {name: f"nezha.{name.removeprefix('nezha.bert.')}" for name in names if name.startswith("nezha.bert.")}


NEZHA = Family(
    name="nezha",
    prefix="nezha.",
    variables="bert.",
    model_types=("nezha", "bert"),
    told=lambda values: values.get("model_type") == "nezha" or values.get("use_relative_position") is True,
    config={**ENCODER_CONFIG, "vocab_size": ("vocab_size", 21128), "max_relative_position": ("position.reach", 64)},
    fixed={"position": {"name": "nezha"}, "norm_at": "post"},
    only={"use_relative_position": (True,), "add_cross_attention": (False,)},
    write=lambda config: {"use_relative_position": True},
    weights={
        **elsewhere(_ENCODER_WEIGHTS, "nezha."),
        "heads.pooler.dense": "nezha.pooler.dense",
        "heads.classifier.dense": "classifier",
    },
    ignored=("*.positions_encoding", "*.position_ids", "*.token_type_ids", "cls.predictions.decoder.*"),
    heads=tuple((name, shows.replace("bert.", "nezha."), options) for name, shows, options in BERT.heads),
    classes=tuple((heads, name.replace("Bert", "Nezha")) for heads, name in BERT.classes),
    respelled=_named_bert,
    decoder="is_decoder",
)

# Huawei's generator has NEZHA's name only: it is a BERT with learned positions, without segments, that reads from the left.
NEZHA_GEN = replace(
    BERT,
    name="nezha_gen",
    config={field: ours for field, ours in BERT.config.items() if field != "type_vocab_size"},
    fixed={**BERT.fixed, "mask": "causal", "segments": 0},
    weights={ours: theirs for ours, theirs in BERT.weights.items() if ours != "embedding.segments.weight"},
    heads=tuple(head for head in BERT.heads if head[0] == "mlm"),
    classes=((frozenset(), "NezhaGen"),),
    decoder=None,
    causal_class=None,
)

# Task 0 is in every token's vector: its row lies in the segments' table, and we write a model without tasks.
ERNIE = replace(
    BERT,
    name="ernie",
    prefix="ernie.",
    variables=None,
    weights=elsewhere(BERT.weights, "ernie."),
    heads=tuple((name, shows.replace("bert.", "ernie."), options) for name, shows, options in BERT.heads),
    classes=tuple((heads, name.replace("Bert", "Ernie")) for heads, name in BERT.classes),
    causal_class="ErnieForCausalLM",
    added={"ernie.embeddings.token_type_embeddings.weight": "ernie.embeddings.task_type_embeddings.weight"},
)


def always_gelu(values: Values) -> Values:
    """Of a head that is built with gelu, whatever the layers have."""
    return {} if values.get("hidden_act", "gelu") == "gelu" else {"activation": "gelu"}


# Positions count from the row after the padding's. RoBERTa-wwm is a BERT.
ROBERTA = Family(
    name="roberta",
    prefix="roberta.",
    config={**ENCODER_CONFIG, "vocab_size": ("vocab_size", 50265), "pad_token_id": ("pad_id", 1)},
    fixed={"position": {"name": "learned", "offset": 2}, "norm_at": "post"},
    only={"position_embedding_type": ("absolute",), "add_cross_attention": (False,)},
    read=lambda values: {"position.offset": whole(values, "pad_token_id", 1) + 1},
    weights={
        **elsewhere(BACKBONE, "roberta."),
        "positions.0.table.weight": "roberta.embeddings.position_embeddings.weight",
        "heads.pooler.dense": "roberta.pooler.dense | classifier.dense",
        "heads.classifier.dense": "classifier.out_proj",
        "heads.mlm.dense": "lm_head.dense",
        "heads.mlm.norm": "lm_head.layer_norm",
        "heads.mlm.decoder.weight": "lm_head.decoder.weight",
        "heads.mlm.bias": "lm_head.bias | lm_head.decoder.bias",
    },
    ignored=("*.position_ids", "*.token_type_ids", "lm_head.decoder.*"),
    heads=(
        ("pooler", "classifier.dense.weight", {}),
        ("pooler", "roberta.pooler.dense.weight", {}),
        ("mlm", "lm_head.dense.weight", always_gelu),
        ("classifier", "classifier.out_proj.weight", {}),
    ),
    classes=(
        (frozenset({"pooler", "classifier"}), "RobertaForSequenceClassification"),
        (frozenset({"mlm"}), "RobertaForMaskedLM"),
        (frozenset(), "RobertaModel"),
    ),
    respelled=_two_poolers,
    decoder="is_decoder",
    causal_class="RobertaForCausalLM",
)


def _roberta(name: str, kind: str, prefix: str) -> Family:
    """transformers' other names for RoBERTa, in which the tensors' stay."""
    classes = tuple((heads, built.replace("Roberta", prefix)) for heads, built in ROBERTA.classes)
    config = {**ROBERTA.config, "vocab_size": ENCODER_CONFIG["vocab_size"]}
    return replace(ROBERTA, name=name, model_types=(kind,), config=config, classes=classes, causal_class=f"{prefix}ForCausalLM")


XLM_ROBERTA = _roberta("xlm_roberta", "xlm-roberta", "XLMRoberta")
CAMEMBERT = _roberta("camembert", "camembert", "Camembert")
