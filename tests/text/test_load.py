from __future__ import annotations

import json
import os
import random

import pytest
from tokenizers import pre_tokenizers

from fishpaw.errors import CheckpointError, FishpawError
from fishpaw.text.bpe import ByteLevel
from fishpaw.text.load import load_tokenizer
from fishpaw.text.vocab import extend
from fishpaw.text.wordpiece import WordPiece

LINES = ["今天天气非常好，Héllo Wörld <e1>中</e1>[MASK]。", "", "unaffable 2020-11-20", "한국어 é"]


def write(folder, **files):
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


@pytest.fixture
def small_bpe():
    chars = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: id for id, token in enumerate([*chars, "he", "hel", "<|endoftext|>", "<more>"])}
    return ByteLevel(vocab, [("h", "e"), ("he", "l")], added=["<more>"])


def test_a_saved_wordpiece_comes_back(vocab, option, tmp_path):
    tokenizer = WordPiece(extend(vocab, ["<e1>", "</e1>"]), **option, added=["<e1>", "</e1>"])
    tokenizer.save(tmp_path / "deep" / "folder")
    again = load_tokenizer(tmp_path / "deep" / "folder")
    assert again.vocab == tokenizer.vocab and again.special_ids == tokenizer.special_ids
    assert again.encode_batch(LINES) == tokenizer.encode_batch(LINES)


def test_jieba_is_remembered_and_a_function_is_given_again(vocab, tmp_path):
    pytest.importorskip("jieba")
    tokenizer = WordPiece(vocab, pre_tokenize="jieba")
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.pre_tokenize == "jieba" and again.encode_batch(LINES) == tokenizer.encode_batch(LINES)
    assert load_tokenizer(tmp_path, pre_tokenize=list).encode("天气").tokens == ["[CLS]", "天", "气", "[SEP]"]


@pytest.mark.parametrize(("config", "model", "jieba"), [
    ({"tokenizer_class": "RoFormerTokenizer"}, {}, True),
    ({"tokenizer_class": "BertTokenizer"}, {"model_type": "roformer"}, False),
    ({}, {"model_type": "roformer"}, True),
    ({}, {"model_type": "roformer", "tokenizer_class": "BertTokenizer"}, False),
    ({}, {"model_type": "bert"}, False),
    ({"tokenizer_class": "RoFormerTokenizer", "pre_tokenize": None}, {}, False),
])
def test_roformers_cut_words_unless_they_say_otherwise(vocab, tmp_path, config, model, jieba):
    pytest.importorskip("jieba")
    vocab.save(tmp_path / "vocab.txt")
    write(tmp_path, tokenizer_config__json=config, config__json=model)
    assert (load_tokenizer(tmp_path).pre_tokenize == "jieba") is jieba


def test_bare_vocab_txt_has_berts_defaults(vocab, tmp_path):
    vocab.save(tmp_path / "vocab.txt")
    got = load_tokenizer(tmp_path)
    assert (got.lower, got.cjk, got.strip_accents, got.pre_tokenize) == (True, True, None, None)


def test_added_tokens_of_older_files_follow_the_vocabulary(vocab, tmp_path):
    vocab.save(tmp_path / "vocab.txt")
    write(tmp_path, added_tokens__json={"<e1>": len(vocab), "</e1>": len(vocab) + 1})
    assert load_tokenizer(tmp_path).encode_batch(LINES) == WordPiece(
        extend(vocab, ["<e1>", "</e1>"]), added=["<e1>", "</e1>"]).encode_batch(LINES)
    write(tmp_path, added_tokens__json={"<e1>": 20})
    with pytest.raises(CheckpointError, match="id 20, where the vocabulary has"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", ["files", "described"])
def test_a_saved_bpe_comes_back(small_bpe, tmp_path, kind):
    small_bpe.save(tmp_path)
    if kind == "described":
        write(tmp_path, tokenizer__json=small_bpe._rust.to_str())
        (tmp_path / "vocab.json").unlink()
    again = load_tokenizer(tmp_path)
    assert isinstance(again, ByteLevel) and again.merges == small_bpe.merges and again.special_ids == small_bpe.special_ids
    assert again.encode_batch([*LINES, "hello<more>"]) == small_bpe.encode_batch([*LINES, "hello<more>"])


@pytest.mark.parity
def test_what_transformers_writes_is_read(vocab, option, small_bpe, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = WordPiece(extend(vocab, ["<e1>", "</e1>"]), **option, added=["<e1>", "</e1>"])
    for name, tokenizer in (("wordpiece", ours), ("bpe", small_bpe)):
        tokenizer.save(tmp_path / name)
        transformers.AutoTokenizer.from_pretrained(tmp_path / name).save_pretrained(tmp_path / f"{name}-theirs")
        assert load_tokenizer(tmp_path / f"{name}-theirs").encode_batch(LINES) == tokenizer.encode_batch(LINES)


def test_an_empty_folder_says_what_was_looked_for(tmp_path):
    with pytest.raises(CheckpointError, match=r"vocab\.txt, tokenizer\.json, vocab\.json with merges\.txt, and \*\.model"):
        load_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="absent"):
        load_tokenizer(tmp_path / "absent")


@pytest.mark.parametrize(("name", "content", "said"), [
    ("tokenizer.json", "{", r"tokenizer\.json, line 1"),
    ("tokenizer.json", "[" * 100_000, r"tokenizer\.json"),
    ("tokenizer.json", "[]", "holds a list"),
    ("tokenizer.json", "{}", "'model'"),
    ("tokenizer.json", '{"model": {"type": "Unigram"}}', "Missing vocab"),
    ("tokenizer.json", '{"model": {"type": "WordPiece"}}', "'vocab'"),
    ("tokenizer.json", '{"model": {"type": "WordPiece", "vocab": {"a": 1000000000000}}}', r"'a' has id 1000000000000"),
    ("tokenizer.json", '{"model": {"type": "WordPiece", "vocab": {"a": "b"}}}', r"'a' has id 'b'"),
    ("tokenizer.json", '{"model": {"type": "WordPiece", "vocab": {"a": 0}}}', r"has no \[PAD\]"),
    ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "vocabulary is empty"),
    ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {}, "merges": ["a"]}, "pre_tokenizer": {"type": "ByteLevel"}}', "merge 0"),
    ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": []}, "merges": []}, "pre_tokenizer": {"type": "ByteLevel"}}', "a number"),
    ("vocab.txt", "[PAD]\n[UNK]\n", r"has no \[CLS\], \[SEP\]"),
    ("vocab.txt", b"[PAD]\n\xd6\xd0\n", r"vocab\.txt, line 2"),
    ("tokenizer_config.json", b"\xff\xfe{", r"tokenizer_config\.json"),
    ("tokenizer_config.json", '{"do_lower_case": "yes"}', "do_lower_case is 'yes'"),
    ("tokenizer_config.json", '{"pre_tokenize": "os:system"}', "pre_tokenize is 'os:system'"),
    ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "<e>"}}}', "an added token is"),
])
def test_a_broken_file_is_named(vocab, tmp_path, name, content, said):
    if name == "tokenizer_config.json":
        vocab.save(tmp_path / "vocab.txt")
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(CheckpointError, match=said):
        load_tokenizer(tmp_path)


def test_code_named_in_a_config_is_not_run(vocab, tmp_path):
    vocab.save(tmp_path / "vocab.txt")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    write(tmp_path, tokenizer_config__json={"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "evil.Evil"})
    assert isinstance(load_tokenizer(tmp_path), WordPiece)
    assert not (tmp_path / "ran").exists()


def test_mutated_files_load_or_are_refused_by_name(small_bpe, tmp_path):
    """Three hundred random changes to each file: a tokenizer or a FishpawError, nothing else."""
    small_bpe.save(tmp_path)
    write(tmp_path, tokenizer__json=small_bpe._rust.to_str())
    dice = random.Random(11)
    refused = 0
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        whole = (tmp_path / name).read_bytes()
        if name == "vocab.json":
            (tmp_path / "tokenizer.json").unlink()
        for _ in range(300):
            place = dice.randrange(len(whole))
            middle, skip = dice.choice(((b"", len(whole)), (bytes([dice.randrange(256)]), 1), (b"", dice.randrange(9))))
            (tmp_path / name).write_bytes(whole[:place] + middle + whole[place + skip:])
            try:
                load_tokenizer(tmp_path).encode("hello中")
            except FishpawError:
                refused += 1
        (tmp_path / name).write_bytes(whole)
    assert refused > 300


@pytest.mark.parity
def test_an_odd_vocab_txt_has_transformers_ids(tmp_path):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\r\n[UNK]\r\n[CLS]\r\n[SEP]\r\n[MASK]\r\na\r\n\r\nb\r\na\r\n c\r\nd \r\n")
    write(tmp_path, tokenizer_config__json={"tokenizer_class": "BertTokenizer"})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).encode("a b c d [MASK]").ids == theirs("a b c d [MASK]")["input_ids"] == [2, 8, 7, 1, 10, 4, 3]


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", "tokenizer_config.json", "added_tokens.json", "config.json",
                                  "vocab.json", "merges.txt"])
def test_a_link_may_lead_to_the_blobs_of_its_snapshot_and_nowhere_else(vocab, small_bpe, tmp_path, name):
    snapshot, blobs, elsewhere = tmp_path / "model" / "snapshots" / "0", tmp_path / "model" / "blobs", tmp_path / "elsewhere"
    for folder in (snapshot, blobs, elsewhere):
        folder.mkdir(parents=True)
    small_bpe.save(snapshot) if name in ("vocab.json", "merges.txt") else WordPiece(vocab).save(snapshot)
    path = snapshot / name
    if name == "config.json":
        (snapshot / "tokenizer_config.json").unlink()               # it is read where no class is named
    content = path.read_bytes() if path.exists() else b'{"model": {"type": "none"}}' if name == "tokenizer.json" else b"{}"
    path.unlink(missing_ok=True)
    for folder in (blobs, elsewhere):
        (folder / "1").write_bytes(content)
    try:
        path.symlink_to("../../blobs/1")
    except OSError:
        pytest.skip("no links here")
    load_tokenizer(snapshot)
    path.unlink()
    path.symlink_to(elsewhere / "1")
    with pytest.raises(CheckpointError, match=rf"{name}.* leaves the folder"):
        load_tokenizer(snapshot)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", "added_tokens.json"])
def test_a_pipe_is_not_waited_for(vocab, tmp_path, name):
    WordPiece(vocab).save(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match=rf"{name}: is no regular file"):
        load_tokenizer(tmp_path)
