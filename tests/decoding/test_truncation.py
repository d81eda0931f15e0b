"""Truncations: against plain loops and transformers' warpers, laws of each set, planted faults, values out of range."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from fishpaw.decoding.limits import Limits
from fishpaw.decoding.processors import Chain, Temperature, TopK
from fishpaw.decoding.truncation import Epsilon, Eta, MinP, Typical
from fishpaw.errors import ConfigError

NEVER = float("-inf")
NONE = torch.zeros(1, 0, dtype=torch.long)


def logits_of(seed: int, rows: int = 5, vocabulary: int = 31) -> torch.Tensor:
    """fp64, of very different entropies from row to row."""
    source = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocabulary, generator=source, dtype=torch.float64) * torch.logspace(-1, 1, rows, dtype=torch.float64)[:, None]


def kept(logits: torch.Tensor) -> list[set[int]]:
    return [set((row > NEVER).nonzero()[:, 0].tolist()) for row in logits]


def by_hand(kind: type, value: float, p: list[float]) -> set[int]:
    """The definitions, a token at a time."""
    entropy = -math.fsum(x * math.log(x) for x in p if x > 0)
    if kind is MinP:
        return {i for i, x in enumerate(p) if x >= value * max(p)}
    if kind is Eta:
        return {i for i, x in enumerate(p) if x >= min(value, math.sqrt(value) * math.exp(-entropy))}
    if kind is Epsilon:
        return {i for i, x in enumerate(p) if x >= value or x == max(p)}
    order = sorted((i for i, x in enumerate(p) if x > 0), key=lambda i: abs(-math.log(p[i]) - entropy))
    sums = itertools.accumulate(p[i] for i in order)
    return set(order[: next(count for count, mass in enumerate(sums, 1) if mass >= value)])


SETTINGS = [(MinP, 0.05), (MinP, 0.3), (MinP, 1.0), (Typical, 0.2), (Typical, 0.7), (Typical, 0.95), (Eta, 3e-4), (Eta, 0.02), (Eta, 0.4),
            (Epsilon, 3e-4), (Epsilon, 0.05), (Epsilon, 0.9)]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("kind", "value"), SETTINGS)
def test_the_set_is_that_of_the_definition(kind, value, seed):
    logits = logits_of(seed)
    logits[:, 7] = NEVER                                         # banned before
    out = kind(value)(logits, NONE)
    assert kept(out) == [by_hand(kind, value, row) for row in logits.softmax(-1).tolist()]
    stay = out > NEVER
    assert torch.equal(out[stay], logits[stay]) and not out.isnan().any()


def test_a_fault_in_a_definition_is_seen():
    """Planted: the nucleus in place of the typical set, an entropy in bits."""
    logits = logits_of(1)
    rows = logits.softmax(-1).tolist()
    nucleus = [set(sorted(range(31), key=lambda i: -row[i])[:4]) for row in rows]
    assert kept(Typical(0.3)(logits, NONE)) != nucleus
    assert [by_hand(Eta, 0.4, row) for row in rows] != [by_hand(Eta, 0.4 / math.log(2), row) for row in rows]


@pytest.mark.parametrize(("kind", "value"), SETTINGS)
def test_a_common_shift_changes_nothing_and_something_is_left(kind, value):
    logits = logits_of(9)
    here, there = kind(value)(logits, NONE), kind(value)(logits + 13, NONE)
    assert kept(here) == kept(there) and all(kept(here))
    if kind is not Typical:
        best = logits.argmax(-1)
        assert all(int(token) in row for token, row in zip(best, kept(here), strict=True))


@pytest.mark.parametrize("kind", [MinP, Typical, Eta, Epsilon])
def test_sets_are_nested_and_ties_stay_together(kind):
    narrow, wide = (0.9, 0.5) if kind is Typical else (0.01, 0.2)
    more, fewer = kind(narrow)(logits_of(3), NONE), kind(wide)(logits_of(3), NONE)
    assert all(few <= many for few, many in zip(kept(fewer), kept(more), strict=True)) and kept(fewer) != kept(more)
    tied = torch.tensor([[2.0, 1, 1, 0, 0, 0, -1, -1]], dtype=torch.float64)
    for value in (0.05, 0.2, 0.5, 0.8):
        (found,) = kept(kind(value)(tied, NONE))
        assert all({*group} <= found or not {*group} & found for group in ((1, 2), (3, 4, 5), (6, 7)))


@pytest.mark.parametrize(("spread", "low", "high"), [(6.0, 1, 256), (1.5, 257, 2048), (0.3, 2049, 4999)])
def test_a_typical_set_of_any_size(spread, low, high):
    logits = torch.randn(2, 5003, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * spread
    for row, found in zip(logits.softmax(-1).tolist(), kept(Typical(0.7)(logits, NONE)), strict=True):
        assert low <= len(found) <= high and found == by_hand(Typical, 0.7, row)


def test_limits_keep_all():
    flat = torch.zeros(1, 5003)
    assert torch.equal(Typical(1.0)(logits_of(2), NONE), logits_of(2)) and kept(MinP(1.0)(flat, NONE)) == [set(range(5003))]
    assert kept(Eta(0.5)(flat, NONE)) == kept(Epsilon(0.5)(flat, NONE)) == [set(range(5003))]


def test_a_single_token_left_survives_all():
    only = torch.full((2, 11), NEVER)
    only[:, 4] = -3.0
    for one in (MinP(0.5), Typical(0.5), Eta(0.5), Epsilon(0.5)):
        assert kept(one(only, NONE)) == [{4}, {4}]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_they_compose(dtype):
    chain = Chain(Limits(3), [Temperature(0.8), TopK(20), MinP(0.01), Typical(0.9), Eta(1e-3)])
    scores, emptied = chain(logits_of(4).to(dtype), NONE)
    assert emptied is None and scores.dtype == dtype
    assert torch.allclose(scores.exp().sum(-1), torch.ones(5, dtype=dtype))


@pytest.mark.parametrize("value", [0, -0.1, 1.5, float("nan"), float("inf"), True, "0.5", None])
@pytest.mark.parametrize(("kind", "name"), [(MinP, "min_p"), (Typical, "typical"), (Eta, "eta"), (Epsilon, "epsilon")])
def test_values_out_of_range(kind, name, value):
    with pytest.raises(ConfigError, match=f"^{name} is .*allowed: 0 < "):
        kind(value)


@pytest.mark.parametrize("kind", [Eta, Epsilon])
def test_a_threshold_of_one_is_out_of_range(kind):
    with pytest.raises(ConfigError, match="< 1"):
        kind(1)


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("kind", "value"), [one for one in SETTINGS if one != (MinP, 1.0)])
def test_as_transformers(kind, value, seed):
    from transformers.generation import logits_process as theirs

    peer = {MinP: theirs.MinPLogitsWarper, Typical: theirs.TypicalLogitsWarper, Eta: theirs.EtaLogitsWarper,
            Epsilon: theirs.EpsilonLogitsWarper}[kind](value)  # fmt: skip
    logits = logits_of(seed, rows=7, vocabulary=997)
    assert torch.equal(kind(value)(logits, NONE), peer(NONE, logits.clone()))
