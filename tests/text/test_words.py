from __future__ import annotations

import sys
import types

import pytest

from fishpaw.errors import ConfigError, DataError
from fishpaw.text.normalize import normalize
from fishpaw.text.wordpiece import WordPiece
from fishpaw.text.words import align, jieba_cutter, rematch


def stem(token):
    return token[2:] if token.startswith("##") and len(token) > 2 else token


def test_jieba_gives_the_words_of_the_text():
    pytest.importorskip("jieba")
    assert jieba_cutter()("今天天气非常好。") == ["今天天气", "非常", "好", "。"]


def test_without_jieba_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)             # as if it were not installed
    with pytest.raises(ConfigError, match="pip install jieba"):
        jieba_cutter()


def test_align_finds_words_and_skips_blanks():
    assert align("  ab c 中文 ", ["ab", " ", "c", "中文", ""]) == [(2, 4), (5, 6), (7, 9)]
    assert align("", []) == []


@pytest.mark.parametrize("words", [["ab"], ["ab", "x"], ["c", "ab"], ["abc"], ["ab", "c", "c"]])
def test_align_refuses_words_that_are_not_the_text(words):
    with pytest.raises(DataError, match="pre_tokenize"):
        align("ab c", words)


def law_of_rematch(line, tokens, spans, option):
    """Spans never decrease; each token stands in the normalised text of its span; spans, joined, are the normalised text."""
    assert spans == sorted(spans)
    normal = "".join(normalize(line, **option)[0].split())
    seen = []
    for token, (start, end) in zip(tokens, spans, strict=True):
        inside = "".join(normalize(line[start:end], **option)[0].split())
        assert token == "[UNK]" or stem(token) in inside
        seen.append(inside if token == "[UNK]" else stem(token))
    assert "".join(seen) == normal


@pytest.mark.parametrize("lower", [True, False])
def test_the_law_holds_on_hard_lines_and_the_spans_are_the_tokenizers_own(vocab, hard_lines, mixed_lines, lower):
    tokenizer, option = WordPiece(vocab, lower=lower), dict(lower=lower)
    for line in hard_lines + mixed_lines:
        if any(token in line for token in ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")):
            continue                                            # special tokens in the text stand for themselves there
        got = tokenizer.encode(line, special=False)
        spans = rematch(line, got.tokens, lower=lower)
        assert spans == got.offsets
        law_of_rematch(line, got.tokens, spans, option)


def test_the_law_catches_a_span_that_is_shifted_by_one():
    line, tokens = "今天去beijing玩", ["今", "天", "去", "bei", "##jing", "玩"]
    spans = rematch(line, tokens)
    law_of_rematch(line, tokens, spans, {})
    with pytest.raises(AssertionError):
        law_of_rematch(line, tokens, [*spans[:3], (4, 7), *spans[4:]], {})


def test_special_tokens_stand_nowhere_and_words_of_a_word_level_vocabulary_match():
    assert rematch("天气非常Ｏk", ["[CLS]", "天气", "非常", "[UNK]", "[SEP]"]) == [(0, 0), (0, 2), (2, 4), (4, 6), (0, 0)]


@pytest.mark.parametrize("tokens", [["今", "气"], ["今", "天", "多"], ["天"]])
def test_tokens_of_another_text_are_refused(tokens):
    with pytest.raises(DataError, match="token"):
        rematch("今天", tokens)


def fake_rjieba():
    """jieba under rjieba's interface: on pure Chinese the two cut alike."""
    import jieba

    module = types.ModuleType("rjieba")
    module.tokenize = lambda text, hmm: list(cutter.tokenize(text, HMM=hmm))
    cutter = jieba.Tokenizer()
    return module


@pytest.mark.parity
@pytest.mark.parametrize("way", ["made", "opened"])
def test_words_are_those_of_transformers_roformer(vocab, monkeypatch, tmp_path, way):
    pytest.importorskip("jieba")
    transformers = pytest.importorskip("transformers")
    monkeypatch.setitem(sys.modules, "rjieba", fake_rjieba())
    ours = WordPiece(vocab, pre_tokenize="jieba")
    ours.save(tmp_path)
    made = transformers.RoFormerTokenizer(vocab=dict(vocab.index))
    theirs = made if way == "made" else transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(theirs, transformers.RoFormerTokenizer) and len(theirs) == ours.size
    apart = 0
    for line in ("今天天气非常好", "我们喜欢研究生命的起源", "人民在北京公园看电影", "我们今天去中国人民公园", "非常推荐", "", "鱻鱻非常"):
        got, want = ours.encode(line), theirs(line, return_offsets_mapping=True)
        assert got.ids == want["input_ids"] and got.offsets == want["offset_mapping"]
        apart += got.ids != WordPiece(vocab).encode(line).ids
    assert apart >= 5                                            # the words matter: plain WordPiece gives other ids
