"""Constraints against brute force: beams equal exhaustive search (error 3 of the originals), samples follow the exact distribution, and a
state that doesn't move with its beam is caught. The reference lists every allowed answer and knows nothing of states.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter

import pytest
import torch

from fishpaw.decoding.constraints import Allowed, Choices, Constraint, Forced, Trie
from fishpaw.decoding.copying import CopyOnly
from fishpaw.decoding.limits import Limits
from fishpaw.decoding.patterns import Pattern
from fishpaw.decoding.processors import Chain, StatefulProcessor
from fishpaw.decoding.sample import sample
from fishpaw.decoding.search import beam, greedy
from fishpaw.errors import ConfigError, FishpawError

V, END = 5, 0
LIMITS = Limits(5, ends=(END,))
PROMPTS = [(1,), (2, 3), (4,)]
CHOICES = [[1, 2], [1, 3], [1, 3, 4, 2], [2], [4, 4, 4], [3, 1, 2, 2, 2]]        # the last one doesn't fit: five tokens and the end
EACH = [[[1], [2, 2, 2, 2]], [[3, 4], [3, 1], [4, 2, 1]], [[1, 2, 3], [1, 2, 4], [1, 2]]]
SOURCES = [[1, 2, 3, 1, 4], [3, 3, 2], [4, 1, 0, 2, 3, 1]]       # an end token inside, which breaks a span


class Letters:
    """Four tokens that are joined as they stand; two ways to write ab."""

    tokens, special_ids, size, eos_id = ("</s>", "a", "b", "ab", "中"), frozenset([END]), V, END

    def encode(self, text, special=True):
        raise ConfigError("it encodes nothing.", fix="Don't.")

    def decode(self, ids, *, skip_special=True):
        return "".join(self.tokens[id] for id in ids if id != END)


LETTERS = Letters()


def contents(longest):
    return itertools.chain.from_iterable(itertools.product(range(1, V), repeat=length) for length in range(longest + 1))


def spans(content, source, n):
    """Whether it can be cut into pieces of the source of n tokens or more."""
    whole = "".join(map(str, source)).split(str(END))
    good = [True]
    for end in range(1, len(content) + 1):
        said = ["".join(map(str, content[begin:end])) for begin in range(end - n + 1)]
        good.append(any(good[begin] and any(one in part for part in whole) for begin, one in enumerate(said)))
    return good[-1]


def within(content, phrase):
    return any(content[place:place + len(phrase)] == phrase for place in range(len(content)))


def listed(accepts):
    return {(*content, END) for content in contents(LIMITS.max_new - 1) if accepts(content)}


def everywhere(allowed):
    return [allowed] * len(PROMPTS)


def matching(expression):
    return lambda: everywhere(listed(lambda content: re.fullmatch(expression, LETTERS.decode(content))))


def forced(phrases):
    ended = listed(lambda content: all(within(content, phrase) for phrase in phrases))
    cut = {content for content in itertools.product(range(1, V), repeat=LIMITS.max_new) if all(within(content, one) for one in phrases)}
    return everywhere(ended | cut)


CASES = {
    "choices": (Choices, lambda kind, prompts: kind(Trie(CHOICES), limits=LIMITS),
                lambda: everywhere(listed(lambda content: list(content) in CHOICES))),
    "choices each": (Choices, lambda kind, prompts: kind([Trie(EACH[PROMPTS.index(prompt)]) for prompt in prompts], limits=LIMITS),
                     lambda: [listed(lambda content, some=some: list(content) in some) for some in EACH]),
    **{f"pattern {expression}": (Pattern, lambda kind, prompts, expression=expression: kind(expression, LETTERS, limits=LIMITS),
                                 matching(expression))
       for expression in ("(?:ab|中)*a", "[^a]{2,}|a*", "(a|b)*", "a?b?中+ab", ".{3}")},
    **{f"copy {n}": (CopyOnly, lambda kind, prompts, n=n: kind([SOURCES[PROMPTS.index(prompt)] for prompt in prompts], n=n, limits=LIMITS),
                     lambda n=n: [listed(lambda content, source=source: spans(content, source, n)) for source in SOURCES])
       for n in (1, 2, 3)},
    "forced": (Forced, lambda kind, prompts: kind([(1, 2), (3,)], limits=LIMITS), lambda: forced([(1, 2), (3,)])),
    "forced twice": (Forced, lambda kind, prompts: kind([(1, 1, 2)], limits=LIMITS), lambda: forced([(1, 1, 2)])),
}
STATES = [name for name in CASES if name not in ("copy 1", "pattern (a|b)*")]    # where what is allowed depends on what was said: a state


def banning(allowed):
    """Tokens so far -> the tokens with which no allowed answer goes on."""
    onward = {}
    for answer in allowed:
        for place, token in enumerate(answer):
            onward.setdefault(answer[:place], set()).add(token)
    return lambda tokens: set(range(V)) - onward.get(tokens, set())


def check_beam(machine, exhaustive, processor, allowed):
    stepper = machine(V, seed=3)
    beams = V**LIMITS.max_new
    found = beam(stepper, PROMPTS, beams=beams, n=beams, limits=LIMITS, processors=[processor])
    for prompt, group, some in zip(PROMPTS, found, allowed, strict=True):
        expected = exhaustive(stepper, prompt, LIMITS, banned=banning(some))
        assert {tokens for _, tokens in expected} == {one.tokens for one in group} == some and len(group) == len(some) > 1
        scores = {tokens: score for score, tokens in expected}
        assert all(math.isclose(one.score, scores[one.tokens], abs_tol=1e-12) for one in group)
        assert [one.score for one in group] == sorted((one.score for one in group), reverse=True)


@pytest.mark.parametrize("name", CASES)
def test_beam_is_exhaustive_search(name, machine, exhaustive):
    kind, make, allowed = CASES[name]
    check_beam(machine, exhaustive, make(kind, PROMPTS), allowed())


@pytest.mark.parametrize("fault", ["identity", "resized"])
@pytest.mark.parametrize("name", STATES)
def test_a_state_that_does_not_move_is_caught(name, fault, machine, exhaustive):
    """The planted fault: a select that does nothing, and one that only changes how many states there are (bert4keras)."""
    kind, make, allowed = CASES[name]

    class Faulty(kind):
        def start(self, prompts, rows):
            super().start(prompts, rows)
            self.count = rows

        def select(self, index):
            if fault == "resized":
                super().select(torch.arange(len(index)) % self.count)
                self.count = len(index)

    with pytest.raises((AssertionError, FishpawError)):
        check_beam(machine, exhaustive, make(Faulty, PROMPTS), allowed())


@pytest.mark.parametrize("name", CASES)
def test_every_search_stays_inside_and_prompts_do_not_meet(name, machine):
    kind, make, allowed = CASES[name]
    stepper, found = machine(V, seed=5), allowed()
    for one, some in zip(greedy(stepper, PROMPTS, limits=LIMITS, processors=[make(kind, PROMPTS)]), found, strict=True):
        assert one.tokens in some
    for width in (1, 2, 3):
        groups = beam(stepper, PROMPTS, beams=width, n=width, limits=LIMITS, processors=[make(kind, PROMPTS)])
        for prompt, group, some in zip(PROMPTS, groups, found, strict=True):
            alone = beam(stepper, [prompt], beams=width, n=width, limits=LIMITS, processors=[make(kind, [prompt])])
            assert group and all(one.tokens in some for one in group)
            assert [one.tokens for one in alone[0]] == [one.tokens for one in group]
    for group, some in zip(sample(stepper, PROMPTS, limits=LIMITS, n=17, processors=[make(kind, PROMPTS)]), found, strict=True):
        assert all(one.tokens in some for one in group)


@pytest.mark.parametrize("name", ["choices", "pattern [^a]{2,}|a*", "copy 2", "forced"])
def test_samples_follow_the_renormalised_distribution(name, machine, exhaustive, draws=20_000):
    kind, make, allowed = CASES[name]
    stepper = machine(V, seed=2, spread=0.7)
    processor = make(kind, PROMPTS[:1])
    group = sample(stepper, PROMPTS[:1], limits=LIMITS, n=draws, processors=[processor], generator=torch.Generator().manual_seed(7))[0]
    counts = Counter(one.tokens for one in group)
    cells, rest, statistic = 0, [0.0, 0], 0.0
    for score, tokens in exhaustive(stepper, PROMPTS[0], LIMITS, banned=banning(allowed()[0])):
        expected, seen = math.exp(score) * draws, counts.pop(tokens, 0)
        if expected < 10:
            rest = [rest[0] + expected, rest[1] + seen]          # rare answers are one cell
        else:
            statistic, cells = statistic + (seen - expected)**2 / expected, cells + 1
    if rest[0] >= 10:
        statistic, cells = statistic + (rest[1] - rest[0])**2 / rest[0], cells + 1
    assert not counts and cells > 3
    assert statistic < cells - 1 + 4 * math.sqrt(2 * (cells - 1))                # four standard deviations of chi-square


@pytest.mark.parametrize("name", CASES)
def test_processors_behind_it_and_a_second_search(name, machine):
    kind, make, allowed = CASES[name]
    processor, found = make(kind, PROMPTS), allowed()
    assert isinstance(processor, StatefulProcessor)
    from fishpaw.decoding.processors import Temperature, TopK
    for _ in range(2):                                           # start forgets
        groups = sample(machine(V, seed=1), PROMPTS, limits=LIMITS, n=3, processors=[processor, Temperature(0.7), TopK(2)])
        assert all(one.tokens in some for group, some in zip(groups, found, strict=True) for one in group)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_logits_are_only_masked(name, dtype):
    kind, make, _ = CASES[name]
    processor, logits = make(kind, PROMPTS), torch.randn(3, V, dtype=dtype)
    before = logits.clone()
    processor.start(None, 3)
    kept = processor(logits, torch.zeros(3, 0, dtype=torch.long))
    assert kept.dtype == dtype and kept is not logits and torch.equal(logits, before)
    assert torch.equal(kept[kept > float("-inf")], logits[kept > float("-inf")]) and bool((kept > float("-inf")).any(1).all())


def test_allowed_keeps_its_tokens_and_no_state():
    allowed = Allowed([3, 1, 3])
    kept = allowed(torch.zeros(2, 7), torch.zeros(2, 4, dtype=torch.long))
    assert [row.nonzero()[:, 0].tolist() for row in kept > float("-inf")] == [[1, 3]] * 2
    assert not isinstance(allowed, StatefulProcessor) and allowed == Allowed((1, 3))
    with pytest.raises(ConfigError, match="Allowed names token 7; allowed: 0 to 6"):
        Allowed([7])(torch.zeros(1, 7), torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(ConfigError, match="Allowed was given no token"):
        Allowed([])


def test_a_trie_holds_what_was_put_in():
    sequences = [[5, 1], [5], [2, 0, 0, 7], [5, 1], [2, 0, 3]]
    trie = Trie(sequences)
    assert len(trie) == 8 and trie.leaves[0] == trie.leaves[3]
    for sequence, leaf in zip(sequences, trie.leaves.tolist(), strict=True):
        labels = []
        while leaf:
            labels.append(int(trie.labels[leaf]))
            assert trie.first[trie.parents[leaf]] <= leaf < trie.first[trie.parents[leaf] + 1]
            leaf = int(trie.parents[leaf])
        assert labels[::-1] == sequence


def test_a_large_trie_is_made_and_walked_quickly(machine):
    dice = torch.Generator().manual_seed(1)
    numbers = torch.randint(1, 997, (20_011, 7), generator=dice).tolist()
    limits = Limits(9, ends=(END,))
    found = greedy(machine(997, seed=1), [(1,)], limits=limits, processors=[Choices(Trie(numbers), limits=limits)])
    assert list(found[0].content) in numbers


@pytest.mark.parametrize(("make", "says"), [
    (lambda: Trie([]), "no sequence"), (lambda: Trie([[1], []]), "an empty one"), (lambda: Trie([[1, -1]]), "a trie holds -1"),
    (lambda: Trie([[1, 2.5]]), "a trie holds 2.5"),
    (lambda: Choices(Trie([[1]]), limits=Limits(5)), "Choices needs an end token"),
    (lambda: Choices(Trie([[1]]), limits=Limits(5, min_new=1, ends=(0,))), "min_new is 1"),
    (lambda: Choices(Trie([[1]]), limits=Limits(5, ends=(0,), min_ends=2)), "min_ends is 2"),
    (lambda: Choices(Trie([[1, 2, 0]]), limits=LIMITS), "A choice of prompt 0 holds the end token 0"),
    (lambda: Choices([], limits=LIMITS), "no trie"),
    (lambda: Choices(Trie([[1] * 5, [2] * 6]), limits=LIMITS), "The shortest choice takes at least 6 tokens, .* max_new is 5"),
    (lambda: Choices([Trie([[1]]), Trie([[1] * 5])], limits=LIMITS), "The shortest choice of prompt 1 takes at least 6"),
    (lambda: Choices([Trie([[1]])] * 2, limits=LIMITS).start(None, 3), "2 tries for 3 prompts"),
    (lambda: Forced([], limits=LIMITS), "no phrase"), (lambda: Forced([()], limits=LIMITS), "an empty one"),
    (lambda: Forced([(1, 0)], limits=LIMITS), "A phrase of Forced holds the end token 0"),
    (lambda: Forced([(1, 2, 3), (1, 3, 2)], limits=LIMITS), "have 6 tokens, but max_new is 5"),
    (lambda: Forced([(1, 2)], limits=Limits(5, ends=(0,), min_ends=2)), "min_ends is 2"),
    (lambda: Forced([(9,)], limits=LIMITS)(torch.zeros(0, V), torch.zeros(0, 0)), "Forced names token 9; allowed: 0 to 4"),
    (lambda: Choices(Trie([[9]]), limits=LIMITS), None),
])
def test_what_can_not_be_is_refused(make, says):
    if says is None:                                             # the vocabulary is known at the first step only
        with pytest.raises(ConfigError, match="Choices names token 9; allowed: 0 to 4"):
            Chain(LIMITS, [choices := make()]).start(None, 1)
            choices(torch.zeros(1, V), torch.zeros(1, 0, dtype=torch.long))
    else:
        with pytest.raises(ConfigError, match=says):
            make()


def test_a_search_that_does_not_start_or_move_it_is_told():
    choices = Choices(Trie(CHOICES), limits=LIMITS)
    with pytest.raises(ConfigError, match="Choices has 0 states for 2 rows"):
        choices(torch.zeros(2, V), torch.zeros(2, 0, dtype=torch.long))
    choices.start(None, 1)
    with pytest.raises(ConfigError, match="Token 0 was chosen where Choices had banned it"):
        choices(torch.zeros(1, V), torch.tensor([[0]]))


@pytest.mark.parametrize("ends", [(), (END,)])
@pytest.mark.parametrize("min_new", [0, 3, 11])
def test_forced_phrases_are_in_and_the_search_is_never_stuck(ends, min_new, machine):
    phrases = [(1, 2, 1, 3), (2, 4), (4, 4), (1, 2)]             # overlapping, and one inside another
    limits = Limits(11, ends=ends, min_new=min_new)
    for seed in range(8):
        stepper = machine(V, seed=seed, spread=3.0)
        found = [*greedy(stepper, PROMPTS, limits=limits, processors=[Forced(phrases, limits=limits)]),
                 *itertools.chain(*beam(stepper, PROMPTS, beams=3, n=3, limits=limits, processors=[Forced(phrases, limits=limits)])),
                 *itertools.chain(*sample(stepper, PROMPTS, n=3, limits=limits, processors=[Forced(phrases, limits=limits)]))]
        assert all(within(one.tokens, phrase) for one in found for phrase in phrases)


def test_a_user_can_write_one():
    """Tokens in turns, 1 2 1 2 …, of even number."""
    class Turns(Constraint):
        def __init__(self, *, limits):
            import numpy as np
            super().__init__(limits)
            self.least = np.array([0, 1])
            self.rows = [(np.array([1]), np.array([1])), (np.array([2]), np.array([0]))]

        def origin(self, prompt):
            return 0

        def moves(self, state):
            return self.rows[state]

    turns = Turns(limits=LIMITS)
    turns.start(None, 1)
    said = []
    for tokens in ([], [1], [1, 2], [1, 2, 1], [1, 2, 1, 2]):
        kept = turns(torch.zeros(1, V), torch.tensor([tokens], dtype=torch.long).view(1, -1))
        said.append((kept[0] > float("-inf")).nonzero()[:, 0].tolist())
    assert said == [[0, 1], [2], [0, 1], [2], [0]]


def test_of_prompts_is_made_for_these_alone(machine):
    tries = [Trie(one) for one in EACH]
    kinds = (lambda places: Choices([tries[place] for place in places], limits=LIMITS),
             lambda places: CopyOnly([SOURCES[place] for place in places], n=2, limits=LIMITS))
    for make in kinds:
        whole = make(range(3))
        for places in ([2], [2, 0], [1, 1, 0]):
            prompts = [PROMPTS[place] for place in places]
            found, alone = (beam(machine(V, seed=3), prompts, beams=3, n=2, limits=LIMITS, processors=[one])
                            for one in (whole.of(places), make(places)))
            assert found == alone and whole.prompts == 3
    shared = Choices(tries[0], limits=LIMITS)
    assert shared.of([4, 7]) is shared and shared.prompts is None


def test_a_trie_ends_where_the_next_one_begins(machine):
    """Between two the last leaf once went on into the other's root, as token -1: the last of the vocabulary."""
    choices = Choices([Trie([[1]]), Trie([[2]]), Trie([[3], [1, 2]])], limits=LIMITS)
    assert [choices.moves(state)[0].tolist() for state in range(len(choices.least))] == [[1], [], [2], [], [1, 3], [2], [], []]
    for seed in range(20):
        found = sample(machine(V, seed=seed), PROMPTS, limits=LIMITS, processors=[choices])
        assert [group[0].tokens for group in found][:2] == [(1, END), (2, END)]


def test_constraints_have_short_names():
    made = [Choices(Trie(EACH[0]), limits=LIMITS), Choices([Trie(one) for one in EACH], limits=LIMITS), Forced([[1, 2]], limits=LIMITS),
            Pattern("a" * 99 + "?", Letters(), limits=Limits(200, ends=(END,))), CopyOnly(SOURCES, n=2, limits=LIMITS), Allowed(range(9))]
    assert list(map(repr, made)) == ["Choices(a trie)", "Choices(3 tries)", "Forced(1 phrases)", f"Pattern({'a' * 60!r})",
                                     "CopyOnly(3 sources, n=2)", "Allowed(9 tokens)"]
