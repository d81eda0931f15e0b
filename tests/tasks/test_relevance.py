"""Relevance: strange replies are of other conversations, chance is a half, and a model that looks things up is told from one that can't."""

from __future__ import annotations

import pytest
import torch

from fishpaw.data.conversations import Conversation
from fishpaw.errors import ConfigError, DataError
from fishpaw.tasks import relevance as module
from fishpaw.tasks.dialogue import Dialogue, small
from fishpaw.tasks.relevance import choices, relevance

LENGTHS = {"a": 2, "b": 3, "c": 5, "d": 1, "e": 7, "f": 2, "g": 3}
TALKS = [Conversation(tuple(f"{name}{turn}" for turn in range(length))) for name, length in LENGTHS.items()]


def test_each_choice_is_a_history_its_turn_and_another_conversation_s_reply():
    found = choices(TALKS, samples=10_000, seed=1)
    assert len(found) == sum(len(one.turns) - 1 for one in TALKS) and len(set(found)) == len(found)
    for one in found:
        name = one.true[0]
        assert one.history == tuple(f"{name}{turn}" for turn in range(int(one.true[1:])))
        assert one.strange[0] != name and one.strange[1:] != "0"     # an opening is no reply
    assert choices(TALKS, samples=5, seed=2) == choices(TALKS, samples=5, seed=2) != choices(TALKS, samples=5, seed=3)
    with pytest.raises(DataError, match="of one conversation"):
        choices([*TALKS[:1], TALKS[3]], samples=5, seed=0)
    with pytest.raises(ConfigError, match="samples is 0"):
        choices(TALKS, samples=0, seed=0)


def test_the_scores_are_means_a_token_with_and_without_the_history(monkeypatch):
    """By a stand-in that finds a token the likelier the more often it stood before."""
    def looked_up(model, features, **options):
        return [torch.tensor([float(one.ids[: one.asked].count(token)) - 0.1 * token for token in one.ids[one.asked : -1]])
                for one in features]  # fmt: skip

    config = small(1).change({"hidden_size": 8, "layers": 1, "attention_heads": 1, "intermediate_size": 8})
    task = Dialogue.new(TALKS, config=config, least=1)
    talks = [Conversation(tuple(name * (turn + 1) for turn in range(length))) for name, length in LENGTHS.items()]
    found = choices(talks, samples=100, seed=0)
    monkeypatch.setattr(module, "log_probabilities", looked_up)
    by_probability, by_information = relevance(task.model, task.layout, found, max_length=64)
    assert by_information > by_probability > 0.5 and by_information > 0.95
    monkeypatch.setattr(module, "log_probabilities", lambda model, features, **options: [torch.zeros(3) for _ in features])
    assert relevance(task.model, task.layout, found, max_length=64) == (0.5, 0.5)
