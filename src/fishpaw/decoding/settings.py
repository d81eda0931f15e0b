"""How to decode, as plain values: which search, and its processors in the one order in which they make sense."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fishpaw.decoding.contrastive import contrastive, stream_contrastive
from fishpaw.decoding.hypothesis import Hypothesis
from fishpaw.decoding.limits import Limits, check_whole
from fishpaw.decoding.processors import Processor, Temperature, TopK, TopP
from fishpaw.decoding.repetition import Dry, FrequencyPenalty, NoRepeatNgram, PresencePenalty, RepetitionPenalty
from fishpaw.decoding.sample import sample, stream_sample
from fishpaw.decoding.search import beam, greedy, stream_greedy
from fishpaw.decoding.stepper import TransformerStepper
from fishpaw.decoding.termination import ConsistentTopK, ConsistentTopP
from fishpaw.decoding.truncation import Epsilon, Eta, MinP, Typical
from fishpaw.decoding.walk import Stop, Streamed
from fishpaw.errors import ConfigError

__all__ = ["Settings"]

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical", "eta", "epsilon")


@dataclass(frozen=True)
class Settings:
    """Greedy search unless `sample`, `beams` or `contrastive_k` says otherwise; None and the defaults leave a thing out.

    n: answers a prompt, at most `beams` unless they are drawn. The rest are the values of the processors of the same names (decoding/
    processors, truncation, repetition); dry: the multiplier. consistent: top_k and top_p always keep the end token (arXiv:2002.02492).
    ConfigError at once for what excludes each other, and for beams and n that are no whole number from 1; for another value out of range
    when `processors` or a search reads it.
    """

    sample: bool = False
    beams: int = 1
    n: int = 1
    length_penalty: float | None = None
    contrastive_k: int | None = None
    contrastive_alpha: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical: float | None = None
    eta: float | None = None
    epsilon: float | None = None
    consistent: bool = False
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    no_repeat_ngram: int | None = None
    dry: float | None = None

    def __post_init__(self) -> None:
        check_whole("beams", self.beams, 1, None)
        check_whole("n", self.n, 1, None)
        asked = {"sample": self.sample, "beams": self.beams != 1, "contrastive_k": self.contrastive_k is not None}
        searches = [name for name, given in asked.items() if given]
        if len(searches) > 1:
            raise ConfigError(f"{' and '.join(searches)} exclude each other.", fix="Leave one out.")
        if not self.sample and self.n > max(1, self.beams):
            raise ConfigError(f"n is {self.n}; so many answers need sampling or as many beams.", fix="Add one of them.")
        if self.length_penalty is not None and self.beams == 1:
            raise ConfigError("length_penalty is for the beam search.", fix="Set beams to 4, for example.")
        if self.contrastive_alpha is not None and self.contrastive_k is None:
            raise ConfigError("contrastive_alpha is for contrastive search.", fix="Set contrastive_k to 5, for example.")
        given = [name for name in _SAMPLING if getattr(self, name) is not None]
        if given and not self.sample:
            raise ConfigError(f"{given[0]} is for sampling.", fix="Set sample.")
        if self.consistent and self.top_k is None and self.top_p is None:
            raise ConfigError("consistent is for top_k and top_p.", fix="Set one of them.")

    def processors(self, *, constraints: Sequence[Processor] = (), prompt: bool = True, breakers: Collection[int] = (),
                   ends: tuple[int, ...] = ()) -> list[Processor]:
        """In this order: penalties (repetition, frequency, presence, n-grams, DRY), constraints, temperature, top-k, top-p, min-p, typical,
        eta, epsilon. Penalties come first, as they are defined on a model's own logits; truncations come behind the temperature, as top-k
        then top-p of every library; each sees what the one before it left. prompt: whether penalties read the prompt; breakers: of DRY;
        ends: of `consistent`."""
        made: list[Processor | None] = [
            _made(self.repetition_penalty, lambda value: RepetitionPenalty(value, prompt=prompt)),
            _made(self.frequency_penalty, FrequencyPenalty),
            _made(self.presence_penalty, PresencePenalty),
            _made(self.no_repeat_ngram, lambda n: NoRepeatNgram(n, prompt=prompt)),
            _made(self.dry, lambda multiplier: Dry(multiplier, breakers=breakers, prompt=prompt)),
            *constraints,
            _made(self.temperature, Temperature),
            _made(self.top_k, lambda k: ConsistentTopK(k, ends=ends) if self.consistent else TopK(k)),
            _made(self.top_p, lambda p: ConsistentTopP(p, ends=ends) if self.consistent else TopP(p)),
            _made(self.min_p, MinP),
            _made(self.typical, Typical),
            _made(self.eta, Eta),
            _made(self.epsilon, Epsilon),
        ]
        return [one for one in made if one is not None]

    def search(self, stepper: TransformerStepper, prompts: Any, *, limits: Limits, processors: Sequence[Processor] = (),
               stops: Sequence[Stop] = (), generator: torch.Generator | Sequence[torch.Generator] | None = None) -> list[list[Hypothesis]]:
        """The answers of each prompt, in the order of the prompts; of beams best first, of samples as drawn."""
        if self.sample:
            return sample(stepper, prompts, limits=limits, n=self.n, processors=processors, stops=stops, generator=generator)
        if self.contrastive_k is not None:
            k, alpha = self._contrastive()
            return [[one] for one in contrastive(stepper, prompts, k=k, alpha=alpha, limits=limits, processors=processors, stops=stops)]
        if (self.beams, self.n) == (1, 1):
            return [[one] for one in greedy(stepper, prompts, limits=limits, processors=processors, stops=stops)]
        return beam(stepper, prompts, beams=self.beams, n=self.n, length_penalty=self.length_penalty or 0.0, limits=limits,
                    processors=processors, stops=stops)

    def stream(self, stepper: TransformerStepper, prompts: Any, *, limits: Limits, processors: Sequence[Processor] = (),
               stops: Sequence[Stop] = (), generator: torch.Generator | Sequence[torch.Generator] | None = None) -> Iterator[Streamed]:
        """As `search`, a token at a time. ConfigError for beams, which are not known before the end, and for more than one answer."""
        if self.beams != 1 or self.n != 1:
            raise ConfigError("A stream is one answer as it comes: no beams, no n.", fix="Leave them out.")
        if self.sample:
            return stream_sample(stepper, prompts, limits=limits, processors=processors, stops=stops, generator=generator)
        if self.contrastive_k is not None:
            k, alpha = self._contrastive()
            return stream_contrastive(stepper, prompts, k=k, alpha=alpha, limits=limits, processors=processors, stops=stops)
        return stream_greedy(stepper, prompts, limits=limits, processors=processors, stops=stops)

    def _contrastive(self) -> tuple[int, float]:
        return self.contrastive_k or 0, 0.6 if self.contrastive_alpha is None else self.contrastive_alpha


def _made(value: Any, make: Callable[[Any], Processor]) -> Processor | None:
    return None if value is None else make(value)
