"""What stands on top of the hidden states: pooler, next-sentence, masked language model, language model, ELECTRA's discriminator,
classifier. A head's name is its function here. Each says what it `reads`, "tokens" (with the token table and the condition), a "sequence"
(its token `at`) or "pooled" (what the pooler made), and which field of Output it `fills`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fishpaw import activations, checks, switch
from fishpaw.config import ModelConfig
from fishpaw.errors import ConfigError
from fishpaw.model.dropout import Dropout
from fishpaw.model.linear import Linear, Packed, product

__all__ = [
    "Classifier", "Ending", "LanguageModel", "MaskedLanguageModel", "NextSentence", "Pooler", "ReplacedTokens", "classifier",
    "lm", "mlm", "nsp", "pooler", "rtd",
]  # fmt: skip


class Pooler(nn.Module):
    """The hidden state of a sequence's first (or last) token through a matrix and an activation, [b d] -> [b d]."""

    reads, fills = "sequence", "pooled"

    def __init__(self, config: ModelConfig, activation: str, at: str) -> None:
        super().__init__()
        self.at = at
        self.dense = Linear(config.hidden_size, config.hidden_size, std=config.init_std)
        self.activation = None if activation == "linear" else activations.get(activation)

    def forward(self, hidden: Tensor) -> Tensor:
        pooled: Tensor = self.dense(hidden, self.activation)
        return pooled


class NextSentence(nn.Module):
    """pooled [b d] -> [b 2]; index 0 is "is next", as BERT was trained; ports that invert it are wrong."""

    reads, fills = "pooled", "nsp"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, 2, std=config.init_std)

    def forward(self, pooled: Tensor) -> Tensor:
        scores: Tensor = self.dense(pooled)
        return scores


class Ending(NamedTuple):
    """How a language model ends a text, other than by a softmax: decoding/termination.py makes the distribution of the logits."""

    name: str
    epsilon: float
    end: int


class LanguageModel(nn.Module):
    """hidden [m d] -> logits [m v]: scale * hidden times the token table (tied), or a matrix of its own."""

    reads, fills = "tokens", "logits"

    def __init__(self, config: ModelConfig, bias: bool, scale: float, ending: Ending | None = None) -> None:
        super().__init__()
        self.scale = scale
        self.ending = ending
        if config.tie_embeddings and config.embedding != config.hidden_size:
            raise ConfigError(
                f"The head 'lm' can't be tied: the embedding is {config.embedding} wide, the hidden state {config.hidden_size}.",
                fix="Use the head 'mlm', which projects, or tie_embeddings=False.",
            )
        self.decoder = None if config.tie_embeddings else Linear(config.hidden_size, config.vocab_size, std=config.init_std, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size)) if bias else None
        self.packed: Packed | None = None

    def forward(self, hidden: Tensor, table: Tensor, condition: Tensor | None = None) -> Tensor:
        hidden = hidden if self.scale == 1 else hidden * self.scale
        return self.packed(hidden) if self.packed else product(hidden, self.weight(table), self.bias)

    def weight(self, table: Tensor) -> Tensor:
        """The matrix [v d]: the token table, or its own."""
        return table if self.decoder is None else self.decoder.weight


class MaskedLanguageModel(nn.Module):
    """hidden [m d] -> matrix, activation, norm -> logits [m v] against the token table (tied) or a matrix of its own, plus a bias."""

    reads, fills = "tokens", "logits"

    def __init__(self, config: ModelConfig, dense_bias: bool, activation: str | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.embedding, std=config.init_std, bias=dense_bias)
        self.activation = activations.get(activation)
        self.norm: nn.Module = switch.build("norms", config.norm, config.embedding)
        self.decoder = None if config.tie_embeddings else Linear(config.embedding, config.vocab_size, std=config.init_std, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.packed: Packed | None = None

    def forward(self, hidden: Tensor, table: Tensor, condition: Tensor | None = None) -> Tensor:
        x = self.norm(self.dense(hidden, self.activation), condition)
        return self.packed(x) if self.packed else product(x, self.weight(table), self.bias)

    def weight(self, table: Tensor) -> Tensor:
        """The matrix [v e]: the token table, or its own."""
        return table if self.decoder is None else self.decoder.weight


class ReplacedTokens(nn.Module):
    """hidden [m d] -> matrix, activation -> a score a token, [m]: above 0 where it was replaced (ELECTRA, arXiv:2003.10555)."""

    reads, fills = "tokens", "replaced"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size, std=config.init_std)
        self.activation = activations.get(config.activation)
        self.score = Linear(config.hidden_size, 1, std=config.init_std)

    def forward(self, hidden: Tensor, table: Tensor, condition: Tensor | None = None) -> Tensor:
        scores: Tensor = self.score(self.dense(hidden, self.activation))
        return scores.squeeze(-1)


class Classifier(nn.Module):
    """pooled [b d] -> a score for each label, [b c]. `labels` name them; `multi_label`: any number of them holds at once."""

    reads, fills = "pooled", "classes"

    def __init__(self, config: ModelConfig, labels: Sequence[str], multi_label: bool, dropout: float) -> None:
        super().__init__()
        self.labels = tuple(labels)
        self.multi_label = multi_label
        self.dropout = Dropout(dropout)
        self.dense = Linear(config.hidden_size, len(self.labels), std=config.init_std)

    def forward(self, pooled: Tensor) -> Tensor:
        scores: Tensor = self.dense(self.dropout(pooled))
        return scores


def pooler(config: ModelConfig, *, activation: str = "tanh", at: str = "first") -> Pooler:
    """activation "tanh", "linear" or any other; at "first" or "last" token (a causal model has read the text only at the last)."""
    checks.one_of("The pooler's at", at, ("first", "last"))
    return Pooler(config, activation, at)


def nsp(config: ModelConfig) -> NextSentence:
    """Needs a pooler."""
    return NextSentence(config)


def lm(config: ModelConfig, *, bias: bool = False, scale: float = 1.0, start: int | None = None,
       ending: Mapping[str, Any] | None = None) -> LanguageModel:
    """GPT's head. scale: of the hidden states (T5 with a tied table: 1/sqrt(hidden_size)). start: the token that the answers of a decoder
    with an encoder begin with, None: padding; tasks/generate reads it. ending: {"name": "self_terminating" or "non_monotone", "epsilon":
    its rate, "end": its token}: the logits are those of losses/termination.py, which it is trained with, and no softmax's; searches
    over a TransformerStepper read them so. None: an ordinary softmax."""
    checks.whole("The head's start", start, least=0, most=config.vocab_size - 1, optional=True)
    checks.number("The head's scale", scale)
    checks.truth("The head's bias", bias)
    return LanguageModel(config, bias, scale, None if ending is None else _ending(config, ending))


def mlm(config: ModelConfig, *, dense_bias: bool = True, activation: str | None = None) -> MaskedLanguageModel:
    """BERT's head; with a causal or UniLM mask it predicts the next token. dense_bias: of its matrix (ModernBERT has none); activation:
    after it, the layers' own if None."""
    checks.truth("The head's dense_bias", dense_bias)
    return MaskedLanguageModel(config, dense_bias, config.activation if activation is None else activation)


def rtd(config: ModelConfig) -> ReplacedTokens:
    """ELECTRA's head: which tokens a generator replaced."""
    return ReplacedTokens(config)


def classifier(config: ModelConfig, *, labels: Sequence[str], multi_label: bool = False, dropout: float = 0.1) -> Classifier:
    """Needs a pooler. At least one label, all different."""
    checks.number("The classifier's dropout", dropout, least=0, below=1)
    checks.truth("The classifier's multi_label", multi_label)
    named = isinstance(labels, list | tuple) and all(isinstance(label, str) for label in labels)
    if not named or len(set(labels)) < max(1, len(labels)):
        raise ConfigError(f"The classifier's labels are {checks.shown(labels)}.", fix="Give a list of different names.")
    return Classifier(config, labels, multi_label, dropout)


def _ending(config: ModelConfig, given: Mapping[str, Any]) -> Ending:
    if not isinstance(given, Mapping) or set(given) != set(Ending._fields):
        fix = 'Write {"name": "self_terminating", "epsilon": 1e-4, "end": the id of the end token}.'
        raise ConfigError(f"The head's ending is {checks.shown(given)}.", fix=fix)
    checks.one_of("The ending's name", given["name"], ("self_terminating", "non_monotone"))
    checks.number("The ending's epsilon", given["epsilon"], below=1)
    checks.whole("The ending's end", given["end"], least=0, most=config.vocab_size - 1)
    return Ending(**given)
