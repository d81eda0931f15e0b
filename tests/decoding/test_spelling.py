"""The bytes that tokens add are what `decode` gives, for each kind of tokenizer; one whose tokens don't join so is refused."""

from __future__ import annotations

import io
import json
import random

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from fishpaw.decoding.spelling import spell
from fishpaw.errors import ConfigError
from fishpaw.text.bpe import ByteLevel
from fishpaw.text.pipeline import Pipeline
from fishpaw.text.vocab import Vocab
from fishpaw.text.wordpiece import WordPiece

LINES = ["今天天气非常好，我们去公园散步。", "Hello world, the weather is fine today.", '{"name": "张三", "age": 42}',
         "a-b 1.5 (no) 中文 English 混合", "email: someone@example.com\n"] * 20
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "", "今", "天", "##天", "好", "hello", "world", "##ld", "wor", "a", "b", "1",
         "2", "##1", "##.", ".", ",", ":", "(", ")", "-", "/", '"', "'", "##'s", "s", "한", "##국", "。", "“", "”", "$", "...", "##",
         "#", "é", "😀", "ｘ", ".5"]


def trained(kind):
    if kind == "wordpiece":
        return WordPiece(Vocab(tuple(WORDS)))
    if kind in ("byte level", "qwen"):
        rust = RustTokenizer(models.BPE())
        rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        rust.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=401, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
                                      special_tokens=["<|endoftext|>"])
        rust.train_from_iterator(LINES, trainer)
        if kind == "qwen":
            return Pipeline({"tokenizer.json": rust.to_str().encode()})
        model = json.loads(rust.to_str())["model"]
        return ByteLevel(model["vocab"], [tuple(merge) for merge in model["merges"]])
    if kind == "llama":
        rust = RustTokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
        rust.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        rust.decoder = decoders.Sequence(steps)
        names = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256))]
        rust.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=401, special_tokens=names, show_progress=False))
        described = json.loads(rust.to_str())
        described["added_tokens"] = [token for token in described["added_tokens"] if not token["content"].startswith("<0x")]
        return Pipeline({"tokenizer.json": json.dumps(described).encode()})
    if kind == "mt5":
        rust = RustTokenizer(models.Unigram())
        rust.pre_tokenizer = pre_tokenizers.Metaspace()
        rust.decoder = decoders.Metaspace()
        names = ["<pad>", "</s>", "<unk>"]
        trainer = trainers.UnigramTrainer(vocab_size=301, special_tokens=names, unk_token="<unk>", show_progress=False)
        rust.train_from_iterator(LINES, trainer)
        return Pipeline({"tokenizer.json": rust.to_str().encode()})
    if kind == "bert fast":
        rust = RustTokenizer(models.WordPiece({token: id for id, token in enumerate(WORDS) if token}, unk_token="[UNK]"))
        rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        rust.decoder = decoders.WordPiece()
        return Pipeline({"tokenizer.json": rust.to_str().encode()})
    spm = pytest.importorskip("sentencepiece")
    from fishpaw.text.sentencepiece import SentencePiece
    model = io.BytesIO()
    options = {"t5": {"vocab_size": 151, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
               "spm llama": {"vocab_size": 401, "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"}}[kind]
    spm.SentencePieceTrainer.train(sentence_iterator=iter(LINES), model_writer=model, character_coverage=1.0, minloglevel=2,
                                   hard_vocab_limit=False, num_threads=1, **options)
    return SentencePiece(model.getvalue(), kind.split()[-1])


KINDS = ["wordpiece", "byte level", "qwen", "llama", "mt5", "bert fast", "t5", "spm llama"]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    return trained(request.param)


def spelt(found, walk):
    """The bytes of a walk by the trie and contexts; None where a token has no place in its context."""
    text, context = b"", 0
    for id in walk:
        here = found.contexts[context]
        place = {token: number for number, token in enumerate(here.tokens.tolist())}.get(id)
        if place is None:
            return None
        node, letters = int(here.leaves[place]), []
        while node:
            letters.append(int(found.trie.labels[node]))
            node = int(found.trie.parents[node])
        text += bytes(reversed(letters))
        context = int(here.after[place])
    return text


def test_the_bytes_of_random_tokens_are_those_of_decode(tokenizer):
    found, dice, whole = spell(tokenizer), random.Random(11), 0
    known = [context.tokens.tolist() for context in found.contexts]
    for _ in range(2000):
        walk, context = [], 0
        for _ in range(dice.randint(1, 6)):
            place = dice.randrange(len(known[context]))
            walk.append(known[context][place])
            context = int(found.contexts[context].after[place])
        try:
            text = spelt(found, walk).decode()
        except UnicodeDecodeError:
            continue                                             # bytes that are no UTF-8: an automaton never gets there
        whole += 1
        assert text == tokenizer.decode(walk), walk
    assert whole > 150


def test_encoded_texts_are_spelt(tokenizer):
    found = spell(tokenizer)
    for text in ("今天天气非常好", '{"name": "张三"}', "Hello world.", "hello, world"):
        ids = tokenizer.encode(text, special=False).ids
        if not tokenizer.special_ids & set(ids):                 # nothing unknown
            assert spelt(found, ids).decode() == tokenizer.decode(ids)
            assert text.lower() == tokenizer.decode(ids).lower()


def test_special_and_empty_tokens_have_no_spelling(tokenizer):
    for context in spell(tokenizer).contexts:
        assert not tokenizer.special_ids & set(context.tokens.tolist())
        assert all(tokenizer.tokens[id] for id in context.tokens.tolist())


def test_what_wordpiece_does_without():
    tokenizer = trained("wordpiece")
    found, id = spell(tokenizer), WORDS.index
    assert spelt(found, [id("hello"), id("'")]) is None
    assert spelt(found, [id("##ld")]) is None and spelt(found, [id('"'), id("##ld")]) is None
    assert spelt(found, [id("wor"), id("##ld"), id('"'), id("a"), id('"'), id("b")]) == b'world "a" b'


class Upward:
    """Decodes a token by its neighbour: no table of tokens can follow."""

    tokens, special_ids, size, eos_id = ("</s>", "a", "b"), frozenset([0]), 3, 0

    def encode(self, text, special=True):
        raise ConfigError("it encodes nothing.", fix="Don't.")

    def decode(self, ids, *, skip_special=True):
        text = "".join(self.tokens[id] for id in ids if id)
        return text.upper() if text.endswith("ba") else text


def test_a_tokenizer_of_another_kind_is_refused_by_example():
    with pytest.raises(ConfigError, match=r"the tokens \[.*'b', 'a'\] give '.*BA', where one by one they give '.*ba'"):
        spell(Upward())


def test_a_tokenizer_without_single_characters_is_refused():
    class Long(Upward):
        tokens = ("</s>", "aa", "bb")

    with pytest.raises(ConfigError, match="no token of the tokenizer spells a single character"):
        spell(Long())


def test_bert_of_google_follows_its_decode_on_real_text(data_folder):
    tokenizer = WordPiece(Vocab.load(data_folder / "vocab" / "uer" / "google_zh_vocab.txt"))
    found = spell(tokenizer)
    for text in ("2023年5月1日,北京。", 'he said "yes (maybe)", 20% of 3.5', '{"姓名": "李四", "岁": 30, "tags": ["a", "b-c"]}',
                 "covid-19和iphone12"):
        ids = tokenizer.encode(text, special=False).ids
        assert spelt(found, ids).decode() == tokenizer.decode(ids)


