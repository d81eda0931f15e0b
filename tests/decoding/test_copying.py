"""Copying: every run of the answer is a contiguous piece of its source, for a thousand random models; the rules of SPACES' B and I."""

from __future__ import annotations

import pytest
import torch

from fishpaw.decoding.copying import BEGIN, INSIDE, OUTSIDE, CopyOnly, CopyTags
from fishpaw.decoding.limits import Limits
from fishpaw.decoding.processors import TopK
from fishpaw.decoding.sample import sample
from fishpaw.decoding.search import beam, greedy
from fishpaw.errors import ConfigError

V, END = 13, 0
LIMITS = Limits(11, ends=(END,))
NONE = torch.zeros(1, 0, dtype=torch.long)


def inside(run, source):
    return any(tuple(source[place:place + len(run)]) == tuple(run) for place in range(len(source)))


def spans(content, source, n):
    good = [True]
    for end in range(1, len(content) + 1):
        good.append(any(good[begin] and inside(content[begin:end], source) for begin in range(end - n + 1)))
    return good[-1]


def tagged(tokens, tags, source):
    """The runs B I* of one answer by the rules in plain Python: tags(prefix) -> the three logits. Also checks each token's tag."""
    runs, run, previous = [], [], OUTSIDE
    for place, token in enumerate(tokens):
        logits = list(tags(tokens[:place]))
        if previous == OUTSIDE:
            logits[INSIDE] = float("-inf")
        tag = max(range(3), key=lambda label: logits[label])
        onward = {source[at + len(run)] for at in range(len(source) - len(run)) if tuple(source[at:at + len(run)]) == tuple(run)}
        if tag == INSIDE and not onward:
            tag = BEGIN
        if token == END:
            break
        if tag == INSIDE:
            assert token in onward
            run.append(token)
        else:
            runs.append(run)
            run = [token] if tag == BEGIN else []
            assert tag == OUTSIDE or token in source
        previous = tag
    return [run for run in [*runs, run] if run]


class Crowd:
    """A Stepper of as many random models as there are prompts, each with tables of its own: of logits, and of the tags' logits."""

    states = 89

    def __init__(self, models, seed, spread=1.5):
        dice = torch.Generator().manual_seed(seed)
        self.table = torch.randn(models, self.states, V, generator=dice, dtype=torch.float64) * spread
        self.tagging = torch.randn(models, self.states, 3, generator=dice, dtype=torch.float64)
        lengths = torch.randint(3, 12, (models,), generator=dice).tolist()
        self.sources = [torch.randint(1, V, (length,), generator=dice).tolist() for length in lengths]

    def start(self, batch, encoder_batch=None):
        self.model, self.state = torch.arange(len(batch)), torch.ones(len(batch), dtype=torch.long)
        return self.table[self.model, self.state]

    def step(self, tokens):
        self.state = (self.state * 31 + tokens + 7) % self.states
        return self.table[self.model, self.state]

    def select(self, index):
        self.model, self.state = self.model[index], self.state[index]

    def compact(self):
        pass

    def tags(self):
        return self.tagging[self.model, self.state]

    def tags_after(self, model):
        def tags(said):
            state = 1
            for token in said:
                state = (state * 31 + token + 7) % self.states
            return self.tagging[model, state].tolist()
        return tags


def check_runs(crowd, kind, beams):
    """-> how many runs of two tokens and more there were; each is asserted to be in its source, by the plain rules."""
    models, long = len(crowd.sources), 0
    processors = [kind(crowd.sources, crowd.tags, limits=LIMITS), TopK(10)]
    found = beam(crowd, range(models), beams=beams, n=beams, limits=LIMITS, processors=processors)
    for model, (source, group) in enumerate(zip(crowd.sources, found, strict=True)):
        assert group
        for one in group:
            runs = tagged(one.tokens, crowd.tags_after(model), source)
            assert all(inside(run, source) for run in runs)
            long += sum(len(run) > 1 for run in runs)
    return long


@pytest.mark.parametrize("beams", [1, 3])
def test_every_run_is_in_the_source_for_a_thousand_models(beams):
    assert check_runs(Crowd(1000, seed=1), CopyTags, beams) > 200        # or nothing was tested


@pytest.mark.parametrize("fault", ["identity", "resized", "any source token"])
def test_a_fault_in_the_runs_is_caught(fault):
    class Faulty(CopyTags):
        def start(self, prompts, rows):
            super().start(prompts, rows)
            self.count = rows

        def select(self, index):
            if fault == "resized":
                index = torch.arange(len(index)) % self.count
            if fault != "identity":
                super().select(index)
            self.count = len(index)

        def _ways(self):
            ways = super()._ways()
            return self._sources[self._owner] >= 0 if fault == "any source token" else ways

    with pytest.raises((AssertionError, ConfigError)):
        check_runs(Crowd(100, seed=1), Faulty, 3)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("beams", [1, 3])
def test_copied_answers_are_spans_of_n_tokens_for_a_thousand_models(beams, n):
    crowd, different = Crowd(1000, seed=n), set()
    found = beam(crowd, range(1000), beams=beams, n=beams, limits=LIMITS, processors=[CopyOnly(crowd.sources, n=n, limits=LIMITS)])
    for source, group in zip(crowd.sources, found, strict=True):
        assert group and all(one.ended and spans(one.content, source, n) for one in group)
        different |= {one.content for one in group}
    assert len(different) > 500


@pytest.mark.parametrize("min_new", [1, 5, 8])
def test_min_new_never_leaves_it_stuck(min_new):
    limits, crowd = Limits(min_new + 3, min_new=min_new, ends=(END,)), Crowd(300, seed=min_new)
    crowd.sources[:150] = [[1, 2, 3]] * 150                      # a single span: the next one must always fit
    copy = CopyOnly(crowd.sources, n=3, limits=limits)
    groups = [*sample(crowd, range(300), limits=limits, n=2, processors=[copy])]
    groups += [[one] for one in greedy(crowd, range(300), limits=limits, processors=[copy])]
    for source, group in zip([*crowd.sources] * 2, groups, strict=True):
        assert all(one.ended and len(one.content) >= min_new and spans(one.content, source, 3) for one in group)


def run_of(copy, wanted, tags):
    """Feed tokens to a single row; -> the tokens kept before each, as sets."""
    kept, said = [], []
    copy.start(None, 1)
    for token in [*wanted, None]:
        tags.append(tags.pop(0))                                 # the present tag is the last of the list
        logits = copy(torch.zeros(1, V), torch.tensor([said], dtype=torch.long).view(1, -1))
        kept.append(set((logits[0] > float("-inf")).nonzero()[:, 0].tolist()))
        said.append(token)
    return kept


def test_the_rules_of_tags_step_by_step():
    source = [1, 2, 3, 1, 4, 0, 5]                               # an end token inside: it is not copied, and breaks a run
    script = [OUTSIDE, INSIDE, BEGIN, INSIDE, INSIDE, INSIDE, OUTSIDE]
    tags = list(script)
    copy = CopyTags([source], lambda: torch.nn.functional.one_hot(torch.tensor(tags[-1:]), 3).double(), limits=LIMITS)
    everything = set(range(V))
    # I behind O is neither O nor I … what is left of equal logits is O; a B then allows any source token, 1 goes on with 2 or 4
    kept = run_of(copy, [9, 9, 1, 4, 5, 1], tags)
    assert kept[0] == everything and kept[1] == everything
    assert kept[2] == {1, 2, 3, 4, 5, END}
    assert kept[3] == {2, 4, END}
    assert kept[4] == {1, 2, 3, 4, 5, END}                       # 1 4 goes on with nothing: I falls back to B, and a new run begins
    assert kept[5] == {1, 2, 3, 4, 5, END}                       # 5 is the last: again
    assert kept[6] == everything


def test_hard_copies_step_by_step():
    copy = CopyOnly([[1, 2, 3, 1, 4]], n=2, limits=Limits(6, ends=(END,)))
    copy.start(None, 1)
    said, kept = [], []
    for token in (1, 2, 1, 4, None):
        logits = copy(torch.zeros(1, V), torch.tensor([said], dtype=torch.long).view(1, -1))
        kept.append(set((logits[0] > float("-inf")).nonzero()[:, 0].tolist()))
        said.append(token)
    assert kept == [{1, 2, 3, END}, {2, 4}, {1, 2, 3, END}, {2, 4}, {END}]       # at last there is no room for two tokens and the end


@pytest.mark.parametrize(("make", "says"), [
    (lambda: CopyOnly([], n=1, limits=LIMITS), "no source"), (lambda: CopyOnly([[]], n=1, limits=LIMITS), "no source"),
    (lambda: CopyOnly([[1, 2], [1]], n=2, limits=LIMITS), "Source 1 has no 2 tokens in a row"),
    (lambda: CopyOnly([[1, 0, 2]], n=2, limits=LIMITS), "Source 0 has no 2 tokens in a row"),
    (lambda: CopyOnly([[1, 2]], n=0, limits=LIMITS), "n is 0"), (lambda: CopyOnly([[1, -2]], n=1, limits=LIMITS), "source 0 is -2"),
    (lambda: CopyOnly([[1, 2]], n=1, limits=Limits(5)), "CopyOnly needs an end token"),
    (lambda: CopyOnly([[1] * 9], n=5, limits=Limits(5, ends=(0,))), "need a max_new of 6; it is 5"),
    (lambda: CopyOnly([[1, 2]], n=1, limits=Limits(5, ends=(0,), min_ends=2)), "min_ends is 2"),
    (lambda: CopyOnly([[1, 2]], n=1, limits=LIMITS).start(None, 2), "1 sources for 2 prompts"),
    (lambda: CopyTags([[1], [0]], torch.zeros, limits=LIMITS), "Source 1 has no token"),
    (lambda: CopyTags([[1, 2]], torch.zeros, limits=LIMITS).start(None, 2), "1 sources for 2 prompts"),
])
def test_what_can_not_be_is_refused(make, says):
    with pytest.raises(ConfigError, match=says):
        make()


def test_tags_and_sources_of_a_wrong_size_are_told():
    copy = CopyTags([[1, 2]], lambda: torch.zeros(1, 2), limits=LIMITS)
    copy.start(None, 1)
    with pytest.raises(ConfigError, match=r"tags\(\) gave logits of shape \(1, 2\) for 1 rows"):
        copy(torch.zeros(1, V), NONE)
    only = CopyOnly([[1, V]], n=1, limits=LIMITS)
    only.start(None, 1)
    with pytest.raises(ConfigError, match="A source holds token 13; allowed: 0 to 12"):
        only(torch.zeros(1, V), NONE)
