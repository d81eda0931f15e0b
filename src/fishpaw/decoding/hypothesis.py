"""What decoding returns: a hypothesis with the log-probability of each token; and the store in which growing ones are kept and moved."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["History", "Hypothesis", "unpack"]


@dataclass(frozen=True)
class Hypothesis:
    """One continuation of one prompt.

    tokens: all that was generated, the closing end token included, so that tokens and log_probabilities are equally long;
        `content` is what to turn into text.
    log_probabilities: natural logarithms, a token each, under the distribution that was searched: after the processors, renormalised.
    score: what hypotheses are ranked by: the sum of log_probabilities, divided by length ** length_penalty in a beam search that has one.
    prompt: index of its prompt in the batch.
    ended: an end token (or a stop) closed it; False where max_new cut it.
    closed: the last token is a closing end token, not part of the text.
    """

    tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    score: float
    prompt: int
    ended: bool
    closed: bool

    @property
    def content(self) -> tuple[int, ...]:
        """The tokens without the closing end token."""
        return self.tokens[:-1] if self.closed else self.tokens

    @property
    def log_probability(self) -> float:
        """The sum of log_probabilities, whatever the length penalty."""
        return math.fsum(self.log_probabilities)


class History:
    """The tokens generated so far and their log-probabilities, row by row; grows by doubling, so that a new token copies no old ones.

    rows: how many at the start; like: any tensor of the device and type; log-probabilities are kept in fp32 at least.
    """

    def __init__(self, rows: int, like: Tensor) -> None:
        self._tokens = torch.zeros(rows, 32, dtype=torch.long, device=like.device)
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        self._log_probabilities = torch.zeros(rows, 32, dtype=dtype, device=like.device)
        self.length = 0

    @property
    def tokens(self) -> Tensor:
        """[r u]; a view: do not write."""
        return self._tokens[:, :self.length]

    @property
    def log_probabilities(self) -> Tensor:
        """[r u]; a view: do not write."""
        return self._log_probabilities[:, :self.length]

    def append(self, tokens: Tensor, log_probabilities: Tensor) -> None:
        """[r], [r]: one more column."""
        if self.length == self._tokens.shape[1]:
            self._tokens = torch.cat([self._tokens, torch.zeros_like(self._tokens)], 1)
            self._log_probabilities = torch.cat([self._log_probabilities, torch.zeros_like(self._log_probabilities)], 1)
        self._tokens[:, self.length] = tokens
        self._log_probabilities[:, self.length] = log_probabilities
        self.length += 1

    def select(self, index: Tensor) -> None:
        """[r'] long: row j continues old row index[j]."""
        self._tokens = self._tokens.index_select(0, index)
        self._log_probabilities = self._log_probabilities.index_select(0, index)


def unpack(tokens: Tensor, log_probabilities: Tensor, lengths: Tensor, scores: Tensor, ended: Tensor, closed: Tensor,
           *, prompt: int) -> list[Hypothesis]:
    """[n u], [n u], [n], [n], [n], [n] -> n hypotheses of one prompt."""
    columns = (x.tolist() for x in (tokens, log_probabilities, lengths, scores, ended, closed))
    return [Hypothesis(tuple(row[:length]), tuple(logs[:length]), score, prompt, end, close)
            for row, logs, length, score, end, close in zip(*columns, strict=True)]
