"""Contrastive search: of the k likeliest tokens, the one that is likely and says something new. Deterministic; SimCTG, arXiv:2202.06417.

score(x) = (1 - alpha) * p(x) - alpha * max over j of cos(h(x), h(j))

h are the last hidden states: of x as if it had been chosen, of each token j before it, the prompt's included. Each step puts k candidates a
row on the cache that its prompt's rows share and runs them at once, then keeps the chosen one: a pass a token, k rows wide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from fishpaw.contracts import Batch
from fishpaw.decoding.hypothesis import Hypothesis
from fishpaw.decoding.limits import Limits, check_real, check_whole
from fishpaw.decoding.processors import Chain, Processor
from fishpaw.decoding.walk import Step, Stop, Streamed, collect, flatten, walk
from fishpaw.errors import ConfigError

if TYPE_CHECKING:
    from fishpaw.contracts import Stepper

__all__ = ["HiddenStepper", "contrastive", "stream_contrastive"]

MOST_CANDIDATES = 2**10
COMPACT_EVERY = 8                                                # steps; each leaves k - 1 dead keys a row behind
NEVER = float("-inf")


class HiddenStepper(Protocol):
    """A Stepper that shows the last hidden states of its last call: TransformerStepper(model, hidden=True)."""

    @property
    def hidden(self) -> Tensor | None: ...                       # [p t d] after start, [r d] after step
    def start(self, batch: Any, encoder_batch: Any = None) -> Tensor: ...
    def step(self, tokens: Tensor) -> Tensor: ...
    def select(self, index: Tensor) -> None: ...
    def compact(self) -> None: ...


def contrastive(stepper: HiddenStepper, prompts: Batch, encoder_batch: Any = None, *, k: int = 5, alpha: float = 0.6, limits: Limits,
                processors: Sequence[Processor] = (), stops: Sequence[Stop] = ()) -> list[Hypothesis]:
    """One hypothesis a prompt, in their order. k: candidates a step, 1 to 1024; k=1 is greedy search. alpha: 0 to 1, how much a token
    loses for being like one before it; 0 is greedy search, 0.6 the paper's choice. p is what the processors leave, renormalised.
    Log-probabilities and score are of p, as those of greedy search. With an encoder, only the decoder's hidden states are compared.

    Raises ConfigError for a bad setting or a stepper that keeps no hidden states, FishpawError where the processors leave no token.
    """
    return [group[0] for group in collect(_steps(stepper, prompts, encoder_batch, k, alpha, limits, processors, stops), 1)]


def stream_contrastive(stepper: HiddenStepper, prompts: Batch, encoder_batch: Any = None, *, k: int = 5, alpha: float = 0.6,
                       limits: Limits, processors: Sequence[Processor] = (), stops: Sequence[Stop] = ()) -> Iterator[Streamed]:
    """As `contrastive`, a token at a time, as it is found. Settings are checked at the call; close the iterator to stop early."""
    return flatten(_steps(stepper, prompts, encoder_batch, k, alpha, limits, processors, stops), 1)


def _steps(stepper: HiddenStepper, prompts: Batch, encoder_batch: Any, k: int, alpha: float, limits: Limits,
           processors: Sequence[Processor], stops: Sequence[Stop]) -> Iterator[Step]:
    check_whole("contrastive_k", k, 1, MOST_CANDIDATES)
    check_real("contrastive_alpha", alpha, "0 to 1", lambda value: 0 <= value <= 1)
    ahead = _Ahead(stepper, k, alpha)
    inside: Stepper = ahead
    return walk(inside, prompts, encoder_batch, limits=limits, chain=Chain(limits, processors), stops=stops, choose=ahead.choose, fan=1)


class _Ahead:
    """A Stepper one token ahead of the one inside: to choose is to run the candidates, so that `step` has the logits at hand."""

    def __init__(self, stepper: HiddenStepper, k: int, alpha: float) -> None:
        self.stepper = stepper
        self.k = k
        self.alpha = alpha
        self.chosen = 0                                          # tokens
        self.logits = torch.empty(0)                                                                          # [r v] after the chosen
        self.before = torch.empty(0)                                                                          # [r l d] of length 1
        self.keep = torch.empty(0)                                                                            # [r l] bool

    def start(self, batch: Batch, encoder_batch: Any = None) -> Tensor:
        logits = self.stepper.start(batch, encoder_batch)                                                     # [p v]
        self.before = _directions(self.stepper.hidden)                                                        # [p t d]
        keep = batch.rows[0].keep                                # of a decoder that begins with one token, the encoder's: nothing to hide
        self.keep = keep if self.before.shape[1] > 1 else torch.ones_like(keep[:, :1])                        # [p t]
        return logits

    def choose(self, scores: Tensor, rows: Tensor, total: int) -> Tensor:
        """scores [r v] -> tokens [r]."""
        best, tokens = scores.topk(min(self.k, scores.shape[1]))                                              # [r k]
        r, k = tokens.shape
        fan = torch.arange(r, device=tokens.device)                                                           # [r]
        self.stepper.select(fan.repeat_interleave(k))
        logits = self.stepper.step(tokens.flatten())                                                          # [r*k v]
        new = _directions(self.stepper.hidden).unflatten(0, (r, k))                                           # [r k d]
        likeness = (new @ self.before.mT).masked_fill(~self.keep[:, None], NEVER).amax(-1)                    # [r k]
        worth = (1 - self.alpha) * best.exp() - self.alpha * likeness                                         # [r k]
        winner = worth.masked_fill(best == NEVER, NEVER).argmax(-1)                                           # [r]
        index = fan * k + winner
        self.stepper.select(index)
        self.chosen += 1
        if self.chosen % COMPACT_EVERY == 0:
            self.stepper.compact()
        self.logits = logits[index]
        self.before = torch.cat([self.before, new[fan, winner, None]], 1)
        self.keep = torch.cat([self.keep, torch.ones_like(self.keep[:, :1])], 1)
        return tokens[fan, winner]

    def step(self, tokens: Tensor) -> Tensor:
        return self.logits

    def select(self, index: Tensor) -> None:
        self.stepper.select(index)
        self.logits, self.before, self.keep = self.logits[index], self.before[index], self.keep[index]

    def compact(self) -> None:
        self.stepper.compact()


def _directions(hidden: Tensor | None) -> Tensor:
    """hidden [… d] -> the same of length 1, in fp32 at least."""
    if hidden is None:
        raise ConfigError("Contrastive search compares hidden states, but the stepper keeps none.",
                          fix="Make it with TransformerStepper(model, hidden=True).")
    wide = hidden if hidden.dtype == torch.float64 else hidden.float()
    return torch.nn.functional.normalize(wide, dim=-1)
