"""The checkpoint families that fishpaw knows, and how Google and bert4keras name TensorFlow variables. The tables of the families stand
in encoders.py, decoders.py and encoder_decoders.py."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fishpaw.weights import decoders, encoder_decoders, encoders
from fishpaw.weights.family import ACTIVATIONS, Family

__all__ = ["ACTIVATIONS", "FAMILIES", "TENSORFLOW_ENDINGS", "TENSORFLOW_MODULES", "Family"]

# Where names alone must tell, the first that fits best is taken: BERT before what has its names.
FAMILIES: Mapping[str, Family] = MappingProxyType({
    family.name: family for family in (*encoders.FAMILIES, *decoders.FAMILIES, *encoder_decoders.FAMILIES)
})  # fmt: skip

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
