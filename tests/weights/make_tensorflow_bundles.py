"""Write the TensorFlow bundles that test_tensorflow.py reads, each with its expected values in an .npz (no pickles).

Needs the real TensorFlow, in an environment of its own; the tests and the library do not:
    python3 -m venv /tmp/tf && /tmp/tf/bin/pip install tensorflow==2.21.0
    /tmp/tf/bin/python tests/weights/make_tensorflow_bundles.py            # rewrites tests/weights/bundles/, about 60 kB
Any TensorFlow 2 does: the values come from a fixed seed and the format has not changed since 2016.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

HERE = Path(__file__).resolve().parent / "bundles"
VOCABULARY, HIDDEN, HEADS, LAYERS, INNER, POSITIONS, SEGMENTS = 23, 12, 3, 2, 17, 19, 2


def save(prefix: Path, tensors: dict[str, np.ndarray], slices: dict[str, str] | None = None) -> None:
    names = list(tensors)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=[name.split("@")[0] for name in names],
        shape_and_slices=[(slices or {}).get(name, "") for name in names],
        tensors=[tf.constant(tensors[name]) for name in names],
    )


def expect(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """numpy has no bfloat16: its bits are kept as uint16 under `name@bfloat16`. "/" would make folders: it becomes "|"."""
    flat = {}
    for name, value in tensors.items():
        key = name.replace("/", "|")
        flat.update({key + "@bfloat16": value.view(np.uint16)} if value.dtype == tf.bfloat16.as_numpy_dtype else {key: value})
    np.savez_compressed(path, **flat, allow_pickle=False)


def bert(random: np.random.Generator) -> dict[str, np.ndarray]:
    def noise(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * 0.6).astype(np.float32)

    def dense(name: str, rows: int, columns: int) -> dict[str, np.ndarray]:
        return {f"{name}/kernel": noise(rows, columns), f"{name}/bias": noise(columns)}

    def norm(name: str) -> dict[str, np.ndarray]:
        return {f"{name}/LayerNorm/gamma": 1 + noise(HIDDEN) / 2, f"{name}/LayerNorm/beta": noise(HIDDEN)}

    tensors = {
        "bert/embeddings/word_embeddings": noise(VOCABULARY, HIDDEN),
        "bert/embeddings/position_embeddings": noise(POSITIONS, HIDDEN),
        "bert/embeddings/token_type_embeddings": noise(SEGMENTS, HIDDEN),
        **norm("bert/embeddings"),
    }
    for layer in range(LAYERS):
        here = f"bert/encoder/layer_{layer}"
        for part in ("query", "key", "value"):
            tensors |= dense(f"{here}/attention/self/{part}", HIDDEN, HIDDEN)
        tensors |= dense(f"{here}/attention/output/dense", HIDDEN, HIDDEN) | norm(f"{here}/attention/output")
        tensors |= dense(f"{here}/intermediate/dense", HIDDEN, INNER)
        tensors |= dense(f"{here}/output/dense", INNER, HIDDEN) | norm(f"{here}/output")
    tensors |= dense("bert/pooler/dense", HIDDEN, HIDDEN)
    tensors |= dense("cls/predictions/transform/dense", HIDDEN, HIDDEN) | norm("cls/predictions/transform")
    tensors |= {"cls/predictions/output_bias": noise(VOCABULARY)}
    tensors |= {"cls/seq_relationship/output_weights": noise(2, HIDDEN), "cls/seq_relationship/output_bias": noise(2)}
    tensors |= {f"bert/pooler/dense/kernel/adam_{slot}": noise(HIDDEN, HIDDEN) for slot in "mv"}
    return tensors | {"global_step": np.array(1000, np.int64)}


def every_type(random: np.random.Generator) -> dict[str, np.ndarray]:
    noise = random.standard_normal((7, 5)) * 3
    kinds = [np.float16, np.float32, np.float64, np.int8, np.int16, np.int32, np.int64, np.uint8]
    tensors = {f"kind/{kind.__name__}": (noise if kind(0.5) else noise.astype(np.int64)).astype(kind) for kind in kinds}
    tensors["kind/bfloat16"] = noise.astype(tf.bfloat16.as_numpy_dtype)
    extremes = np.array([np.iinfo(np.int64).min, -1, 0, np.iinfo(np.int64).max])
    special = np.array([np.nan, np.inf, -np.inf, -0.0, np.finfo(np.float32).tiny / 8], np.float32)
    return tensors | {
        "kind/bool": noise > 0,
        "scalar/float32": np.array(2.5, np.float32),
        "scalar/bool": np.array(True),
        "empty/float32": np.zeros((3, 0, 2), np.float32),
        "extreme/int64": extremes,
        "extreme/float32": special,
        "中文/权重": noise[:2].astype(np.float32),
    }


def main() -> None:
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir()
    random = np.random.default_rng(20201120)

    folder = HERE / "bert"
    folder.mkdir()
    tensors = bert(random)
    save(folder / "bert_model.ckpt", tensors)
    expect(HERE / "bert.npz", tensors)
    config = {
        "attention_probs_dropout_prob": 0.1, "directionality": "bidi", "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
        "hidden_size": HIDDEN, "initializer_range": 0.02, "intermediate_size": INNER, "max_position_embeddings": POSITIONS,
        "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "type_vocab_size": SEGMENTS, "vocab_size": VOCABULARY,
    }  # fmt: skip
    (folder / "bert_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    whole = {"embedding": random.standard_normal((131, 7)).astype(np.float32), "wide": random.standard_normal((3, 11)).astype(np.float64)}
    parts = {  # the uneven split along axis 0 that fixed_size_partitioner makes, a split along axis 1, sizes beyond one byte of the key
        "embedding@0": whole["embedding"][:66], "embedding@1": whole["embedding"][66:],
        "wide@0": whole["wide"][:, :4], "wide@1": whole["wide"][:, 4:8], "wide@2": whole["wide"][:, 8:],
        "plain": random.standard_normal(13).astype(np.float32),
    }  # fmt: skip
    slices = {
        "embedding@0": "131 7 0,66:-", "embedding@1": "131 7 66,65:-",
        "wide@0": "3 11 -:0,4", "wide@1": "3 11 -:4,4", "wide@2": "3 11 -:8,3",
    }  # fmt: skip
    save(HERE / "partitioned", parts, slices)
    expect(HERE / "partitioned.npz", whole | {"plain": parts["plain"]})

    tensors = every_type(random)
    save(HERE / "types", tensors)
    expect(HERE / "types.npz", tensors)

    tensors = {f"part{shard}/{name}": random.standard_normal((5, 3)).astype(np.float32) for shard in range(3) for name in "ab"}
    pieces = []
    for shard in range(3):
        pieces.append(str(HERE / f"piece{shard}"))
        save(Path(pieces[-1]), {name: value for name, value in tensors.items() if name.startswith(f"part{shard}")})
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=pieces, destination_prefix=str(HERE / "sharded"), delete_old_dirs=False)
    expect(HERE / "sharded.npz", tensors)

    save(HERE / "text", {"words": np.array(["鱼", "熊掌"], object), "numbers": np.arange(5, dtype=np.float32)})
    expect(HERE / "text.npz", {"numbers": np.arange(5, dtype=np.float32)})
    print(f"{sum(file.stat().st_size for file in HERE.rglob('*') if file.is_file()):,} bytes in {HERE}")


if __name__ == "__main__":
    main()
