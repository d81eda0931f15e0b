"""The loop that greedy search and sampling share: one row a hypothesis, a token a step, finished rows leave; streamed or collected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fishpaw.decoding.hypothesis import History, Hypothesis, unpack
from fishpaw.decoding.limits import Limits
from fishpaw.decoding.processors import Chain

if TYPE_CHECKING:
    from fishpaw.contracts import Stepper

__all__ = ["COMPACT_EVERY", "Choose", "Step", "Stop", "Streamed", "collect", "flatten", "stopped", "walk"]

COMPACT_EVERY = 32                                               # steps between two calls of stepper.compact

Choose = Callable[[Tensor, Tensor, int], Tensor]
"""(log-probabilities [r v], which row each is among all [r], how many there were at the start) -> tokens [r]"""

Stop = Callable[[Tensor], Tensor]
"""tokens generated so far, the newest included [r u] -> bool [r]: True ends the row there (stop strings, loops). Keeps no state."""


@dataclass(frozen=True)
class Step:
    """What one step chose for the rows that were still alive."""

    rows: Tensor                                                 # [r] long: index among all rows of the start, prompt * n + sample
    tokens: Tensor                                               # [r] long
    log_probabilities: Tensor                                    # [r]
    closed: Tensor                                               # [r] bool: an end token closed the row
    ended: Tensor                                                # [r] bool: closed, or a stop said so
    last: Tensor                                                 # [r] bool: ended, or max_new was reached


class Streamed(NamedTuple):
    """One token as it comes. last: the row's last one; ended: because it ended, not because max_new cut it."""

    prompt: int
    sample: int
    token: int
    log_probability: float
    last: bool
    ended: bool


@torch.no_grad()                                                 # on a generator torch enters and leaves it at each yield
def walk(stepper: Stepper, prompts: Any, encoder_batch: Any, *, limits: Limits, chain: Chain, stops: Sequence[Stop], choose: Choose,
         fan: int) -> Iterator[Step]:
    """Start the stepper, give each prompt `fan` rows that share it, and yield a Step a token until every row has ended."""
    logits = stepper.start(prompts, encoder_batch)                                                            # [p v]
    chain.start(prompts, len(logits))
    ends = limits.table(logits.shape[-1], logits.device)                                                      # [v]
    if fan > 1:
        index = torch.arange(len(logits), device=logits.device).repeat_interleave(fan)                        # [p*fan]
        stepper.select(index)
        chain.select(index)
        logits = logits.index_select(0, index)
    total = len(logits)
    rows = torch.arange(total, device=logits.device)                                                          # [r]
    counts = torch.zeros_like(rows)                                                                           # [r] end tokens so far
    history = History(total, logits)
    while len(rows):
        scores, emptied = chain(logits, history.tokens)                                                               # [r v]
        if emptied is not None:
            raise emptied
        tokens = choose(scores, rows, total)                                                                  # [r]
        picked = scores.gather(1, tokens[:, None])[:, 0]                                                      # [r]
        history.append(tokens, picked)
        counts = counts + ends[tokens]
        closed = ends[tokens] & (counts >= limits.min_ends)                                                   # [r]
        ended = closed | stopped(history.tokens, stops) if stops else closed
        last = ended if history.length < limits.max_new else torch.ones_like(ended)
        yield Step(rows, tokens, picked, closed, ended, last)
        if bool(last.any()):
            index = (~last).nonzero()[:, 0]                                                                   # [r']
            if not len(index):
                return
            stepper.select(index)
            chain.select(index)
            history.select(index)
            rows, counts, tokens = rows[index], counts[index], tokens[index]
        if history.length % COMPACT_EVERY == 0:
            stepper.compact()
        logits = stepper.step(tokens)                                                                         # [r v]


def stopped(tokens: Tensor, stops: Sequence[Stop]) -> Tensor:
    """tokens [r u] -> bool [r]: any of the stops says so."""
    found = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)                                  # [r]
    for stop in stops:
        found = found | stop(tokens)
    return found


def flatten(steps: Iterable[Step], fan: int) -> Iterator[Streamed]:
    """The steps as single tokens, in the order of the rows."""
    for step in steps:
        columns = (step.rows, step.tokens, step.log_probabilities, step.last, step.ended)
        for row, token, log_probability, last, ended in zip(*(x.tolist() for x in columns), strict=True):
            yield Streamed(row // fan, row % fan, token, log_probability, last, ended)


def collect(steps: Iterable[Step], fan: int) -> list[list[Hypothesis]]:
    """The steps as hypotheses: one list of `fan` a prompt, in the order of the prompts."""
    taken = list(steps)
    if not taken:
        return []
    total, first = len(taken[0].rows), taken[0]
    tokens = first.tokens.new_zeros(total, len(taken))                                                        # [r u]
    log_probabilities = first.log_probabilities.new_zeros(total, len(taken))                                  # [r u]
    lengths = first.tokens.new_zeros(total)                                                                   # [r]
    ended, closed = torch.zeros_like(first.ended), torch.zeros_like(first.closed)                             # [r]
    for column, step in enumerate(taken):
        tokens[step.rows, column] = step.tokens
        log_probabilities[step.rows, column] = step.log_probabilities
        lengths[step.rows] = column + 1
        ended[step.rows], closed[step.rows] = step.ended, step.closed
    scores = log_probabilities.double().sum(1)                                                                # [r]
    groups = (torch.split(x, fan) for x in (tokens, log_probabilities, lengths, scores, ended, closed))
    return [unpack(*group, prompt=prompt) for prompt, group in enumerate(zip(*groups, strict=True))]
