"""Texts to shards: the tokenizer's tokens, jieba's words, a part kept apart, and no shards of other texts or vocabularies."""

from __future__ import annotations

import builtins
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy
import pytest

from fishpaw.data.shards import Shards
from fishpaw.errors import ConfigError, DataError
from fishpaw.tasks import corpora
from fishpaw.tasks.corpora import Corpus, documents, gather, learned, prepare, vocabulary_digest, words_begin
from fishpaw.text.vocab import SPECIAL, Vocab
from fishpaw.text.wordpiece import WordPiece

DRAW = numpy.random.default_rng(0)
LETTERS = "鱼我所欲也熊掌亦二者不可得兼舍而取"
TEXTS = ["".join(DRAW.choice(list(LETTERS), size)) for size in DRAW.integers(3, 40, 401)]
TOKENIZER = WordPiece(Vocab((*SPECIAL, *LETTERS, "pre", "##train", "##ing", "a", "。")))


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    return Corpus([tmp_path / "texts.txt"])


def ids(shards):
    return [shards[index].ids.tolist() for index in range(len(shards))]


def words(text):
    return [text[at : at + 2] for at in range(0, len(text), 2)]


def test_documents_are_the_tokenizers_tokens():
    expected = [one.ids for one in TOKENIZER.encode_batch(TEXTS, special=False)]
    assert [document.ids.tolist() for document in documents(TEXTS, TOKENIZER)] == expected
    slow = list(documents(iter(TEXTS), TOKENIZER, cut=words))
    assert [list(one.ids) for one in slow] == expected
    assert all(list(one.words) == [at % 2 == 0 for at in range(len(one.ids))] for one in slow)
    assert list(documents([], TOKENIZER)) == []


def test_words_of_characters_and_pieces_of_words_stay_together():
    text = "Pretraining 我所欲a也。"
    encoding = TOKENIZER.encode(text, special=False)
    assert encoding.tokens == ["pre", "##train", "##ing", "我", "所", "欲", "a", "也", "。"]
    found = words_begin(text, encoding, lambda text: ["Pre", "training", " ", "我", "所欲", "a", "也", "。"])
    assert found == [True, False, False, True, True, False, True, True, True]


def test_jieba_cuts_words_where_it_is_asked(tmp_path):
    pytest.importorskip("jieba")
    (tmp_path / "a.txt").write_text("熊掌不可得\n", encoding="utf-8")
    shards, _ = prepare(Corpus([tmp_path / "a.txt"]), tmp_path / "out", TOKENIZER, words=True)
    assert shards[0].words.tolist() == [True, False, True, False, True]
    with pytest.raises(DataError, match="was written with words"):
        prepare(Corpus([tmp_path / "a.txt"]), tmp_path / "out", TOKENIZER)


def test_without_jieba_words_are_refused(corpus, tmp_path, monkeypatch):
    real = builtins.__import__
    monkeypatch.delitem(sys.modules, "jieba", raising=False)
    monkeypatch.setattr("fishpaw.text.words.import_module", lambda name: real(f"no_{name}"))
    with pytest.raises(ConfigError, match="jieba"):
        prepare(corpus, tmp_path / "out", TOKENIZER, words=True)
    assert not (tmp_path / "out" / "shards").exists()


def test_a_part_is_kept_apart_by_the_text_alone(corpus, tmp_path):
    shards, dev = prepare(corpus, tmp_path / "one", TOKENIZER, apart=0.2)
    every = [one.ids for one in TOKENIZER.encode_batch(TEXTS, special=False)]
    assert 50 < len(dev) < 110 and sorted(ids(shards) + ids(dev)) == sorted(every)
    twice = Corpus([*corpus.files, *corpus.files])
    again, doubled = prepare(twice, tmp_path / "two", TOKENIZER, apart=0.2)
    assert sorted(ids(doubled)) == sorted(2 * ids(dev)) and not {tuple(one) for one in ids(again)} & {tuple(one) for one in ids(dev)}
    whole, none = prepare(corpus, tmp_path / "three", TOKENIZER, apart=0.0)
    assert none is None and ids(whole) == every


def test_unseen_texts_of_a_file_are_theirs(corpus, tmp_path):
    (tmp_path / "dev.txt").write_text("鱼\n熊掌\n", encoding="utf-8")
    shards, dev = prepare(corpus, tmp_path / "one", TOKENIZER, dev=Corpus([tmp_path / "dev.txt"]))
    assert len(shards) == len(TEXTS) and [len(one) for one in ids(dev)] == [1, 2]


def test_what_is_there_is_read_and_not_written_again(corpus, tmp_path, monkeypatch):
    first = prepare(corpus, tmp_path / "out", TOKENIZER)
    monkeypatch.setattr(corpora, "write", None)
    again = prepare(corpus, tmp_path / "out", TOKENIZER)
    assert [one.digest for one in again] == [one.digest for one in first]
    other = WordPiece(Vocab((*TOKENIZER.tokens, "新")))
    with pytest.raises(DataError, match=r"shards was written with another vocabulary"):
        prepare(corpus, tmp_path / "out", other)
    assert vocabulary_digest(other) != vocabulary_digest(TOKENIZER) == first[0].facts["vocabulary"]
    with pytest.raises(DataError, match="of other files"):
        prepare(Corpus([*corpus.files, *corpus.files]), tmp_path / "out", TOKENIZER)
    with pytest.raises(DataError, match="with apart 0.01"):
        prepare(corpus, tmp_path / "out", TOKENIZER, apart=0.1)
    assert prepare(Corpus(["-"]), tmp_path / "out", TOKENIZER)[0].digest == first[0].digest          # standard input is gone


def test_a_process_killed_between_both_begins_again(corpus, tmp_path, monkeypatch):
    whole = prepare(corpus, tmp_path / "whole", TOKENIZER, apart=0.2)
    real = corpora.write

    def dies(documents, folder, **options):
        if folder.name == "dev":
            real(documents, folder, **options)
            raise KeyboardInterrupt
        return real(documents, folder, **options)

    monkeypatch.setattr(corpora, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare(corpus, tmp_path / "out", TOKENIZER, apart=0.2)
    assert (tmp_path / "out" / "dev").exists() and not (tmp_path / "out" / "shards").exists()
    monkeypatch.setattr(corpora, "write", real)
    again = prepare(corpus, tmp_path / "out", TOKENIZER, apart=0.2)
    assert [one.digest for one in again] == [one.digest for one in whole]
    assert Shards(tmp_path / "out" / "dev").digest == whole[1].digest


def test_characters_are_learned_once(corpus, tmp_path):
    tokenizer = learned(corpus, tmp_path / "out" / "vocab.txt")
    assert set(tokenizer.tokens) == {*SPECIAL, *LETTERS}
    (tmp_path / "out" / "vocab.txt").write_text("\n".join([*SPECIAL, "鱼"]), encoding="utf-8")
    assert learned(corpus, tmp_path / "out" / "vocab.txt").size == 6
    with pytest.raises(ConfigError, match="standard input is read only once"):
        learned(Corpus(["-"]), tmp_path / "other" / "vocab.txt")


def test_many_processes_gather_once(corpus, tmp_path, monkeypatch):
    tokenizer, shards, dev = gather(corpus, tmp_path / "out", apart=0.2)
    assert tokenizer.size == shards.vocab_size == len((tmp_path / "out" / "vocab.txt").read_text(encoding="utf-8").splitlines())
    real, times = corpora.write, []
    monkeypatch.setattr(corpora, "write", lambda *given, **options: times.append(given[1].name) or real(*given, **options))
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(gather, corpus, tmp_path / "together", apart=0.2) for _ in range(3)]
        assert {one.result()[1].digest for one in futures} == {shards.digest}
    assert times == ["shards", "dev"]


def test_anew_writes_again_what_is_of_other_texts_and_only_that(corpus, tmp_path, monkeypatch):
    gather(corpus, tmp_path / "out")
    (tmp_path / "new.txt").write_text("新\n" * 9 + TEXTS[0], encoding="utf-8")
    other = Corpus([tmp_path / "new.txt"])
    with pytest.raises(DataError, match="of other files"):
        gather(other, tmp_path / "out")
    tokenizer, shards, dev = gather(other, tmp_path / "out", anew=True)
    assert "新" in tokenizer.tokens and len(shards) == 10 and dev is None
    monkeypatch.setattr(corpora, "write", None)
    assert gather(other, tmp_path / "out", anew=True)[1].digest == shards.digest


def test_what_is_no_share_no_text_and_no_file_is_refused(corpus, tmp_path):
    with pytest.raises(ConfigError, match="share kept apart"):
        prepare(corpus, tmp_path / "out", TOKENIZER, apart=1.0)
    (tmp_path / "empty.txt").write_text("\n\n", encoding="utf-8")
    with pytest.raises(DataError, match="No document"):
        prepare(Corpus([tmp_path / "empty.txt"]), tmp_path / "out", TOKENIZER)
    with pytest.raises(DataError, match=r"missing\.txt: can't be read"):
        prepare(Corpus([tmp_path / "missing.txt"]), tmp_path / "out", TOKENIZER)
    assert len(list(Corpus(corpus.files, limit=7).texts())) == 7


def test_what_is_not_ours_is_neither_removed_nor_overwritten(corpus, tmp_path):
    out = tmp_path / "out"
    (out / "dev").mkdir(parents=True)
    (out / "dev" / "mine.txt").write_text("mine", encoding="utf-8")
    for given in (TOKENIZER, None):
        with pytest.raises(DataError, match=r"dev holds mine\.txt"):
            gather(corpus, out, given)
    assert (out / "dev" / "mine.txt").read_text(encoding="utf-8") == "mine" and not (out / "shards").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "vocab.txt").write_text("mine\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"vocab\.txt is there already"):
        gather(corpus, other)
    assert (other / "vocab.txt").read_text(encoding="utf-8") == "mine\n"


def test_one_name_is_no_list_of_files():
    with pytest.raises(ConfigError, match="one name"):
        Corpus("a.txt")


def test_files_without_text_are_named(tmp_path):
    (tmp_path / "blank.txt").write_text("\n \n", encoding="utf-8")
    with pytest.raises(DataError, match=r"blank\.txt: no text"):
        gather(Corpus([tmp_path / "blank.txt"]), tmp_path / "out")


def test_what_is_kept_apart_is_never_trained_on_however_often_it_stands(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "_MOST_APART", 5)
    (tmp_path / "twice.txt").write_text("\n".join([*TEXTS, *TEXTS]), encoding="utf-8")
    shards, dev = prepare(Corpus([tmp_path / "twice.txt"]), tmp_path / "out", TOKENIZER, apart=0.3)
    held = {tuple(one) for one in ids(dev)}
    assert len(dev) == 5 and len(held) == 5 and not held & {tuple(one) for one in ids(shards)}
    chosen = [text for text in TEXTS if corpora._share(text) < 0.3]
    assert len(chosen) > 20 and len(shards) == 2 * (len(TEXTS) - 5)  # the planted fault: all but those held, once each


def test_standard_input_is_not_taken_for_shards_that_are_there(corpus, tmp_path):
    gather(corpus, tmp_path / "out", TOKENIZER)
    with pytest.raises(DataError, match="standard input"):
        gather(Corpus(["-"]), tmp_path / "out", TOKENIZER, anew=True)
    assert len(gather(corpus, tmp_path / "out", TOKENIZER, anew=True)[1]) > 300
