"""Choose among given answers by the probability that a language model gives each: classification without training, from a prompt alone.

Raw probabilities favour short answers and words that are frequent anywhere. What is made of them is an object: their Sum, their Mean a
token, pointwise mutual information (PMI), contextual calibration (Contextual), or one of your own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fishpaw.decoding.hypothesis import Hypothesis
from fishpaw.decoding.limits import check_whole
from fishpaw.decoding.scoring import score
from fishpaw.errors import ConfigError, DataError
from fishpaw.tasks.generate import Generate

__all__ = ["Calibration", "Choice", "Contextual", "Mean", "PMI", "Sum", "choose"]

Question = tuple[str, tuple[str, ...]]
"""A prompt and its choices."""


@dataclass(frozen=True)
class Choice:
    """What is chosen for one prompt. index, text: the best (of equals the first); scores: of all, in their order, larger is better;
    probabilities: their softmax."""

    index: int
    text: str
    scores: tuple[float, ...]
    probabilities: tuple[float, ...]


class Calibration(Protocol):
    """How log p(choice | prompt) becomes a score."""

    @property
    def neutral(self) -> tuple[str, ...]:
        """Prompts without content, after which the choices are scored, too; () for none."""

    def __call__(self, sums: Tensor, tokens: Tensor, neutral: Tensor) -> Tensor:
        """sums [c]: log p of each choice; tokens [c]: how many it has; neutral [m c]: log p after each neutral prompt -> scores [c]."""


@dataclass(frozen=True)
class Sum:
    """log p(choice | prompt): exact where no choice begins another, but longer ones have more to lose."""

    neutral: tuple[str, ...] = ()

    def __call__(self, sums: Tensor, tokens: Tensor, neutral: Tensor) -> Tensor:
        return sums


@dataclass(frozen=True)
class Mean:
    """log p(choice | prompt) / tokens."""

    neutral: tuple[str, ...] = ()

    def __call__(self, sums: Tensor, tokens: Tensor, neutral: Tensor) -> Tensor:
        return sums / tokens


@dataclass(frozen=True)
class PMI:
    """log p(choice | prompt) - log p(choice | premise): how much the prompt makes it likelier. premise: the end of the prompt that is the
    same for all, such as "答案：" (arXiv:2104.08315, domain-conditional)."""

    premise: str

    @property
    def neutral(self) -> tuple[str, ...]:
        return (self.premise,)

    def __call__(self, sums: Tensor, tokens: Tensor, neutral: Tensor) -> Tensor:
        return sums - neutral[0]


@dataclass(frozen=True)
class Contextual:
    """log of p(choice | prompt) / mean p(choice | neutral), both among the choices only: q = softmax(diag(p_neutral)^-1 p) of
    arXiv:2102.09690 without its second softmax, which changes no choice. neutral: the whole prompt around "N/A", "[MASK]", ""."""

    neutral: tuple[str, ...]

    def __post_init__(self) -> None:
        if isinstance(self.neutral, str) or not self.neutral:
            raise ConfigError(f"neutral is {self.neutral!r}.", fix='Give prompts without content, (few_shot(examples, "N/A"),).')
        object.__setattr__(self, "neutral", tuple(self.neutral))

    def __call__(self, sums: Tensor, tokens: Tensor, neutral: Tensor) -> Tensor:
        mean = neutral.log_softmax(1).logsumexp(0) - math.log(len(neutral))                                   # [c]
        return sums.log_softmax(0) - mean


_SUM = Sum()


def choose(writer: Generate, prompts: Sequence[str], choices: Sequence[str] | Sequence[Sequence[str]], *,
           calibrate: Calibration = _SUM, batch_size: int = 8) -> list[Choice]:
    """The best of the choices for each prompt. choices: one list for all prompts, or a list for each.

    A causal model goes on from the prompt: a choice is what the tokens of prompt + choice have more than those of the prompt (end the
    prompt without a blank and begin the choices with it, where blanks belong to words), its own tokens where the two don't fit together.
    The answer of an encoder-decoder or a UniLM is the choice and the end token. Prompts that are too long lose their beginning, counted in
    writer.cut. batch_size: prompts read together. Raises DataError for no prompt, no choice or one without tokens, too few or many lists.
    """
    check_whole("batch_size", batch_size, 1, None)
    groups = _groups(prompts, choices)
    distinct = list(dict.fromkeys(groups))
    questions: list[Question] = list(zip(prompts, groups, strict=True))
    questions += [(prompt, group) for group in distinct for prompt in calibrate.neutral]
    scored = _scored(writer, questions, batch_size)
    sums = [torch.tensor([one.score for one in found], dtype=torch.float64) for found in scored]
    of = {group: sums[len(prompts) + place * len(calibrate.neutral) :][: len(calibrate.neutral)] for place, group in enumerate(distinct)}
    chosen = []
    for own, found, group in zip(sums, scored, groups, strict=False):
        neutral = torch.stack(of[group]) if of[group] else own.new_zeros(0, len(own))                         # [m c]
        scores = calibrate(own, torch.tensor([len(one.tokens) for one in found]), neutral)                    # [c]
        best = int(scores.argmax())
        chosen.append(Choice(best, group[best], tuple(scores.tolist()), tuple(scores.softmax(0).tolist())))
    return chosen


def _scored(writer: Generate, questions: Sequence[Question], batch_size: int) -> list[list[Hypothesis]]:
    """The choices of each question, scored; questions of similar length together."""
    groups = [_continuations(writer, *question) for question in questions]
    encoded = [writer.prompt(prompt, max_new=max(map(len, group)) - 1) for (prompt, _), group in zip(questions, groups, strict=True)]
    order = sorted(range(len(questions)), key=lambda place: len(encoded[place]))
    found: dict[int, list[Hypothesis]] = {}
    for start in range(0, len(order), batch_size):
        some = order[start : start + batch_size]
        batch = writer.lay([encoded[place] for place in some])
        found.update(zip(some, score(writer.stepper, batch, [groups[place] for place in some]), strict=True))
    return [found[place] for place in range(len(questions))]


def _continuations(writer: Generate, prompt: str, choices: tuple[str, ...]) -> list[list[int]]:
    made = []
    answers = writer.model.encoder is not None or writer.model.mask.clock == "unilm"
    before = [] if answers else writer.tokenizer.encode(prompt, special=False).ids
    for choice in choices:
        ids = writer.tokenizer.encode(prompt + choice, special=False).ids if before else []
        ids = ids[len(before) :] if ids and ids[: len(before)] == before else writer.tokenizer.encode(choice, special=False).ids
        if not ids:
            raise DataError(f"The choice {choice!r} has no token.", fix="Give it a word.")
        made.append([*ids, *writer.ends[:1]] if answers else ids)
    return made


def _groups(prompts: Sequence[str], choices: Sequence[str] | Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """The choices of each prompt."""
    if isinstance(prompts, str) or not prompts:
        raise DataError("There is no list of prompts.", fix="Give at least one text, in a list.")
    if isinstance(choices, str) or not choices:
        raise DataError("There is no list of choices.", fix="Give at least one choice, in a list.")
    _check_texts("prompt", prompts)
    shared = tuple(one for one in choices if isinstance(one, str))
    if len(shared) == len(choices):
        return [shared] * len(prompts)
    _check_texts("choice", [one for one in choices if not isinstance(one, list | tuple)])
    if shared:
        raise DataError("The choices are texts and lists.", fix="Give one list for all prompts, or a list for each.")
    groups = [tuple(one) for one in choices]
    if len(groups) != len(prompts):
        raise DataError(f"{len(groups)} lists of choices for {len(prompts)} prompts.", fix="Give one for each prompt, or one for all.")
    for group in groups:
        _check_texts("choice", group)
    if empty := [place for place, group in enumerate(groups) if not group]:
        raise DataError(f"Prompt {empty[0]} has no choice.", fix="Give it at least one.")
    return groups


def _check_texts(what: str, texts: Sequence[object]) -> None:
    for one in texts:
        if not isinstance(one, str):
            raise DataError(f"A {what} is a {type(one).__name__}, not a string: {one!r:.60}.", fix="Give texts.")
