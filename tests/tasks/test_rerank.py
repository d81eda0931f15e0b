"""Re-ranking: the numbers are those of a naive sum, and the reply that only this history explains wins over the one that fits anywhere."""

from __future__ import annotations

import pytest
import torch

import fishpaw as fp
from fishpaw.data.conversations import Conversation
from fishpaw.decoding.hypothesis import Hypothesis
from fishpaw.decoding.settings import Settings
from fishpaw.errors import ConfigError
from fishpaw.tasks.dialogue import Dialogue, small
from fishpaw.tasks.rerank import Backward, Mutual

LETTERS = "今天气我们去公园玩吧房间前台很热情下次"
TALK = ["今天气", "我好", "气今今"]
TOY = [Conversation((letter, "好" if at // 5 % 3 else letter * 2)) for at, letter in enumerate(LETTERS[:5] * 12)]


def talker(**changes: object) -> Dialogue:
    config = small(1).change({"hidden_size": 16, "layers": 1, "attention_heads": 2, "intermediate_size": 24, "dropout": 0.0,
                              "attention_dropout": 0.0, "init_std": 0.6, **changes})  # fmt: skip
    task = Dialogue.new(TOY, config=config, max_length=48, seed=5)
    task.model.double()
    return task


@torch.no_grad()
def naive(task: Dialogue, before: list[tuple[list[int], int]], tokens: list[int], segment: int) -> float:
    """log p(tokens | before), of which each part has its segment."""
    ids, segments = list(task.layout.start), [0]
    for part, own in before:
        ids, segments = ids + part, segments + [own] * len(part)
    whole = torch.tensor([ids + tokens])
    logs = task.model(whole, segments=torch.tensor([segments + [segment] * len(tokens)])).logits[0].log_softmax(-1)
    return sum(float(logs[len(ids) + at - 1, token]) for at, token in enumerate(tokens))


def hypotheses(task: Dialogue, texts: list[str]) -> list[Hypothesis]:
    return [Hypothesis(tuple(turn), (0.0,) * len(turn), 0.0, 0, True, True) for turn in task.layout.turns(texts)]


def test_mutual_information_is_its_formula():
    task = talker()
    history = [(turn, place % 2) for place, turn in enumerate(task.layout.turns(TALK))]
    found = hypotheses(task, ["好", "我们今"])
    scores = Mutual(0.7, reward=0.25)(task, TALK, found)
    for one, got in zip(found, scores, strict=True):
        tokens = list(one.tokens)
        given, silence = naive(task, history, tokens, 1), [([task.layout.end], 0)]
        assert got == pytest.approx(given - 0.7 * naive(task, silence, tokens, 1) + 0.25 * len(tokens), abs=1e-9)
        assert got != pytest.approx(given - 0.7 * naive(task, [], tokens, 1) + 0.25 * len(tokens), abs=1e-3)       # planted: an opening


@pytest.mark.parametrize("turns", [1, 2, 9])
def test_backward_guesses_the_last_turns_one_after_another(turns):
    task = talker()
    found = hypotheses(task, ["好", "我们今"])
    scores = Backward(task, turns=turns)(task, TALK, found)
    source = task.layout.turns(TALK)[::-1][:turns]
    for one, got in zip(found, scores, strict=True):
        before, expected = [(list(one.tokens), 0)], 0.0
        for place, turn in enumerate(source, 1):
            expected += naive(task, before, turn, place % 2)
            before.append((turn, place % 2))
        assert got == pytest.approx(expected, abs=1e-9)


def test_what_fits_anywhere_loses_against_what_fits_here():
    torch.set_num_threads(1)
    config = small(1).change({"hidden_size": 32, "layers": 1, "attention_heads": 2, "intermediate_size": 32, "dropout": 0.0,
                              "attention_dropout": 0.0, "init_std": 0.2})  # fmt: skip
    options = fp.Options(steps=120, batch_size=20, learning_rate=0.01)
    task = Dialogue.new(TOY, config=config, max_length=20)
    task.fit(TOY, alone=0.5, options=options)
    back = Dialogue.new(TOY, config=config, max_length=20)
    back.fit([one.backwards for one in TOY], options=options)
    found = hypotheses(task, ["好", "天天"])
    plain = Mutual(0.0)(task, ["天"], found)
    assert plain[0] > plain[1]                                       # 好 is the likelier reply to anything
    for rank in (Mutual(1.0), Backward(back)):
        scores = rank(task, ["天"], found)
        assert scores[1] > scores[0], rank
    draws = Settings(sample=True, top_k=5, n=16)
    for rank in (Mutual(), Backward(back)):
        assert task.reply(["天"], draws, rank=rank, max_new=5, seed=2) == "天天"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [(lambda task: Mutual(2.0), "weight is 2"), (lambda task: Mutual(reward=float("nan")), "reward is nan"),
     (lambda task: Backward(task, turns=0), "turns is 0"),
     (lambda task: Backward(Dialogue(task.model, task.tokenizer, template="x")), "chat template")],
)  # fmt: skip
def test_mistakes_are_told(wrong, says):
    with pytest.raises(ConfigError, match=says):
        wrong(talker())
