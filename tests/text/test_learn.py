"""characters: a vocabulary that spells every text it was learned from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fishpaw.errors import DataError
from fishpaw.text.learn import characters
from fishpaw.text.vocab import SPECIAL
from fishpaw.text.wordpiece import WordPiece


def test_frequent_characters_come_first_and_ties_by_code_point():
    vocab = characters(["好好好天天 ab", "天ba好"], least=2)
    assert vocab.tokens == (*SPECIAL, "好", "天", "a", "##a", "b", "##b")


def test_rare_ones_are_left_out_and_most_is_kept():
    assert "坏" not in characters(["好好坏"], least=2) and "坏" in characters(["好好坏"], least=1)
    assert characters(["好好坏坏今"], least=1, most=6).tokens == (*SPECIAL, "好" if "好" < "坏" else "坏")


def test_normalised_as_the_tokenizer_does():
    vocab = characters(["ＡÉé　\x00\ud800"], least=1)
    assert {"e", "##e", "ａ"} <= set(vocab.tokens) and not {"É", "é", "\x00", "\u3000"} & set(vocab.tokens)
    assert "A" in characters(["A"], least=1, lower=False)


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=20), min_size=1, max_size=5))
def test_every_text_that_it_learned_from_is_spelled_without_unknown_tokens(texts):
    texts = ["好", *texts]
    tokenizer = WordPiece(characters(texts, least=1))
    assert not any(tokenizer.unk_id in tokenizer.encode(text).ids for text in texts)


@pytest.mark.parametrize("texts", [[], [""], [" \t\x00"], ["好"]])
def test_texts_without_a_character_are_refused(texts):
    with pytest.raises(DataError, match="No character stands 2 times"):
        characters(texts)
