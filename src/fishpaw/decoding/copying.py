"""Copy from a source: answers made of its spans only, or the runs that tags B and I mark, as SPACES does: https://kexue.fm/archives/8046

A run is a piece of the answer that stands in the source, too, token for token and without a gap. Which places of the source a hypothesis
may be copying from is its state, and moves with its beam.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from fishpaw.decoding.constraints import NEVER, check_limits, check_rows
from fishpaw.decoding.limits import Limits, check_whole
from fishpaw.errors import ConfigError

__all__ = ["BEGIN", "INSIDE", "OUTSIDE", "CopyOnly", "CopyTags"]

OUTSIDE, BEGIN, INSIDE = 0, 1, 2                                 # the columns of a tag head's logits
NOTHING = -1                                                     # where a source has ended, or has an end token: it is never copied


class CopyOnly:
    """The answer is spans of the source, each of n tokens or more, one after another: every token is in a run of at least n.

    sources: for each prompt the ids that may be copied; an end token among them ends nothing, it only breaks the span. n = 1 allows the
    tokens of the source in any order. Where a text can be cut into spans in several ways, all are kept. Each answer is whole within
    max_new. Raises ConfigError for a source without n tokens in a row, or limits that leave no room for a span.
    """

    def __init__(self, sources: Sequence[Sequence[int]], *, n: int, limits: Limits) -> None:
        check_limits(limits, "CopyOnly")
        check_whole("n", n, 1, None)
        self.n, self.limits = n, limits
        if not limits.ends:
            raise ConfigError("CopyOnly needs an end token, but ends is empty.", fix="Name the end token in the limits.")
        shortest = max(limits.min_new - 1, 0) + n + 1            # the last span may have to begin one token short of min_new; then the end
        if shortest > limits.max_new:
            raise ConfigError(f"Spans of {n} tokens and min_new {limits.min_new} need a max_new of {shortest}; it is {limits.max_new}.",
                              fix="Raise max_new or lower n.")
        self._sources = _table(sources, limits)                                                               # [p t]
        self.prompts: int | None = len(self._sources)
        ahead = torch.zeros_like(self._sources[:, 0])
        columns = []
        for column in self._sources.flip(1).unbind(1):
            ahead = (ahead + 1).masked_fill(column == NOTHING, 0)
            columns.append(ahead)
        self._starts = torch.stack(columns, 1).flip(1) >= n      # [p t] where a span of n tokens may begin
        empty = (~self._starts.any(1)).nonzero()[:, 0].tolist()
        if empty:
            raise ConfigError(f"Source {empty[0]} has no {n} tokens in a row to copy.", fix="Lower n, or leave the prompt out.")
        self._owner = torch.zeros(0, dtype=torch.long)                                                        # [r]
        self._runs = torch.zeros(0, n, self._sources.shape[1], dtype=torch.bool)

    def of(self, places: Sequence[int]) -> CopyOnly:
        """To copy from the sources of the prompts at these places."""
        found, rows = copy(self), list(places)
        found.prompts, found._sources, found._starts = len(rows), self._sources[rows], self._starts[rows]
        return found

    def start(self, prompts: Any, rows: int) -> None:
        _check_sources(len(self._sources), rows)
        self._owner = torch.arange(rows)
        self._runs = torch.zeros(rows, self.n, self._sources.shape[1], dtype=torch.bool)
        # [r n t]: l-1, i: a run of l tokens (the last: n or more) may end at place i, all before it being spans

    def select(self, index: Tensor) -> None:
        index = index.cpu()
        self._owner, self._runs = self._owner[index], self._runs[index]

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        check_rows(len(self._owner), len(tokens), "CopyOnly")
        used = tokens.shape[1]
        source = self._sources[self._owner]                                                                   # [r t]
        if used:
            self._runs = self._ways(used - 1) & (source == tokens[:, -1:].cpu())[:, None]
        room = self.limits.max_new - used - 2                    # tokens left after this one and the closing end
        fitting = torch.arange(self.n - 1, -1, -1) <= room       # [n] a run of l tokens needs n - l more
        places = (self._ways(used) & fitting[:, None]).any(1)                                                 # [r t]
        keep = _tokens_at(places, source, logits)
        keep[:, list(self.limits.ends)] = self._complete(used).to(keep.device)[:, None]
        return logits.masked_fill(~keep, NEVER)

    def __repr__(self) -> str:
        return f"CopyOnly({self.prompts} sources, n={self.n})"

    def _complete(self, used: int) -> Tensor:
        """-> bool [r]: the answer so far is spans, none of them too short."""
        return self._runs[:, -1].any(-1) if used else torch.ones(len(self._owner), dtype=torch.bool)

    def _ways(self, used: int) -> Tensor:
        """-> bool [r n t]: the runs that the next token may make: a new one of one token, or one that is a token longer."""
        longer = torch.nn.functional.pad(self._runs[..., :-1], (1, 0))                                        # [r n t]
        first = self._starts[self._owner] & self._complete(used)[:, None]                                     # [r t]
        ways = torch.cat([first[:, None], longer[:, :-1]], 1)
        ways[:, -1] |= longer[:, -1]                             # n tokens and more stay n and more
        return ways & (self._sources[self._owner] != NOTHING)[:, None]


class CopyTags:
    """Tags of a head beside the language model's say when to copy: O any token; B a token of the source; I a token that continues the run
    in the source. Each run, a B and the I behind it, is a contiguous piece of the source.

    tags(): logits [r 3] of O, B, I for the rows as they are now, after the stepper's last call; the best one is taken, I never behind O or
    at the beginning. Where no place of the run has a next token, I counts as B: a new run begins. An end token may follow any tag: it is no
    part of a run. Follow it by TopK(10) for SPACES' decoding. sources: for each prompt the ids that may be copied, end tokens apart.
    """

    def __init__(self, sources: Sequence[Sequence[int]], tags: Callable[[], Tensor], *, limits: Limits) -> None:
        check_limits(limits, "CopyTags")
        self.limits = limits
        self._tags = tags
        self._sources = _table(sources, limits)                                                               # [p t]
        self.prompts: int | None = len(self._sources)
        empty = (self._sources == NOTHING).all(1).nonzero()[:, 0].tolist()
        if empty:
            raise ConfigError(f"Source {empty[0]} has no token to copy.", fix="Leave the prompt out.")
        self._owner = self._tag = torch.zeros(0, dtype=torch.long)                                            # [r]
        self._run = torch.zeros(0, self._sources.shape[1], dtype=torch.bool)         # [r t] places where the present run may end

    def of(self, places: Sequence[int]) -> CopyTags:
        """To copy from the sources of the prompts at these places."""
        found, rows = copy(self), list(places)
        found.prompts, found._sources = len(rows), self._sources[rows]
        return found

    def start(self, prompts: Any, rows: int) -> None:
        _check_sources(len(self._sources), rows)
        self._owner, self._tag = torch.arange(rows), torch.full((rows,), OUTSIDE)
        self._run = torch.zeros(rows, self._sources.shape[1], dtype=torch.bool)

    def select(self, index: Tensor) -> None:
        index = index.cpu()
        self._owner, self._tag, self._run = self._owner[index], self._tag[index], self._run[index]

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        check_rows(len(self._owner), len(tokens), "CopyTags")
        source = self._sources[self._owner]                                                                   # [r t]
        if tokens.shape[1]:
            self._run = self._ways() & (source == tokens[:, -1:].cpu())
        scores = self._tags().detach().cpu()                                                                  # [r 3]
        if scores.shape != (len(self._owner), 3):
            raise ConfigError(f"tags() gave logits of shape {tuple(scores.shape)} for {len(self._owner)} rows.",
                              fix="Give [rows, 3]: O, B, I.")
        alone = (self._tag == OUTSIDE)[:, None] & (torch.arange(3) == INSIDE)                                 # [r 3] no I behind O
        self._tag = scores.masked_fill(alone, NEVER).argmax(-1)                                               # [r]
        self._tag = self._tag.masked_fill((self._tag == INSIDE) & ~self._ways().any(-1), BEGIN)
        keep = _tokens_at(self._ways(), source, logits)
        keep |= (self._tag == OUTSIDE).to(keep.device)[:, None]
        keep[:, list(self.limits.ends)] = True
        return logits.masked_fill(~keep, NEVER)

    def __repr__(self) -> str:
        return f"CopyTags({self.prompts} sources)"

    def _ways(self) -> Tensor:
        """-> bool [r t]: the places that the token under the present tag may be copied from."""
        any_place = self._sources[self._owner] != NOTHING
        onward = torch.nn.functional.pad(self._run[:, :-1], (1, 0)) & any_place
        tag = self._tag[:, None]
        return torch.where(tag == INSIDE, onward, any_place & (tag == BEGIN))


def _table(sources: Sequence[Sequence[int]], limits: Limits) -> Tensor:
    """-> [p t], filled up with NOTHING; end tokens are NOTHING, too."""
    for number, source in enumerate(sources):
        for token in source:
            check_whole(f"source {number}", token, 0, None)
    width = max((len(source) for source in sources), default=0)
    table = torch.tensor([[*source, *[NOTHING] * (width - len(source))] for source in sources], dtype=torch.long)
    if not table.numel():
        raise ConfigError("There is no source to copy from.", fix="Give the token ids of one for each prompt.")
    return table.masked_fill(torch.isin(table, torch.tensor(limits.ends, dtype=torch.long)), NOTHING)


def _check_sources(sources: int, prompts: int) -> None:
    if sources != prompts:
        raise ConfigError(f"{sources} sources for {prompts} prompts.", fix="Give one for each prompt.")


def _tokens_at(places: Tensor, source: Tensor, logits: Tensor) -> Tensor:
    """places bool [r t], source [r t] -> bool [r v]: the tokens that stand there."""
    if int(source.max()) >= logits.shape[-1]:
        raise ConfigError(f"A source holds token {int(source.max())}; allowed: 0 to {logits.shape[-1] - 1}.",
                          fix="Take it from the tokenizer that belongs to this model.")
    rows, columns = places.nonzero(as_tuple=True)
    keep = torch.zeros(logits.shape, dtype=torch.bool)
    keep[rows, source[rows, columns]] = True
    return keep.to(logits.device)                                                                             # [r v]
