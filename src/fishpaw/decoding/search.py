"""Search for the most probable continuation: greedy, and beam search batched over prompts.

Score of a hypothesis: sum of log p / length ** length_penalty, length in generated tokens, closing end token included: as transformers.
At each step the candidates of a prompt (its beams times the vocabulary) are ranked by the sum. Those that finish enter the prompt's pool of
`beams` finished hypotheses if they are among the best `beams` candidates; the best `beams` unfinished ones live on. At max_new all finish.
With beams >= |V| ** max_new nothing is ever dropped: exhaustive search. With beams=1 and no penalty the path is the greedy one.

Three differences from transformers, none in the result unless named:
- log-probabilities keep the logits' type (fp64 stays fp64), where transformers casts to fp32;
- processors act on logits and what they leave is renormalised, as transformers does with renormalize_logits=True;
- when to stop is a function (`until`): `unbeatable`, the default, is exact for every penalty and equal to early_stopping="never".
  transformers' own default (early_stopping=False) is `unpromising` here, a heuristic with a positive penalty: it scores the live beams at
  their present length, where a longer hypothesis could still come out higher. early_stopping=True is `full`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from fishpaw.decoding.hypothesis import History, Hypothesis, unpack
from fishpaw.decoding.limits import Limits, check_real, check_whole
from fishpaw.decoding.processors import Chain, Processor
from fishpaw.decoding.walk import COMPACT_EVERY, Step, Stop, Streamed, collect, flatten, stopped, walk

if TYPE_CHECKING:
    from fishpaw.contracts import Stepper

__all__ = ["Until", "beam", "full", "greedy", "stream_greedy", "unbeatable", "unpromising"]

MOST_BEAMS = 2**16
STRONGEST_PENALTY = 10
NEVER = float("-inf")


def greedy(stepper: Stepper, prompts: Any, encoder_batch: Any = None, *, limits: Limits, processors: Sequence[Processor] = (),
           stops: Sequence[Stop] = ()) -> list[Hypothesis]:
    """The most probable token at each step (of exact ties the lowest id): one hypothesis a prompt, in their order.

    Raises ConfigError for a bad setting, FishpawError where the processors leave no token.
    """
    return [group[0] for group in collect(_steps(stepper, prompts, encoder_batch, limits, processors, stops), 1)]


def stream_greedy(stepper: Stepper, prompts: Any, encoder_batch: Any = None, *, limits: Limits, processors: Sequence[Processor] = (),
                  stops: Sequence[Stop] = ()) -> Iterator[Streamed]:
    """As `greedy`, a token at a time, as it is found. Settings are checked at the call; close the iterator to stop early."""
    return flatten(_steps(stepper, prompts, encoder_batch, limits, processors, stops), 1)


class Until(Protocol):
    """Has the search of a prompt come to its end? -> bool [p]. A prompt without a live beam ends whatever this says.

    best [p]: the highest sum among its live beams; kept [p beams]: the scores in its pool, best first, -inf where it is not full yet;
    n: how many are asked for; length: tokens in a live beam; longest: max_new; penalty: length_penalty.
    """

    def __call__(self, best: Tensor, kept: Tensor, *, n: int, length: int, longest: int, penalty: float) -> Tensor: ...


def unbeatable(best: Tensor, kept: Tensor, *, n: int, length: int, longest: int, penalty: float) -> Tensor:
    """Exact: no live beam can still enter the n best, even if its next tokens are certain. The result is that of never stopping early."""
    favourable = longest if penalty > 0 else length + 1          # sums are <= 0: a penalty > 0 favours length, one < 0 brevity
    reachable: Tensor = best / favourable**penalty                                                            # [p]
    return reachable <= kept[:, n - 1]


def unpromising(best: Tensor, kept: Tensor, *, n: int, length: int, longest: int, penalty: float) -> Tensor:
    """transformers' early_stopping=False: no live beam at its present length beats the worst of a full pool. Exact if penalty <= 0."""
    present: Tensor = best / length**penalty                                                                  # [p]
    return present <= kept[:, -1]


def full(best: Tensor, kept: Tensor, *, n: int, length: int, longest: int, penalty: float) -> Tensor:
    """transformers' early_stopping=True: the pool is full. The fastest; the first found need not be the best."""
    return kept[:, -1] > NEVER


@torch.no_grad()
def beam(stepper: Stepper, prompts: Any, encoder_batch: Any = None, *, beams: int, limits: Limits, n: int = 1, length_penalty: float = 0.0,
         processors: Sequence[Processor] = (), stops: Sequence[Stop] = (), until: Until = unbeatable) -> list[list[Hypothesis]]:
    """The n best hypotheses that `beams` live ones a prompt lead to: a list a prompt, best first, in the order of the prompts.

    beams: 1 to 65536; n: 1 to beams (fewer come back where fewer exist). length_penalty: -10 to 10; 0 ranks by probability, above 0 favours
    length. Between exact ties torch.topk decides. A stop (not an end token) that ends many candidates at once may leave fewer live beams.
    Raises ConfigError for a bad setting, FishpawError where the processors leave no token to any beam of a prompt.
    """
    check_whole("beams", beams, 1, MOST_BEAMS)
    check_whole("n", n, 1, beams)
    span = f"-{STRONGEST_PENALTY} to {STRONGEST_PENALTY}"
    check_real("length_penalty", length_penalty, span, lambda value: abs(value) <= STRONGEST_PENALTY)
    chain = Chain(limits, processors)
    logits = stepper.start(prompts, encoder_batch)                                                            # [p v]
    chain.start(prompts, len(logits))
    ends = limits.table(logits.shape[-1], logits.device)                                                      # [v]
    shortlist = beams * max(2, 1 + len(set(limits.ends)))         # a beam has at most len(ends) closed candidates: enough stay alive
    alive = torch.arange(len(logits), device=logits.device)                                                   # [p] prompts still searched
    total = len(alive)
    history = History(total, logits)
    pool = _Pool(total, beams, history.log_probabilities)
    sums = history.log_probabilities.new_zeros(total, 1)                                                      # [p width]
    width, emptied = 1, None
    counts = torch.zeros_like(alive)                                                                          # [p*width] end tokens so far
    while len(alive):
        scores, found = chain(logits, history.tokens)                                                         # [p*width v]
        emptied = found or emptied
        vocabulary, length = scores.shape[1], history.length + 1
        candidates = (sums[:, :, None] + scores.view(len(alive), width, vocabulary)).flatten(1)               # [p width*v]
        ranked, place = candidates.topk(min(shortlist, candidates.shape[1]))                                  # [p c]
        offset = torch.arange(len(alive), device=alive.device)[:, None] * width                               # [p 1]
        source, tokens = offset + place // vocabulary, place % vocabulary                                     # [p c] row, token
        picked = scores[source, tokens]                                                                       # [p c]
        closed = ends[tokens] & (counts[source] + 1 >= limits.min_ends)                                       # [p c]
        ended = closed
        if stops:
            grown = torch.cat([history.tokens[source.flatten()], tokens.view(-1, 1)], 1)                      # [p*c u]
            ended = closed | stopped(grown, stops).view_as(closed)
        finished = ended if length < limits.max_new else torch.ones_like(ended)                               # [p c]
        entering = (finished & (ranked > NEVER))[:, :beams]                                                   # [p beams]
        if bool(entering.any()):
            which = entering.any(1).nonzero()[:, 0]                                                           # [m]
            entrants = (x[which, :beams] for x in (source, tokens, picked, ended, closed))                    # [m beams]
            marks = (ranked[which, :beams] / length**length_penalty).masked_fill(~entering[which], NEVER)     # [m beams]
            pool.add(alive[which], marks, history, *entrants)

        live, order = ranked.masked_fill(finished, NEVER).sort(dim=1, descending=True, stable=True)           # [p c]
        best = live[:, 0]                                                                                     # [p]
        done = until(best, pool.scores[alive], n=n, length=length, longest=limits.max_new, penalty=length_penalty) | (best == NEVER)
        if emptied is not None and bool((pool.scores[alive[done], 0] == NEVER).any()):
            raise emptied
        going = (~done).nonzero()[:, 0]                                                                       # [p']
        if not len(going):
            break
        live, order = live[going, :beams], order[going, :beams]
        width = int((live > NEVER).sum(1).max())
        live, order = live[:, :width], order[:, :width]
        # A prompt with fewer live beams than the widest repeats its best one at -inf: a row in a possible state that is never chosen.
        order = torch.where(live > NEVER, order, order[:, :1])                                                # [p' width]
        index = source[going].gather(1, order).flatten()                                                      # [p'*width]
        chosen = tokens[going].gather(1, order).flatten()                                                     # [p'*width]
        stepper.select(index)
        chain.select(index)
        history.select(index)
        history.append(chosen, picked[going].gather(1, order).flatten())
        counts = counts[index] + ends[chosen]
        alive, sums = alive[going], live
        if history.length % COMPACT_EVERY == 0:
            stepper.compact()
        logits = stepper.step(chosen)                                                                         # [p'*width v]
    return pool.best(n)


def _steps(stepper: Stepper, prompts: Any, encoder_batch: Any, limits: Limits, processors: Sequence[Processor],
           stops: Sequence[Stop]) -> Iterator[Step]:
    return walk(stepper, prompts, encoder_batch, limits=limits, chain=Chain(limits, processors), stops=stops, choose=_most_probable, fan=1)


def _most_probable(scores: Tensor, rows: Tensor, total: int) -> Tensor:
    return scores.argmax(-1)                                                                                  # [r]


class _Pool:
    """The best finished hypotheses of each prompt, best first; -inf where there is none yet."""

    def __init__(self, prompts: int, beams: int, like: Tensor) -> None:
        self.scores = like.new_full((prompts, beams), NEVER)                                                  # [p beams]
        self.tokens = torch.zeros(prompts, beams, 0, dtype=torch.long, device=like.device)                    # [p beams u]
        self.log_probabilities = like.new_zeros(prompts, beams, 0)                                            # [p beams u]
        self.lengths = torch.zeros(prompts, beams, dtype=torch.long, device=like.device)                      # [p beams]
        self.ended = torch.zeros(prompts, beams, dtype=torch.bool, device=like.device)                        # [p beams]
        self.closed = torch.zeros_like(self.ended)                                                            # [p beams]

    def add(self, prompts: Tensor, scores: Tensor, history: History, source: Tensor, tokens: Tensor, picked: Tensor, ended: Tensor,
            closed: Tensor) -> None:
        """prompts [m]; the rest [m c]: row `source` of the history with one token more, at its score (-inf: not an entrant)."""
        grown = torch.cat([history.tokens[source], tokens[..., None]], -1)                                    # [m c u]
        logs = torch.cat([history.log_probabilities[source], picked[..., None]], -1)                          # [m c u]
        extra = grown.shape[-1] - self.tokens.shape[-1]
        self.tokens = torch.nn.functional.pad(self.tokens, (0, extra))
        self.log_probabilities = torch.nn.functional.pad(self.log_probabilities, (0, extra))
        merged, order = torch.cat([self.scores[prompts], scores], 1).sort(dim=1, descending=True, stable=True)
        order = order[:, :self.scores.shape[1]]                                                               # [m beams]
        self.scores[prompts] = merged[:, :self.scores.shape[1]]
        lengths = torch.full_like(source, grown.shape[-1])
        pairs = ((self.tokens, grown), (self.log_probabilities, logs), (self.lengths, lengths), (self.ended, ended), (self.closed, closed))
        for old, new in pairs:
            both = torch.cat([old[prompts], new], 1)                                                          # [m beams+c …]
            old[prompts] = both[torch.arange(len(prompts), device=order.device)[:, None], order]

    def best(self, n: int) -> list[list[Hypothesis]]:
        """The n best of each prompt."""
        found = []
        for prompt, count in enumerate((self.scores[:, :n] > NEVER).sum(1).tolist()):
            columns = (x[prompt, :count] for x in (self.tokens, self.log_probabilities, self.lengths, self.scores, self.ended, self.closed))
            found.append(unpack(*columns, prompt=prompt))
        return found
