"""Bulk ids: those of `encode_batch`, whatever stands beside what, wherever a chunk ends, and in memory that does not grow."""

from __future__ import annotations

import tracemalloc
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fishpaw.errors import ConfigError, DataError
from fishpaw.text import bulk
from fishpaw.text.bulk import Bulk, Rows, cut_rows
from fishpaw.text.normalize import mend, normalize
from fishpaw.text.vocab import Vocab, extend
from fishpaw.text.wordpiece import WordPiece

ADDED = ["<e1>", "</e1>", "天", "ab", "\ufffd", "1]"]
TRICKY = [*"中文天，。[]<>aAbé１12#㎡\uf900≠ßİΣかカ가한\u0301\u302e\u0345\u200b\0\ufffd\ufeff\u3000\u2028\x85\t\n\r 　",
          "\ud800", "\udfff", "𠀀", "\U0002f800", "😀", "\U00011300", "[SEP]", "[MASK]", "[UNK]", "<e1>", "##a", "hello", "x" * 101]


def same(rows, encodings):
    ids = [id for one in encodings for id in one.ids]
    return rows.ids.dtype == np.int32 and rows.lengths.dtype == np.int64 and rows.lengths.tolist() == [len(one) for one in encodings] \
        and rows.ids.tolist() == ids


def differences(tokenizer, lines):
    rows, want = tokenizer.encode_ids(lines), tokenizer.encode_batch(lines)
    got = np.split(rows.ids, np.cumsum(rows.lengths)[:-1])
    return [line for line, ids, one in zip(lines, got, want, strict=True) if ids.tolist() != one.ids]


@pytest.fixture(scope="module")
def tokenizer(vocab):
    return WordPiece(vocab)


@pytest.fixture(scope="module")
def tokenizers(vocab):
    """Two settings far apart, with added tokens that are ideographs, letters, and half a pair of brackets."""
    longer = extend(vocab, ADDED)
    return [WordPiece(longer, added=ADDED), WordPiece(longer, lower=False, strip_accents=True, cjk=False, added=ADDED), WordPiece(vocab)]


@pytest.mark.parametrize("special", [True, False])
def test_ids_are_those_of_encode_batch_on_hard_and_shaken_lines(vocab, option, hard_lines, mixed_lines, special):
    tokenizer, lines = WordPiece(vocab, **option), hard_lines + mixed_lines
    want = tokenizer.encode_batch(lines, special=special)
    assert same(tokenizer.encode_ids(lines, special=special), want)
    assert same(tokenizer.encode_ids(lines, special=special), want)         # again, now from memory


def test_characters_of_all_planes_between_letters_and_between_ideographs(tokenizer):
    chars = [chr(code) for code in (*range(0x3400), *range(0xA000, 0xAC00), *range(0xD780, 0x10000), *range(0x3400, 0x110000, 211))]
    assert differences(tokenizer, [f"a{char}b中{char}文" for char in chars]) == []


@settings(deadline=None, max_examples=300)
@given(st.lists(st.lists(st.sampled_from(TRICKY) | st.characters() | st.characters(categories=("Mn", "Mc", "Me", "Cf", "Cs")),
                         max_size=23).map("".join), max_size=7))
def test_any_text_encodes_alike(tokenizers, texts):
    for tokenizer in tokenizers:
        assert same(tokenizer.encode_ids(texts), tokenizer.encode_batch(texts))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from(TRICKY) | st.characters(), max_size=61).map("".join), st.integers(1, 13))
def test_a_text_may_be_cut_where_parts_cuts_it(tokenizers, text, size):
    for tokenizer in tokenizers:
        parts = list(tokenizer._in_bulk().parts(text, size))
        assert "".join(parts) == mend(text)
        assert [id for part in tokenizer.encode_batch(parts, special=False) for id in part.ids] == tokenizer.encode(text, special=False).ids


@pytest.mark.parametrize("chunk", [1, 13, 1009])
def test_the_size_of_a_chunk_changes_nothing(tokenizers, hard_lines, mixed_lines, chunk, monkeypatch):
    monkeypatch.setattr(bulk, "CHUNK", chunk)
    lines = hard_lines[::7] + mixed_lines[:53] + ["".join(hard_lines[::7])]
    for tokenizer in tokenizers[:2]:
        for options in (dict(), dict(special=False), dict(max_length=5, truncate="left")):
            assert same(tokenizer.encode_ids(lines, **options), tokenizer.encode_batch(lines, **options))


def test_what_is_remembered_is_bounded_and_forgetting_changes_nothing(vocab, hard_lines, mixed_lines, monkeypatch):
    monkeypatch.setattr(bulk, "MEMORY", 11)
    monkeypatch.setattr(bulk, "CHUNK", 29)
    tokenizer = WordPiece(vocab)
    assert differences(tokenizer, hard_lines + mixed_lines) == []
    assert len(tokenizer._in_bulk().known) <= 29


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("length", [2, 3, 7, 31, 10**6])
def test_truncation_is_that_of_encode_batch(tokenizer, hard_lines, special, side, length):
    options = dict(special=special, max_length=length, truncate=side)
    assert same(tokenizer.encode_ids(hard_lines, **options), tokenizer.encode_batch(hard_lines, **options))


def test_cut_rows_on_known_rows():
    rows = Rows(np.array([9, 1, 2, 3, 8, 9, 4, 8], np.int32), np.array([5, 3], np.int64))
    assert cut_rows(rows, 4, "right", 9, 8).ids.tolist() == [9, 1, 2, 8, 9, 4, 8]
    assert cut_rows(rows, 4, "left", 9, 8).ids.tolist() == [9, 2, 3, 8, 9, 4, 8]
    assert cut_rows(rows, 1, "right").ids.tolist() == [9, 9] and cut_rows(rows, 5, "right", 9, 8) is rows


def wrong_table(rust_rules, **changed):
    """The tokenizer with a table made by other rules than its own."""
    tokenizer = WordPiece(rust_rules)
    right = tokenizer._in_bulk()
    fold = partial(lambda char, **rules: normalize(char, **rules)[0], **{**dict(lower=True, strip_accents=None, cjk=True), **changed})
    tokenizer._bulk = Bulk(right.rust, fold, right.whole, cls_id=right.cls_id, sep_id=right.sep_id)
    return tokenizer


def test_a_table_without_the_accents_rule_is_seen(vocab):
    lines = ["中\uf900文", "更≠"]                                 # an ideograph that decomposes to another; a sign that becomes "="
    vocab = extend(vocab, ["\u8c48", "\uf900"])
    assert differences(wrong_table(vocab), lines) == []
    assert differences(wrong_table(vocab, strip_accents=False), lines) == [lines[0]]


@pytest.mark.parametrize("code", [0x31, 0x301, 0x200B, 0x306B, 0xE9])
def test_a_character_set_apart_that_joins_its_neighbours_is_seen(vocab, hard_lines, mixed_lines, code):
    tokenizer = WordPiece(vocab)
    tokenizer._in_bulk().table[code] = -1                       # white space, says the planted fault
    assert differences(tokenizer, [*hard_lines, *mixed_lines, f"a{chr(code)}b"])


def test_special_tokens_that_are_not_looked_for_are_seen(vocab, hard_lines):
    tokenizer = WordPiece(vocab)
    right = tokenizer._in_bulk()
    tokenizer._bulk = Bulk(right.rust, right.fold, {"[PAD]": 0}, cls_id=right.cls_id, sep_id=right.sep_id)
    assert differences(tokenizer, hard_lines)


@pytest.mark.parametrize("options", [dict(pre_tokenize=lambda text: [text]), dict(added=["a\nb"])])
def test_a_hook_and_an_added_token_with_a_line_break_take_the_slow_way(vocab, hard_lines, options):
    tokenizer = WordPiece(Vocab((*vocab.tokens, "a\nb")), **options)
    lines = [*hard_lines, "xa\nby"]
    assert same(tokenizer.encode_ids(lines, max_length=9), tokenizer.encode_batch(lines, max_length=9))
    assert tokenizer._bulk is None


def test_nothing_gives_empty_arrays_and_an_empty_text_its_special_tokens(tokenizer):
    assert same(tokenizer.encode_ids([]), []) and same(tokenizer.encode_ids(iter(())), [])
    assert tokenizer.encode_ids(["", "\0", ""]).lengths.tolist() == [2, 2, 2]
    rows = tokenizer.encode_ids(["", "\u200b"], special=False)
    assert rows.ids.size == 0 and rows.lengths.tolist() == [0, 0]


@pytest.mark.parametrize("hook", [None, lambda text: [text]])
def test_wrong_arguments_are_refused_before_anything_is_encoded(vocab, hook):
    tokenizer = WordPiece(vocab, pre_tokenize=hook)
    with pytest.raises(DataError, match="one string"):
        tokenizer.encode_id_chunks("天气")
    with pytest.raises(ConfigError, match="no room for 2"):
        tokenizer.encode_id_chunks(["天气"], max_length=1)
    with pytest.raises(ConfigError, match="'middle'"):
        tokenizer.encode_id_chunks(["天气"], truncate="middle")
    for wrong in (None, b"bytes", ["list"], 7):
        with pytest.raises(DataError, match="not a string"):
            tokenizer.encode_ids(["天气", wrong])


def test_a_corpus_of_any_size_takes_the_memory_of_a_chunk(tokenizer):
    def corpus(lines):
        return (f"第{number}行，今天天气非常好，hello world。" for number in range(lines))

    def peak(lines):
        tracemalloc.start()
        total = sum(int(rows.lengths.sum()) for rows in tokenizer.encode_id_chunks(corpus(lines)))
        return total, tracemalloc.get_traced_memory()[1]

    tokenizer.encode_ids(corpus(10))
    try:
        few, small = peak(5_000)
        tracemalloc.stop()
        many, large = peak(40_000)
    finally:
        tracemalloc.stop()
    assert many > 7.9 * few and large < small + 8 * 2**20 and large < 24 * 2**20


def test_a_long_line_is_encoded_in_parts_with_the_same_ids_tokens_and_offsets(tokenizer, hard_lines, mixed_lines):
    text = "".join(hard_lines + mixed_lines) * 5
    assert len(text) > bulk.CHUNK
    want, got = tokenizer._rust.encode(mend(text), add_special_tokens=False), tokenizer.encode(text, special=False)
    assert (got.ids, got.tokens, got.offsets) == (want.ids, want.tokens, want.offsets)
    assert same(tokenizer.encode_ids(["天", text, "气"]), tokenizer.encode_batch(["天", text, "气"]))


@pytest.mark.parity
def test_twenty_thousand_real_lines(real_lines, google_vocab):
    assert differences(WordPiece(google_vocab), real_lines) == []
