"""Greedy and beam search: equal to exhaustive search, with states that must move with their beams, and to transformers token for token."""

from __future__ import annotations

import functools

import pytest
import torch

from fishpaw.decoding.limits import Limits
from fishpaw.decoding.processors import Temperature, TopK
from fishpaw.decoding.search import beam, full, greedy, unbeatable, unpromising
from fishpaw.errors import ConfigError, FishpawError

PROMPTS = [(1, 2, 3), (4,), (), (2, 2, 1, 1, 0, 3, 3)]


class Budget:
    """A constraint with a state a hypothesis: token t costs t, and what would overdraw the budget is banned. Updated a token at a time."""

    def __init__(self, budget: int) -> None:
        self.budget = budget

    def start(self, prompts, rows):
        self.left = torch.full((rows,), self.budget)

    def select(self, index):
        self.left = self.left[index]

    def __call__(self, logits, tokens):
        if tokens.shape[1]:
            self.left = self.left - tokens[:, -1]
        return logits.masked_fill(torch.arange(logits.shape[1]) > self.left[:, None], float("-inf"))


class StuckBudget(Budget):
    """Planted fault: the constraint's state stays where it was while the beams move."""

    def select(self, index):
        self.left = self.left[torch.arange(len(index)) % len(self.left)]


def overdrawn(budget: int, vocabulary: int, tokens: tuple[int, ...]) -> set[int]:
    return {token for token in range(vocabulary) if token > budget - sum(tokens)}


def check(found, law, count: int) -> None:
    assert len(found) == min(count, len(law))
    assert [each.tokens for each in found] == [tokens for _, tokens in law[:count]]
    for each, (score, _) in zip(found, law, strict=False):
        assert abs(each.score - score) < 1e-12


CASES = [(2, 5, (0,), 1), (3, 5, (2,), 1), (3, 4, (0, 1), 1), (5, 5, (0,), 1), (5, 4, (1, 3), 1), (4, 4, (), 1), (4, 4, (0, 2), 2)]


@pytest.mark.parametrize("penalty", [0.0, 1.0, -0.5, 2.0])
@pytest.mark.parametrize(("vocabulary", "longest", "ends", "min_ends"), CASES)
def test_beam_search_is_exhaustive_search(machine, exhaustive, vocabulary, longest, ends, min_ends, penalty):
    stepper, limits = machine(vocabulary, seed=vocabulary), Limits(longest, min_new=longest // 2, ends=ends, min_ends=min_ends)
    groups = beam(stepper, PROMPTS, beams=vocabulary**longest, limits=limits, n=7, length_penalty=penalty)
    for prompt, (group, tokens) in enumerate(zip(groups, PROMPTS, strict=True)):
        check(group, exhaustive(stepper, tokens, limits, penalty), 7)
        for each in group:
            assert each.prompt == prompt and len(each.log_probabilities) == len(each.tokens)
            assert each.ended == each.closed == (sum(token in ends for token in each.tokens) >= min_ends)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize(("vocabulary", "longest", "budget"), [(3, 5, 4), (4, 4, 5), (5, 4, 6)])
def test_a_stateful_constraint_moves_with_its_beam(machine, exhaustive, vocabulary, longest, budget, penalty):
    stepper, limits = machine(vocabulary, seed=7), Limits(longest, ends=(0,))
    banned = functools.partial(overdrawn, budget, vocabulary)
    settings = {"beams": vocabulary**longest, "limits": limits, "n": 5, "length_penalty": penalty}
    for group, tokens in zip(beam(stepper, PROMPTS, processors=[Budget(budget)], **settings), PROMPTS, strict=True):
        check(group, exhaustive(stepper, tokens, limits, penalty, banned), 5)
        assert all(sum(each.tokens) <= budget for each in group)


@pytest.mark.parametrize("beams", [2, 3, 625])
def test_states_that_do_not_move_are_caught(machine, forgetful, exhaustive, beams):
    """Error 3 of bert4keras, planted in the stepper and in the constraint: each must change the result."""
    stepper, settings = machine(5, seed=7), {"beams": beams, "limits": Limits(4), "n": 2}
    assert beam(forgetful(5, seed=7), PROMPTS, **settings) != beam(stepper, PROMPTS, **settings)
    wrong = beam(stepper, PROMPTS, processors=[StuckBudget(6)], **settings)
    assert wrong != beam(stepper, PROMPTS, processors=[Budget(6)], **settings)
    if beams == 625:                                             # and the comparison with exhaustive search is what catches them
        for found, banned in ((beam(forgetful(5, seed=7), PROMPTS, **settings), lambda tokens: set()),
                              (wrong, functools.partial(overdrawn, 6, 5))):
            with pytest.raises(AssertionError):
                for group, tokens in zip(found, PROMPTS, strict=True):
                    check(group, exhaustive(stepper, tokens, Limits(4), 0.0, banned), 2)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ends", [(), (3,), (1, 5)])
def test_one_beam_is_greedy(machine, seed, ends):
    limits = Limits(13, min_new=2, ends=ends)
    first = greedy(machine(7, seed), PROMPTS, limits=limits)
    second = [group[0] for group in beam(machine(7, seed), PROMPTS, beams=1, limits=limits)]
    for one, other in zip(first, second, strict=True):
        assert one.tokens == other.tokens and one.log_probabilities == other.log_probabilities and one.ended == other.ended


@pytest.mark.parametrize("seed", range(3))
def test_greedy_takes_the_best_token_each_time(machine, seed):
    stepper = machine(7, seed)
    for found, prompt in zip(greedy(stepper, PROMPTS, limits=Limits(9, ends=(2,))), PROMPTS, strict=True):
        tokens: tuple[int, ...] = ()
        while len(tokens) < 9 and 2 not in tokens:
            tokens = (*tokens, int(stepper.table[stepper.fold(prompt + tokens)].argmax()))
        assert found.tokens == tokens and found.ended == (2 in tokens)


def test_greedy_breaks_ties_by_the_lowest_id(machine):
    stepper = machine(7, seed=1)
    stepper.table[:] = torch.tensor([0.0, 2, 1, 2, 2, 0, 0])
    assert greedy(stepper, PROMPTS[:1], limits=Limits(3))[0].tokens == (1, 1, 1)


@pytest.mark.parametrize("beams", [1, 2, 5])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_batch_is_its_prompts_one_by_one(machine, beams, penalty):
    settings = {"limits": Limits(11, min_new=1, ends=(0, 6)), "processors": [Temperature(0.8), TopK(5)]}
    together = greedy(machine(7, seed=9), PROMPTS, **settings)
    alone = [greedy(machine(7, seed=9), [prompt], **settings)[0] for prompt in PROMPTS]
    assert [each.tokens for each in together] == [each.tokens for each in alone]
    settings |= {"beams": beams, "n": beams, "length_penalty": penalty}
    groups = beam(machine(7, seed=9), PROMPTS, **settings)
    for group, prompt in zip(groups, PROMPTS, strict=True):
        single = beam(machine(7, seed=9), [prompt], **settings)[0]
        assert [(each.tokens, each.score) for each in group] == [(each.tokens, each.score) for each in single]


@pytest.mark.parametrize("min_new", [0, 3, 6])
@pytest.mark.parametrize("max_new", [6, 7])
def test_lengths_stay_within_the_limits(machine, min_new, max_new):
    limits = Limits(max_new, min_new=min_new, ends=(0, 1, 2))
    found = greedy(machine(5, seed=2), PROMPTS, limits=limits)
    found += [each for group in beam(machine(5, seed=2), PROMPTS, beams=3, n=3, limits=limits) for each in group]
    for each in found:
        assert len(each.tokens) <= max_new and len(each.content) >= min_new
        assert each.ended == (each.tokens[-1] in limits.ends) and not set(each.content) & set(limits.ends)
        assert each.ended or len(each.tokens) == max_new


def ends_early(machine):
    """A machine that likes the end token 0, so that prompts end long before max_new, and not all at once."""
    stepper = machine(5, seed=0)
    stepper.table[:, 0] += 0.5
    return stepper


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("penalty", [-1.0, 0.0, 0.7, 2.0])
def test_stopping_by_the_bound_changes_nothing(machine, penalty, n):
    def never(best, kept, *, n, length, longest, penalty):
        return torch.zeros_like(best, dtype=torch.bool)

    settings = {"beams": 4, "n": n, "limits": Limits(40, ends=(0,)), "length_penalty": penalty}
    bounded, whole = ends_early(machine), ends_early(machine)
    assert beam(bounded, PROMPTS, until=unbeatable, **settings) == beam(whole, PROMPTS, until=never, **settings)
    assert sum(bounded.widths) < sum(whole.widths) or penalty == 2    # at 2 nearly anything could still win if it grew long enough


def test_the_exact_bound_finds_what_the_heuristic_misses(machine):
    settings = {"beams": 2, "limits": Limits(25, ends=(0,)), "length_penalty": 1.0}
    gains = 0
    for seed in range(20):
        exact, rough, quick = ([group[0].score for group in beam(machine(5, seed), PROMPTS, until=until, **settings)]
                               for until in (unbeatable, unpromising, full))
        assert all(a >= b and a >= c for a, b, c in zip(exact, rough, quick, strict=True))
        gains += sum(a > b for a, b in zip(exact, rough, strict=True))
    assert gains > 0


def test_finished_prompts_leave(machine):
    stepper = ends_early(machine)
    beam(stepper, PROMPTS, beams=3, limits=Limits(30, ends=(0,)))
    assert stepper.widths == [12, 12, 9, 3, 3]


def test_a_dead_end_kills_its_beam_only(machine, exhaustive):
    """Whoever took token 4 first can't go on; the others can: no error, and no hypothesis through the dead end."""
    def trap(logits, tokens):
        dead = (tokens == 4).any(1)
        return logits.masked_fill(dead[:, None], float("-inf"))

    limits = Limits(3, ends=(0,))
    stepper = machine(5, seed=7)
    groups = beam(stepper, PROMPTS, beams=125, n=125, limits=limits, processors=[trap])
    for group, prompt in zip(groups, PROMPTS, strict=True):
        check(group, exhaustive(stepper, prompt, limits, 0.0, lambda tokens: set(range(5)) if 4 in tokens else set()), 125)


def test_no_beam_left_is_an_error_that_names_the_filter(machine):
    def wall(logits, tokens):
        return logits if tokens.shape[1] < 2 else torch.full_like(logits, float("-inf"))

    with pytest.raises(FishpawError, match="wall left no token"):
        beam(machine(5, seed=7), PROMPTS, beams=3, limits=Limits(5), processors=[wall])


def test_a_stop_ends_beams_too(machine):
    def repeats(tokens):
        return (tokens[:, -1:] == tokens[:, :-1]).any(1)

    for group in beam(machine(5, seed=3), PROMPTS, beams=4, n=4, limits=Limits(20), stops=[repeats]):
        assert len(group) == 4 and all(each.ended and not each.closed and len(set(each.tokens)) == len(each.tokens) - 1 for each in group)


@pytest.mark.parametrize(("settings", "field"), [
    ({"beams": 0}, "beams"), ({"beams": -1}, "beams"), ({"beams": 1.0}, "beams"), ({"beams": 10**9}, "beams"), ({"beams": True}, "beams"),
    ({"beams": 3, "n": 0}, "n"), ({"beams": 3, "n": 4}, "n"), ({"beams": 3, "length_penalty": float("nan")}, "length_penalty"),
    ({"beams": 3, "length_penalty": float("inf")}, "length_penalty"), ({"beams": 3, "length_penalty": 11}, "length_penalty"),
    ({"beams": 3, "length_penalty": "1"}, "length_penalty"),
])
def test_bad_settings_name_their_field(machine, settings, field):
    with pytest.raises(ConfigError, match=rf"^{field} is .*; allowed: "):
        beam(machine(7, seed=1), PROMPTS, limits=Limits(5), **settings)


def test_an_end_token_outside_the_vocabulary(machine):
    for search in (greedy, functools.partial(beam, beams=2)):
        with pytest.raises(ConfigError, match="ends names token 7; allowed: 0 to 6"):
            search(machine(7, seed=1), PROMPTS, limits=Limits(5, ends=(7,)))


def test_no_prompt_no_hypothesis(machine):
    assert beam(machine(5, seed=1), [], beams=3, limits=Limits(3)) == []


def test_more_beams_than_hypotheses_return_what_exists(machine, exhaustive):
    stepper, limits = machine(2, seed=1), Limits(2, ends=(0,))
    group = beam(stepper, PROMPTS[:1], beams=50, n=50, limits=limits)[0]
    check(group, exhaustive(stepper, PROMPTS[0], limits), 50)
    assert len(group) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types_search_in_fp32(machine, dtype):
    stepper = machine(5, seed=3)
    stepper.table = stepper.table.to(dtype)
    wide = machine(5, seed=3)
    wide.table = stepper.table.double()
    limits = Limits(8, ends=(0,))
    for group, other in zip(beam(stepper, PROMPTS, beams=3, limits=limits), beam(wide, PROMPTS, beams=3, limits=limits), strict=True):
        assert group[0].tokens == other[0].tokens and abs(group[0].score - other[0].score) < 1e-5      # sums of up to 8 fp32 numbers


class Naive:
    """transformers' GPT-2 as a Stepper that recomputes everything, one row at a time, without cache, padding or batch."""

    def __init__(self, model) -> None:
        self.scores = functools.lru_cache(maxsize=None)(lambda row: model(torch.tensor([row])).logits[0, -1])

    def logits(self) -> torch.Tensor:
        return torch.stack([self.scores(row) for row in self.rows])

    def start(self, batch, encoder_batch=None):
        self.rows = [tuple(prompt) for prompt in batch]
        return self.logits()

    def step(self, tokens):
        self.rows = [(*row, token) for row, token in zip(self.rows, tokens.tolist(), strict=True)]
        return self.logits()

    def select(self, index):
        self.rows = [self.rows[place] for place in index.tolist()]

    def compact(self):
        pass


class Mixed(Naive):
    """Planted fault: rows do not move with their beams."""

    def select(self, index):
        self.rows = [self.rows[place % len(self.rows)] for place in range(len(index))]


LEFT = [(3, 17, 8, 2, 9), (4, 1), (7, 12, 6)]


@pytest.fixture(scope="module", params=[(0, (4, 10)), (2, (4, 12)), (7, (6, 9))], ids=lambda pair: f"seed{pair[0]}")
def gpt2(request):
    """A random GPT-2 in fp64 and two of the tokens that it likes, to end with."""
    transformers = pytest.importorskip("transformers")
    seed, ends = request.param
    torch.manual_seed(seed)
    config = transformers.GPT2Config(vocab_size=19, n_positions=64, n_embd=12, n_layer=2, n_head=2, initializer_range=0.6,
                                     bos_token_id=None, eos_token_id=None)
    return transformers.GPT2LMHeadModel(config).double().eval(), ends


def generate(model, ends, prompts, **settings) -> list[tuple[int, ...]]:
    """transformers' answer, left padded, cut at each end token."""
    from transformers import GenerationConfig

    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    keep = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    config = GenerationConfig(do_sample=False, max_new_tokens=12, eos_token_id=list(ends), pad_token_id=0, **settings)
    with torch.no_grad():
        rows = model.generate(ids, attention_mask=keep, generation_config=config)[:, width:].tolist()
    cut = []
    for row in rows:
        last = next((place for place, token in enumerate(row) if token in ends), len(row) - 1)
        cut.append(tuple(row[:last + 1]))
    return cut


@pytest.mark.parity
@pytest.mark.parametrize("prompts", [LEFT[:1], LEFT[1:2], LEFT], ids=["one", "short", "padded"])
@pytest.mark.parametrize("min_new", [0, 5])
def test_greedy_is_that_of_transformers(gpt2, prompts, min_new):
    model, ends = gpt2
    limits = Limits(12, min_new=min_new, ends=ends)
    expected = generate(model, ends, prompts, min_new_tokens=min_new or None)
    assert [each.tokens for each in greedy(Naive(model), prompts, limits=limits)] == expected
    assert [each.tokens for group in beam(Naive(model), prompts, beams=1, limits=limits) for each in group] == expected


@pytest.mark.parity
@pytest.mark.parametrize("prompts", [LEFT[:1], LEFT], ids=["one", "padded"])
@pytest.mark.parametrize("beams", [3, 4])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize(("until", "stopping"), [(unbeatable, "never"), (unpromising, False), (full, True)], ids=["never", "false", "true"])
def test_beams_are_those_of_transformers(gpt2, prompts, beams, penalty, until, stopping):
    model, ends = gpt2
    groups = beam(Naive(model), prompts, beams=beams, n=beams, limits=Limits(12, ends=ends), length_penalty=penalty, until=until)
    settings = {"num_beams": beams, "num_return_sequences": beams, "length_penalty": penalty, "early_stopping": stopping}
    assert [each.tokens for group in groups for each in group] == generate(model, ends, prompts, **settings)


@pytest.mark.parity
@pytest.mark.parametrize("beams", [3, 4])
def test_minimum_length_is_that_of_transformers_renormalised(gpt2, beams):
    model, ends = gpt2
    limits = Limits(12, min_new=5, ends=ends)
    groups = beam(Naive(model), LEFT, beams=beams, n=beams, limits=limits, length_penalty=1.0, until=unpromising)
    settings = {"num_beams": beams, "num_return_sequences": beams, "min_new_tokens": 5, "length_penalty": 1.0, "renormalize_logits": True}
    assert [each.tokens for group in groups for each in group] == generate(model, ends, LEFT, **settings)


@pytest.mark.parity
def test_parity_is_not_blind(gpt2):
    """Hypotheses end by both end tokens and by the limit, the stopping rules differ, and rows that stay behind are noticed."""
    model, ends = gpt2
    settings = {"beams": 4, "n": 4, "limits": Limits(12, ends=ends), "length_penalty": 1.0}
    runs = [beam(Naive(model), LEFT, until=until, **settings) for until in (unbeatable, unpromising, full)]
    found = [each for groups in runs for group in groups for each in group]
    assert {each.tokens[-1] for each in found if each.ended} == set(ends) and any(not each.ended for each in found)
    assert runs[2] != runs[0]
    wrong = [each.tokens for group in beam(Mixed(model), LEFT, **settings) for each in group]
    assert wrong != generate(model, ends, LEFT, num_beams=4, num_return_sequences=4, early_stopping="never")
