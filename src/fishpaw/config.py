"""The shape of a model as data: one frozen dataclass, validated when made, equal after a round trip through JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

from fishpaw import checks
from fishpaw.errors import ConfigError
from fishpaw.switch import Spec, nearest, spec_name, spec_options

__all__ = ["MOST_LAYERS", "MOST_PARAMETERS", "ModelConfig", "parse_object"]

MOST_LAYERS = 10_000
MOST_PARAMETERS = 10**12
"""A config.json that asks for more of either is refused before anything is allocated."""

_SWITCHES = ("activation", "attention", "block", "mask", "norm", "position")
_IN_TURN = ("attention", "mask", "position")
_MATRICES = ("qkv", "output", "feed_forward")
_HOMES = {
    "activation": "fishpaw/activations.py", "attention": "the folder fishpaw/attention", "block": "the folder fishpaw/model",
    "heads": "fishpaw/model/heads.py", "mask": "fishpaw/masks.py", "norm": "fishpaw/norms.py",
    "position": "the folder fishpaw/positions",
}  # fmt: skip


@dataclass(frozen=True)
class ModelConfig:
    """Every switch of a Transformer. A switch is a name, {"name": …, option: …} or, from Python, a callable. `attention`, `position` and
    `mask` may each be a list of switches that the layers take in turn: layer i the one at i modulo the list's length.

    Sizes count units, not bytes. `head_size`, `key_value_heads` and `embedding_size` are None where they are as in BERT (`width`, `keys`
    and `embedding` give the numbers). `distinct_layers`: of how many blocks the layers are made, None for as many as layers; neighbours
    share one (ALBERT: 1). `block`: "block" or "gau". `biases`: which matrices of a layer have one, of "qkv", "output" and "feed_forward".
    `norm_at`: "post", "pre" or "mixed" (model/block.py). `qk_norm`: norm of each head's queries and keys. `heads` are the output
    heads ("pooler", "nsp", "mlm", "lm", {"name": "classifier", "labels": […]}). `encoder`, where given, is the configuration of the
    encoder that this decoder reads through cross-attention; with `shared_embedding` both read one token table. Errors: ConfigError that
    names the field.
    """

    vocab_size: int
    hidden_size: int
    layers: int
    attention_heads: int
    intermediate_size: int
    family: str = "bert"
    head_size: int | None = None
    key_value_heads: int | None = None
    embedding_size: int | None = None
    segments: int = 2
    max_positions: int = 512
    pad_id: int = 0
    activation: str | Callable[[Any], Any] = "gelu"
    block: Spec = "block"
    distinct_layers: int | None = None
    attention: Spec | tuple[Spec, ...] = "softmax"
    position: Spec | tuple[Spec, ...] = "learned"
    mask: Spec | tuple[Spec, ...] = "full"
    biases: tuple[str, ...] = _MATRICES
    qk_norm: bool = False
    norm: Spec = "layer"
    norm_at: str = "post"
    embedding_norm: bool = True
    residual_scores: bool = False
    stream: str = "tokens"
    tie_embeddings: bool = True
    shared_embedding: bool = False
    heads: tuple[Spec, ...] = ()
    dropout: float = 0.1
    attention_dropout: float = 0.1
    init_std: float = 0.02
    encoder: ModelConfig | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "layers", "attention_heads", "intermediate_size", "max_positions"):
            checks.whole(name, getattr(self, name), least=1)
        for name in ("segments", "pad_id"):
            checks.whole(name, getattr(self, name), least=0)
        if self.head_size is None and self.hidden_size % self.attention_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not a multiple of attention_heads {self.attention_heads}.",
                fix="Change one of them, or give head_size.",
            )
        usual = {"key_value_heads": self.attention_heads, "embedding_size": self.hidden_size}
        if self.hidden_size % self.attention_heads == 0:
            usual["head_size"] = self.hidden_size // self.attention_heads
        for name in ("head_size", "key_value_heads", "embedding_size"):
            value = getattr(self, name)
            if value is not None:
                checks.whole(name, value, least=1)
                if value == usual.get(name):
                    self._fill(name, None)                            # one spelling: a change of the others then carries it along
        if self.attention_heads % self.keys:
            raise ConfigError(
                f"attention_heads {self.attention_heads} is not a multiple of key_value_heads {self.keys}.",
                fix="Change one of them.",
            )
        checks.one_of("norm_at", self.norm_at, ("post", "pre", "mixed"))
        checks.one_of("stream", self.stream, ("tokens", "positions"))
        for name in ("dropout", "attention_dropout"):
            checks.number(name, getattr(self, name), least=0, below=1)
        checks.number("init_std", self.init_std, least=0)
        for name in ("embedding_norm", "qk_norm", "residual_scores", "shared_embedding", "tie_embeddings"):
            checks.truth(name, getattr(self, name))
        if not isinstance(self.family, str):
            raise ConfigError(f"family is {self.family!r}.", fix="Give a name.")
        if self.encoder is not None and not isinstance(self.encoder, ModelConfig):
            raise ConfigError(f"encoder is {self.encoder!r}.", fix="Give the ModelConfig of the encoder.")
        self._check_sharing()
        for name in _SWITCHES:
            self._fill(name, _in_turn(name, getattr(self, name)) if name in _IN_TURN else _checked(name, getattr(self, name)))
        if isinstance(self.activation, Mapping):
            raise ConfigError(f"activation is {dict(self.activation)!r}: no options there.", fix="Give a name, or from Python a function.")
        if isinstance(self.heads, str) or not isinstance(self.heads, list | tuple):
            raise ConfigError(f"heads is {self.heads!r}.", fix='Give a list, for example ["pooler", "mlm"].')
        self._fill("heads", tuple(_checked("heads", head) for head in self.heads))
        if self.layers > MOST_LAYERS:
            raise ConfigError(f"layers is {self.layers}.", fix=f"At most {MOST_LAYERS} are accepted.")
        if self.parameters > MOST_PARAMETERS:
            raise ConfigError(f"The sizes give {self.parameters:.1e} parameters.", fix=f"At most {MOST_PARAMETERS:.0e} are accepted.")

    def _check_sharing(self) -> None:
        if isinstance(self.biases, str) or not isinstance(self.biases, list | tuple) or not all(one in _MATRICES for one in self.biases):
            raise ConfigError(f"biases is {self.biases!r}.", fix=f"Give a list of some of {', '.join(_MATRICES)}.")
        self._fill("biases", tuple(one for one in _MATRICES if one in self.biases))
        if self.distinct_layers is not None:
            checks.whole("distinct_layers", self.distinct_layers, least=1)
            if self.distinct_layers > self.layers:
                raise ConfigError(f"distinct_layers is {self.distinct_layers} of {self.layers} layers.", fix="Give at most as many.")
            if self.distinct_layers == self.layers:
                self._fill("distinct_layers", None)
        if self.shared_embedding:
            inner = self.encoder
            if inner is None or (inner.vocab_size, inner.embedding) != (self.vocab_size, self.embedding):
                raise ConfigError(
                    "shared_embedding needs an encoder of the same vocabulary and embedding width.", fix="Give one, or leave it out."
                )

    @property
    def blocks(self) -> int:
        """Of how many blocks the layers are made."""
        return self.distinct_layers or self.layers

    def turns(self, field: str) -> tuple[Spec, ...]:
        """The specs that the layers take in turn of "attention", "mask" or "position": one, or as many as the list has."""
        spec = getattr(self, field)
        return spec if isinstance(spec, tuple) else (spec,)

    @property
    def width(self) -> int:
        """Units of one attention head."""
        return self.head_size or self.hidden_size // self.attention_heads

    @property
    def keys(self) -> int:
        """Heads that hold keys and values; fewer than the query heads in grouped-query attention."""
        return self.key_value_heads or self.attention_heads

    @property
    def embedding(self) -> int:
        """Width of the embedding tables."""
        return self.embedding_size or self.hidden_size

    @property
    def parameters(self) -> int:
        """Roughly how many parameters the sizes ask for (matrices and the tables of tokens; no positions, biases, norms or heads)."""
        attention = 2 * self.hidden_size * self.width * (self.attention_heads + self.keys)
        layer = attention * (2 if self.encoder else 1) + 2 * self.hidden_size * self.intermediate_size
        inner = self.encoder.parameters if self.encoder else 0
        table = 0 if self.shared_embedding else self.vocab_size * self.embedding
        return table + self.segments * self.embedding + self.blocks * layer + inner

    def change(self, changes: Mapping[str, Any]) -> ModelConfig:
        """A copy with other values; unknown names are errors."""
        _known(changes)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, every field. ConfigError where a switch is a callable: JSON can't carry it."""
        values: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _IN_TURN and isinstance(value, tuple):
                value = [_plain(field.name, one) for one in value]
            elif field.name in _SWITCHES:
                value = _plain(field.name, value)
            elif field.name == "heads":
                value = [_plain("heads", head) for head in value]
            elif field.name == "biases":
                value = list(value)
            elif field.name == "encoder" and value is not None:
                value = value.to_dict()
            values[field.name] = value
        return values

    def to_json(self) -> str:
        """The JSON text of `to_dict`, keys in the order of the fields."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=2)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """A configuration from a loaded file. Unknown keys are errors, and so is a switch that names code ("module:attribute"):
        a file must not be able to call a function."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"The configuration is a {type(values).__name__}.", fix="It must be a JSON object.")
        _known(values)
        given = [(name, values.get(name)) for name in (*_SWITCHES, "heads")]
        specs = [(name, one) for name, spec in given for one in (spec if isinstance(spec, list | tuple) else [spec])]
        for field, spec in specs:
            name = spec if isinstance(spec, str) else spec.get("name") if isinstance(spec, Mapping) else None
            if isinstance(name, str) and ":" in name:
                raise ConfigError(f"{field} names code: {name!r}.", fix="A loaded config can't: pass your part from Python.")
        chosen = dict(values)
        if chosen.get("encoder") is not None:
            chosen["encoder"] = cls.from_dict(chosen["encoder"])
        missing = [field.name for field in fields(cls) if field.default is dataclasses.MISSING and field.name not in chosen]
        if missing:
            raise ConfigError(f"The configuration lacks {', '.join(missing)}.", fix="Add them.")
        return cls(**chosen)

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Parse what `to_json` wrote. Duplicate keys are errors."""
        return cls.from_dict(parse_object(text, "The configuration"))

    def _fill(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


def parse_object(text: str, where: str) -> dict[str, Any]:
    """The JSON object in a text; `where` names it in errors. Duplicate keys, other values and endless nesting are ConfigErrors."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in pairs:
            if key in values:
                raise ConfigError(f"{where}: the key {key!r} stands twice.", fix="Remove one of them.")
            values[key] = value
        return values

    try:
        values = json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply.", fix="That is no configuration of a model.") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}, line {error.lineno}: invalid JSON ({error.msg}).", fix="Repair it, or fetch it again.") from None
    except ConfigError:
        raise
    except ValueError as error:                                      # a number of thousands of digits
        raise ConfigError(f"{where}: {error}.", fix="That is no configuration of a model.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: not a JSON object.", fix="Repair it, or fetch it again.")
    return values


def _known(values: Mapping[str, Any]) -> None:
    known = [field.name for field in fields(ModelConfig)]
    for key in values:
        if key not in known:
            raise ConfigError(f"Unknown field {key!r}.", fix=nearest(str(key), known))


def _in_turn(field: str, spec: Any) -> Spec | tuple[Spec, ...]:
    if not isinstance(spec, list | tuple):
        return _checked(field, spec)
    if not spec:
        raise ConfigError(f"{field} is an empty list.", fix="Name at least one.")
    several = tuple(_checked(field, one) for one in spec)
    return several[0] if all(one == several[0] for one in several) else several


def _checked(field: str, spec: Any) -> Spec:
    if isinstance(spec, Mapping):
        if not isinstance(spec.get("name"), str):
            raise ConfigError(f"{field} is {dict(spec)!r}.", fix='It needs a "name".')
        options = spec_options(spec)
        return {"name": spec_name(spec), **options} if options else spec_name(spec)
    if isinstance(spec, str):
        return spec
    if callable(spec):
        return cast(Spec, spec)
    raise ConfigError(f"{field} is {spec!r}.", fix='Give a name or {"name": …, option: …}.')


def _plain(field: str, spec: Spec) -> str | dict[str, Any]:
    if not callable(spec) and ":" not in spec_name(spec):
        return spec if isinstance(spec, str) else dict(spec)
    raise ConfigError(
        f"{field} is {spec_name(spec)!r}, a part of your own, which a config file can't hold.",
        fix=f"Keep the weights alone with torch.save(model.state_dict(), FILE), or put the part in {_HOMES[field]} and give its name.",
    )
