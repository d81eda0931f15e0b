"""What a checkpoint family is, as data read both ways: the fields of its config.json and the names of its tensors.

In a row of weights, ours stands left. `*` is a block's number; `a + b` are joined along their rows; `^` is stored transposed; of `a | b`
either is read, and which is written depends on the model. A row without .weight or .bias is a module and stands for both. Rows of ours
that begin with `encoder.` are those of the encoder of a decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from fishpaw import checks
from fishpaw.config import ModelConfig

__all__ = ["ACTIVATIONS", "GATED", "Family", "Head", "Values", "number", "period", "truth", "whole"]

Values = Mapping[str, Any]
"""A config.json, without the fields that are null."""

Head = tuple[str, str, Values | Callable[[Values], Values]]
"""One of our heads; their tensor that shows it (the table of tokens: where the embeddings are tied); its options, or what makes them of
the config.json."""

# What a config.json may say -> what is written: transformers' names, and ours for the same functions.
ACTIVATIONS: Mapping[str, str] = MappingProxyType({
    **{name: name for name in ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "relu2", "silu", "swish", "tanh")},
    "gelu_tanh": "gelu_pytorch_tanh",
    "squared_relu": "relu2",
})  # fmt: skip

# Their activation -> our gated unit, for families whose feed-forward layers are gated.
GATED: Mapping[str, str] = MappingProxyType({
    "silu": "swiglu", "swish": "swiglu", "gelu": "geglu", "gelu_new": "geglu_tanh", "gelu_pytorch_tanh": "geglu_tanh", "relu": "reglu",
})  # fmt: skip


@dataclass(frozen=True)
class Family:
    """name: ours, and their model_type unless `model_types` lists others (the first is written). told: of several families with one
    model_type, or without one, whether a config.json is this family's; None where it doesn't say.

    config: their field -> (ours, their default, None: ours); ours may be an option, "norm.eps", or of the encoder, "encoder.layers".
    fixed: what the family always is. only: their fields that we serve in these values alone, the first being the default. nullable:
    their fields whose null says something else than the default. activations: theirs -> ours. read: their fields -> ours (also dotted),
    where a table can't say it, over what the table says; write: our configuration -> their fields, over what the table says. decoder:
    their field that makes the mask causal. encoder: in an encoder-decoder, what the encoder has otherwise than the decoder; all else is
    the same, but for heads.

    prefix: of the backbone's tensors, which a backbone alone is saved without. weights: ours -> theirs. ignored: their tensors that
    hold nothing learned, as patterns. sines: their tensor of fixed sines, which nobody needs and they miss. untied: their tensor that,
    held beside a table of tokens that it isn't equal to, means untied embeddings, whatever config.json says; without it they are tied.
    added: a tensor of theirs -> another, whose first row is added to all of its rows where the file holds it. respelled: all names in
    a file -> those that the table spells otherwise, with that spelling. variables: what the family's TensorFlow variables begin with,
    None where it wasn't published so. tensorflow: a tensor of theirs -> its variable, where Google's rules for BERT don't lead there;
    `^` lies transposed; stars stand for the block's number, with at least as many digits as there are stars.

    heads: see Head, first fit a head. classes: theirs, by the heads, first fit; causal_class: where the mask is causal and there is an
    mlm head."""

    name: str
    prefix: str
    config: Mapping[str, tuple[str, Any]]
    fixed: Mapping[str, Any]
    weights: Mapping[str, str]
    heads: tuple[Head, ...]
    classes: tuple[tuple[frozenset[str], str], ...]
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    nullable: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    activations: Mapping[str, str] = field(default_factory=lambda: ACTIVATIONS)
    model_types: tuple[str, ...] = ()
    told: Callable[[Values], bool | None] | None = None
    read: Callable[[Values], Values] | None = None
    write: Callable[[ModelConfig], Values] | None = None
    decoder: str | None = None
    causal_class: str | None = None
    encoder: Mapping[str, Any] | None = None
    sines: str | None = None
    untied: str | None = None
    added: Mapping[str, str] = field(default_factory=dict)
    respelled: Callable[[Sequence[str]], Mapping[str, str]] | None = None
    variables: str | None = None
    tensorflow: Mapping[str, str] = field(default_factory=dict)

    @property
    def types(self) -> tuple[str, ...]:
        """The model_types that a config.json of this family may say; the first is written."""
        return self.model_types or (self.name,)


def number(values: Values, name: str, default: float) -> float:
    """A field that is a number. ConfigError for anything else."""
    value = values.get(name, default)
    checks.number(name, value, least=-1e12)
    found: float = value
    return found


def whole(values: Values, name: str, default: int, *, least: int = 0) -> int:
    """A field that is a whole number from `least`. ConfigError for anything else."""
    value = values.get(name, default)
    checks.whole(name, value, least=least)
    found: int = value
    return found


def truth(values: Values, name: str, default: bool) -> bool:
    """A field that is true or false. ConfigError for anything else."""
    value = values.get(name, default)
    checks.truth(name, value)
    found: bool = value
    return found


def period(turns: Sequence[Any]) -> list[Any]:
    """The shortest list that, taken in turn, gives these."""
    return next((list(turns[:size]) for size in range(1, len(turns)) if all(one == turns[i % size] for i, one in enumerate(turns))),
                list(turns))  # fmt: skip
