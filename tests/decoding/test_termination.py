"""Searches that are proven to end, do: against the formulas step by step, adversarial models, and the numbers that are promised."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch
from fishpaw.decoding.constraints import Choices, Forced, Trie
from fishpaw.decoding.copying import CopyOnly, CopyTags
from fishpaw.decoding.limits import Limits
from fishpaw.decoding.processors import Chain, StatefulProcessor, Temperature, TopK, TopP
from fishpaw.decoding.repetition import RepetitionPenalty
from fishpaw.decoding.sample import sample
from fishpaw.decoding.search import beam, full, greedy, unbeatable
from fishpaw.decoding.stepper import TransformerStepper
from fishpaw.decoding.termination import (
    ConsistentTopK,
    ConsistentTopP,
    LoopDetector,
    NonMonotone,
    SelfTerminating,
    Termination,
    ending_of,
    termination,
)  # fmt: skip
from fishpaw.decoding.truncation import Epsilon, Eta, MinP, Typical
from fishpaw.errors import ConfigError
from fishpaw.losses import termination as losses
from fishpaw.model.transformer import Transformer

torch.set_num_threads(1)
NEVER = float("-inf")
NONE = torch.zeros(1, 0, dtype=torch.long)
KINDS = (SelfTerminating, NonMonotone)
END = 3


def random(*shape, seed=0, spread=2.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread


class Fixed:
    """A Stepper whose logits are always the same; counts its steps."""

    def __init__(self, logits):
        self.logits = torch.as_tensor(logits)

    def start(self, batch, encoder_batch=None):
        self.steps, self.rows = 1, batch
        return self.logits.expand(batch, -1)

    def step(self, tokens):
        self.steps += 1
        return self.logits.expand(len(tokens), -1)

    def select(self, index):
        pass

    def compact(self):
        pass


class Ended:
    """A Stepper whose logits an ending has read, as TransformerStepper does it."""

    def __init__(self, stepper, ending):
        self.stepper, self.ending, self.compact, self.steps = stepper, ending, stepper.compact, 0

    def start(self, batch, encoder_batch=None):
        logits, self.steps = self.stepper.start(batch, encoder_batch), 1
        self.ending.start(batch, len(logits))
        return self.ending(logits, NONE)

    def step(self, tokens):
        self.steps += 1
        return self.ending(self.stepper.step(tokens), NONE)

    def select(self, index):
        self.stepper.select(index)
        self.ending.select(index)


def naive(kind, logits, end, epsilon):
    """logits of one row, a list a step -> p(end) of each step, and p of all tokens, by the papers' formulas in plain Python."""
    ends, whole, alive = [], [], 1.0
    for step, row in enumerate(logits, 1):
        gate = 1 / (1 + math.exp(-row[end]))
        if kind is SelfTerminating:
            alive *= (1 - epsilon) * gate
            closing = 1 - alive
        else:
            closing = (1 - (1 - epsilon) ** step) * (1 - gate) + gate
        others = math.fsum(math.exp(score) for token, score in enumerate(row) if token != end)
        ends.append(closing)
        whole.append([closing if token == end else (1 - closing) * math.exp(score) / others for token, score in enumerate(row)])
    return ends, whole


# Consistent truncations.

@pytest.mark.parametrize("ends", [(END,), (END, 11), (0,)])
@pytest.mark.parametrize(("ours", "plain", "value"), [(ConsistentTopK, TopK, 2), (ConsistentTopK, TopK, 19), (ConsistentTopP, TopP, 0.4),
                                                      (ConsistentTopP, TopP, 1.0)])  # fmt: skip
def test_consistent_truncation_keeps_what_the_plain_one_keeps_and_the_ends(ours, plain, value, ends):
    logits = random(5, 23)
    logits[:, 11] = -40
    kept = plain(value)(logits, NONE) > NEVER
    kept[:, list(ends)] = True
    assert torch.equal(ours(value, ends=ends)(logits, NONE), logits.masked_fill(~kept, NEVER))
    scores, _ = Chain(Limits(3), [ours(value, ends=ends)])(logits, NONE)
    assert float((scores.exp().sum(-1) - 1).abs().max()) < 1e-12


@pytest.mark.parametrize(("make", "said"), [
    (lambda: ConsistentTopK(0, ends=(1,)), "top_k is 0"),
    (lambda: ConsistentTopP(0.0, ends=(1,)), "top_p is 0"),
    (lambda: ConsistentTopK(2, ends=()), r"ends is \(\)"),
    (lambda: ConsistentTopP(0.5, ends=[1]), r"ends is \[1\]"),
    (lambda: ConsistentTopP(0.5, ends=(-1,)), "ends is -1"),
    (lambda: ConsistentTopK(2, ends=(5,))(random(2, 5), NONE), "ends names token 5; allowed: 0 to 4"),
    (lambda: SelfTerminating(-1, 0.1), "end is -1"),
    (lambda: SelfTerminating(1, 0.0), "epsilon is 0.0; allowed: 0 < epsilon < 1"),
    (lambda: NonMonotone(1, 1.0), "epsilon is 1.0"),
    (lambda: NonMonotone(1, True), "epsilon is True"),
    (lambda: NonMonotone(5, 0.1)(random(2, 5), NONE), "end is 5; allowed: 0 to 4"),
    (lambda: LoopDetector(times=1), "times is 1"),
    (lambda: LoopDetector(longest=0), "longest is 0"),
    (lambda: LoopDetector(least=0), "least is 0"),
])  # fmt: skip
def test_bad_settings(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


def test_an_end_ranked_last_is_lost_by_truncation_and_kept_by_the_consistent_one():
    """The lengths are geometric: their mean is 1 / p, and their counts fit (chi-square of 8 bins, 99.9 %: 24.3)."""
    logits = torch.tensor([2.0, 1.5, 1.0, -1.0, 0.5, 0.2, -0.3], dtype=torch.float64)
    for plain, ours in ((TopK(2), ConsistentTopK(2, ends=(END,))), (TopP(0.4), ConsistentTopP(0.4, ends=(END,)))):
        def lengths(processor, cap, n):
            found = sample(Fixed(logits), 1, n=n, limits=Limits(cap, ends=(END,)), processors=[processor],
                           generator=torch.Generator().manual_seed(7))[0]  # fmt: skip
            return [len(one.tokens) for one in found], [one.ended for one in found]
        long, ended = lengths(plain, 300, 40)
        assert set(long) == {300} and not any(ended)
        end = float(Chain(Limits(1), [ours])(logits[None], NONE)[0].exp()[0, END])
        assert 0.01 < end < 0.1
        count = 4000
        found, ended = lengths(ours, 2000, count)
        assert all(ended)
        assert abs(sum(found) / count - 1 / end) < 4 * math.sqrt(1 - end) / end / math.sqrt(count)
        cuts = [math.ceil(math.log(1 - part / 8) / math.log(1 - end)) for part in range(1, 8)]
        above = [1.0, *((1 - end) ** cut for cut in cuts), 0.0]
        hits = [sum(low < one <= high for one in found) for low, high in zip([0, *cuts], [*cuts, 10**9], strict=True)]
        expected = [count * (a - b) for a, b in zip(above, above[1:], strict=False)]
        assert sum((hit - mean) ** 2 / mean for hit, mean in zip(hits, expected, strict=True)) < 24.3
        bound = termination(None, Limits(2000, ends=(END,)), search="sample", processors=[ours], floor=end)
        assert bound.surely and bound.expected == pytest.approx(1 / end)


# The recursion.

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_each_step_is_the_formula_sums_to_one_and_moves_with_its_row(kind, dtype, near):
    logits, epsilon = random(17, 3, 7).to(dtype), 0.03               # [t r v]
    ending = kind(END, epsilon)
    assert isinstance(ending, StatefulProcessor)
    ending.start(None, 3)
    paths = [[], [], []]                                             # the logits that each row has met
    for step, index in zip(range(17), [[0, 1, 2], [2, 1, 1], [0, 0], [0, 1], [1, 0, 0, 1], *[[0, 1, 2, 3]] * 12], strict=True):
        ending.select(torch.tensor(index))
        rows = logits[step][torch.tensor([(step + row) % 3 for row in range(len(index))])]
        paths = [[*paths[old], row.tolist()] for old, row in zip(index, rows, strict=True)]
        made = ending(rows, NONE)
        assert made.dtype == dtype and float((made.exp().sum(-1) - 1).abs().max()) < near
        for found, path in zip(made, paths, strict=True):
            assert found.exp().tolist() == pytest.approx(naive(kind, path, END, epsilon)[1][-1], abs=near)


@pytest.mark.parametrize("kind", KINDS)
def test_many_steps_at_once_are_the_steps_one_by_one(kind):
    logits = random(5, 13, 7, seed=3)                                # [r u v]
    one, many = kind(END, 0.01), kind(END, 0.01)
    for ending in (one, many):
        ending.start(None, 5)
    apart = torch.stack([one(logits[:, step], NONE) for step in range(13)], 1)
    at_once = torch.cat([many(logits[:, :4], NONE), many(logits[:, 4], NONE)[:, None], many(logits[:, 5:], NONE)], 1)
    assert float((apart - at_once).abs().max()) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_has_its_lower_bound_and_only_the_first_kind_never_falls(kind):
    ending = kind(END, 0.01)
    ending.start(None, 11)
    p_end = ending(random(11, 101, 7, spread=4.0), NONE)[..., END].exp()
    bound = 1 - 0.99 ** torch.arange(1, 102, dtype=torch.float64)
    assert bool((p_end >= bound - 1e-12).all())
    assert bool((p_end.diff(dim=1) >= -1e-15).all()) is (kind is SelfTerminating)


@pytest.mark.parametrize(("kind", "going"), [(SelfTerminating, 60.0), (NonMonotone, -60.0)])
def test_without_rate_and_gate_it_is_the_softmax_of_the_others(kind, going):
    logits = random(3, 9, 7)
    logits[..., END] = going
    ending = kind(END, 1e-12)
    ending.start(None, 3)
    made = ending(logits, NONE)
    others = logits.index_fill(-1, torch.tensor([END]), NEVER).softmax(-1)
    assert float((made.exp() - others).abs().max()) < 1e-10 and float(made[..., END].max()) < -25


@pytest.mark.parametrize("kind", KINDS)
def test_misuse_is_refused(kind):
    banned = random(2, 7)
    banned[1, END] = NEVER
    ending = kind(END, 0.1)
    ending.start(None, 2)
    with pytest.raises(ConfigError, match="banned before its ending could read"):
        ending(banned, NONE)
    with pytest.raises(ConfigError, match="banned"):                 # MinLength stands before it in a chain
        greedy(Fixed(random(7)), 2, limits=Limits(9, min_new=3, ends=(END,)), processors=[ending])
    if kind is SelfTerminating:
        ending.start(None, 2)
        with pytest.raises(ValueError, match="3 rows of logits, but 2 states"):
            ending(random(3, 7), NONE)


# What is proven.

def worst(kind, dtype=torch.float64):
    """It says that it never ends, and is sure of another token."""
    return Fixed(torch.tensor([800.0, 0.0, 0.0, 1e4 if kind is SelfTerminating else -1e4, 0.0], dtype=dtype))


@pytest.mark.parametrize(("epsilon", "steps"), [(1e-2, 69), (1e-3, 693), (1e-4, 6_932), (1e-5, 69_315)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_promised_steps(kind, epsilon, steps):
    limits = Limits(2**20, ends=(END,))
    assert termination(kind(END, epsilon), limits).steps == steps == math.ceil(math.log(2) / -math.log1p(-epsilon))
    ending = kind(END, epsilon)
    ending.start(None, 1)
    ahead = ending(worst(kind).logits.expand(1, steps, -1), NONE)[0].argmax(-1) == END
    assert int(ahead.sum()) == 1 and bool(ahead[-1])                 # the first token at which the end wins is the last that is promised


@pytest.mark.parametrize(("epsilon", "dtype"), [(1e-2, torch.float64), (1e-3, torch.float32), (0.3, torch.float64), (0.5, torch.float64)])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_search_halts_at_the_bound(kind, epsilon, dtype):
    limits = Limits(1500, ends=(END,))
    after = [Temperature(3.0), MinP(0.9), Eta(0.9), Epsilon(0.9), TopK(1)]
    bound = termination(kind(END, epsilon), limits, processors=after)
    for processors in ([kind(END, epsilon)], [kind(END, epsilon), *after]):
        found = greedy(worst(kind, dtype), 2, limits=limits, processors=processors)
        assert [len(one.tokens) for one in found] == [bound.steps] * 2 and all(one.closed for one in found)


class Forgets(SelfTerminating):
    """The planted fault: each step begins anew."""

    def __call__(self, logits, tokens):
        self.start(None, len(logits))
        return super().__call__(logits, tokens)


class Stays(SelfTerminating):
    """The planted fault: the states of rows that leave stay."""

    def select(self, index):
        self._log_alive = self._log_alive[: len(index)]


def test_planted_faults_are_found():
    found = greedy(worst(SelfTerminating), 1, limits=Limits(100, ends=(END,)), processors=[Forgets(END, 1e-2)])
    assert len(found[0].tokens) == 100                               # beyond 69
    table = random(31, 7)

    def lengths(kind):
        class Differs(Fixed):
            def start(self, batch, encoder_batch=None):
                self.place = torch.arange(batch)
                return table[self.place]

            def step(self, tokens):
                return table[self.place]

            def select(self, index):
                self.place = self.place[index]

        return greedy(Differs(table), 31, limits=Limits(50, ends=(END,)), processors=[kind(END, 1e-2)])

    for row, one in enumerate(lengths(SelfTerminating)):
        _, whole = naive(SelfTerminating, [table[row].tolist()] * len(one.tokens), END, 1e-2)
        assert one.log_probability == pytest.approx(sum(math.log(p[token]) for p, token in zip(whole, one.tokens, strict=True)))
    assert lengths(Stays) != lengths(SelfTerminating)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", KINDS)
def test_beam_search_ends_within_its_bound(machine, kind, seed):
    """Whatever the beams, the answers, the rule to stop and the penalty; the model hates to end."""
    for beams, answers, penalty, until, filters in (
        (1, 1, 0.0, unbeatable, []), (4, 1, 0.0, unbeatable, []), (4, 4, 0.0, unbeatable, []), (5, 2, -1.0, unbeatable, []),
        (3, 2, 0.0, full, []), (4, 2, 0.0, unbeatable, [Temperature(0.5), TopK(3)]), (4, 3, 0.0, unbeatable, [TopP(0.6), MinP(0.5)]),
    ):  # fmt: skip
        epsilon, limits = 0.03 + 0.02 * seed, Limits(200, min_new=seed * 3, ends=(END,))
        toy = machine(7, seed)
        toy.table[:, END] = 50 if kind is SelfTerminating else -50
        stepper = Ended(toy, kind(END, epsilon))
        bound = termination(stepper.ending, limits, search="beam", answers=beams if until is full else answers, length_penalty=penalty,
                            processors=filters)  # fmt: skip
        found = beam(stepper, [(1,), (2, 4)], beams=beams, n=answers, limits=limits, length_penalty=penalty, until=until,
                     processors=filters)  # fmt: skip
        assert stepper.steps <= bound.steps < 200
        assert all(one.closed and len(one.tokens) > limits.min_new for group in found for one in group)


def test_samples_end_as_soon_as_is_said_on_average():
    for kind in KINDS:
        for filters, near in (([], 0.85), ([ConsistentTopK(2, ends=(END,))], 0.85), ([TopK(1)], 0.9), ([Temperature(0.5)], 0.3)):
            limits = Limits(500, ends=(END,))
            bound = termination(kind(END, 0.01), limits, search="sample", processors=filters)
            found = sample(worst(kind), 1, n=2000, limits=limits, processors=[kind(END, 0.01), *filters],
                           generator=torch.Generator().manual_seed(1))[0]  # fmt: skip
            mean = sum(len(one.tokens) for one in found) / len(found)
            assert all(one.closed for one in found) and near * bound.expected < mean < 1.05 * bound.expected


def test_what_is_proven_in_words():
    limits, ending = Limits(64, ends=(END,)), SelfTerminating(END, 1e-3)
    assert str(termination(ending, limits)) == \
        "Greedy search ends after 693 tokens at most: the model is self-terminating, epsilon 0.001."  # fmt: skip
    assert str(termination(NonMonotone(END, 1e-4), limits, search="sample")) == (
        "Sampling ends with probability 1, after 126 tokens at most on average: "
        "the model is non-monotonic self-terminating, epsilon 0.0001."
    )
    assert str(termination(None, limits)) == \
        "Greedy search is not proven to end before max_new: a softmax may rank the end last for ever."  # fmt: skip
    assert termination(ending, limits, search="sample", processors=[Temperature(1.5)]) == \
        Termination("sample", None, True, None, "the model is self-terminating, epsilon 0.001")  # fmt: skip


@pytest.mark.parametrize(("options", "steps", "surely", "expected"), [
    ({"search": "beam", "answers": 3}, 695, True, None),
    ({"search": "beam", "length_penalty": 0.6}, None, False, None),
    ({"search": "beam", "processors": [Temperature(1.1)]}, None, False, None),
    ({"search": "beam", "processors": [Temperature(0.9), TopK(4), TopP(0.9)]}, 693, True, None),
    ({"processors": [Temperature(2.0), ConsistentTopP(0.2, ends=(END,))]}, 693, True, None),
    ({"processors": [lambda logits, tokens: logits]}, None, False, None),
    ({"search": "sample"}, None, True, 1 + math.sqrt(math.pi / 2 / -math.log1p(-1e-3))),
    ({"search": "sample", "processors": [TopP(0.4)]}, None, True, 694),
    ({"search": "sample", "processors": [MinP(0.1), Eta(1e-3), Epsilon(0.9)]}, None, True, 694),
    ({"search": "sample", "processors": [Typical(0.9)]}, None, False, None),
    ({"search": "sample", "processors": [TopP(0.4), Temperature(1.2)]}, None, True, None),
    ({"search": "sample", "processors": [lambda logits, tokens: logits]}, None, False, None),
])  # fmt: skip
def test_what_is_proven_of_a_self_terminating_model(options, steps, surely, expected):
    found = termination(SelfTerminating(END, 1e-3), Limits(64, ends=(END,)), **options)
    assert (found.steps, found.surely, found.expected) == (steps, surely, None if expected is None else pytest.approx(expected))
    more = termination(SelfTerminating(END, 1e-3), Limits(2000, min_new=800, min_ends=2, ends=(1, END)), **options)
    if options.get("search") == "beam":
        assert more.steps is None
    elif steps is not None:
        assert more.steps == 802                                     # 800 banned, then one end after another


@pytest.mark.parametrize(("options", "surely", "expected"), [
    ({"search": "sample"}, False, None),
    ({"search": "sample", "floor": 0.02}, True, 50.0),
    ({"search": "sample", "floor": 0.02, "processors": [ConsistentTopK(4, ends=(END,)), ConsistentTopP(0.9, ends=(END,))]}, True, 50.0),
    ({"search": "sample", "floor": 0.02, "processors": [Temperature(0.8)]}, True, None),
    ({"search": "sample", "floor": 0.02, "processors": [TopK(50)]}, False, None),
    ({"search": "sample", "floor": 0.02, "processors": [TopP(0.9)]}, False, None),
    ({"search": "beam", "floor": 0.02}, False, None),
    ({"floor": 0.02}, False, None),
], ids=str)  # fmt: skip
def test_what_is_proven_of_a_softmax(options, surely, expected):
    found = termination(None, Limits(64, ends=(END,)), **options)
    assert (found.steps, found.surely, found.expected) == (None, surely, expected) and "proven" in str(found) or surely


def test_constraints_close_each_answer_within_max_new_and_messages_hold_no_address():
    limits = Limits(9, ends=(0,))
    closing = [Choices(Trie([[1, 2]]), limits=limits), CopyOnly([[1, 2]], n=2, limits=limits)]
    for one in closing:
        found = termination(None, limits, processors=[RepetitionPenalty(1.2), one, Temperature(2.0), TopK(2), Typical(0.9)])
        assert found.steps == 9 and str(found).endswith(f"after 9 tokens at most: {one!r} closes each answer within max_new.")
        assert termination(SelfTerminating(0, 0.5), limits, search="beam", processors=[one]).steps == 9
        for others in ([one, RepetitionPenalty(1.2)], [one, print]):           # what is behind may ban the end
            assert termination(None, limits, processors=others).steps is None
        assert termination(None, Limits(8, ends=(0,)), processors=[one]).steps is None
    tags = CopyTags([[1, 2]], lambda: torch.zeros(1, 3), limits=limits)      # never bans the end, but doesn't choose it either
    assert termination(SelfTerminating(0, 0.5), limits, processors=[tags]).steps == 2
    assert termination(None, limits, processors=[tags]).steps is None
    for strange in (Forced([[1, 2]], limits=limits), lambda logits, tokens: logits, RepetitionPenalty(1.2)):
        said = str(termination(SelfTerminating(0, 0.5), limits, processors=[strange]))
        assert "to the end is not known" in said and "0x" not in said


@pytest.mark.parametrize(("limits", "options", "said"), [
    (Limits(9, ends=(1,)), {}, "ends with token 3, but ends is .1,."),
    (Limits(9, ends=(END,)), {"search": "sampling"}, "search is 'sampling'"),
    (Limits(9, ends=(END,)), {"answers": 0}, "answers is 0"),
    (Limits(9, ends=(END,)), {"floor": 0.0}, "floor is 0.0"),
])  # fmt: skip
def test_nothing_is_said_of_settings_that_can_not_be(limits, options, said):
    with pytest.raises(ConfigError, match=said):
        termination(SelfTerminating(END, 1e-3), limits, **options)


# In a model.

def tiny(ending=None, **changes):
    torch.manual_seed(5)
    head = "lm" if ending is None else {"name": "lm", "ending": {"name": ending, "epsilon": 0.02, "end": END}}
    shape = {"mask": "causal", "position": "rotary", "segments": 0, "init_std": 0.6, "dropout": 0.3, "heads": [head]}
    return Transformer(ModelConfig(11, 14, 2, 1, 17, **{**shape, **changes})).double().eval()


@pytest.mark.parametrize(("name", "kind"), [("self_terminating", SelfTerminating), ("non_monotone", NonMonotone)])
def test_a_model_ends_as_it_was_trained_wherever_it_is_stepped(name, kind):
    model = tiny(name)
    assert type(ending_of(model)) is kind and ending_of(tiny()) is None and ending_of(tiny(heads=["mlm"])) is None
    assert (ending_of(model).end, ending_of(model).epsilon) == (END, 0.02) and ending_of(model) is not ending_of(model)
    ids = torch.tensor([[5, 1, 4], [2, 7, 8]])
    stepper = TransformerStepper(model)
    continued = torch.tensor([[6, 9, 10, 1], [2, 2, 0, 5]])
    first = stepper.start(Batch.padded(ids))
    swap = torch.tensor([0, 1, 1])
    stepper.select(swap)
    later = stepper.step(continued[swap])                            # [3 4 v]
    with torch.no_grad():
        raw = model(torch.cat([ids, continued], 1)).logits[:, 2:]    # [2 5 v]
    for row, source in enumerate(swap.tolist()):
        expected = torch.tensor(naive(kind, raw[source].tolist(), END, 0.02)[1], dtype=torch.float64)
        assert float((torch.cat([first[source, None], later[row]]).exp() - expected).abs().max()) < 1e-10
    again = stepper.start(Batch.padded(ids))
    assert torch.equal(again, first)                                 # a new search begins anew


@pytest.mark.parametrize("name", ["self_terminating", "non_monotone"])
def test_every_search_of_a_model_stays_within_its_bound_also_with_a_least_length(name):
    model = tiny(name)
    stepper, limits = TransformerStepper(model), Limits(300, min_new=20, ends=(END,))
    prompts = Batch.padded(torch.tensor([[5, 1, 4], [2, 7, 8]]))
    bound = termination(ending_of(model), limits)
    assert bound.steps == 35
    for one in greedy(stepper, prompts, limits=limits):
        assert 20 < len(one.tokens) <= 35 and one.closed
    for group in beam(stepper, prompts, beams=3, n=2, limits=limits):
        assert all(20 < len(one.tokens) <= 36 and one.closed for one in group)
    for group in sample(stepper, prompts, n=5, limits=limits, generator=torch.Generator().manual_seed(0)):
        assert all(one.closed and len(one.tokens) > 20 for one in group)


def test_what_a_search_reports_is_the_loss():
    for name in ("self_terminating", "non_monotone"):
        model = tiny(name)
        prompt = torch.tensor([[5, 1, 4]])
        for one in beam(TransformerStepper(model), Batch.padded(prompt), beams=4, n=4, limits=Limits(40, ends=(END,)))[0]:
            ids = torch.cat([prompt[0], torch.tensor(one.tokens)])[None]
            generated = torch.arange(ids.shape[1] - 1)[None] >= 2
            targets = ids[:, 1:].masked_fill(~generated, -100)
            with torch.no_grad():
                total, count = getattr(losses, name)(model(ids[:, :-1]).logits, targets, generated, end=END, epsilon=0.02)
            assert float(total) == pytest.approx(-one.log_probability, abs=1e-9) and int(count) == len(one.tokens)


# Loops.

def naive_period(row, times, longest, least):
    for period in range(1, longest + 1):
        span = max(times * period, least)
        if span <= len(row) and all(row[-i] == row[-i - period] for i in range(1, span - period + 1)):
            return period
    return 0


@pytest.mark.parametrize(("times", "longest", "least"), [(2, 5, 1), (3, 3, 1), (4, 7, 16), (3, 64, 10)])
def test_loops_are_found_with_their_shortest_period(times, longest, least):
    detector, generator = LoopDetector(times, longest, least), torch.Generator().manual_seed(0)
    rows = []
    for _ in range(200):
        period, said = (int(torch.randint(1, high, (), generator=generator)) for high in (9, 8))
        loop = torch.randint(0, 3, (period,), generator=generator).tolist() * said
        start = torch.randint(0, 3, (60 - len(loop),), generator=generator).tolist() if len(loop) < 60 else []
        rows.append([*start, *loop][-60:])
    found = detector.periods(torch.tensor(rows))
    assert found.tolist() == [naive_period(row, times, longest, least) for row in rows]
    assert torch.equal(detector(torch.tensor(rows)), found > 0) and 0 < int((found > 0).sum()) < 200
    assert detector(torch.zeros(2, 1, dtype=torch.long)).tolist() == [False, False]


def test_a_detector_stops_a_search_that_loops():
    found = greedy(Fixed(torch.tensor([0.0, 5.0, 1.0])), 1, limits=Limits(100), stops=[LoopDetector(times=4, least=16)])
    assert len(found[0].tokens) == 16 and found[0].ended and not found[0].closed


def test_the_page_runs_and_says_so(capsys):
    page = (Path(__file__).resolve().parents[2] / "docs" / "en" / "termination.md").read_text(encoding="utf-8")
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(block, names)
    assert capsys.readouterr().out.splitlines() == [
        "Sampling ends with probability 1, after 1,000 tokens at most on average: the end's probability is at least 0.001 at each step.",
        "Greedy search ends after 69 tokens at most: the model is self-terminating, epsilon 0.01.",
        "tensor([3])",
    ]
