"""Repetition: against plain loops a row at a time, padding, beams that move and rows that leave, transformers' processors, bad values."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fishpaw.contracts import Batch
from fishpaw.decoding.limits import Limits
from fishpaw.decoding.processors import StatefulProcessor
from fishpaw.decoding.repetition import Dry, FrequencyPenalty, NoRepeatNgram, PresencePenalty, RepetitionPenalty
from fishpaw.decoding.sample import sample
from fishpaw.decoding.search import beam, greedy
from fishpaw.errors import ConfigError

NEVER = float("-inf")
VOCABULARY = 7


def padded(texts: list[list[int]], side: str, fill: int = 0) -> Batch:
    width = max(map(len, texts))
    rows = [[fill] * (width - len(text)) + text if side == "left" else text + [fill] * (width - len(text)) for text in texts]
    keep = [[False] * (width - len(text)) + [True] * len(text) for text in texts]
    keep = keep if side == "left" else [row[::-1] for row in keep]
    return Batch.padded(torch.tensor(rows), keep=torch.tensor(keep))


# The definitions, a row and a token at a time: text is all that counts, made what was generated

def penalised(logits: list[float], text: list[int], made: list[int], value: float) -> list[float]:
    return [logit if token not in text else logit * value if logit < 0 else logit / value for token, logit in enumerate(logits)]


def counted(logits: list[float], text: list[int], made: list[int], value: float) -> list[float]:
    return [logit - value * made.count(token) for token, logit in enumerate(logits)]


def present(logits: list[float], text: list[int], made: list[int], value: float) -> list[float]:
    return [logit - value * (token in made) for token, logit in enumerate(logits)]


def without_ngrams(logits: list[float], text: list[int], made: list[int], n: int) -> list[float]:
    there = {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}
    return [NEVER if len(text) >= n - 1 and (*text[len(text) - n + 1 :], token) in there else logit for token, logit in enumerate(logits)]


def dried(logits: list[float], text: list[int], made: list[int], multiplier: float, base: float, allowed: int, breakers: set[int],
          window: int | None) -> list[float]:
    text = text[-window:] if window else text
    out = []
    for token, logit in enumerate(logits):
        longest = 0
        for place in range(1, len(text)):
            length = 0
            while length < place and text[place - 1 - length] == text[-1 - length] and text[-1 - length] not in breakers:
                length += 1
            longest = max(longest, length if text[place] == token and token not in breakers else 0)
        out.append(logit - min(1e4, multiplier * base ** (longest - allowed)) if longest >= allowed else logit)
    return out


PAIRS: list[tuple[Any, Any]] = [
    (lambda: RepetitionPenalty(1.3), lambda *a: penalised(*a, 1.3)),
    (lambda: RepetitionPenalty(0.7), lambda *a: penalised(*a, 0.7)),
    (lambda: FrequencyPenalty(0.4), lambda *a: counted(*a, 0.4)),
    (lambda: PresencePenalty(-0.4), lambda *a: present(*a, -0.4)),
    *[(lambda n=n: NoRepeatNgram(n), lambda *a, n=n: without_ngrams(*a, n)) for n in (1, 2, 3, 4)],
    (lambda: Dry(0.8), lambda *a: dried(*a, 0.8, 1.75, 2, set(), None)),
    (lambda: Dry(2.0, base=1.1, allowed_length=1, breakers=(3, 5)), lambda *a: dried(*a, 2.0, 1.1, 1, {3, 5}, None)),
    (lambda: Dry(0.5, base=3.0, allowed_length=3, breakers={2}, window=9), lambda *a: dried(*a, 0.5, 3.0, 3, {2}, 9)),
    (lambda: Dry(0.5, window=1), lambda *a: dried(*a, 0.5, 1.75, 2, set(), 1)),
]  # fmt: skip


def runs(make: Any, by_hand: Any, side: str, seed: int, moves: bool) -> bool:
    """Whether the processor agrees with the definition over 40 steps, during which rows fan out, swap and leave."""
    source = torch.Generator().manual_seed(seed)
    texts = [torch.randint(4, (length,), generator=source).tolist() for length in (5, 1, 11)]
    processor = make()
    rows = [(text, []) for text in texts]
    if isinstance(processor, StatefulProcessor):
        processor.start(padded(texts, side, fill=VOCABULARY - 1), len(texts))
    for step in range(40):
        made = torch.tensor([row for _, row in rows], dtype=torch.long).view(len(rows), step)
        logits = torch.randn(len(rows), VOCABULARY, generator=source, dtype=torch.float64)
        before = logits.clone()
        out = processor(logits, made)
        assert torch.equal(logits, before), "the logits that were given belong to the stepper"
        expected = [by_hand(logit, text + row, row) for logit, (text, row) in zip(logits.tolist(), rows, strict=True)]
        if not torch.allclose(out, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9):
            return False
        rows = [(text, [*row, int(torch.randint(4, (), generator=source))]) for text, row in rows]
        if step in (0, 3, 9, 17, 30):
            index = {0: [0, 0, 0, 1, 1, 2, 2], 3: [2, 0, 0, 4, 4, 6, 5], 9: [1, 2, 4, 5, 6], 17: [0, 3, 4], 30: [2]}[step]
            rows = [rows[i] for i in index]
            if isinstance(processor, StatefulProcessor) and moves:
                processor.select(torch.tensor(index))
            elif isinstance(processor, StatefulProcessor):       # planted: as many rows, but each with the state of another
                processor.select(torch.tensor(index).flip(0))
    return True


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: repr(pair[0]()))
def test_as_the_definition_says_while_rows_move_and_leave(pair, side, seed):
    assert runs(*pair, side, seed, moves=True)


@pytest.mark.parametrize("pair", [one for one in PAIRS[:-1] if isinstance(one[0](), StatefulProcessor)], ids=lambda one: repr(one[0]()))
def test_a_state_that_moves_to_another_row_is_seen(pair):
    assert not runs(*pair, "left", 0, moves=False)


@pytest.mark.parametrize("make", [lambda: RepetitionPenalty(2.0, prompt=False), lambda: NoRepeatNgram(1, prompt=False),
                                  lambda: Dry(1.0, allowed_length=1, prompt=False)])  # fmt: skip
def test_a_prompt_that_does_not_count_changes_nothing(make):
    processor, logits = make(), torch.randn(2, VOCABULARY)
    processor.start("whatever", 2)
    assert torch.equal(processor(logits, torch.zeros(2, 0, dtype=torch.long)), logits)
    processor.select(torch.tensor([1, 1, 0]))
    made = torch.tensor([[1, 2, 1], [3, 3, 3], [4, 5, 6]])
    out = processor(torch.ones(3, VOCABULARY), made)
    assert out[0, 2] < 1 and out[1, 3] < 1 and (out[2, :4] == 1).all()


def test_a_second_search_begins_anew():
    processor, batch = Dry(1.0, allowed_length=1), padded([[1, 2, 1]], "left")
    empty = torch.zeros(1, 0, dtype=torch.long)
    answers = []
    for _ in range(2):
        processor.start(batch, 1)
        answers.append(processor(torch.zeros(1, VOCABULARY), empty))
        processor(torch.zeros(1, VOCABULARY), torch.tensor([[5]]))
    assert torch.equal(*answers) and answers[0].tolist() == [[0, 0, -1, 0, 0, 0, 0]]


def test_dry_grows_and_never_bans():
    processor = Dry(0.8)
    processor.start(padded([[1, 2, 3] * 400], "left"), 1)
    out = processor(torch.zeros(1, VOCABULARY), torch.zeros(1, 0, dtype=torch.long))
    assert out.tolist() == [[0, -1e4, 0, 0, 0, 0, 0]]
    processor = Dry(0.0)
    processor.start(padded([[1] * 3000], "left"), 1)
    assert not processor(torch.zeros(1, VOCABULARY), torch.zeros(1, 0, dtype=torch.long)).any()


def test_penalties_keep_what_is_banned_banned():
    logits = torch.full((1, VOCABULARY), NEVER)
    for processor in (RepetitionPenalty(0.5), FrequencyPenalty(-1.0), PresencePenalty(-1.0), NoRepeatNgram(2), Dry(1.0, allowed_length=1)):
        if isinstance(processor, StatefulProcessor):
            processor.start(padded([[1, 2]], "left"), 1)
        assert (processor(logits, torch.tensor([[1, 2, 2, 2]])) == NEVER).all()


# In searches

class Folded:
    """A machine that reads padded batches."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def start(self, batch: Batch, encoder_batch: Any = None) -> torch.Tensor:
        return self.inner.start([tuple(row.tolist()) for row in batch.unpack(batch.ids)])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@pytest.mark.parametrize("search", ["greedy", "beam", "sample"])
def test_no_answer_repeats_what_is_banned_and_batches_are_one_by_one(machine, search):
    texts, limits = [[1, 2, 3], [4], [5, 6, 5, 6]], Limits(14, ends=(0,))

    def answer(some: list[list[int]], processors: list[Any]) -> list[list[tuple[int, ...]]]:
        batch, stepper = padded(some, "left", fill=9), Folded(machine(11, seed=3))
        if search == "greedy":
            return [[one.tokens] for one in greedy(stepper, batch, limits=limits, processors=processors)]
        if search == "beam":
            return [[one.tokens for one in group] for group in beam(stepper, batch, beams=3, n=3, limits=limits, processors=processors)]
        sources = [torch.Generator().manual_seed(sum(text)) for text in some]
        groups = sample(stepper, batch, n=3, limits=limits, processors=processors, generator=sources)
        return [[one.tokens for one in group] for group in groups]

    ban = NoRepeatNgram(2)
    together = answer(texts, [ban])
    for text, group in zip(texts, together, strict=True):
        for tokens in group:
            whole = [*text, *tokens]
            pairs = list(zip(whole, whole[1:], strict=False))[len(text) - 1 :]
            assert len(set(pairs)) == len(pairs)
    for processors in ([ban], [RepetitionPenalty(1.5)], [Dry(3.0, allowed_length=1)], [FrequencyPenalty(1.0), PresencePenalty(0.5)]):
        assert answer(texts, processors) == [answer([text], processors)[0] for text in texts]


def test_beams_of_a_penalty_are_the_best_of_all(machine, exhaustive):
    """Beam search with a state equals exhaustive search with the definition."""
    toy, limits, text = machine(4, seed=5), Limits(4, ends=(0,)), [1, 2, 1]

    def banned(tokens: tuple[int, ...]) -> set[int]:
        whole = [*text, *tokens]
        return {token for token, logit in enumerate(without_ngrams([0.0] * 4, whole, [], 2)) if logit == NEVER}

    expected = exhaustive(toy, tuple(text), limits, banned=banned)[:9]
    ((found),) = beam(Folded(toy), padded([text], "left"), beams=256, n=9, limits=limits, processors=[NoRepeatNgram(2)])
    assert [one.tokens for one in found] == [tokens for _, tokens in expected]
    assert [one.score for one in found] == pytest.approx([score for score, _ in expected], abs=1e-12)


# Refusals

@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [(RepetitionPenalty, "repetition_penalty", value) for value in (0, -1, float("nan"), float("inf"), True, "1")]
    + [(FrequencyPenalty, "frequency_penalty", value) for value in (float("nan"), float("inf"), None, True)]
    + [(PresencePenalty, "presence_penalty", value) for value in (float("nan"), "0")]
    + [(NoRepeatNgram, "no_repeat_ngram", value) for value in (0, -2, 2.5, True, None)]
    + [(Dry, "dry", value) for value in (-1, float("nan"), float("inf"), True, "1")],
)  # fmt: skip
def test_values_out_of_range(kind, name, value):
    with pytest.raises(ConfigError, match=f"^{name} is .*allowed: "):
        kind(value)


@pytest.mark.parametrize("options", [{"base": 0.5}, {"base": float("nan")}, {"allowed_length": 0}, {"window": 0}, {"breakers": (3, -1)}],
                         ids=str)  # fmt: skip
def test_options_of_dry_out_of_range(options):
    with pytest.raises(ConfigError, match=f"^{next(iter(options))} is .*allowed: "):
        Dry(1.0, **options)


@pytest.mark.parametrize("make", [lambda: RepetitionPenalty(2.0), lambda: NoRepeatNgram(2), lambda: Dry(1.0)])
def test_prompts_that_can_not_be_read_are_refused(make):
    with pytest.raises(ConfigError, match="no padded Batch but a list"):
        make().start([(1, 2)], 1)


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(3))
def test_as_transformers(seed):
    from transformers.generation import logits_process as theirs

    source = torch.Generator().manual_seed(seed)
    text, made = torch.randint(13, (5, 17), generator=source), torch.randint(13, (5, 23), generator=source)
    logits = torch.randn(5, 13, generator=source, dtype=torch.float64) * 3
    pairs = [(RepetitionPenalty(1.3), theirs.RepetitionPenaltyLogitsProcessor(1.3)),
             (RepetitionPenalty(0.8), theirs.RepetitionPenaltyLogitsProcessor(0.8)),
             *[(NoRepeatNgram(n), theirs.NoRepeatNGramLogitsProcessor(n)) for n in (1, 2, 3, 5)]]  # fmt: skip
    for ours, peer in pairs:
        ours.start(Batch.padded(text), 5)
        assert torch.equal(ours(logits, made), peer(torch.cat([text, made], 1), logits.clone())), ours
