"""Change a model's vocabulary: keep some rows of its token table, or add new ones; every matrix and bias over the vocabulary follows.

These are bert4keras' keep_tokens and compound_tokens (https://github.com/bojone/bert4keras), done on the model; text/vocab does the same
to the tokenizer and returns the ids that are given here. New rows are means: a random row would take the probability of known tokens
(https://nlp.stanford.edu/~johnhew/vocab-expansion.html), a mean row can't.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fishpaw.config import ModelConfig
from fishpaw.errors import ConfigError, DataError
from fishpaw.model.transformer import Transformer

__all__ = ["add_rows", "keep_rows"]


def keep_rows(model: Transformer, ids: Sequence[int]) -> Transformer:
    """A copy of the model whose token i is the old token ids[i]; the logits of tokens that stay are unchanged.

    ids: as text.vocab.keep returns them; any order, each once, the padding id among them. Everything else is copied as it is, so the
    two models share no memory. Errors: DataError for an id that the model lacks or that stands twice, ConfigError without the padding.
    """
    kept = list(ids)
    _check(kept, model.config.vocab_size)
    if not kept or len(set(kept)) < len(kept):
        twice = next((number for number in kept if kept.count(number) > 1), None)
        raise DataError("There is no id to keep." if twice is None else f"id {twice} stands twice.", fix="Name each id to keep once.")
    if model.config.pad_id not in kept:
        raise ConfigError(f"The ids leave out pad_id {model.config.pad_id}.", fix="Keep it: batches are padded with it.")
    config = model.config.change({"vocab_size": len(kept), "pad_id": kept.index(model.config.pad_id)})
    index = torch.tensor(kept)
    return _rebuilt(model, config, lambda table: table[index.to(table.device)])


def add_rows(model: Transformer, rows: int | Sequence[Sequence[int]]) -> Transformer:
    """A copy of the model with more tokens after the old ones, whose logits are unchanged.

    rows: how many (text.vocab.extend), each the mean of all old rows; or the old ids that each new row is the mean of, as
    text.vocab.compound returns them. Biases follow. The two models share no memory. Errors: DataError for a count below 1, an id that the
    model lacks, or a new row of none.
    """
    old = model.config.vocab_size
    if isinstance(rows, int):
        if isinstance(rows, bool) or rows < 1:
            raise DataError(f"{rows} rows can't be added.", fix="Give a number from 1.")
        parts: Sequence[Sequence[int]] = [range(old)]
        times = rows
    else:
        parts, times = [list(part) for part in rows], 1
        if not parts or not all(parts):
            raise DataError("A new row is compounded of nothing.", fix="Name at least one old id for each new row.")
        for part in parts:
            _check(part, old)
    config = model.config.change({"vocab_size": old + times * len(parts)})

    def longer(table: Tensor) -> Tensor:
        means = [table[torch.tensor(part, device=table.device)].mean(0) for part in parts]       # torch adds halves up in fp32
        return torch.cat([table, torch.stack(means * times)])

    return _rebuilt(model, config, longer)


_OVER_VOCABULARY = (
    "embedding.tokens.weight",
    "heads.lm.bias",
    "heads.lm.decoder.weight",
    "heads.mlm.bias",
    "heads.mlm.decoder.weight",
)


def _check(ids: Sequence[int], count: int) -> None:
    for number in ids:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < count:
            raise DataError(f"id {number!r} is none of the model's {count} tokens.", fix=f"Give ids from 0 to {count - 1}.")


def _rebuilt(model: Transformer, config: ModelConfig, change: Callable[[Tensor], Tensor]) -> Transformer:
    """A model of another configuration with the same state, but for the tensors that have a row for each token."""
    with torch.device("meta"):
        other = Transformer(config)
    old = model.state_dict()
    state = {name: change(value) if name in _OVER_VOCABULARY else value.clone() for name, value in old.items()}
    other.load_state_dict(state, assign=True)
    buffers = dict(model.named_buffers(remove_duplicate=False))
    for name in [name for name, value in other.named_buffers(remove_duplicate=False) if value.is_meta]:        # none of the state
        place, _, leaf = name.rpartition(".")
        setattr(other.get_submodule(place), leaf, buffers[name].clone())
    learned = {name: value.requires_grad for name, value in model.named_parameters()}
    for name, value in other.named_parameters():
        value.requires_grad_(learned[name])
    other.recompute = model.recompute
    other.origin = model.origin
    return other.train(model.training)
