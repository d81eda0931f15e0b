"""Sampling frequencies equal the probabilities (chi-square), seeds reproduce, and a row's draws do not depend on its neighbours' ends."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from scipy.stats import chisquare

from fishpaw.decoding.limits import Limits
from fishpaw.decoding.processors import Temperature, TopK, TopP
from fishpaw.decoding.sample import _draw, sample
from fishpaw.errors import ConfigError

PROMPTS = [(1, 2), (3,)]


def p_value(counts: Counter, expected: list[tuple[float, tuple[int, ...]]], draws: int) -> float:
    """Chi-square over whole hypotheses; those expected fewer than 5 times are one class."""
    common = [(math.exp(score), tokens) for score, tokens in expected if math.exp(score) * draws >= 5]
    seen = [counts[tokens] for _, tokens in common] + [draws - sum(counts[tokens] for _, tokens in common)]
    hoped = [mass * draws for mass, _ in common] + [draws - sum(mass for mass, _ in common) * draws]
    if hoped[-1] < 5:                                            # merge a tiny rest into the rarest common class
        seen, hoped = [*seen[:-2], seen[-2] + seen[-1]], [*hoped[:-2], hoped[-2] + hoped[-1]]
    return float(chisquare(seen, hoped).pvalue)


def test_frequencies_of_whole_hypotheses(machine, exhaustive):
    stepper, limits, draws = machine(4, seed=11), Limits(3, min_new=1, ends=(0,)), 20_000
    groups = sample(stepper, PROMPTS, limits=limits, n=draws, generator=torch.Generator().manual_seed(7))
    for prompt, group in zip(PROMPTS, groups, strict=True):
        law = exhaustive(stepper, prompt, limits)
        counts = Counter(each.tokens for each in group)
        assert set(counts) <= {tokens for _, tokens in law}
        assert p_value(counts, law, draws) > 1e-3
        scores = dict((tokens, score) for score, tokens in law)
        assert all(abs(each.score - scores[each.tokens]) < 1e-12 for each in group[:500])
    # Planted fault: the frequencies of one prompt are not those of the other.
    assert p_value(Counter(each.tokens for each in groups[0]), exhaustive(stepper, PROMPTS[1], limits), draws) < 1e-6


def test_frequencies_after_temperature_top_k_and_top_p(machine):
    stepper, draws = machine(11, seed=5), 30_000
    filters = (Temperature(1.3), TopK(6), TopP(0.8))
    found = sample(stepper, PROMPTS[:1], limits=Limits(1), n=draws, processors=filters, generator=torch.Generator().manual_seed(2))[0]
    row = stepper.table[stepper.fold((1, 2))].tolist()
    weights = sorted(((math.exp(logit / 1.3), token) for token, logit in enumerate(row)), reverse=True)[:6]
    kept, mass, whole = [], 0.0, sum(weight for weight, _ in weights)
    for weight, token in weights:
        if mass < 0.8 * whole:
            kept.append((weight, token))
            mass += weight
    law = [(math.log(weight / mass), (token,)) for weight, token in kept]
    assert 1 < len(law) < 6
    assert {each.tokens for each in found} == {tokens for _, tokens in law}
    assert p_value(Counter(each.tokens for each in found), law, draws) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_draw_never_hits_probability_zero(dtype):
    scores = torch.tensor([[-math.inf, 0.0, -math.inf], [0.0, -math.inf, -math.inf], [-math.inf, -math.inf, 0.0]], dtype=dtype)
    for number in (0.0, 0.5, 1 - 2**-53):
        assert _draw(scores, torch.full((3,), number, dtype=torch.float64)).tolist() == [1, 0, 2]
    rare = torch.tensor([[-math.inf, -103.0, -math.inf, 0.0, -103.0, -math.inf]], dtype=dtype)
    assert {int(_draw(rare, torch.tensor([number], dtype=torch.float64))) for number in (0.0, 1e-16, 0.5, 1 - 2**-53)} <= {1, 3, 4}


def test_seeds_reproduce(machine):
    def run(seed: int) -> list:
        return sample(machine(7, seed=1), PROMPTS, limits=Limits(6, ends=(2,)), n=5, generator=torch.Generator().manual_seed(seed))

    assert run(3) == run(3) != run(4)
    torch.manual_seed(3)
    without = sample(machine(7, seed=1), PROMPTS, limits=Limits(6, ends=(2,)), n=5)
    torch.manual_seed(3)
    assert without == sample(machine(7, seed=1), PROMPTS, limits=Limits(6, ends=(2,)), n=5)


def test_rows_that_end_do_not_change_what_the_others_draw(machine):
    def run(ends: tuple[int, ...]) -> list:
        groups = sample(machine(7, seed=1), PROMPTS, limits=Limits(12, ends=ends), n=7, generator=torch.Generator().manual_seed(3))
        return [each.tokens for group in groups for each in group]

    free, ended = run(()), run((2,))
    assert any(len(tokens) < 12 for tokens in ended)
    assert all(cut == whole[:len(cut)] for cut, whole in zip(ended, free, strict=True))


def test_samples_carry_their_log_probabilities(machine):
    stepper = machine(7, seed=1)
    for prompt, group in zip(PROMPTS, sample(stepper, PROMPTS, limits=Limits(5, ends=(2,)), n=4), strict=True):
        for each in group:
            for position, token in enumerate(each.tokens):
                scores = stepper.table[stepper.fold(prompt + each.tokens[:position])].log_softmax(-1)
                assert abs(float(scores[token]) - each.log_probabilities[position]) < 1e-12
            assert abs(each.score - math.fsum(each.log_probabilities)) < 1e-12


@pytest.mark.parametrize("n", [0, -1, 1.5, True, 10**9])
def test_bad_n(machine, n):
    with pytest.raises(ConfigError, match="^n is .*allowed: a whole number, 1 to 65536"):
        sample(machine(7, seed=1), PROMPTS, limits=Limits(5), n=n)
