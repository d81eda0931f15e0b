"""Stop strings: found at the token that completes them and nowhere else, in bytes and in word pieces, and cut from the text."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from fishpaw.decoding.stops import StopStrings
from fishpaw.errors import ConfigError
from fishpaw.text.bpe import ByteLevel
from fishpaw.text.vocab import SPECIAL, Vocab
from fishpaw.text.wordpiece import WordPiece

WORDS = ["don", "'", "t", "##al", '"', "s", "今", "天", "##天", "it", "ll", "(", ".", "3", ",", "-", "user", ":", "##er", "us"]


def pieces() -> WordPiece:
    return WordPiece(Vocab((*SPECIAL, *WORDS)))


class Bytes:
    """A token a byte, and some of several: what is hard about stop strings, without a file."""

    def __init__(self) -> None:
        several = [b"\n\n", b" us", b"er:", "天".encode()[1:] + "气".encode()[:1], b"##", b"ab"]
        self.bytes = [b"", *(bytes([one]) for one in range(256)), *several]
        self.tokens = ("</s>", *(one.hex() for one in self.bytes[1:]))
        self.special_ids, self.size = frozenset({0}), len(self.bytes)

    def decode(self, ids: list[int], *, skip_special: bool = True) -> str:
        return b"".join(self.bytes[id] for id in ids).decode("utf-8", "replace")


TOKENIZERS = {"bytes": Bytes(), "pieces": pieces()}


def naive(tokenizer: object, strings: list[str], ids: list[int]) -> int:
    """How many tokens until the whole text holds a string, the whole decoded at each; 0 for never."""
    return next((end for end in range(1, len(ids) + 1) if any(one in tokenizer.decode(ids[:end]) for one in strings)), 0)


def walked(stop: StopStrings, rows: list[list[int]]) -> list[int]:
    """The same by the stop, rows side by side, each until it ends."""
    found = [0] * len(rows)
    for end in range(1, max(map(len, rows)) + 1):
        live = [row for row, ids in enumerate(rows) if not found[row] and len(ids) >= end]
        if live:
            for row, ended in zip(live, stop(torch.tensor([rows[row][:end] for row in live])).tolist(), strict=True):
                found[row] = end if ended else 0
    return found


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(data=st.data())
def test_it_ends_where_decoding_the_whole_would(kind, data):
    tokenizer = TOKENIZERS[kind]
    some = st.integers(0, tokenizer.size - 1) if kind == "bytes" else st.sampled_from(range(len(SPECIAL) - 1, tokenizer.size))
    rows = data.draw(st.lists(st.lists(some, min_size=1, max_size=24), min_size=1, max_size=3))
    source = tokenizer.decode(data.draw(st.sampled_from(rows)))
    start, size = data.draw(st.integers(0, 20)), data.draw(st.integers(1, 6))
    strings = [source[start : start + size] or "天", data.draw(st.sampled_from(["\n", "天", "don't", 'it"', "user:", "s 今"]))]
    assert walked(StopStrings(tokenizer, strings), rows) == [naive(tokenizer, strings, ids) for ids in rows]


US, ER = 258, 259                                                # " us", "er:"; the byte b is token b + 1


@pytest.mark.parametrize(
    ("ids", "ends"), [([1 + one for one in b"auser:x"], 6), ([US, ER], 2), ([2, 0, US, 0, 0, ER, 9], 6), ([US, 99, ER], 0)])
def test_a_string_straddles_tokens_and_special_ones_have_no_text(ids, ends):
    tokenizer = Bytes()
    assert walked(StopStrings(tokenizer, ["user:"]), [ids]) == [ends]


def test_characters_of_several_bytes():
    tokenizer = Bytes()
    ids = [1 + one for one in "今天".encode()[:4]] + [260]
    assert walked(StopStrings(tokenizer, ["天"]), [ids]) == [5] and walked(StopStrings(tokenizer, ["气"]), [ids]) == [0]


def test_a_real_tokenizer_of_bytes():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = ByteLevel({token: id for id, token in enumerate([*letters, "<|endoftext|>"])}, [])
    ids = tokenizer.encode("他说：好\n\n你说", special=False).ids
    (end,) = walked(StopStrings(tokenizer, ["\n\n"]), [ids])
    assert tokenizer.decode(ids[:end]) == "他说：好\n\n"


def test_only_a_tail_is_decoded():
    tokenizer, seen = Bytes(), []
    whole = tokenizer.decode
    tokenizer.decode = lambda ids, **given: (seen.append(len(ids)), whole(ids, **given))[1]
    stop = StopStrings(tokenizer, ["user:"])
    assert not stop(torch.full((3, 5000), 98)).any() and seen == [8, 8, 8]


def test_cut_and_settled():
    stop = StopStrings(Bytes(), ["</a>", "<b", "b!"])
    assert stop.cut("x<b</a>") == ("x", "<b") and stop.cut("x</a><b") == ("x", "</a>") and stop.cut("x</") == ("x</", None)
    assert [stop.settled(text) for text in ("x", "x<", "x</a", "x</ab", "", "<", "b")] == [1, 1, 1, 4, 0, 0, 0]


@pytest.mark.parametrize("strings", [[], "\n", [""], ["a", ""], [3]], ids=repr)
def test_strings_that_are_none(strings):
    with pytest.raises(ConfigError, match="allowed: a list of texts, none of them empty"):
        StopStrings(Bytes(), strings)


def test_a_special_token_is_no_stop_string():
    with pytest.raises(ConfigError, match=r"\[SEP\] is a special token"):
        StopStrings(pieces(), ["。", "[SEP]"])
