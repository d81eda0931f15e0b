"""Write keras/bert.weights, which test_hdf5.py reads: a BERT of one layer and a classifier, laid out as Keras 2.3.1 does it.

    python tests/weights/make_keras_files.py            # rewrites tests/weights/keras/bert.weights, about 47 kB; needs h5py only
`lay_out` follows keras/engine/saving.py: a group a layer in the order of the model, its weights below it under their variables' names,
both orders in attributes of bytes. That real Keras lays files out so was checked by hand with its own legacy writer (Keras 3.x,
keras.src.legacy.saving.legacy_h5_format). Values come from the names, so that a test can tell them without a second file.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import h5py
import numpy as np

HERE = Path(__file__).resolve().parent / "keras"
VOCABULARY, HIDDEN, INNER, POSITIONS, SEGMENTS, LABELS = 19, 6, 11, 13, 2, 3
BERT = ("attention", "attention/output/LayerNorm", "intermediate/dense", "output/dense", "output/LayerNorm")
ALBERT = ("attention_1", "LayerNorm", "ffn_1/intermediate/dense", "ffn_1/intermediate/output/dense", "LayerNorm_1")
Layers = list[tuple[str, list[tuple[str, np.ndarray]]]]


def value(name: str, *shape: int) -> np.ndarray:
    """The tensor that Google's checkpoint would hold under this name."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)


def dense(scope: str, name: str, rows: int, columns: int) -> list[tuple[str, np.ndarray]]:
    return [(f"{scope}/kernel:0", value(f"{name}/kernel", rows, columns)), (f"{scope}/bias:0", value(f"{name}/bias", columns))]


def norm(layer: str, name: str) -> tuple[str, list[tuple[str, np.ndarray]]]:
    """bert4keras makes beta before gamma."""
    return layer, [(f"{layer}/{part}:0", value(f"{name}/{part}", HIDDEN)) for part in ("beta", "gamma")]


def bert(layers: int, *, first: int = 1, positions: bool = True, shared: bool = False) -> Layers:
    """Layers of bert4keras's BERT, or, without a table of positions, RoFormer, or, with a shared layer, ALBERT. `first`: of the numbers
    that Keras gives to dense layers without a name, which go on counting over all models of a session."""
    found: Layers = [
        ("Input-Token", []),
        ("Input-Segment", []),
        ("Embedding-Token", [("Embedding-Token/embeddings:0", value("bert/embeddings/word_embeddings", VOCABULARY, HIDDEN))]),
        ("Embedding-Segment", [("Embedding-Segment/embeddings:0", value("bert/embeddings/token_type_embeddings", SEGMENTS, HIDDEN))]),
        ("Embedding-Token-Segment", []),
        norm("Embedding-Norm", "bert/embeddings/LayerNorm"),
    ]
    if positions:
        table = value("bert/embeddings/position_embeddings", POSITIONS, HIDDEN)
        found.insert(5, ("Embedding-Position", [("Embedding-Position/embeddings:0", table)]))
    for index in range(1 if shared else layers):
        at = "Transformer" if shared else f"Transformer-{index}"
        prefix = "bert/encoder/transformer/group_0/inner_group_0/" if shared else f"bert/encoder/layer_{index}/"
        attention, norm_1, up, down, norm_2 = (prefix + part for part in (ALBERT if shared else BERT))
        scopes = [f"dense_{first + 6 * index + number}" for number in range(6)]
        weights = []
        for scope, part in zip(scopes, ("self/query", "self/key", "self/value", "output/dense"), strict=False):
            weights += dense(f"{at}-MultiHeadSelfAttention/{scope}", f"{attention}/{part}", HIDDEN, HIDDEN)
        found += [(f"{at}-MultiHeadSelfAttention", weights), (f"{at}-MultiHeadSelfAttention-Add", [])]
        found.append(norm(f"{at}-MultiHeadSelfAttention-Norm", norm_1))
        weights = dense(f"{at}-FeedForward/{scopes[4]}", up, HIDDEN, INNER) + dense(f"{at}-FeedForward/{scopes[5]}", down, INNER, HIDDEN)
        found += [(f"{at}-FeedForward", weights), norm(f"{at}-FeedForward-Norm", norm_2)]
    return found


def heads() -> Layers:
    """Pooler, NSP and MLM. Keras keeps NSP's matrix [in, out], Google [out, in]."""
    matrix = value("cls/seq_relationship/output_weights", 2, HIDDEN).T
    return [
        ("Pooler-Dense", dense("Pooler-Dense", "bert/pooler/dense", HIDDEN, HIDDEN)),
        ("NSP-Proba", [("NSP-Proba/kernel:0", matrix), ("NSP-Proba/bias:0", value("cls/seq_relationship/output_bias", 2))]),
        ("MLM-Dense", dense("MLM-Dense", "cls/predictions/transform/dense", HIDDEN, HIDDEN)),
        norm("MLM-Norm", "cls/predictions/transform/LayerNorm"),
        ("MLM-Bias", [("MLM-Bias/bias:0", value("cls/predictions/output_bias", VOCABULARY))]),
    ]


def top() -> Layers:
    """What a user puts on a model: none of bert4keras's own layers."""
    return [("dense_99", dense("dense_99", "keras/dense_99", HIDDEN, LABELS))]


def lay_out(group: h5py.Group, layers: Layers) -> None:
    group.attrs["layer_names"] = np.array([name.encode() for name, _ in layers])              # of one length: what h5py 2 made of a list
    group.attrs["backend"], group.attrs["keras_version"] = b"tensorflow", b"2.3.1"
    for layer, weights in layers:
        place = group.create_group(layer)
        place.attrs["weight_names"] = np.array([name.encode() for name, _ in weights])
        for name, tensor in weights:
            place.create_dataset(name, data=tensor)


def main() -> None:
    HERE.mkdir(exist_ok=True)
    path = HERE / "bert.weights"
    with h5py.File(path, "w") as file:
        lay_out(file, bert(1) + top())
    print(f"{path.stat().st_size:,} bytes in {path}")


if __name__ == "__main__":
    main()
