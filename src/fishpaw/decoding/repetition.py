"""Against repetition: penalties on tokens that were already there (CTRL's, OpenAI's two), no n-gram twice, and DRY.

What counts as already there: OpenAI's two count generated tokens only. The other three also read the prompt, as transformers and vLLM do,
unless prompt=False: right where a text is continued, wrong where it is a source to copy from (a title, a summary, an answer). Padding
never counts. Those that read the prompt have `start` and `select`, and need a stepper that starts with a padded Batch.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fishpaw.contracts import Batch
from fishpaw.decoding.limits import check_real, check_whole
from fishpaw.errors import ConfigError

__all__ = ["Dry", "FrequencyPenalty", "NoRepeatNgram", "PresencePenalty", "RepetitionPenalty"]

NEVER = float("-inf")
HARDEST = 1e4                                                    # of DRY: more would be a ban, and might leave no token at all
FAR = 1e30                                                       # growth beyond this makes no difference, but infinity times 0 would


@dataclass(frozen=True)
class FrequencyPenalty:
    """logit(x) - value * how often x was generated. Any finite number; 0.1 to 1 is usual, below 0 favours repetition.
    OpenAI's API, frequency and presence penalties; range there -2 to 2."""

    value: float

    def __post_init__(self) -> None:
        check_real("frequency_penalty", self.value, "a finite number", lambda value: True)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        return logits.scatter_add(1, tokens, logits.new_full(tokens.shape, -self.value))


@dataclass(frozen=True)
class PresencePenalty:
    """logit(x) - value where x was generated at least once. Any finite number; source: as FrequencyPenalty."""

    value: float

    def __post_init__(self) -> None:
        check_real("presence_penalty", self.value, "a finite number", lambda value: True)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        return logits.scatter(1, tokens, logits.gather(1, tokens) - self.value)


class _Reader:
    """A processor that reads the tokens of each row that are already there: its prompt's, where they count, and those generated."""

    def __init__(self, prompt: bool) -> None:
        self._counts = prompt
        self._prompts: Tensor | None = None                                                                   # [p t] on the left -1
        self._owner: Tensor | None = None                                                                     # [r]

    def start(self, prompts: Any, rows: int) -> None:
        """The prompts' tokens count from the first step."""
        if not self._counts:
            return
        if not isinstance(prompts, Batch) or prompts.shape is None:
            raise ConfigError(f"A processor reads the prompts, which are no padded Batch but a {type(prompts).__name__}.",
                              fix="Start from Batch.padded, or give the processor prompt=False.")
        keep = prompts.rows[0].keep                                                                           # [p t]
        ids = prompts.ids.view(prompts.shape).masked_fill(~keep, -1)                                          # [p t]
        self._prompts = ids.gather(1, keep.int().argsort(dim=1, stable=True))    # on the left, so that what follows the prompt does
        self._owner = torch.arange(rows, device=ids.device)

    def select(self, index: Tensor) -> None:
        """Each row keeps its prompt, and what was found in it."""
        self._owner = None if self._owner is None else self._owner[index]

    def _join(self, tokens: Tensor) -> Tensor:
        """tokens generated [r u] -> ids [r l], -1 on the left where a row is shorter."""
        if self._prompts is None or self._owner is None:
            return tokens
        return torch.cat([self._prompts[self._owner], tokens], 1)


class RepetitionPenalty(_Reader):
    """logit(x) / value where it is above 0, * value where it is below, for each x that was already there, once however often it was.
    value > 0, 1 changes nothing; 1.1 to 1.3 is usual. CTRL, arXiv:1909.05858, section 4.1, with transformers' rule for the sign.
    It depends on where a model's logits have their zero, which probabilities don't: the two penalties above have no such quirk.
    """

    def __init__(self, value: float, *, prompt: bool = True) -> None:
        check_real("repetition_penalty", value, "a finite number above 0", lambda value: value > 0)
        self.value = value
        super().__init__(prompt)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        there = self._join(tokens)                                                                            # [r l]
        if not there.shape[1]:
            return logits
        there = torch.where(there < 0, there[:, -1:], there)     # padding repeats a token that counts anyway
        found = logits.gather(1, there)                                                                       # [r l]
        return logits.scatter(1, there, torch.where(found < 0, found * self.value, found / self.value))

    def __repr__(self) -> str:
        return f"RepetitionPenalty({self.value})"


class NoRepeatNgram(_Reader):
    """Ban each token that would complete n tokens in a row that were already there, also across the prompt's end. n >= 1; 1 bans every
    token that was. arXiv:1705.04304, section 2.5. In a long answer it ends by banning good words: Dry is the softer way."""

    def __init__(self, n: int, *, prompt: bool = True) -> None:
        check_whole("no_repeat_ngram", n, 1, None)
        self.n = n
        super().__init__(prompt)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        texts = self._join(tokens)                                                                            # [r l]
        windows = texts.shape[1] - self.n + 1
        if windows < 1:
            return logits
        last = texts[:, self.n - 1:]                                                                          # [r w] of each n-gram
        same = last >= 0                                                                                      # [r w]
        for place in range(self.n - 1):
            same = same & (texts[:, place:place + windows] == texts[:, place + windows, None])
        bound = torch.where(same, NEVER, -NEVER).to(logits.dtype)                                             # [r w]
        return logits.scatter_reduce(1, last.clamp_min(0), bound, "amin")

    def __repr__(self) -> str:
        return f"NoRepeatNgram({self.n})"


class Dry(_Reader):
    """logit(x) - multiplier * base ** (length - allowed_length) for each x that would prolong a repetition of that length: the end of the
    text so far, `length` tokens, was there before and x came next; of several places the longest counts. Below allowed_length nothing.
    DRY, github.com/oobabooga/text-generation-webui/pull/5677; usual: multiplier 0.8, base 1.75, allowed_length 2. At most 10,000 is
    subtracted, so that a penalty never bans.

    breakers: tokens that no repetition goes across and that are never penalised: line ends, quotes, colons of a dialogue. window: how many
    of the last tokens are looked at, None for all. Cost: a comparison a token of the text and step, whatever the length of what repeats.
    """

    def __init__(self, multiplier: float, *, base: float = 1.75, allowed_length: int = 2, breakers: Collection[int] = (),
                 window: int | None = None, prompt: bool = True) -> None:
        check_real("dry", multiplier, "a finite number, 0 or more", lambda value: value >= 0)
        check_real("base", base, "a finite number, 1 or more", lambda value: value >= 1)
        check_whole("allowed_length", allowed_length, 1, None)
        if window is not None:
            check_whole("window", window, 1, None)
        for breaker in breakers:
            check_whole("breakers", breaker, 0, None)
        self.multiplier, self.base, self.allowed_length, self.window = multiplier, base, allowed_length, window
        self._breakers = torch.tensor(sorted(breakers), dtype=torch.long)
        super().__init__(prompt)
        self._lengths: Tensor | None = None                                                                   # [r l]

    def start(self, prompts: Any, rows: int) -> None:
        """Prompts may repeat themselves already: they are read at the first step."""
        super().start(prompts, rows)
        self._lengths = None

    def select(self, index: Tensor) -> None:
        """What each row has found moves with it."""
        super().select(index)
        self._lengths = None if self._lengths is None else self._lengths.index_select(0, index)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        texts = self._join(tokens)                                                                            # [r l]
        self._breakers = self._breakers.to(texts.device)
        self._lengths = self._read(texts)                                                                     # [r l]
        if texts.shape[1] < 2:
            return logits
        lengths, following = self._lengths[:, :-1], texts[:, 1:]                                              # [r l-1]
        if self.window is not None:
            inside = torch.arange(1, texts.shape[1], device=texts.device) - max(0, texts.shape[1] - self.window)
            lengths = torch.minimum(lengths, inside.clamp_min(0))                                             # [r l-1]
        counts = (lengths >= self.allowed_length) & ~torch.isin(following, self._breakers)                    # [r l-1]
        growth = (self.base ** (lengths - self.allowed_length).to(logits.dtype)).clamp(max=FAR)               # [r l-1]
        penalty = (self.multiplier * growth).clamp(max=HARDEST) * counts                                      # [r l-1]
        return logits - torch.zeros_like(logits).scatter_reduce(1, following.clamp_min(0), penalty, "amax")

    def __repr__(self) -> str:
        return f"Dry({self.multiplier}, base={self.base}, allowed_length={self.allowed_length}, window={self.window})"

    def _read(self, texts: Tensor) -> Tensor:
        """The lengths brought up to texts [r l]: at place i, how many tokens that end there equal those at the end of the text. With each
        new token a place matches one longer than the place before it did, or not at all."""
        lengths = texts.new_zeros(len(texts), 0) if self._lengths is None else self._lengths
        for place in range(lengths.shape[1], texts.shape[1]):
            newest = texts[:, place, None]                                                                    # [r 1]
            same = (texts[:, :place + 1] == newest) & ~torch.isin(newest, self._breakers) & (newest >= 0)     # [r place+1]
            lengths = (torch.nn.functional.pad(lengths, (1, 0)) + 1) * same                                   # [r place+1]
        return lengths
