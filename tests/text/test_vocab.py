from __future__ import annotations

import pickle

import pytest

from fishpaw.errors import DataError
from fishpaw.text.vocab import SPECIAL, Vocab, compound, extend, keep, simplify

LINES = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n中\n##ab\n"


def test_a_line_number_is_an_id_and_a_file_comes_back(tmp_path, vocab):
    assert vocab.tokens[vocab.id("[MASK]")] == "[MASK]"
    vocab.save(tmp_path / "vocab.txt")
    assert Vocab.load(tmp_path / "vocab.txt") == vocab == pickle.loads(pickle.dumps(vocab))
    assert b"\r" not in (tmp_path / "vocab.txt").read_bytes()


@pytest.mark.parametrize("raw", [
    LINES.encode(), b"\xef\xbb\xbf" + LINES.encode(), LINES.replace("\n", "\r\n").encode(), (LINES + "\n\r\n\n").encode(),
    LINES.rstrip().encode(),
], ids=["plain", "bom", "crlf", "blank-end", "no-last-newline"])
def test_harmless_dress_is_taken_off(raw):
    assert Vocab.parse(raw).tokens == ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "中", "##ab")


def test_blank_and_doubled_lines_keep_every_later_id():
    vocab = Vocab.parse("a\n\nb\na\n\u2028\nc\n".encode())
    assert len(vocab) == 6 and "" not in vocab
    assert [vocab.id(token) for token in "abc"] == [3, 2, 5]     # the later of two, as in transformers


@pytest.mark.parametrize(("raw", "said"), [
    ("[PAD]\n中\n文\n".encode("gbk"), r"v\.txt, line 2: byte 0xd6 is not UTF-8.*GBK"),
    ("[PAD]\n中\n".encode("utf-16"), "line 1: the file is UTF-16"),
    (b"", "line 1: the file holds no token"),
    (b"\n\n \n", "holds no token"),
    (b"a\nb\0\n", "line 2: a NUL byte"),
    ("好\n好".encode() + b"\xe4\xb8", "line 2"),
])
def test_what_is_no_vocabulary_is_named_with_its_line(raw, said):
    with pytest.raises(DataError, match=said):
        Vocab.parse(raw, name="v.txt")


def test_a_missing_file_and_a_missing_token_are_data_errors(tmp_path, vocab):
    with pytest.raises(DataError, match=r"absent\.txt"):
        Vocab.load(tmp_path / "absent.txt")
    with pytest.raises(DataError, match="鱻"):
        vocab.id("鱻")
    with pytest.raises(DataError, match="line break"):
        Vocab(("a", "b\nc")).save(tmp_path / "vocab.txt")


def test_keep_gives_the_rows_in_old_order_with_the_special_tokens(vocab):
    small, rows = keep(vocab, ["the", 14, "非常", "the"])
    assert [vocab.tokens[row] for row in rows] == list(small.tokens)
    assert rows == sorted(set(rows)) and {*SPECIAL, "the", "非常", vocab.tokens[14]} == set(small.tokens)
    assert keep(vocab, range(len(vocab))) == (vocab, list(range(len(vocab))))


@pytest.mark.parametrize("wrong", [["鱻"], [-1], [10**6]])
def test_keep_refuses_what_is_not_there(vocab, wrong):
    with pytest.raises(DataError):
        keep(vocab, wrong)


def test_extend_appends_and_does_not_double(vocab):
    longer = extend(vocab, ["甲乙丙丁", "the", "<e>", "甲乙丙丁"])
    assert longer.tokens == (*vocab.tokens, "甲乙丙丁", "<e>")
    with pytest.raises(DataError, match="white space"):
        extend(vocab, [" "])


def test_compound_names_the_rows_to_average(vocab):
    longer, rows = compound(vocab, {"天气非常": ["天气", "非", "常"], "北京北京": ["北京"]})
    assert longer.tokens == (*vocab.tokens, "天气非常", "北京北京")
    assert rows == [[vocab.id("天气"), vocab.id("非"), vocab.id("常")], [vocab.id("北京")]]
    for wrong in ({"the": ["a"]}, {"新鲜事": []}, {"新词儿": ["没有这个词"]}):
        with pytest.raises(DataError):
            compound(vocab, wrong)


def test_simplify_drops_only_what_wordpiece_never_makes(vocab):
    small, rows = simplify(vocab)
    assert "非常" not in small and "##a" in small and "非" in small and "," in small and "[unused1]" not in small
    assert [vocab.tokens[row] for row in rows] == list(small.tokens)
    assert all(token in small for token in SPECIAL)


def test_googles_vocabulary_simplifies_to_the_published_size(data_folder):
    assert len(simplify(Vocab.load(data_folder / "vocab" / "uer" / "google_zh_vocab.txt"))[0]) == 13584
