"""CPM-LM's tokenizer (arXiv:2012.00413): its recipe by hand, laws, and the published vocabulary where FISHPAW_DATA has it."""

from __future__ import annotations

import io
import pickle

import pytest

from fishpaw.errors import CheckpointError, DataError
from fishpaw.text.cpm import Cpm
from fishpaw.text.load import load_tokenizer

spm = pytest.importorskip("sentencepiece")
jieba = pytest.importorskip("jieba")
LINES = ["今天天气 很好", "hello world 2020-11-20", "美国的首都是华盛顿\n中国的首都是", "CPM-LM 用 GPT2"]
TEXTS = [
    "",
    *LINES,
    "a\nb",
    "\n",
    "\n\n 两个  空格",
    "美国的首都是华盛顿\n法国的首都是巴黎\n日本的首都是",
    "dog 狗\ncat 猫\nbird ",
    "Mr. Smith paid 3.14元, top-k 2020-11-20",
]


def train(line="\u2583", **options):
    model, words = io.BytesIO(), [" ".join(jieba.cut(text)).replace("\n", line) for text in TEXTS if text.strip()]
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 20),
        model_writer=model,
        vocab_size=149,
        hard_vocab_limit=False,
        minloglevel=2,
        character_coverage=1.0,
        num_threads=1,
        **options,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def small():
    return train(user_defined_symbols="\u2583,<sep>,<pad>,<mask>,<eod>,\u2582")


@pytest.fixture(scope="module")
def published(data_folder):
    return Cpm((data_folder / "vocab" / "cpm" / "chinese_vocab.model").read_bytes())


def recipe(model, text):
    """The published recipe, line by line."""
    words = [word.replace(" ", "\u2582").replace("\n", "\u2583") for word in jieba.cut(text, cut_all=False)]
    return spm.SentencePieceProcessor(model_proto=model).encode(" ".join(words))


def laws(tokenizer):
    for text in TEXTS:
        found = tokenizer.encode(text)
        assert found.ids == recipe(tokenizer.model, text)
        assert tokenizer.decode(found.ids) == text
        assert found.offsets == sorted(found.offsets) and {index for span in found.offsets for index in range(*span)} == set(
            range(len(text))
        )
        assert found.ids.count(tokenizer.line_id) == text.count("\n")
        assert all(text[slice(*span)] == "\n" for id, span in zip(found.ids, found.offsets, strict=True) if id == tokenizer.line_id)


def test_the_recipe_and_the_way_back(small):
    tokenizer = Cpm(small)
    laws(tokenizer)
    assert tokenizer.line_id == 3 and tokenizer.encode("a\ud800").ids and len(tokenizer.encode("今天\n" * 20_000)) > 20_000
    assert tokenizer.decode([tokenizer.eos_id, *tokenizer.encode("好").ids]) == "好" and tokenizer.eos_id in tokenizer.special_ids
    with pytest.raises(DataError, match="outside"):
        tokenizer.decode([tokenizer.size])


def test_the_published_vocabulary(published):
    """Blanks, line ends and English come back; a line end is id 3, at which few-shot answers stop; 30,000 ids (arXiv:2012.00413)."""
    laws(published)
    assert published.size == 30_000 and published.line_id == 3
    with pytest.raises(DataError, match="no mask"):
        _ = published.mask_id
    assert (published.eos_id, published.pad_id, published.unk_id) == (7, 5, 0)


def test_an_older_file_calls_the_line_end_cls():
    model = train(" ", user_defined_symbols="\u2582", control_symbols="<cls>,<pad>,<eod>")
    tokenizer = Cpm(model)
    ids = tokenizer.encode("今天\n天气").ids
    assert tokenizer.tokens[tokenizer.line_id] == "<cls>" and ids.count(tokenizer.line_id) == 1 and tokenizer.decode(ids) == "今天\n天气"
    with pytest.raises(CheckpointError, match="line ends"):
        Cpm(train(" ", control_symbols="<pad>"))


def test_words_are_jiebas_with_new_words_found(small):
    """jieba finds 杭研 by its hidden Markov model, which WoBERT's vocabulary was made without and CPM's with."""
    tokenizer = Cpm(small)
    assert tokenizer._cut("他来到了网易杭研大厦") == ["他", "来到", "了", "网易", "杭研", "大厦"]


@pytest.mark.parametrize("name", ["chinese_vocab.model", "spiece.model"])
def test_it_is_opened_from_its_folder_and_saved(small, tmp_path, name):
    (tmp_path / name).write_bytes(small)
    if name == "spiece.model":
        (tmp_path / "config.json").write_text('{"model_type": "gpt2", "tokenizer_class": "CpmTokenizer"}', encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, Cpm)
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert isinstance(again, Cpm) and again.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS) == pickle.loads(
        pickle.dumps(again)
    ).encode_batch(TEXTS)
    assert len(tokenizer.encode("今天天气很好", "美国的首都", max_length=3)) == 3
    (tmp_path / name).write_bytes(b"junk")
    with pytest.raises(CheckpointError, match=name):
        load_tokenizer(tmp_path)
