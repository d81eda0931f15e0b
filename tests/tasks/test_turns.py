"""The layout of a conversation: who is which segment, what is left out of a long one, and the same probabilities however it is asked."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch
from fishpaw.errors import FishpawError
from fishpaw.model.transformer import Transformer
from fishpaw.tasks.turns import Feature, Layout, log_probabilities
from fishpaw.text.learn import characters
from fishpaw.text.wordpiece import WordPiece

LETTERS = "今天气我们去公园玩吧房间前台很热情"
TOKENIZER = WordPiece(characters([LETTERS], least=1))
LAYOUT = Layout(TOKENIZER)
CLS, SEP = TOKENIZER.cls_id, TOKENIZER.sep_id


def causal(**changes: object) -> Transformer:
    config = ModelConfig(**{
        "vocab_size": TOKENIZER.size, "hidden_size": 12, "layers": 2, "attention_heads": 2, "intermediate_size": 22, "mask": "causal",
        "heads": ("mlm",), "position": "rotary", "dropout": 0.0, "attention_dropout": 0.0, "init_std": 0.6, **changes,
    })  # fmt: skip
    return Transformer(config).double().eval()


def test_a_turn_is_of_its_place_s_parity_and_its_end_belongs_to_it():
    turns = LAYOUT.turns(["今天", "气", "我们去"])
    one = LAYOUT.latest(turns, 30)
    assert TOKENIZER.tokens[one.ids[0]] == "[CLS]" and one.ids == [CLS, *turns[0], *turns[1], *turns[2]]
    assert [turn[-1] for turn in turns] == [SEP] * 3
    assert one.segments == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0] and one.asked == 6 and not one.cut


def test_a_text_cannot_end_its_own_turn():
    (turn,) = LAYOUT.turns(["今[SEP]天[CLS]"])
    assert turn == LAYOUT.turns(["今天"])[0]


LENGTHS = st.lists(st.integers(0, 12), min_size=1, max_size=9)


@given(LENGTHS, st.integers(3, 20))
def test_only_whole_turns_are_left_out_and_from_the_left(lengths, room):
    turns = [[10 + place] * length + [SEP] for place, length in enumerate(lengths)]
    one = LAYOUT.latest(turns, room)
    assert len(one) <= room and one.ids[0] == CLS and one.ids[-1] == SEP
    kept = one.ids[1:]
    if len(turns[-1]) > room - 1:                                    # too long by itself: its beginning goes
        assert one.cut and kept == turns[-1][-(room - 1) :]
    else:
        assert not one.cut
        whole = [turns[first:] for first in range(len(turns)) if sum(map(len, turns[first:])) < room]
        assert kept == sum(whole[0], [])                             # the most turns that fit
        assert one.segments[1:] == [place % 2 for place in range(len(turns) - len(whole[0]), len(turns)) for _ in turns[place]]
    assert one.ids[one.asked :] == turns[-1][-(room - 1) :]


@given(LENGTHS, st.integers(3, 20))
def test_pieces_hold_each_turn_once(lengths, room):
    turns = [[10 + place] * length + [SEP] for place, length in enumerate(lengths)]
    pieces = LAYOUT.pieces(turns, room)
    assert all(len(one) <= room and one.asked == 1 for one in pieces)
    assert sum((one.ids[1:] for one in pieces), []) == sum((turn[-(room - 1) :] for turn in turns), [])
    assert sum((one.segments[1:] for one in pieces), []) == [place % 2 for place, turn in enumerate(turns) for _ in turn[-(room - 1) :]]


def test_a_truncation_that_cuts_turns_would_be_found():
    turns = LAYOUT.turns(["今天气我", "们去", "公园"])
    blind = [CLS, *sum(turns, [])[-9:]]                              # the last 9 tokens, whatever they are of
    assert blind != LAYOUT.latest(turns, 10).ids == [CLS, *turns[1], *turns[2]]


def test_probabilities_of_a_batch_are_those_of_each_alone():
    model = causal()
    turns = LAYOUT.turns(["今天气", "们去", "公园玩吧房间", "我"])
    features = [LAYOUT.latest(turns[:stop], room) for stop, room in ((4, 40), (2, 40), (3, 12), (1, 5))]
    together = log_probabilities(model, features, tokens=20)
    for one, logs in zip(features, together, strict=True):
        ids, segments = torch.tensor([one.ids]), torch.tensor([one.segments])
        naive = model(ids, segments=segments).logits[0].log_softmax(-1)                                       # [t v]
        expected = torch.stack([naive[place - 1, one.ids[place]] for place in range(one.asked, len(one))])
        torch.testing.assert_close(logs, expected.detach(), atol=1e-12, rtol=0)
    assert model.training is False and logs.dtype == torch.float64


def test_a_later_turn_changes_no_earlier_logits():
    @torch.no_grad()
    def difference(model: Transformer) -> float:
        turns, others = LAYOUT.turns(["今天", "气我们", "去"]), LAYOUT.turns(["今天", "气我们", "园"])
        known = len(LAYOUT.latest(turns[:2], 40))
        logits = [model(Batch.padded(torch.tensor([one.ids]), segments=torch.tensor([one.segments]))).logits[0, :known]
                  for one in (LAYOUT.latest(turns, 40), LAYOUT.latest(others, 40))]  # fmt: skip
        return float((logits[0] - logits[1]).abs().max())

    assert difference(causal()) == 0
    assert difference(causal(mask="full")) > 0.01                    # the planted fault


def test_a_model_without_numbers_is_told():
    model = causal()
    with torch.no_grad():
        model.table.fill_(float("nan"))
    with pytest.raises(FishpawError, match="not finite"):
        log_probabilities(model, [Feature([CLS, 5, SEP], [0, 0, 0], 1)])
