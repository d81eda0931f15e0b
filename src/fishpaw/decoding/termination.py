"""Generation that is proven to end: consistent truncations, the self-terminating language model (arXiv:2002.02492), its non-monotonic
successor (arXiv:2210.00660), what is proven of a search, and a detector of loops for what isn't."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fishpaw import checks
from fishpaw.decoding.constraints import Constraint
from fishpaw.decoding.copying import CopyOnly, CopyTags
from fishpaw.decoding.limits import Limits, check_real, check_whole
from fishpaw.decoding.processors import Processor, Temperature, TopK, TopP, name_of
from fishpaw.decoding.truncation import Epsilon, Eta, MinP, Typical
from fishpaw.errors import ConfigError
from fishpaw.model.heads import LanguageModel
from fishpaw.model.transformer import Transformer

__all__ = [
    "ConsistentTopK", "ConsistentTopP", "LoopDetector", "NonMonotone", "SelfTerminating", "Termination", "ending_of", "termination",
]  # fmt: skip


@dataclass(frozen=True)
class ConsistentTopK:
    """Keep the k best tokens (and their ties) and the end tokens: what could end at each step still can. arXiv:2002.02492, section 4.1."""

    k: int
    ends: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_ends(self.ends)
        TopK(self.k)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        return _united(TopK(self.k)(logits, tokens), logits, self.ends)


@dataclass(frozen=True)
class ConsistentTopP:
    """Keep the nucleus of mass p, as TopP does, and the end tokens. arXiv:2002.02492, section 4.1."""

    p: float
    ends: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_ends(self.ends)
        TopP(self.p)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        return _united(TopP(self.p)(logits, tokens), logits, self.ends)


@dataclass(eq=False)
class SelfTerminating:
    """Raw logits -> log-probabilities of which that of the end can only rise (arXiv:2002.02492, section 4.2). At the t-th new token

        s_t = (1 - epsilon) sigmoid(z_end),   a_t = s_1 s_2 … s_t,   p(end) = 1 - a_t,   p(v) = a_t softmax(the logits without the end's)

    hence p(end) >= 1 - (1 - epsilon)^t. A high z_end means going on. State: log a of each row, in fp64: 69,315 rounded steps stay exact.
    TransformerStepper applies the one that its model was trained with (`ending_of`) by itself. By hand it is the first of the processors,
    and without min_new: whatever bans the end before z_end was read is a ConfigError. Logits [r v], or [r u v] of u steps in one.
    """

    end: int
    epsilon: float
    _log_alive: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check_ending(self.end, self.epsilon)
        self.start(None, 0)

    def start(self, prompts: Any, rows: int) -> None:
        """A new search of so many rows; none has gone any step."""
        self._log_alive = torch.zeros(rows, dtype=torch.float64)                                              # [r]

    def select(self, index: Tensor) -> None:
        """index [r']: state j continues old state index[j]."""
        self._log_alive = self._log_alive.to(index.device)[index]

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        score = _score_of(self.end, logits)                                                                   # [r] | [r u]
        if len(score) != len(self._log_alive):
            raise ValueError(f"{len(score)} rows of logits, but {len(self._log_alive)} states: call start, and select at each move")
        steps = (logsigmoid(score) + math.log1p(-self.epsilon)).view(len(score), -1)                          # [r u]
        log_alive = self._log_alive.to(score.device)[:, None] + steps.cumsum(1)                               # [r u]
        self._log_alive = log_alive[:, -1]
        return _distribution(logits, log_alive.view_as(score), self.end)


@dataclass(eq=False)
class NonMonotone:
    """As SelfTerminating, but p(end) may fall again: only its lower bound rises (NMST, arXiv:2210.00660). At the t-th new token

        p(end) = (1 - (1 - epsilon)^t) (1 - sigmoid(z_end)) + sigmoid(z_end),   that is   a_t = (1 - epsilon)^t sigmoid(-z_end)

    A high z_end means ending. State: how many steps were gone, the same in all rows.
    """

    end: int
    epsilon: float
    _steps: int = field(init=False, repr=False, default=0)

    def __post_init__(self) -> None:
        _check_ending(self.end, self.epsilon)

    def start(self, prompts: Any, rows: int) -> None:
        """A new search."""
        self._steps = 0

    def select(self, index: Tensor) -> None:
        """Rows move; all of them have gone as many steps."""

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        score = _score_of(self.end, logits)                                                                   # [r] | [r u]
        new = score.shape[1] if score.dim() == 2 else 1
        step = torch.arange(1, new + 1, device=score.device).double() + self._steps                           # [u]
        self._steps += new
        return _distribution(logits, logsigmoid(-score) + step * math.log1p(-self.epsilon), self.end)


def ending_of(model: Transformer) -> SelfTerminating | NonMonotone | None:
    """A fresh processor for the ending of a model's head "lm"; None where it is an ordinary softmax."""
    head = model.heads["lm"] if "lm" in model.heads else None
    if not isinstance(head, LanguageModel) or head.ending is None:
        return None
    kind = SelfTerminating if head.ending.name == "self_terminating" else NonMonotone
    return kind(head.ending.end, head.ending.epsilon)


@dataclass(frozen=True)
class Termination:
    """What is proven of a search, whatever the weights are; as a str one sentence.

    steps: no answer is longer, in tokens, end included; None: no such number is proven. surely: an answer of a random search ends with
    probability 1. expected: its mean length is not more, None: not known. reason: what it follows from, in words.
    """

    search: str
    steps: int | None
    surely: bool
    expected: float | None
    reason: str

    def __str__(self) -> str:
        name = {"greedy": "Greedy search", "beam": "Beam search", "sample": "Sampling"}[self.search]
        if self.steps is not None:
            return f"{name} ends after {self.steps:,} tokens at most: {self.reason}."
        if not self.surely:
            return f"{name} is not proven to end before max_new: {self.reason}."
        mean = "" if self.expected is None else f", after {self.expected:,.0f} tokens at most on average"
        return f"{name} ends with probability 1{mean}: {self.reason}."


def termination(ending: SelfTerminating | NonMonotone | None, limits: Limits, *, search: str = "greedy", answers: int = 1,
                length_penalty: float = 0.0, processors: Sequence[Processor] = (), floor: float | None = None) -> Termination:
    """What is proven of "greedy", "beam" or "sample" with these settings; max_new, which ends all, is left out of it.

    ending: of the model (`stepper.ending`, `ending_of(model)`), None for a softmax. answers: n of a beam search, or its beams if it
    stops by `full` or `unpromising`. processors: those after the ending. floor: a lower bound of p(end) at each step, where one is known:
    that of a softmax over bounded logits. Let (1 - epsilon)^m < 1/2 first hold at m. From the m-th token on the end outweighs all others
    together: greedy search takes it, no truncation drops it, and a beam search closes its best beam at each step, so that after n such
    steps n answers are better than what still lives. With a constraint of the same limits that closes whatever it begins (Choices, Pattern,
    CopyOnly), and no more than truncations behind it, each answer is whole within max_new: that is `steps` then. Raises ConfigError for a
    setting out of range, or an end that isn't in limits.ends.
    """
    checks.one_of("search", search, ("greedy", "beam", "sample"))
    check_whole("answers", answers, 1, None)
    if floor is not None:
        check_real("floor", floor, "0 < floor <= 1", lambda value: 0 < value <= 1)
    if ending is not None and ending.end not in limits.ends:
        raise ConfigError(f"The model ends with token {ending.end}, but ends is {limits.ends}.", fix=f"Put {ending.end} into ends.")
    closing = None
    for one in processors:
        if isinstance(one, _CLOSING) and one.limits == limits:
            closing = one
        elif not isinstance(one, (*_KNOWN, Typical)):            # what may ban all that closes, or allow what was banned
            closing = None
    strange = [one for one in processors if not isinstance(one, _KNOWN)]
    truncated = any(isinstance(one, _TRUNCATIONS) for one in processors)
    hottest = max((one.value for one in processors if isinstance(one, Temperature)), default=1.0)
    heated = any(isinstance(one, Temperature) and one.value != 1 for one in processors)

    def found(reason: str, steps: int | None = None, expected: float | None = None) -> Termination:
        return Termination(search, steps, steps is not None or surely, expected, reason)

    surely = False
    if closing is not None:
        return found(f"{name_of(closing)} closes each answer within max_new", steps=limits.max_new)
    if strange:
        return found(f"what {name_of(strange[0])} does to the end is not known")
    if ending is None and search == "sample" and floor is not None and not truncated:
        surely = True
        mean = None if heated else limits.min_new + limits.min_ends / floor
        return found(f"the end's probability is at least {floor:g} at each step", expected=mean)
    if ending is None:
        return found("a truncation may drop the end" if search == "sample" and truncated else "a softmax may rank the end last for ever")
    name = "self-terminating" if isinstance(ending, SelfTerminating) else "non-monotonic self-terminating"
    because = f"the model is {name}, epsilon {ending.epsilon:g}"
    rate = -math.log1p(-ending.epsilon)
    most = math.floor(math.log(2) / rate) + 1
    if search == "sample":
        surely = True
        # Ancestral: the t-th token is no end with probability (1 - epsilon)^t at most; the sum of their products lies under a Gauss curve.
        mean = most + 1 if truncated or heated else 1 + math.sqrt(math.pi / 2 / rate)
        return found(because, expected=None if hottest > 1 else limits.min_new + limits.min_ends * mean)
    if search == "beam" and (length_penalty > 0 or hottest > 1 or limits.min_ends > 1):
        return found("the proof is for length_penalty <= 0, temperatures <= 1 and min_ends 1")
    return found(because, steps=max(most, limits.min_new + 1) + (answers if search == "beam" else limits.min_ends) - 1)


@dataclass(frozen=True)
class LoopDetector:
    """A stop: True where a row's last tokens are one period said `times` times or more, over `least` tokens or more.

    times: 2 or more; longest: the longest period looked for, in tokens, 1 or more; least: 1 or more (哈哈哈 is no loop yet).
    """

    times: int = 4
    longest: int = 64
    least: int = 16

    def __post_init__(self) -> None:
        check_whole("times", self.times, 2, None)
        check_whole("longest", self.longest, 1, None)
        check_whole("least", self.least, 1, None)

    def __call__(self, tokens: Tensor) -> Tensor:
        return self.periods(tokens) > 0

    def periods(self, tokens: Tensor) -> Tensor:
        """tokens [r u] -> the shortest period in which each row loops, in tokens [r]; 0 where it doesn't."""
        found = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)                              # [r]
        length = tokens.shape[1]
        for period in range(1, min(self.longest, length // 2) + 1):
            span = max(self.times * period, self.least)
            if span <= length:
                tail = tokens[:, length - span :]                                                             # [r span]
                same = (tail[:, period:] == tail[:, :-period]).all(1)                                         # [r]
                found = torch.where((found == 0) & same, period, found)
        return found


_TRUNCATIONS = (TopK, TopP, MinP, Eta, Epsilon)                 # those that keep the best token always, which Typical doesn't
_KNOWN = (Temperature, ConsistentTopK, ConsistentTopP, CopyTags, *_TRUNCATIONS)           # CopyTags never bans the end
_CLOSING = (Constraint, CopyOnly)


def _check_ends(ends: object) -> None:
    if not isinstance(ends, tuple) or not ends:
        raise ConfigError(f"ends is {ends!r}; allowed: a tuple of at least one token id.", fix="Write ends=(102,) for the one token 102.")
    for end in ends:
        check_whole("ends", end, 0, None)


def _check_ending(end: object, epsilon: object) -> None:
    check_whole("end", end, 0, None)
    check_real("epsilon", epsilon, "0 < epsilon < 1", lambda value: checks.SMALLEST <= value < 1)


def _united(kept: Tensor, logits: Tensor, ends: tuple[int, ...]) -> Tensor:
    """The truncated logits, with the end tokens' own put back."""
    if max(ends) >= logits.shape[-1]:
        raise ConfigError(f"ends names token {max(ends)}; allowed: 0 to {logits.shape[-1] - 1}.", fix="Take it from the model's tokenizer.")
    kept = kept.clone()
    for end in ends:
        kept[..., end] = logits[..., end]
    return kept


def _score_of(end: int, logits: Tensor) -> Tensor:
    """The end's logit in fp64, [r] | [r u]."""
    if end >= logits.shape[-1]:
        raise ConfigError(f"end is {end}; allowed: 0 to {logits.shape[-1] - 1}.", fix="Take it from the model's tokenizer.")
    score = logits[..., end].double()
    if bool((score == float("-inf")).any()):
        fix = "Put the ending first; min_new needs it in the model's head, where TransformerStepper applies it before."
        raise ConfigError(f"The end token {end} was banned before its ending could read its logit.", fix=fix)
    return score


def _distribution(logits: Tensor, log_alive: Tensor, end: int) -> Tensor:
    """log p: 1 - exp(log_alive) for the end, the rest by softmax over the others; in fp32 at least."""
    made = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)                             # [r v]
    made[..., end] = float("-inf")
    made += (log_alive - made.logsumexp(-1).double())[..., None].to(made.dtype)
    made[..., end] = torch.log(-torch.expm1(log_alive)).to(made.dtype)
    return made
