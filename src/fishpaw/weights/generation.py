"""Which tokens begin and end a text: the ids of config.json and generation_config.json, which transformers' `generate` reads, both ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fishpaw.model.transformer import Transformer

__all__ = ["Ids", "follow", "read_generation", "write_generation"]

Ids = dict[str, int | list[int] | None]
""""bos_token_id" and "eos_token_id", of which the second may be several; None where a file says that there is none."""

_BEGINS, _ENDS = "bos_token_id", "eos_token_id"
_OTHERS = ("pad_token_id", "decoder_start_token_id")              # of ours, which generate reads from the same file


def read_generation(values: Mapping[str, Any], generation: Mapping[str, Any], size: int) -> Ids:
    """The ids that config.json's values and generation_config.json's say; of both, the second's. What is no id of the `size` tokens is
    dropped: others' defaults (GPT-2's 50256) stand in many a file of a smaller vocabulary."""
    found: Ids = {}
    for given in (values, generation):
        for name in (_BEGINS, _ENDS):
            value = given.get(name)
            several = value if isinstance(value, list) and name == _ENDS else [value]
            if several and all(type(one) is int and 0 <= one < size for one in several):
                found[name] = value
            elif value is None and name in given:
                found.setdefault(name, None)
    return found


def write_generation(model: Transformer, values: dict[str, Any]) -> dict[str, Any] | None:
    """Put the model's ids into config.json's values, and give generation_config.json's: None for an encoder, and where there are no ids."""
    values |= model.generation
    decodes = model.encoder is not None or model.mask.clock != "full"
    if not decodes or all(value is None for value in model.generation.values()):
        return None
    return {name: values[name] for name in (_BEGINS, _ENDS, *_OTHERS) if values.get(name) is not None}


def follow(ids: Ids, kept: Sequence[int]) -> Ids:
    """The ids in a vocabulary whose token i is the old kept[i]; None where none is left."""
    new = {old: number for number, old in enumerate(kept)}
    found: Ids = {}
    for name, value in ids.items():
        left = [new[one] for one in value if one in new] if isinstance(value, list) else None
        found[name] = (left or None) if isinstance(value, list) else None if value is None else new.get(value)
    return found
