"""Weights that bert4keras saved through Keras (`model.save_weights`: HDF5), under the names of Google's TensorFlow variables.

Keras lists the layers in the attribute `layer_names` and the weights of each in `weight_names`; inside of a layer only the kind (kernel,
bias, gamma …) and the order tell a matrix: query, key, value, output. Layers: github.com/bojone/bert4keras, bert4keras/models.py.
Read by h5py (extra `h5`). Nothing is unpickled or decompressed, and nothing outside of the file is opened.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fishpaw.errors import CheckpointError, ConfigError
from fishpaw.weights.safetensors import AGAIN, refuse_accidents

__all__ = ["UNKNOWN", "read_keras"]

UNKNOWN = "keras/"                 # begins the names of weights that are of no layer of bert4keras: a classifier, a CRF


def read_keras(path: str | Path) -> dict[str, Tensor]:
    """Name -> tensor, as Google's checkpoints have them (kernels [in, out]), e.g. `bert/encoder/layer_0/output/dense/kernel`.

    BERT, RoFormer, NEZHA, ELECTRA, ALBERT with its shared layer, and what was built on top of them: a weight of another layer is
    `keras/<its name>`. So is NEZHA's table of sines, by which it can be told from RoFormer.
    Raises CheckpointError for a file that is damaged, holds links or compressed parts, or was not made by bert4keras, and for a layer
    with other weights than it should have; ConfigError where h5py is missing.
    """
    where = Path(path)
    h5py = _h5py()
    if not where.is_file() or not h5py.is_hdf5(where):            # is_hdf5 would wait for the writer of a pipe
        refuse_accidents(where)
        raise CheckpointError(f"{where}: is no HDF5 file, as Keras writes it.", fix=AGAIN)
    try:
        with h5py.File(where, "r", locking=False) as file:
            return _tensors(_File(h5py, file, where.stat().st_size))
    except _Refusal as error:
        raise CheckpointError(f"{where}: {error}.", fix=error.fix) from None
    except _ANYTHING as error:
        raise CheckpointError(f"{where}: damaged ({type(error).__name__}: {str(error)[:200]}).", fix=AGAIN) from error


# What h5py raises on damaged files, found by mutation.
_ANYTHING = (OSError, RuntimeError, ValueError, LookupError, TypeError, MemoryError, AttributeError, NotImplementedError, OverflowError)
_BERT4KERAS = "Save the weights of a model that bert4keras's build_transformer_model made, or convert them to safetensors."
_PLAIN = "Don't use it: Keras writes no such thing."
_MOST = 10**4                                                     # names that all lists of a file have together
_NAMESAKES = 100                                                  # weights of one name, in layers of their own


def _dense(*modules: str) -> tuple[str, ...]:
    return tuple(f"{module}/{leaf}" for module in modules for leaf in ("kernel", "bias"))


def _norm(module: str) -> tuple[str, ...]:
    return f"{module}/beta", f"{module}/gamma"


# A layer of bert4keras -> its weights in order. `*` is the number of the layer.
_GROUP = "bert/encoder/transformer/group_0/inner_group_0"
_LAYERS: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "Embedding-Token": ("bert/embeddings/word_embeddings",),
    "Embedding-Segment": ("bert/embeddings/token_type_embeddings",),
    "Embedding-Position": ("bert/embeddings/position_embeddings",),
    "Embedding-Norm": _norm("bert/embeddings/LayerNorm"),
    "Embedding-Mapping": _dense("bert/encoder/embedding_hidden_mapping_in"),
    "Transformer-*-MultiHeadSelfAttention": _dense(
        *(f"bert/encoder/layer_*/attention/{part}" for part in ("self/query", "self/key", "self/value", "output/dense"))
    ),
    "Transformer-*-MultiHeadSelfAttention-Norm": _norm("bert/encoder/layer_*/attention/output/LayerNorm"),
    "Transformer-*-FeedForward": _dense("bert/encoder/layer_*/intermediate/dense", "bert/encoder/layer_*/output/dense"),
    "Transformer-*-FeedForward-Norm": _norm("bert/encoder/layer_*/output/LayerNorm"),
    "Transformer-MultiHeadSelfAttention": _dense(
        *(f"{_GROUP}/attention_1/{part}" for part in ("self/query", "self/key", "self/value", "output/dense"))
    ),
    "Transformer-MultiHeadSelfAttention-Norm": _norm(f"{_GROUP}/LayerNorm"),
    "Transformer-FeedForward": _dense(f"{_GROUP}/ffn_1/intermediate/dense", f"{_GROUP}/ffn_1/intermediate/output/dense"),
    "Transformer-FeedForward-Norm": _norm(f"{_GROUP}/LayerNorm_1"),
    "Pooler-Dense": _dense("bert/pooler/dense"),
    "NSP-Proba": ("cls/seq_relationship/output_weights", "cls/seq_relationship/output_bias"),
    "MLM-Dense": _dense("cls/predictions/transform/dense"),
    "MLM-Norm": _norm("cls/predictions/transform/LayerNorm"),
    "MLM-Bias": ("cls/predictions/output_bias",),
    "Discriminator-Dense": _dense("discriminator_predictions/dense"),
    "Discriminator-Prediction": _dense("discriminator_predictions/dense_1"),
})  # fmt: skip
# What Keras calls a weight whose variable ends in another word.
_KINDS: Mapping[str, str] = MappingProxyType({
    "word_embeddings": "embeddings", "token_type_embeddings": "embeddings", "position_embeddings": "embeddings",
    "output_weights": "kernel", "output_bias": "bias",
})  # fmt: skip


class _Refusal(Exception):
    """What is wrong with the file; `read_keras` adds which."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.fix = fix


class _File:
    """An open file in which only what lies in it is reached: hard links, whole and uncompressed arrays."""

    def __init__(self, h5py: Any, root: Any, size: int) -> None:
        self._h5py, self.root, self._size, self._left, self._listed = h5py, root, size, size, 0

    def get(self, group: Any, path: str) -> Any:
        for part in path.split("/"):
            link = group.get(part, getlink=True) if isinstance(group, self._h5py.Group) and part not in ("", ".", "..") else None
            if link is None:
                raise _Refusal(f"{path!r} is listed, but absent", AGAIN)
            if not isinstance(link, self._h5py.HardLink):         # told before it is followed
                raise _Refusal(f"{path!r} is a link, which could lead out of the file", _PLAIN)
            group = group[part]
        return group

    def names(self, group: Any, attribute: str) -> list[str]:
        """A list of names in an attribute; Keras cuts a long one into `attribute0`, `attribute1` …"""
        if attribute in group.attrs:
            return list(self._texts(group.attrs, attribute))
        found: dict[str, None] = {}
        number = 0
        while f"{attribute}{number}" in group.attrs:
            more = self._texts(group.attrs, f"{attribute}{number}")
            if not found.keys().isdisjoint(more):
                raise _Refusal(f"{attribute} lists {next(name for name in more if name in found)!r} twice", _PLAIN)
            found |= more
            number += 1
        if not number:
            raise _Refusal(f"has no list {attribute!r}, as Keras 2's save_weights writes it", _BERT4KERAS)
        return list(found)

    def _texts(self, attributes: Any, attribute: str) -> dict[str, None]:
        found, texts = attributes.get_id(attribute), dict[str, None]()
        self._listed += max(1, math.prod(found.shape))
        fits = self._listed <= _MOST and math.prod(found.shape) * found.dtype.itemsize <= self._size
        for item in np.asarray(attributes[attribute]).reshape(-1).tolist() if fits else [None]:
            text = item.decode("utf-8", "replace") if isinstance(item, bytes) else item
            if not isinstance(text, str):
                raise _Refusal(f"{attribute} is no list of names, or all lists have more than {_MOST:,}", AGAIN)
            if text in texts:
                raise _Refusal(f"{attribute} lists {text!r} twice", _PLAIN)
            texts[text] = None
        return texts

    def tensor(self, group: Any, path: str) -> Tensor:
        data = self.get(group, path)
        if not isinstance(data, self._h5py.Dataset) or data.shape is None or data.dtype.kind not in "fiu":
            raise _Refusal(f"{path!r} is no array of numbers", AGAIN)
        if data.is_virtual or data.external or data.chunks is not None:
            raise _Refusal(f"{path!r} lies in another file, or in pieces, or is compressed", _PLAIN)
        size = data.size * data.dtype.itemsize
        self._left -= size
        if self._left < 0 or data.id.get_storage_size() < size:
            raise _Refusal(f"{path!r} has the shape {list(data.shape)}, more than the file's {self._size:,} bytes hold", AGAIN)
        return torch.from_numpy(np.array(data[()], data.dtype.newbyteorder("=")))


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise ConfigError("Keras's weights (HDF5) need h5py.", fix='Install it: pip install "fishpaw[h5]".') from None
    return h5py


def _tensors(file: _File) -> dict[str, Tensor]:
    root = file.root
    if not any(name in root.attrs for name in ("layer_names", "layer_names0")) and root.get("model_weights", getlink=True) is not None:
        root = file.get(root, "model_weights")                    # the whole model: model.save
    layers: dict[str, list[tuple[str, Tensor]]] = {}
    tensors: dict[str, Tensor] = {}
    for layer in file.names(root, "layer_names"):
        group = file.get(root, layer)
        for weight in file.names(group, "weight_names"):
            value = file.tensor(group, weight)
            scope = re.sub(r"_\d+$", "", weight.partition("/")[0])          # of a model within a model
            known = next((name for name in (layer, scope) if _row(name) in _LAYERS), None)
            if known is None:
                name = weight if "/" in weight else f"{layer}/{weight}"
                tensors[_free(UNKNOWN + name.removesuffix(":0"), tensors)] = value
            else:
                layers.setdefault(known, []).append((weight, value))
    if not layers:
        raise _Refusal("none of its layers is one of bert4keras", _BERT4KERAS)
    for layer, weights in layers.items():
        tensors |= _placed(layer, weights)
    return tensors


def _placed(layer: str, weights: list[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Give the weights of a layer their names: those of one kind by their order. A kind may be missing (biases), but not in part."""
    number = re.search(r"-(\d+)-", layer)
    wanted: dict[str, list[str]] = {}
    for name in _LAYERS[_row(layer)]:
        leaf = name.rpartition("/")[2]
        wanted.setdefault(_KINDS.get(leaf, leaf), []).append(name.replace("*", number[1] if number else ""))
    given: dict[str, list[Tensor]] = {}
    for weight, value in weights:
        given.setdefault(re.sub(r"(_\d+)?(:\d+)?$", "", weight.rpartition("/")[2]), []).append(value)
    placed: dict[str, Tensor] = {}
    for kind, values in given.items():
        names = wanted.get(kind, [])
        if len(values) != len(names):
            what = f"the layer {layer!r} has {len(values)} weights of the kind {kind!r} instead of {len(names)}"
            raise _Refusal(f"{what}: a gated or conditional layer, which is not read from Keras", "Convert it to safetensors.")
        for name, value in zip(names, values, strict=True):
            placed[name] = value.t() if name.endswith("output_weights") and value.dim() == 2 else value
    return placed


def _row(layer: str) -> str:
    return re.sub(r"-(0|[1-9]\d*)-", "-*-", layer, count=1)


def _free(name: str, taken: Mapping[str, Tensor]) -> str:
    for one in (name, *(f"{name}_{number}" for number in range(1, _NAMESAKES))):
        if one not in taken:
            return one
    raise _Refusal(f"more than {_NAMESAKES} of its layers have a weight {name.removeprefix(UNKNOWN)!r}", _PLAIN)
