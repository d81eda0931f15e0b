"""Print the SHA-256 of what TensorFlow writes for many small tensors, an index of more than one block: test_bundle.py holds them.

Needs the real TensorFlow, as make_tensorflow_bundles.py does:
    /tmp/tf/bin/python tests/weights/make_tensorflow_digests.py
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import numpy as np

COUNT = 9001


def many() -> dict[str, np.ndarray]:
    """Names of 1 to 4 parts that share their beginnings, some not ASCII; scalars, vectors, matrices and empty tensors of five types."""
    shapes, kinds = [(), (3,), (2, 0), (1, 2), (1, 1, 1)], [np.float32, np.float16, np.int64, np.int32, np.float64, np.uint8, np.bool_]
    tensors = {}
    for number in range(COUNT):
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        parts = [digest[at : at + 1 + int(digest[at], 16) // 2] for at in range(0, 1 + int(digest[-1], 16) // 4 * 9, 9)]
        shape, kind = shapes[number % 5], kinds[number % 7]
        values = (np.arange(int(np.prod(shape))) * 7 + number) % 251
        tensors["/".join([("layer", "层", "\U00010348")[number % 3], *parts, str(number)])] = values.reshape(shape).astype(kind)
    return tensors


def main() -> None:
    import tensorflow as tf

    tensors = many()
    with tempfile.TemporaryDirectory() as folder:
        tf.raw_ops.SaveV2(
            prefix=f"{folder}/many",
            tensor_names=list(tensors),
            shape_and_slices=[""] * len(tensors),
            tensors=[tf.constant(value) for value in tensors.values()],
        )
        for ending in ("index", "data-00000-of-00001"):
            content = Path(folder, f"many.{ending}").read_bytes()
            print(f"{ending}: {hashlib.sha256(content).hexdigest()} ({len(content):,} bytes, TensorFlow {tf.__version__})")


if __name__ == "__main__":
    main()
