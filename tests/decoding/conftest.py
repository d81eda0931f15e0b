"""Toy steppers for the decoding tests: table-driven machines whose next logits depend on every token so far, and an exhaustive search."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

torch.set_num_threads(1)
STATES = 1009                                                    # prime, so that different prefixes seldom meet


class Machine:
    """A Stepper in fp64 over prompts that are tuples of tokens. Asserts its side of the contract and counts the rows it saw."""

    def __init__(self, vocabulary: int, seed: int, spread: float = 1.5) -> None:
        self.table = torch.randn(STATES, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread
        self.widths: list[int] = []                              # rows of each step
        self.compactions = 0

    def fold(self, tokens: tuple[int, ...]) -> int:
        state = 1
        for token in tokens:
            state = (state * 31 + token + 7) % STATES
        return state

    def start(self, batch: Any, encoder_batch: Any = None) -> Tensor:
        self.state = torch.tensor([self.fold(prompt) for prompt in batch], dtype=torch.long)
        self.owner = torch.arange(len(batch))
        self.widths = []
        return self.table[self.state]

    def step(self, tokens: Tensor) -> Tensor:
        assert tokens.shape == self.state.shape and tokens.dtype == torch.long
        self.widths.append(len(tokens))
        self.state = (self.state * 31 + tokens + 7) % STATES
        return self.table[self.state]

    def select(self, index: Tensor) -> None:
        assert index.dtype == torch.long and index.ndim == 1
        self.owner = self.owner[index]
        assert bool((self.owner.diff() >= 0).all()), "rows of one prompt must stay adjacent, in the order of the prompts"
        self.state = self.move(self.state, index)

    def move(self, state: Tensor, index: Tensor) -> Tensor:
        return state[index]

    def compact(self) -> None:
        self.compactions += 1


class Forgetful(Machine):
    """The planted fault: error 3 of bert4keras. Rows are fanned out and dropped, but no state moves with its beam."""

    def move(self, state: Tensor, index: Tensor) -> Tensor:
        return state[torch.arange(len(index)) % len(state)]


def enumerate_all(machine: Machine, prompt: tuple[int, ...], limits: Any, penalty: float = 0.0,
                  banned: Callable[[tuple[int, ...]], set[int]] = lambda tokens: set()) -> list[tuple[float, tuple[int, ...]]]:
    """Every hypothesis that the limits allow with its score, best first: plain Python, no state, no batch."""
    found: list[tuple[float, tuple[int, ...]]] = []

    def grow(tokens: tuple[int, ...], total: float) -> None:
        count = sum(token in limits.ends for token in tokens)
        if tokens and (len(tokens) == limits.max_new or (tokens[-1] in limits.ends and count >= limits.min_ends)):
            found.append((total / len(tokens)**penalty, tokens))
            return
        logits = dict(enumerate(machine.table[machine.fold(prompt + tokens)].tolist()))
        out = banned(tokens)
        if len(tokens) < limits.min_new and count >= limits.min_ends - 1:
            out = out | set(limits.ends)
        logits = {token: logit for token, logit in logits.items() if token not in out}
        if not logits:                                           # a dead end: no hypothesis goes through here
            return
        mass = math.fsum(map(math.exp, logits.values()))
        for token, logit in logits.items():
            grow((*tokens, token), total + logit - math.log(mass))

    grow((), 0.0)
    return sorted(found, key=lambda pair: -pair[0])


@pytest.fixture
def machine() -> type[Machine]:
    return Machine


@pytest.fixture
def forgetful() -> type[Forgetful]:
    return Forgetful


@pytest.fixture
def exhaustive() -> Callable[..., list[tuple[float, tuple[int, ...]]]]:
    return enumerate_all
