"""Laws of the processors: minimal prefixes, defined ties, order, bad settings, and the name of the one that leaves nothing."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from fishpaw.decoding.limits import Limits
from fishpaw.decoding.processors import (
    Chain,
    MinLength,
    StatefulProcessor,
    Temperature,
    TopK,
    TopP,
    check_prompts,
    name_of,
    of_prompts,
)  # fmt: skip
from fishpaw.errors import ConfigError, FishpawError

NEVER = float("-inf")
NONE = torch.zeros(1, 0, dtype=torch.long)


def logits_of(seed: int, rows: int = 3, vocabulary: int = 23) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def kept(logits: torch.Tensor) -> list[set[int]]:
    return [set((row > NEVER).nonzero()[:, 0].tolist()) for row in logits]


@pytest.mark.parametrize("value", [0, 0.0, -1.0, float("nan"), float("inf"), True, "1"])
def test_bad_temperature(value):
    with pytest.raises(ConfigError, match="^temperature is .*allowed: a finite number above 0") as caught:
        Temperature(value)
    assert ("greedy" in caught.value.fix) == (value in (0, 0.0) and value is not False)


@pytest.mark.parametrize("value", [0, -3, 2.0, True, float("nan"), None])
def test_bad_top_k(value):
    with pytest.raises(ConfigError, match="^top_k is .*allowed: a whole number, 1 or more"):
        TopK(value)


@pytest.mark.parametrize("value", [0, 0.0, -0.1, 1.01, float("nan"), float("inf"), True])
def test_bad_top_p(value):
    with pytest.raises(ConfigError, match="^top_p is .*allowed: 0 < p <= 1"):
        TopP(value)


def test_temperature_divides():
    logits = logits_of(1)
    assert torch.equal(Temperature(0.5)(logits, NONE), logits * 2)


@pytest.mark.parametrize("k", [1, 2, 7, 22])
def test_top_k_keeps_the_k_best(k):
    logits = logits_of(k)
    for row, found in zip(logits.tolist(), kept(TopK(k)(logits, NONE)), strict=True):
        assert found == set(sorted(range(23), key=lambda token: -row[token])[:k])


def test_top_k_of_the_vocabulary_keeps_all_and_more_is_refused():
    assert torch.equal(TopK(23)(logits_of(3), NONE), logits_of(3))
    for k in (24, 10**9):
        with pytest.raises(ConfigError, match=f"^top_k is {k}, but there are 23 tokens. Give 1 to 23.$"):
            TopK(k)(logits_of(3), NONE)


def test_ties_with_the_last_one_kept_are_kept():
    logits = torch.tensor([[1.0, 3, 2, 2, 0, 2]])
    assert kept(TopK(2)(logits, NONE)) == [{1, 2, 3, 5}]
    assert kept(TopP(0.6)(logits, NONE)) == [{1, 2, 3, 5}]       # 0.459 for token 1, then 0.169 for each of three
    assert kept(TopP(0.4)(logits, NONE)) == [{1}]


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("seed", range(5))
def test_top_p_keeps_the_smallest_prefix_with_mass_p(p, seed):
    logits = logits_of(seed)
    for row, found in zip(logits.softmax(-1).tolist(), kept(TopP(p)(logits, NONE)), strict=True):
        order = sorted(range(23), key=lambda token: -row[token])
        prefix = order[:len(found)]
        assert found == set(prefix)
        assert math.fsum(row[token] for token in prefix) >= p                  # the crossing token is kept
        assert math.fsum(row[token] for token in prefix[:-1]) < p              # and nothing beyond it


@pytest.mark.parametrize(("spread", "low", "high"), [(6.0, 1, 256), (1.8, 257, 2048), (0.3, 2049, 4999)])
def test_top_p_finds_a_nucleus_of_any_size(spread, low, high):
    logits = torch.randn(3, 5003, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * spread
    for row, found in zip(logits.softmax(-1), kept(TopP(0.8)(logits, NONE)), strict=True):
        order = row.argsort(descending=True)
        assert low <= len(found) <= high and found == set(order[:len(found)].tolist())
        assert float(row[order[:len(found) - 1]].sum()) < 0.8 <= float(row[order[:len(found)]].sum())


def test_top_p_one_keeps_all_even_where_rounding_would_cut_the_tail():
    logits = torch.full((1, 5000), -30.0)
    logits[0, 0] = 0
    assert TopP(1.0)(logits, NONE) is logits


def test_the_order_is_the_callers():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    limits = Limits(5)
    first_k, _ = Chain(limits, [TopK(2), TopP(0.5)])(logits, NONE)              # .571 of the two: token 0 crosses
    first_p, _ = Chain(limits, [TopP(0.5), TopK(2)])(logits, NONE)              # .4, .7: token 1 crosses
    assert kept(first_k) == [{0}] and kept(first_p) == [{0, 1}]
    assert torch.allclose(first_p.exp(), torch.tensor([[4 / 7, 3 / 7, 0, 0]]))   # renormalised


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, torch.float32), (torch.float16, torch.float32),
                                                 (torch.float32, torch.float32), (torch.float64, torch.float64)])
def test_log_probabilities_are_promoted_never_downcast(dtype, expected):
    scores, emptied = Chain(Limits(5), [Temperature(0.7), TopK(5), TopP(0.9)])(logits_of(1).to(dtype), NONE)
    assert scores.dtype == expected and emptied is None
    assert torch.allclose(scores.exp().sum(-1), torch.ones(3, dtype=expected))


def test_min_length_bans_only_the_closing_end():
    limits = Limits(9, min_new=4, ends=(1, 2), min_ends=2)
    tokens = torch.tensor([[5, 1, 6], [5, 6, 7]])
    assert kept(MinLength(limits)(torch.zeros(2, 8), tokens)) == [{0, 3, 4, 5, 6, 7}, set(range(8))]
    assert kept(MinLength(limits)(torch.zeros(2, 8), torch.cat([tokens, tokens[:, :1]], 1))) == [set(range(8))] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("vocabulary", [1, 7, 61, 5000])
@pytest.mark.parametrize("row", [0, 1, 2])
def test_the_filter_that_leaves_nothing_is_named(dtype, vocabulary, row):
    def ban(logits, tokens):
        out = logits.clone()
        out[row] = NEVER
        return out

    scores, emptied = Chain(Limits(5), [TopK(min(50, vocabulary)), ban, Temperature(2.0)])(torch.randn(3, vocabulary, dtype=dtype), NONE)
    assert isinstance(emptied, FishpawError) and "ban left no token" in str(emptied)
    assert (scores[row] == NEVER).all() and not scores.isnan().any()             # the other rows are still usable
    assert torch.allclose(scores.exp().sum(-1).sum(), torch.tensor(2.0, dtype=dtype))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [0, 3, 4998, 4999])
def test_logits_that_are_no_numbers_raise(bad, where):
    logits = torch.randn(2, 5000)
    logits[1, where] = bad
    with pytest.raises(FishpawError, match="Logits from the model hold NaN or \\+inf"):
        Chain(Limits(5), [TopK(3), TopP(0.5)])(logits, NONE)

    def spoil(logits, tokens):
        return logits.masked_fill(torch.arange(5000) == where, bad)

    with pytest.raises(FishpawError, match="Logits from spoil"):
        Chain(Limits(5), [TopK(3), spoil])(torch.randn(2, 5000), NONE)


def test_a_model_without_any_token_raises_at_once():
    with pytest.raises(FishpawError, match="the model left no token"):
        Chain(Limits(5), [TopK(3)])(torch.full((2, 7), NEVER), NONE)


def test_a_processor_that_changes_the_shape_is_named():
    with pytest.raises(ConfigError, match=r"halve made logits of shape \(2, 3\) out of \(2, 6\)"):
        def halve(logits, tokens):
            return logits[:, :3]
        Chain(Limits(5), [halve])(torch.zeros(2, 6), NONE)


def test_a_state_that_could_not_move_is_refused():
    class Half:
        def __call__(self, logits, tokens):
            return logits

        def start(self, prompts, rows):
            self.state = torch.zeros(rows)

    with pytest.raises(ConfigError, match="Half has only one of start and select"):
        Chain(Limits(5), [Half()])
    with pytest.raises(ConfigError, match="can't be called"):
        Chain(Limits(5), [50])


def test_states_start_with_the_prompts_and_move():
    class Whole:
        def __call__(self, logits, tokens):
            return logits + self.state[:, None]

        def start(self, prompts, rows):
            self.seen, self.state = prompts, torch.arange(rows)

        def select(self, index):
            self.state = self.state[index]

    processor = Whole()
    assert isinstance(processor, StatefulProcessor) and not isinstance(TopK(3), StatefulProcessor)
    chain = Chain(Limits(5), [TopK(2), processor])
    chain.start("prompts", 3)
    chain.select(torch.tensor([2, 2, 0]))
    assert processor.seen == "prompts" and processor.state.tolist() == [2, 2, 0]


class Own:
    """A processor that holds a letter for each prompt."""

    def __init__(self, letters):
        self.letters, self.prompts = letters, len(letters)

    def of(self, places):
        return Own([self.letters[place] for place in places])

    def __call__(self, logits, tokens):
        return logits


def test_a_batch_takes_its_part_of_what_each_prompt_has():
    plain, own = TopK(3), Own("abcd")
    found = of_prompts([plain, own], [2, 0])
    assert found[0] is plain and found[1].letters == ["c", "a"]
    check_prompts([plain, own], 4)
    for call in (lambda: of_prompts([own], [1, 4]), lambda: check_prompts([own], 5), lambda: check_prompts([own], 3)):
        with pytest.raises(ConfigError, match="Own is for 4 prompts, but there are [53] prompts"):
            call()


def test_names_are_short_and_hold_no_address():
    class Lines:
        def __repr__(self):
            return "Lines(\n)"

    named = {TopK(3): "TopK(k=3)", check_prompts: "check_prompts", Own("ab"): "Own", Lines(): "Lines",
             functools.partial(print, Own("ab")): "partial"}
    assert {one: name_of(one) for one in named} == named
