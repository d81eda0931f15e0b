"""Join the ranks of a model-parallel Megatron GPT-2 (CPM-LM: `mp_rank_00_model_states.pt`, `mp_rank_01_…`) into one model.

Each rank holds some heads, some units of the feed-forward layer and some rows of the vocabulary (arXiv:1909.08053, section 3). Query, key
and value of its heads lie below each other, so that they must be told apart before they are joined: q of all ranks, k of all, v of all.
Tensors and their layout: github.com/TsinghuaAI/CPM-1-Generate; the merge of its two ranks: github.com/bojone/CPM_LM_bert4keras.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from fishpaw.errors import CheckpointError
from fishpaw.files import blobs, inside
from fishpaw.weights.pickled import read_pickled

__all__ = ["RANK", "merge_ranks", "read_ranks", "to_gpt2"]

RANK = re.compile(r"mp_rank_(\d+)_model_states\.pt")


def read_ranks(folder: str | Path) -> tuple[dict[str, Tensor], tuple[Path, ...]]:
    """All ranks in a folder as one GPT-2 with transformers' names, and the files. Takes the memory of the whole model.

    Raises CheckpointError: a rank is missing, damaged, unsafe (see pickled.py) or does not fit the others.
    """
    root = Path(folder)
    numbered = {int(found[1]): path.name for path in root.iterdir() if (found := RANK.fullmatch(path.name))}
    files = tuple(inside(root, numbered[number], also=blobs(root)) for number in sorted(numbered))
    if not files or sorted(numbered) != list(range(len(files))):
        missing = next(number for number in range(len(files) + 1) if number not in numbered)
        raise CheckpointError(f"{root}: rank {missing} of the model is missing (mp_rank_{missing:02}_model_states.pt).",
                              fix="Put the files of all ranks into the folder.")  # fmt: skip
    try:
        return to_gpt2(merge_ranks([read_pickled(file) for file in files])), files
    except CheckpointError as error:
        raise error if str(root) in error.what else CheckpointError(f"{root}: {error.what}", fix=error.fix) from None


def merge_ranks(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The state of one rank per model-parallel process, in order -> that of a single process, under the same names, bit for bit.

    Word embeddings and the matrices and biases into 4h: rows one below the other; fused q, k, v [3 x width/n, hidden]: each of the three by
    itself; the matrices back to h: columns side by side; the rest is on every rank and must be equal there.
    Raises CheckpointError that names the tensor: unknown, missing on a rank, of other shapes or other values than on rank 0.
    """
    if not states:
        raise CheckpointError("There are no ranks to join.", fix="Give the state of at least one.")
    for number, state in enumerate(states):
        if state.keys() != states[0].keys():
            name = min(state.keys() ^ states[0].keys())
            raise CheckpointError(f"Tensor {name!r} is on rank {number if name in state else 0} only.", fix=_SAME)
    return {name: _merged(name, [state[name] for state in states]) for name in states[0]}


def to_gpt2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Megatron's names -> transformers' GPT-2, whose matrices lie [in, out]: views, no copies. CheckpointError for an unknown name."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        known, number = _known(name)
        theirs = f"transformer.{_GPT2[known].replace('*', number)}"
        tensors[theirs] = tensor.t() if known.startswith("transformer.layers.") and tensor.dim() == 2 else tensor
    return tensors


_SAME = "Are these the ranks of one checkpoint? Copy or download them again."
_THREE = "qkv"
# Megatron's tensors -> the axis along which the ranks have a part each; None: all have the whole.
_LAYER = "transformer.layers.*."
_AXES: Mapping[str, int | str | None] = MappingProxyType({
    "word_embeddings.weight": 0,
    "position_embeddings.weight": None,
    _LAYER + "input_layernorm.weight": None,
    _LAYER + "input_layernorm.bias": None,
    _LAYER + "attention.query_key_value.weight": _THREE,
    _LAYER + "attention.query_key_value.bias": _THREE,
    _LAYER + "attention.dense.weight": 1,
    _LAYER + "attention.dense.bias": None,
    _LAYER + "post_attention_layernorm.weight": None,
    _LAYER + "post_attention_layernorm.bias": None,
    _LAYER + "mlp.dense_h_to_4h.weight": 0,
    _LAYER + "mlp.dense_h_to_4h.bias": 0,
    _LAYER + "mlp.dense_4h_to_h.weight": 1,
    _LAYER + "mlp.dense_4h_to_h.bias": None,
    "transformer.final_layernorm.weight": None,
    "transformer.final_layernorm.bias": None,
})  # fmt: skip
_MODULES = (
    ("transformer.final_layernorm", "ln_f"), ("input_layernorm", "ln_1"), ("post_attention_layernorm", "ln_2"),
    ("attention.query_key_value", "attn.c_attn"), ("attention.dense", "attn.c_proj"), ("mlp.dense_h_to_4h", "mlp.c_fc"),
    ("mlp.dense_4h_to_h", "mlp.c_proj"), ("word_embeddings", "wte"), ("position_embeddings", "wpe"), ("transformer.layers", "h"),
)  # fmt: skip


def _spelled(name: str) -> str:
    for theirs, gpt2 in _MODULES:
        name = name.replace(theirs, gpt2)
    return name


_GPT2: Mapping[str, str] = MappingProxyType({name: _spelled(name) for name in _AXES})


def _known(name: str) -> tuple[str, str]:
    found = re.search(r"\.layers\.(\d+)\.", name)
    known = re.sub(r"(?<=\.layers\.)\d+(?=\.)", "*", name, count=1)
    if known not in _AXES:
        raise CheckpointError(f"Tensor {name!r} is none of a Megatron GPT-2.", fix="Only models laid out as CPM-LM are joined.")
    return known, found[1] if found else ""


def _merged(name: str, parts: list[Tensor]) -> Tensor:
    axis = _AXES[_known(name)[0]]
    first, matrix = parts[0], name.endswith("weight") and "norm" not in name
    kinds = {str(part.dtype).removeprefix("torch.") for part in parts}
    if len(kinds) > 1 or len({part.shape for part in parts}) > 1 or first.dim() != 1 + matrix:
        shapes = [list(part.shape) for part in parts]
        raise CheckpointError(f"Tensor {name!r} has the shapes {shapes} on the ranks, of {', '.join(sorted(kinds))}.", fix=_SAME)
    if axis is None:
        for number, part in enumerate(parts):
            if not torch.equal(part.contiguous().view(torch.uint8), first.contiguous().view(torch.uint8)):          # bits: NaN is NaN
                raise CheckpointError(f"Tensor {name!r} should be equal on all ranks, but differs on rank {number}.", fix=_SAME)
        return first
    if axis == _THREE:
        if len(first) % 3:
            raise CheckpointError(f"Tensor {name!r} has {len(first)} rows, which are no three equal blocks.", fix=_SAME)
        return torch.cat([part.chunk(3)[block] for block in range(3) for part in parts])
    return torch.cat(parts, dim=int(axis))
