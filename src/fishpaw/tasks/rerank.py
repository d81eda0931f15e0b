"""Of several replies, which one answers this history and not any: mutual information, by one model (Li et al., arXiv:1510.03055) or with a
second one that guesses backwards (DialoGPT, arXiv:1911.00536, section 3.2). Both punish "I don't know", which is probable everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fishpaw.decoding.hypothesis import Hypothesis
from fishpaw.decoding.limits import check_real, check_whole
from fishpaw.decoding.scoring import score
from fishpaw.errors import ConfigError
from fishpaw.tasks.dialogue import Dialogue

__all__ = ["Backward", "Mutual"]


@dataclass(frozen=True)
class Mutual:
    """log p(reply | history) - weight * log p(reply) + reward * tokens, all by the model that replies. p(reply): of the same speaker's
    answer to a turn without words, as Dialogue.fit teaches it (alone). weight: 0 ranks by probability, 1 by pointwise mutual
    information. reward: a token, against brevity."""

    weight: float = 0.5
    reward: float = 0.0

    def __post_init__(self) -> None:
        check_real("weight", self.weight, "0 to 1", lambda value: 0 <= value <= 1)
        check_real("reward", self.reward, "a finite number", lambda value: True)

    def __call__(self, task: Dialogue, history: Sequence[str], candidates: Sequence[Hypothesis]) -> list[float]:
        """A number a candidate, larger is better."""
        texts = [one.tokens for one in candidates]
        longest = max(map(len, texts))
        stepper = task.stepper(len(history))
        (given,) = score(stepper, task.prompts([history], max_new=longest), [texts])
        unheard = task.layout.latest(task.layout.silence(len(history)), len(task.layout.start) + 1)
        (alone,) = score(stepper, task.lay([unheard]), [texts])
        return [one.score - self.weight * other.score + self.reward * len(one.tokens) for one, other in zip(given, alone, strict=True)]


@dataclass(frozen=True)
class Backward:
    """log p(history | reply), by a Dialogue that was trained on conversations backwards (Conversation.backwards). turns: how many of the
    last turns it has to guess, fewer where there are fewer."""

    task: Dialogue
    turns: int = 1

    def __post_init__(self) -> None:
        check_whole("turns", self.turns, 1, None)
        if self.task.template is not None:
            raise ConfigError("The backward model has a chat template.", fix="Train one on conversations backwards.")

    def __call__(self, task: Dialogue, history: Sequence[str], candidates: Sequence[Hypothesis]) -> list[float]:
        """A number a candidate, larger is better."""
        known = [[task.writer.decode(one)] for one in candidates]
        found = [0.0] * len(candidates)
        for turn in reversed(history[-self.turns :]):
            (guessed,) = self.task.layout.turns([turn])
            guessed = guessed[-(self.task.max_length // 2) :]       # as where a history is cut: its end
            prompts = self.task.prompts(known, max_new=len(guessed))
            for number, (one,) in enumerate(score(self.task.stepper(len(known[0])), prompts, [[guessed]] * len(known))):
                found[number] += one.score
            known = [[*each, turn] for each in known]
        return found
