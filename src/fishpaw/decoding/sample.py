"""Sampling: each token is drawn from the model's distribution as the processors leave it; n samples of a prompt share its keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fishpaw.decoding.hypothesis import Hypothesis
from fishpaw.decoding.limits import Limits, check_whole
from fishpaw.decoding.processors import Chain, Processor
from fishpaw.decoding.walk import Step, Stop, Streamed, collect, flatten, walk
from fishpaw.errors import ConfigError

if TYPE_CHECKING:
    from fishpaw.contracts import Stepper

__all__ = ["sample", "stream_sample"]

MOST_SAMPLES = 2**16

Generators = torch.Generator | Sequence[torch.Generator] | None


def sample(stepper: Stepper, prompts: Any, encoder_batch: Any = None, *, limits: Limits, n: int = 1, processors: Sequence[Processor] = (),
           stops: Sequence[Stop] = (), generator: Generators = None) -> list[list[Hypothesis]]:
    """n independent continuations of each prompt: a list of n a prompt, in the order in which they were drawn.

    processors: applied in their order; (Temperature(0.8), TopK(40), TopP(0.95)) is top-k first, then top-p. What is left is renormalised.
    generator: None takes torch's global one. At each step every row of the start consumes one number, whether it is still alive or not:
    equal seeds give equal samples on any device, and when one row ends does not change what another draws. A sequence of generators, one a
    prompt: each draws the numbers of its prompt only, so that prompts give the same samples together as one by one.
    Raises ConfigError for a bad setting, FishpawError where the processors leave no token.
    """
    return collect(_steps(stepper, prompts, encoder_batch, limits, n, processors, stops, generator), n)


def stream_sample(stepper: Stepper, prompts: Any, encoder_batch: Any = None, *, limits: Limits, n: int = 1,
                  processors: Sequence[Processor] = (), stops: Sequence[Stop] = (), generator: Generators = None) -> Iterator[Streamed]:
    """As `sample`, a token at a time, as it is drawn. Settings are checked at the call; close the iterator to stop early."""
    return flatten(_steps(stepper, prompts, encoder_batch, limits, n, processors, stops, generator), n)


def _steps(stepper: Stepper, prompts: Any, encoder_batch: Any, limits: Limits, n: int, processors: Sequence[Processor],
           stops: Sequence[Stop], generator: Generators) -> Iterator[Step]:
    check_whole("n", n, 1, MOST_SAMPLES)
    sources = list(generator) if isinstance(generator, Sequence) else [generator]

    def choose(scores: Tensor, rows: Tensor, total: int) -> Tensor:
        if len(sources) not in (1, total // n):
            raise ConfigError(f"There are {len(sources)} generators for {total // n} prompts.", fix="Give one a prompt, or a single one.")
        uniform = torch.cat([_numbers(total // len(sources), one) for one in sources]).to(scores.device)        # [total]
        return _draw(scores, uniform[rows])

    return walk(stepper, prompts, encoder_batch, limits=limits, chain=Chain(limits, processors), stops=stops, choose=choose, fan=n)


def _numbers(count: int, generator: torch.Generator | None) -> Tensor:
    """Numbers in [0, 1), [count] in fp64."""
    device = torch.device("cpu") if generator is None else generator.device
    return torch.rand(count, generator=generator, dtype=torch.float64, device=device)


def _draw(scores: Tensor, uniform: Tensor) -> Tensor:
    """Log-probabilities [r v], numbers in [0, 1) [r] -> tokens [r], by inversion: one number a row where torch.multinomial takes v."""
    mass = scores.exp().cumsum(-1, dtype=torch.float64)                                                       # [r v]
    total = mass[:, -1]                                                                                       # [r]
    point = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))                   # [r] < total, even rounded
    # right=True: the first token whose mass is strictly above the point, hence never one of probability 0
    return torch.searchsorted(mass, point[:, None], right=True)[:, 0]                                         # [r]
