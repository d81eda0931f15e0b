"""Truncations that adapt to how sure the model is: min-p, locally typical, eta and epsilon sampling. TopK and TopP are in processors.py.

Each bans the unlikely tail of a distribution and leaves the other logits as they are; what is left is renormalised by the search. Every set
is given by a threshold, so exact ties stay or go together. p is the softmax of the logits as they arrive, H its entropy in nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fishpaw.decoding.limits import check_real
from fishpaw.decoding.processors import narrowest

__all__ = ["Epsilon", "Eta", "MinP", "Typical"]

NEVER = float("-inf")


@dataclass(frozen=True)
class MinP:
    """Keep the tokens with p(x) >= value * max p: the surer the model, the fewer. 0 < value <= 1; 0.05 to 0.1 is usual. arXiv:2407.01082.

    The best token always stays. A temperature before it changes the set: softer distributions keep more.
    """

    value: float

    def __post_init__(self) -> None:
        check_real("min_p", self.value, "0 < p <= 1", lambda value: 0 < value <= 1)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        threshold = logits.amax(-1, keepdim=True) + math.log(self.value)                                      # [r 1]
        return logits.masked_fill(logits < threshold, NEVER)


@dataclass(frozen=True)
class Typical:
    """Keep the smallest set, of tokens in the order of |-log p(x) - H|, with mass >= mass: those that carry about as much information as
    was expected. 0 < mass <= 1; 0.2 to 0.95 is usual. arXiv:2202.00666. The likeliest token may go: a sure choice is not typical."""

    mass: float

    def __post_init__(self) -> None:
        check_real("typical", self.mass, "0 < mass <= 1", lambda mass: 0 < mass <= 1)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        if self.mass == 1:                                       # rounding in the tail must not ban what mass = 1 promises to keep
            return logits
        scores = logits.log_softmax(-1)                                                                       # [r v]
        distance = (scores + _entropy(scores)).abs()                                                          # [r v] inf where banned
        return logits.masked_fill(distance > narrowest(distance, logits, logits.logsumexp(-1, keepdim=True), self.mass), NEVER)


@dataclass(frozen=True)
class Eta:
    """Keep the tokens with p(x) >= min(epsilon, sqrt(epsilon) * exp(-H)): epsilon's cut, relaxed where the distribution is flat.
    0 < epsilon < 1; 3e-4 to 4e-3 is usual. arXiv:2210.15191.

    The best token always stays: max p >= exp(-H), of which the threshold is a fraction.
    """

    epsilon: float

    def __post_init__(self) -> None:
        check_real("eta", self.epsilon, "0 < epsilon < 1", lambda epsilon: 0 < epsilon < 1)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        scores = logits.log_softmax(-1)                                                                       # [r v]
        threshold = (math.log(self.epsilon) / 2 - _entropy(scores)).clamp(max=math.log(self.epsilon))         # [r 1]
        return logits.masked_fill(scores < threshold, NEVER)


@dataclass(frozen=True)
class Epsilon:
    """Keep the tokens with p(x) >= epsilon, and the best one (its exact ties) whatever its p. 0 < epsilon < 1; arXiv:2210.15191."""

    epsilon: float

    def __post_init__(self) -> None:
        check_real("epsilon", self.epsilon, "0 < epsilon < 1", lambda epsilon: 0 < epsilon < 1)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        scores = logits.log_softmax(-1)                                                                       # [r v]
        threshold = scores.amax(-1, keepdim=True).clamp(max=math.log(self.epsilon))                           # [r 1]
        return logits.masked_fill(scores < threshold, NEVER)


def _entropy(scores: Tensor) -> Tensor:
    """Log-probabilities [r v], -inf allowed -> H [r 1] in nats."""
    information: Tensor = torch.special.entr(scores.exp())
    return information.sum(-1, keepdim=True)
