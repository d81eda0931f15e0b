"""Random states: taken, stored as tensors and put back, all generators draw the same again."""

from __future__ import annotations

import random
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load, save

from fishpaw.errors import CheckpointError
from fishpaw.train.randomness import Randomness, isolated, seed

CPU = torch.device("cpu")


def draws() -> list[Any]:
    return [random.random(), random.gauss(0, 1), numpy.random.rand(), numpy.random.randn(), torch.rand(3).tolist(), torch.randn(1).item()]


@pytest.mark.parametrize("before", [0, 1, 2])
def test_states_survive_a_file_in_the_middle_of_gaussian_pairs_too(before: int) -> None:
    for _ in range(before):
        random.gauss(0, 1), numpy.random.randn()                        # both keep the second of a pair for the next call
    taken = Randomness.take(CPU)
    wanted = draws()
    assert draws() != wanted
    Randomness.from_tensors(load(save(taken.tensors()))).put(CPU)
    assert draws() == wanted


def test_isolated_draws_leave_no_trace_even_after_an_error() -> None:
    taken = Randomness.take(CPU)
    wanted = draws()
    taken.put(CPU)
    with pytest.raises(ZeroDivisionError), isolated(CPU):
        draws()
        raise ZeroDivisionError
    assert draws() == wanted


def test_a_seed_is_all_there_is_to_know() -> None:
    with isolated(CPU):
        results = []
        for value in (5, 5, 2**40 + 5):
            seed(value)
            results.append(draws())
    assert results[0] == results[1] != results[2]


def test_a_missing_state_is_named() -> None:
    states = Randomness.take(CPU).tensors()
    del states["numpy.place"]
    with pytest.raises(CheckpointError, match="'numpy.place' is missing"):
        Randomness.from_tensors(states)
