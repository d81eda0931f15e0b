from __future__ import annotations

import pickle
import random
import time

import pytest

from fishpaw.errors import ConfigError, DataError
from fishpaw.text.encoding import Encoding, Tokenizer
from fishpaw.text.normalize import mend
from fishpaw.text.vocab import Vocab, extend, keep, simplify
from fishpaw.text.wordpiece import WordPiece

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@pytest.fixture(scope="module")
def tokenizer(vocab):
    return WordPiece(vocab)


def differences(tokenizer, reference, lines):
    """Lines whose ids, tokens or offsets are not the reference's."""
    return [line for line, got in zip(lines, tokenizer.encode_batch(lines), strict=True)
            if (got.ids, got.tokens, got.offsets) != reference(line)]


def test_ids_and_offsets_are_the_naive_references(vocab, option, hard_lines, mixed_lines, naive_encode):
    lines = hard_lines + mixed_lines
    assert differences(WordPiece(vocab, **option), lambda line: naive_encode(line, vocab.index, **option), lines) == []


@pytest.mark.parametrize("fault", [dict(longest=99), dict(cjk=False), dict(strip_accents=False), dict(lower=False)])
def test_a_fault_in_the_reference_is_seen(vocab, hard_lines, naive_encode, fault):
    assert differences(WordPiece(vocab), lambda line: naive_encode(line, vocab.index, **fault), hard_lines)


def test_the_way_of_the_hook_is_the_same_tokenizer(vocab, option, hard_lines, mixed_lines):
    letters, _ = simplify(vocab)                                 # without words of ideographs, which a hook may find
    plain, hooked = WordPiece(letters, **option), WordPiece(letters, **option, pre_tokenize=lambda text: [text])
    lines = [line for line in hard_lines + mixed_lines if not line.startswith("##")]
    assert hooked.encode_batch(lines) == plain.encode_batch(lines)


def test_a_hook_keeps_the_words_of_the_vocabulary_and_the_offsets(vocab, mixed_lines):
    def pairs(text):
        return [text[start:start + 2] for start in range(0, len(text), 2)]

    tokenizer = WordPiece(vocab, pre_tokenize=pairs)
    got = tokenizer.encode("\u200b天气É好[MASK]非常Ｑ", special=False)
    assert got.tokens == ["天气", "e", "好", "[MASK]", "非常", "[UNK]"]
    assert got.offsets == [(1, 3), (3, 4), (4, 5), (5, 11), (11, 13), (13, 14)]
    for line in mixed_lines:
        offsets = tokenizer.encode(line, special=False).offsets
        assert offsets == sorted(offsets) and all(0 <= start < end <= len(line) for start, end in offsets)


def test_a_hook_that_changes_the_text_is_refused(vocab):
    with pytest.raises(DataError, match="pre_tokenize"):
        WordPiece(vocab, pre_tokenize=lambda text: text.upper().split()).encode("abc def")
    with pytest.raises(ConfigError, match="'thulac'"):
        WordPiece(vocab, pre_tokenize="thulac")


@pytest.mark.parametrize("line", ["", " ", "\t\n", "\0\0\0", "\ud800", "\ufeff", "\u200e\u200f\u202e", "\u0301" * 100_000, "\ufffd"])
@pytest.mark.parametrize("hook", [None, lambda text: list(text)])
def test_nothing_left_is_still_cls_and_sep(vocab, line, hook):
    tokenizer = WordPiece(vocab, pre_tokenize=hook)
    assert tokenizer.encode(line).ids == [tokenizer.cls_id, tokenizer.sep_id]
    assert tokenizer.encode(line, line).ids == [tokenizer.cls_id, tokenizer.sep_id, tokenizer.sep_id]
    assert tokenizer.encode(line, special=False) == Encoding([], [], [], [])


def test_the_last_code_point_and_a_surrogate_among_letters_encode(tokenizer):
    assert tokenizer.encode("\U0010ffff").tokens == ["[CLS]", "[UNK]", "[SEP]"]
    assert tokenizer.encode("a\ud800中\udfff").tokens == ["[CLS]", "a", "中", "[SEP]"]


@pytest.mark.parametrize("char", ["a", "é"])
def test_a_long_line_without_a_blank_takes_linear_time_and_is_one_unknown(tokenizer, char):
    def seconds(length):
        begin = time.process_time()
        assert tokenizer.encode(char * length).tokens == ["[CLS]", "[UNK]", "[SEP]"]
        return time.process_time() - begin

    seconds(1000)
    short, long = min(seconds(250_000) for _ in range(3)), seconds(2_000_000)
    assert long < 8 * short * 4 + 0.1                           # 8 times the text; 64 times would be quadratic


def test_a_word_of_100_characters_is_split_and_of_101_unknown(tokenizer):
    assert tokenizer.encode("a" * 100, special=False).tokens == ["a", *["##a"] * 99]
    assert tokenizer.encode("a" * 101, special=False).tokens == ["[UNK]"]


def test_special_and_added_tokens_in_the_text_are_whole(vocab):
    longer = extend(vocab, ["<e1>", "</e1>"])
    tokenizer = WordPiece(longer, added=["<e1>", "</e1>"])
    got = tokenizer.encode("我<e1>们</e1>[MASK]", special=False)
    assert got.tokens == ["我", "<e1>", "们", "</e1>", "[MASK]"]
    assert got.offsets == [(0, 1), (1, 5), (5, 6), (6, 11), (11, 17)]
    assert tokenizer.decode(got.ids) == "我们"
    with pytest.raises(DataError, match="<e2>"):
        WordPiece(longer, added=["<e2>"])


def test_pairs_batches_and_truncation_agree(tokenizer, hard_lines):
    texts, pairs = hard_lines[:-1], hard_lines[1:]
    for options in ({}, dict(max_length=7), dict(max_length=8, truncate="left"), dict(special=False, max_length=5)):
        batch = tokenizer.encode_batch(texts, pairs, **options)
        assert batch == [tokenizer.encode(text, pair, **options) for text, pair in zip(texts, pairs, strict=True)]
        assert all(len(got) <= options.get("max_length", 10**9) for got in batch)
        assert all(len(got.ids) == len(got.segments) == len(got.tokens) == len(got.offsets) for got in batch)
    assert tokenizer.encode_batch([]) == []
    got = tokenizer.encode("今天天气", "好", max_length=6)
    assert got.tokens == ["[CLS]", "今", "天", "[SEP]", "好", "[SEP]"] and got.segments == [0, 0, 0, 0, 1, 1]
    assert tokenizer.encode("今天天气", "好", max_length=6, truncate="left").offsets == [(0, 0), (2, 3), (3, 4), (0, 0), (0, 1), (0, 0)]


def test_decode_joins_and_skips(tokenizer):
    ids = tokenizer.encode("今天 playing，hello world!", "[MASK]好").ids
    assert tokenizer.decode(ids) == "今天playing，hello world!好"
    assert tokenizer.decode(tokenizer.encode("好").ids, skip_special=False) == "[CLS]好[SEP]"
    for wrong in (-1, tokenizer.size):
        with pytest.raises(DataError, match=str(wrong)):
            tokenizer.decode([wrong])


def test_chinese_text_comes_back(tokenizer, vocab):
    chars = [token for token in vocab.tokens if len(token) == 1 and "\u4e00" <= token <= "\u9fff"]
    text = "".join(random.Random(3).choices(chars, k=997)) + "。"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_ids_are_found_by_name_and_missing_ones_named(vocab):
    tokenizer: Tokenizer = WordPiece(vocab)
    ids = tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id
    assert [vocab.tokens[id] for id in ids] == list(SPECIAL)
    assert tokenizer.size == len(vocab) and tokenizer.tokens == vocab.tokens and tokenizer.eos_id == tokenizer.sep_id
    without = Vocab(tuple(token for token in vocab.tokens if token != "[MASK]"))
    with pytest.raises(DataError, match="MASK"):
        _ = WordPiece(without).mask_id
    with pytest.raises(DataError, match=r"no \[UNK\], \[SEP\]"):
        WordPiece(Vocab(("[PAD]", "[CLS]", "a")))
    with pytest.raises(DataError, match="not a string"):
        tokenizer.encode(None)


def test_pruned_vocabulary_gives_the_same_rows(vocab, tokenizer, hard_lines):
    seen = {id for got in tokenizer.encode_batch(hard_lines) for id in got.ids}
    small, rows = keep(vocab, seen)
    for before, after in zip(tokenizer.encode_batch(hard_lines), WordPiece(small).encode_batch(hard_lines), strict=True):
        assert before.ids == [rows[id] for id in after.ids]


def test_a_copy_in_another_process_is_the_same(vocab, hard_lines):
    tokenizer = WordPiece(extend(vocab, ["<e>"]), lower=False, strip_accents=True, cjk=False, added=["<e>"])
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode_batch(hard_lines) == tokenizer.encode_batch(hard_lines)


def test_a_function_cannot_be_saved(vocab, tmp_path):
    with pytest.raises(ConfigError, match="can't be saved"):
        WordPiece(vocab, pre_tokenize=str.split).save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def saved_for_transformers(tokenizer, folder):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    reached = len(tokenizer.vocab.index)                             # Google's Chinese vocabulary has a token that no text gives
    assert isinstance(theirs, transformers.BertTokenizer) and len(theirs) == reached
    return theirs


def reference(theirs):
    def encode(line):
        got = theirs(mend(line), return_offsets_mapping=True)   # transformers raises TypeError for a lone surrogate
        return got["input_ids"], theirs.convert_ids_to_tokens(got["input_ids"]), got["offset_mapping"]

    return encode


@pytest.mark.parity
def test_transformers_opens_the_folder_and_gives_the_same_ids_on_hard_lines(vocab, option, hard_lines, mixed_lines, tmp_path):
    tokenizer = WordPiece(vocab, **option)
    assert differences(tokenizer, reference(saved_for_transformers(tokenizer, tmp_path)), hard_lines + mixed_lines) == []


@pytest.mark.parity
def test_parity_sees_a_wrong_setting(vocab, hard_lines, tmp_path):
    theirs = saved_for_transformers(WordPiece(vocab, strip_accents=False), tmp_path)
    assert differences(WordPiece(vocab), reference(theirs), hard_lines)


@pytest.mark.parity
@pytest.mark.parametrize("side", ["right", "left"])
def test_transformers_cuts_pairs_alike(vocab, tmp_path, side, hard_lines):
    tokenizer = WordPiece(vocab)
    theirs = saved_for_transformers(tokenizer, tmp_path)
    theirs.truncation_side = side
    for text, pair in zip(hard_lines, reversed(hard_lines), strict=True):
        for length in (3, 8, 13, 40) if pair else ():           # transformers takes an empty second text for none
            want = theirs(mend(text), mend(pair), max_length=length, truncation="longest_first")
            got = tokenizer.encode(text, pair, max_length=length, truncate=side)
            assert (got.ids, got.segments) == (want["input_ids"], want["token_type_ids"])


@pytest.mark.parity
def test_twenty_thousand_real_lines_are_transformers_id_for_id(real_lines, google_vocab, tmp_path):
    lines, vocab = real_lines, google_vocab
    tokenizer = WordPiece(vocab)
    theirs = saved_for_transformers(tokenizer, tmp_path)
    want = theirs(lines, return_offsets_mapping=True)
    got = tokenizer.encode_batch(lines)
    assert [one.ids for one in got] == want["input_ids"]
    assert [one.offsets for one in got] == want["offset_mapping"]
