"""Everything that edits logits before a token is chosen: temperature, top-k, top-p, minimum length; composed in the caller's order.

A processor is any callable (logits [r v], tokens so far [r u]) -> logits [r v]. It returns a new tensor (the stepper may own the one it was
given) and bans a token with -inf. One that remembers something of each hypothesis (a constraint, a copy state) also has `start` and
`select`, through which the search moves that state with its beam; having only one of the two is refused: that is how states get mixed.
One that holds something of each prompt's own (its source, its trie) has `of`, by which whoever batches prompts takes the part of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from fishpaw.decoding.limits import Limits, check_real, check_whole
from fishpaw.errors import ConfigError, FishpawError

__all__ = [
    "Chain", "MinLength", "PerPrompt", "Processor", "StatefulProcessor", "Temperature", "TopK", "TopP", "check_prompts", "name_of",
    "narrowest", "of_prompts",
]  # fmt: skip

NEVER = float("-inf")


class Processor(Protocol):
    """logits [r v] (fp32 or fp64), tokens generated so far [r u] (u = 0 at first) -> logits [r v]."""

    def __call__(self, logits: Tensor, tokens: Tensor, /) -> Tensor: ...


@runtime_checkable
class StatefulProcessor(Processor, Protocol):
    """A processor with a state a row. At each call tokens[:, -1] is what was chosen since the last one."""

    def start(self, prompts: Any, rows: int, /) -> None:
        """A new search: forget all, make `rows` fresh states, one a prompt; prompts: the object that the stepper was started with."""

    def select(self, index: Tensor, /) -> None:
        """index [r'] long: state j continues old state index[j]; fans out, permutes and drops in one."""


@runtime_checkable
class PerPrompt(Processor, Protocol):
    """A processor that holds something of each prompt's own. prompts: of how many; None: one thing for any number of them."""

    prompts: int | None

    def of(self, places: Sequence[int], /) -> Processor:
        """The processor for the prompts at these places of all, in this order; its state is its own."""


def of_prompts(processors: Sequence[Processor], places: Sequence[int]) -> list[Processor]:
    """The processors for a batch of the prompts at these places, from 0, of all that are answered.

    Raises ConfigError for a place for which one of them holds nothing.
    """
    for one in _each_its_own(processors):
        if max(places, default=-1) >= (one.prompts or 0):
            raise _another_number(one, f"{max(places) + 1} prompts or more")
    return [one.of(places) if isinstance(one, PerPrompt) else one for one in processors]


def check_prompts(processors: Sequence[Processor], total: int) -> None:
    """ConfigError where one holds something for each of another number of prompts."""
    for one in _each_its_own(processors):
        if one.prompts != total:
            raise _another_number(one, f"{total} prompts")


@dataclass(frozen=True)
class Temperature:
    """logits / value. value > 0; below 1 sharpens, above 1 flattens. The limit 0 is greedy search, which has its own function."""

    value: float

    def __post_init__(self) -> None:
        if isinstance(self.value, int | float) and self.value == 0:
            raise ConfigError("temperature is 0; allowed: a finite number above 0.", fix="Use greedy for the most probable token.")
        check_real("temperature", self.value, "a finite number above 0", lambda value: value > 0)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        return logits / self.value


@dataclass(frozen=True)
class TopK:
    """Keep the k best tokens, and those tied with the k-th: the set never depends on how a sort breaks ties. ConfigError where there are
    fewer than k tokens: a filter that can't filter is a slip of the pen."""

    k: int

    def __post_init__(self) -> None:
        check_whole("top_k", self.k, 1, None)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        if self.k > logits.shape[-1]:
            raise ConfigError(f"top_k is {self.k}, but there are {logits.shape[-1]} tokens.", fix=f"Give 1 to {logits.shape[-1]}.")
        worst = logits.topk(self.k).values[:, -1:]                                                            # [r 1]
        return logits.masked_fill(logits < worst, NEVER)


@dataclass(frozen=True)
class TopP:
    """Nucleus: the smallest set of best tokens with mass >= p, so the token that crosses p stays (and its exact ties). arXiv:1904.09751.

    The mass is that of the logits as they arrive: put TopK before it for top-k first, then top-p. Softmax in fp32 at least.
    """

    p: float

    def __post_init__(self) -> None:
        check_real("top_p", self.p, "0 < p <= 1", lambda p: 0 < p <= 1)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        if self.p == 1:                                          # rounding in the tail must not ban what p = 1 promises to keep
            return logits
        whole = logits.logsumexp(-1, keepdim=True)                                                            # [r 1]
        distance = -logits                                                                                    # [r v]
        return logits.masked_fill(distance > narrowest(distance, logits, whole, self.p), NEVER)


def narrowest(distance: Tensor, logits: Tensor, whole: Tensor, mass: float) -> Tensor:
    """distance, logits [r v], their logsumexp [r 1] -> [r 1]: up to which distance the nearest tokens together have that mass."""
    vocabulary = logits.shape[-1]
    for count in (256, 2048, vocabulary):                        # a set is small: sorting 21,128 tokens takes 7 times as long
        near, order = distance.topk(min(count, vocabulary), largest=False)                                    # [r c] nearest first
        found = (logits.gather(1, order) - whole).exp().cumsum(-1)                                            # [r c]
        if bool((found[:, -1] >= mass).all()):
            break
    crossing = (found < mass).sum(-1, keepdim=True).clamp(max=near.shape[-1] - 1)                             # [r 1]
    return near.gather(1, crossing)


@dataclass(frozen=True)
class MinLength:
    """Ban the end token that would close a hypothesis of fewer than limits.min_new tokens. Every search puts it first by itself."""

    limits: Limits

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        if tokens.shape[1] >= self.limits.min_new or not self.limits.ends:
            return logits
        table = self.limits.table(logits.shape[-1], logits.device)                                            # [v]
        closing = table[tokens].sum(-1) >= self.limits.min_ends - 1                                           # [r]
        return logits.masked_fill(closing[:, None] & table, NEVER)


class Chain:
    """Processors as one step from logits to log-probabilities, with the states that move and the check that something is left."""

    def __init__(self, limits: Limits, processors: Sequence[Processor]) -> None:
        self.processors: list[Processor] = [MinLength(limits), *processors] if limits.min_new else list(processors)
        for processor in self.processors:
            if not callable(processor):
                raise ConfigError(f"processors holds {processor!r}, which can't be called.", fix="Pass objects such as TopK(50).")
            if hasattr(processor, "start") != hasattr(processor, "select"):
                raise ConfigError(f"The processor {name_of(processor)} has only one of start and select: its state could not move.",
                                  fix="Give it both, or neither if it keeps no state.")
        self.stateful = [each for each in self.processors if isinstance(each, StatefulProcessor)]

    def start(self, prompts: Any, rows: int) -> None:
        """Before the first call: one fresh state a prompt."""
        for processor in self.stateful:
            processor.start(prompts, rows)

    def select(self, index: Tensor) -> None:
        """index [r'] long: every state moves with its row."""
        for processor in self.stateful:
            processor.select(index)

    def __call__(self, logits: Tensor, tokens: Tensor) -> tuple[Tensor, FishpawError | None]:
        """logits [r v], tokens [r u] -> log-probabilities [r v] in fp32 at least, and None.

        Rows in which the processors banned every token are all -inf; then the second value is the error that names the one to blame, for
        the caller to raise: at once where a row is all there is, in a beam search only if no other beam of the prompt is left. Logits that
        are not numbers raise at once.
        """
        stages = [logits if logits.dtype == torch.float64 else logits.float()]
        for processor in self.processors:
            stages.append(processor(stages[-1], tokens).to(stages[0].dtype))
            if stages[-1].shape != logits.shape:
                shapes = f"{tuple(stages[-1].shape)} out of {tuple(logits.shape)}"
                raise ConfigError(f"{name_of(processor)} made logits of shape {shapes}.", fix="Return one logit a row and token.")
        scores = stages[-1].log_softmax(-1)                                                                   # [r v]
        # One NaN, one +inf or nothing but -inf turns the whole row into NaN, so the first column tells: r numbers to look at, not r * v.
        broken = scores[:, 0].isnan()                                                                         # [r]
        if not bool(broken.any()):
            return scores, None
        return scores.masked_fill(broken[:, None], NEVER), self._blame([stage[broken] for stage in stages])

    def _blame(self, stages: list[Tensor]) -> FishpawError:
        names = ["the model", *map(name_of, self.processors)]
        for name, stage in zip(names, stages, strict=True):
            if bool((stage.isnan() | (stage == float("inf"))).any()):
                raise FishpawError(f"Logits from {name} hold NaN or +inf.", fix="Check the weights with fp32, or the processor's formula.")
        empty = [bool((stage == NEVER).all(-1).any()) for stage in stages]                                    # a stage a time
        name = names[empty.index(True)]
        error = FishpawError(f"{name} left no token to choose from: every logit is -inf.", fix="Loosen it, or the processors before it.")
        if empty[0]:
            raise error
        return error


def name_of(processor: object) -> str:
    """A processor as messages call it: with its values, where these are short; never an address in memory."""
    said = str(getattr(processor, "__name__", None) or repr(processor))
    return type(processor).__name__ if " at 0x" in said or "\n" in said or len(said) > 80 else said


def _each_its_own(processors: Sequence[Processor]) -> list[PerPrompt]:
    return [one for one in processors if isinstance(one, PerPrompt) and one.prompts is not None]


def _another_number(processor: PerPrompt, found: str) -> ConfigError:
    return ConfigError(f"{name_of(processor)} is for {processor.prompts} prompts, but there are {found}.",
                       fix="Give it something for each prompt, in the prompts' order.")  # fmt: skip
