"""The shared loop: finished rows leave, streamed = collected, and an iterator that is closed early leaves nothing behind."""

from __future__ import annotations

import pytest
import torch

from fishpaw.decoding.limits import Limits
from fishpaw.decoding.sample import sample, stream_sample
from fishpaw.decoding.search import greedy, stream_greedy
from fishpaw.decoding.walk import COMPACT_EVERY, Streamed
from fishpaw.errors import ConfigError, FishpawError

PROMPTS = [(1, 2, 3), (4,), (), (2, 2, 5, 1, 0, 3, 3), (6, 0)]


def joined(streamed: list[Streamed]) -> dict[tuple[int, int], list[Streamed]]:
    rows: dict[tuple[int, int], list[Streamed]] = {}
    for each in streamed:
        rows.setdefault((each.prompt, each.sample), []).append(each)
    return rows


def test_streamed_greedy_is_the_collected_one(machine):
    limits = Limits(11, ends=(0, 3))
    collected = greedy(machine(7, seed=3), PROMPTS, limits=limits)
    rows = joined(list(stream_greedy(machine(7, seed=3), PROMPTS, limits=limits)))
    assert [prompt for prompt, _ in sorted(rows)] == list(range(5))
    for found in collected:
        pieces = rows[found.prompt, 0]
        assert tuple(piece.token for piece in pieces) == found.tokens
        assert tuple(piece.log_probability for piece in pieces) == found.log_probabilities
        assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        assert pieces[-1].ended == found.ended


def test_streamed_samples_are_the_collected_ones(machine):
    limits, seed = Limits(9, ends=(1,)), torch.Generator().manual_seed(5)
    collected = sample(machine(7, seed=2), PROMPTS, limits=limits, n=3, generator=seed)
    rows = joined(list(stream_sample(machine(7, seed=2), PROMPTS, limits=limits, n=3, generator=seed.manual_seed(5))))
    assert sorted(rows) == [(prompt, draw) for prompt in range(5) for draw in range(3)]
    for prompt, group in enumerate(collected):
        for draw, found in enumerate(group):
            assert found.prompt == prompt and tuple(piece.token for piece in rows[prompt, draw]) == found.tokens


def test_finished_rows_leave(machine):
    stepper, limits = machine(7, seed=4), Limits(40, ends=(0,))
    found = [each for group in sample(stepper, PROMPTS, limits=limits, n=13, generator=torch.Generator().manual_seed(1)) for each in group]
    lengths = [len(each.tokens) for each in found]
    assert stepper.widths == [sum(length > step for length in lengths) for step in range(1, max(lengths))]
    assert stepper.widths[0] > stepper.widths[-1]
    assert sum(stepper.widths) == sum(lengths) - len(lengths)    # not one row more than was needed


def test_the_first_token_streams_before_the_second_step(machine):
    stepper = machine(7, seed=3)
    tokens = stream_greedy(stepper, PROMPTS[:1], limits=Limits(9))
    next(tokens)
    assert stepper.widths == []
    next(tokens)
    assert stepper.widths == [1]


def test_closing_early_is_safe(machine):
    stepper, limits = machine(7, seed=3), Limits(9)
    tokens = stream_greedy(stepper, PROMPTS, limits=limits)
    for _ in range(7):
        next(tokens)
    tokens.close()
    assert stepper.widths == [5] and list(tokens) == []
    assert greedy(stepper, PROMPTS, limits=limits) == greedy(machine(7, seed=3), PROMPTS, limits=limits)


def test_gradients_stay_on_for_who_consumes_the_stream(machine):
    seen = []

    def watch(logits, tokens):
        seen.append(torch.is_grad_enabled())
        return logits

    for _ in stream_greedy(machine(7, seed=3), PROMPTS, limits=Limits(3), processors=[watch]):
        assert torch.is_grad_enabled()
    assert seen == [False] * 3


def test_settings_are_checked_at_the_call_not_at_the_first_token(machine):
    with pytest.raises(ConfigError, match="n is 0"):
        stream_sample(machine(7, seed=1), PROMPTS, limits=Limits(3), n=0)
    with pytest.raises(ConfigError, match="can't be called"):
        stream_greedy(machine(7, seed=1), PROMPTS, limits=Limits(3), processors=[3])


def test_a_stop_ends_a_row_and_keeps_its_tokens(machine):
    def repeats(tokens):
        return (tokens[:, -1:] == tokens[:, :-1]).any(1)

    plain = greedy(machine(5, seed=3), PROMPTS, limits=Limits(20))
    stopped = greedy(machine(5, seed=3), PROMPTS, limits=Limits(20), stops=[repeats])
    for whole, cut in zip(plain, stopped, strict=True):
        assert cut.tokens == whole.tokens[:len(cut.tokens)] == cut.content
        assert cut.ended and not cut.closed and not whole.ended
        assert len(set(cut.tokens[:-1])) == len(cut.tokens) - 1 and cut.tokens[-1] in cut.tokens[:-1]


def test_the_stepper_compacts_now_and_then(machine):
    stepper = machine(5, seed=3)
    greedy(stepper, PROMPTS, limits=Limits(3 * COMPACT_EVERY + 5))
    assert stepper.compactions == 3


def test_no_prompt_no_hypothesis(machine):
    assert greedy(machine(5, seed=1), [], limits=Limits(3)) == []
    assert sample(machine(5, seed=1), [], limits=Limits(3), n=2) == []


def test_nothing_left_is_an_error_not_an_endless_loop(machine):
    def third(logits, tokens):
        return logits if tokens.shape[1] < 2 else torch.full_like(logits, float("-inf"))

    tokens = stream_greedy(machine(7, seed=3), PROMPTS[:1], limits=Limits(9), processors=[third])
    assert len([next(tokens), next(tokens)]) == 2
    with pytest.raises(FishpawError, match="third left no token"):
        next(tokens)


def test_the_encoder_batch_reaches_the_stepper(machine):
    class Echo(machine):
        def start(self, batch, encoder_batch=None):
            self.encoded = encoder_batch
            return super().start(batch)

    stepper = Echo(5, seed=1)
    greedy(stepper, PROMPTS, "source", limits=Limits(2))
    assert stepper.encoded == "source"
