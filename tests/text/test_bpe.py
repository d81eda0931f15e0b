from __future__ import annotations

import json
import pickle

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, pre_tokenizers, trainers

from fishpaw.errors import DataError
from fishpaw.text.bpe import ByteLevel
from fishpaw.text.normalize import mend


@pytest.fixture(scope="module")
def learned(hard_lines):
    """A vocabulary and merges learned from the hard lines."""
    rust = RustTokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=701, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|endoftext|>"],
                                  show_progress=False)
    rust.train_from_iterator([mend(line) for line in hard_lines], trainer)
    model = json.loads(rust.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


@pytest.fixture(scope="module")
def tokenizer(learned):
    return ByteLevel(*learned)


def test_every_text_comes_back_exactly(tokenizer, hard_lines, mixed_lines):
    for line in hard_lines + mixed_lines + ["", " ", "\0", "\ufeff", "\U0010ffff", "\u0301" * 997]:
        assert tokenizer.decode(tokenizer.encode(line).ids) == mend(line)


def test_offsets_cover_the_text_in_order(tokenizer, hard_lines):
    for line in hard_lines:
        got = tokenizer.encode(line)
        assert got.offsets == sorted(got.offsets)
        assert {index for start, end in got.offsets for index in range(start, end)} == set(range(len(line)))


def test_special_adds_nothing_and_pairs_are_cut_from_the_longer(tokenizer):
    assert tokenizer.encode("").ids == tokenizer.encode("", special=False).ids == []
    one, two = tokenizer.encode("abcdefg"), tokenizer.encode("中文")
    both = tokenizer.encode("abcdefg", "中文")
    assert both.ids == one.ids + two.ids and both.segments == [0] * len(one) + [1] * len(two)
    assert tokenizer.encode("abcdefg" * 9, max_length=5, truncate="left").ids == tokenizer.encode("abcdefg" * 9).ids[-5:]
    assert tokenizer.encode("a<|endoftext|>").ids[-1] == tokenizer.eos_id == tokenizer.pad_id
    with pytest.raises(DataError, match="no .MASK."):
        _ = tokenizer.mask_id
    assert tokenizer.decode([tokenizer.eos_id]) == "" and tokenizer.decode([tokenizer.eos_id], skip_special=False) == "<|endoftext|>"
    assert pickle.loads(pickle.dumps(tokenizer)).encode("中文").ids == two.ids


def test_a_long_line_without_a_blank_encodes(tokenizer):
    assert len(tokenizer.encode("a" * 300_000).offsets) > 0


def test_what_would_lose_text_is_refused(learned):
    vocab, merges = learned
    with pytest.raises(DataError, match="lacks 1 of the 256 bytes"):
        ByteLevel({token: id for id, token in enumerate(token for token in vocab if token != "Ġ")}, [])
    with pytest.raises(DataError, match="merge 0"):
        ByteLevel(vocab, [("Ġ", "没有")])
    with pytest.raises(DataError, match="has id"):
        ByteLevel({**vocab, "more": 10**9}, merges)
    with pytest.raises(DataError, match="'<eos>'"):
        ByteLevel(vocab, merges, eos="<eos>")
    with pytest.raises(DataError, match="outside the vocabulary"):
        ByteLevel(vocab, merges).decode([701])


@pytest.mark.parity
def test_transformers_opens_the_folder_and_gives_the_same_ids(tokenizer, hard_lines, mixed_lines, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == tokenizer.size
    for line in hard_lines + mixed_lines:
        assert tokenizer.encode(line).ids == theirs(mend(line))["input_ids"]
    tokenizer = ByteLevel(tokenizer.index, tokenizer.merges, prefix_space=True)     # the planted fault
    assert any(tokenizer.encode(line).ids != theirs(mend(line))["input_ids"] for line in hard_lines)
