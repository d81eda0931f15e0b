"""Shards: what goes in comes out, in pieces that never cross a document; a flipped byte is told; draws depend on (seed, epoch, index)."""

from __future__ import annotations

import numpy
import pytest

from fishpaw.data.shards import Document, Pieces, Shards, write
from fishpaw.errors import CheckpointError, DataError
from fishpaw.files import write_manifest

DRAW = numpy.random.default_rng(0)
LENGTHS = [1, 7, 8, 31, 97, 2, 64, 32, 33, 13]
TEXTS = [DRAW.integers(0, 1009, n) for n in LENGTHS]
WORDS = [DRAW.random(n) < 0.5 for n in LENGTHS]


def made(folder, *, words=False, **options):
    documents = [Document(ids, flags if words else None) for ids, flags in zip(TEXTS, WORDS, strict=True)]
    return write(documents, folder, vocab_size=1009, **options)


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("shard_tokens", [1, 50, 1000])
@pytest.mark.parametrize("vocab_size", [1009, 1 << 20])
def test_what_goes_in_comes_out(tmp_path, words, shard_tokens, vocab_size):
    documents = (Document(list(ids), list(flags) if words else None) for ids, flags in zip(TEXTS, WORDS, strict=True))
    shards = write(documents, tmp_path / "x", vocab_size=vocab_size, shard_tokens=shard_tokens, facts={"of": "何"})
    again = Shards(tmp_path / "x")
    assert len(again) == len(TEXTS) and again.tokens == sum(LENGTHS) and again.facts == {"of": "何"} and again.digest == shards.digest
    for index, (ids, flags) in enumerate(zip(TEXTS, WORDS, strict=True)):
        found = again[index]
        assert numpy.array_equal(found.ids, ids)
        assert numpy.array_equal(found.words, flags) if words else found.words is None
    assert again.ends.tolist() == numpy.cumsum(LENGTHS).tolist()


@pytest.mark.parametrize("length", [5, 32, 1000])
def test_pieces_are_a_document_each(tmp_path, length):
    pieces = Pieces(made(tmp_path / "x", words=True, shard_tokens=60), length, least=4)
    expected = []                                                    # the naive reference: cut each list, drop short rests
    for ids, flags in zip(TEXTS, WORDS, strict=True):
        cut = [(ids[at : at + length], flags[at : at + length], at == 0, at + length >= len(ids)) for at in range(0, len(ids), length)]
        expected += [one for one in cut if len(one[0]) >= 4 or len(cut) == 1]
    assert len(pieces) == len(expected) == len(pieces.lengths)
    for piece, (ids, flags, begins, ends) in zip(pieces, expected, strict=True):
        assert numpy.array_equal(piece.ids, ids) and numpy.array_equal(piece.words, flags)
        assert (piece.begins, piece.ends, len(piece)) == (begins, ends, len(ids))
    assert pieces.lengths.tolist() == [len(one[0]) for one in expected]
    joined = numpy.concatenate(TEXTS)                                # the planted fault: pieces that take no notice of documents
    if length == 32:
        assert [joined[at : at + 32].tolist() for at in range(0, len(joined), 32)] != [piece.ids.tolist() for piece in pieces]


def test_a_full_piece_is_never_too_short(tmp_path):
    pieces = Pieces(made(tmp_path / "x"), 5)                         # shorter than what is left out of the rests
    assert pieces.lengths.sum() == sum(n if n < 5 else n // 5 * 5 for n in LENGTHS)


def test_draws_depend_on_seed_epoch_and_index_alone(tmp_path):
    shards = made(tmp_path / "x")
    bits = {}
    for seed in (0, 1):
        pieces = Pieces(shards, 16, seed=seed)
        for epoch in (0, 1):
            for index in (0, 3):
                for stream in (0, 1):
                    bits[seed, epoch, index, stream] = pieces.visit(index, epoch).generator(stream=stream).random(3).tolist()
    assert len({tuple(one) for one in bits.values()}) == 16
    again = Pieces(Shards(tmp_path / "x"), 16, seed=1)
    assert again.visit(3, 1).generator(stream=1).random(3).tolist() == bits[1, 1, 3, 1]
    assert again[3].generator().random(3).tolist() == bits[1, 0, 3, 0]
    other = again[3].elsewhere(numpy.random.default_rng(0))
    assert 0 <= other.index < len(again) and other.epoch == 0


def test_a_changed_byte_is_told(tmp_path):
    made(tmp_path / "x")
    file = tmp_path / "x" / "tokens-00000.npy"
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 1
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match="tokens-00000"):
        Shards(tmp_path / "x")
    unseen = Shards(tmp_path / "x", verify=False)                   # the planted fault: nobody looked
    assert len(unseen) == len(TEXTS) and len(unseen.digest) == 64


@pytest.mark.parametrize("documents, told", [
    ([], "No document"), ([Document([])], "No document"), ([Document([1009])], "Document 1: ids"), ([Document([-1])], "Document 1: ids"),
    ([Document([1.5])], "Document 1: ids of float64"), ([Document(["a"])], "Document 1: ids of"), ([Document([[1], [2]])], "shape"),
    ([Document([1], [True]), Document([2])], "Document 2: words"), ([Document([1], [True, False])], "2 words for 1"),
])  # fmt: skip
def test_what_can_not_be_is_refused_and_nothing_is_written(tmp_path, documents, told):
    with pytest.raises(DataError, match=told):
        write(documents, tmp_path / "x", vocab_size=1009)
    assert not (tmp_path / "x").exists()
    with pytest.raises(CheckpointError, match="shards.json"):
        Shards(tmp_path)


@pytest.mark.parametrize("name, content", [
    ("shards.json", b"{"), ("shards.json", b"[]"), ("shards.json", b'{"version": 1}'), ("tokens-00000.npy", b"no array"),
])  # fmt: skip
def test_damage_that_its_manifest_agrees_with_is_told(tmp_path, name, content):
    made(tmp_path / "x")
    (tmp_path / "x" / name).write_bytes(content)
    write_manifest(tmp_path / "x")
    with pytest.raises(CheckpointError, match="no sound shards"):
        Shards(tmp_path / "x")


def test_what_is_of_several_files_is_not_read_at_once(tmp_path):
    shards = made(tmp_path / "x", shard_tokens=50)
    with pytest.raises(IndexError):
        shards.read(0, shards.tokens)


def test_pieces_draw_other_numbers_than_the_order_of_epochs(tmp_path):
    pieces = Pieces(made(tmp_path / "x"), 16, seed=5)
    order = numpy.random.Philox(key=5 << 64 | 3).random_raw(4)       # as data/order.py draws those of epoch 3
    own = pieces.visit(3, 0).generator().bit_generator.random_raw(4)
    assert not set(order.tolist()) & set(own.tolist())


def test_another_version_is_refused(tmp_path):
    made(tmp_path / "x")
    head = tmp_path / "x" / "shards.json"
    head.write_text(head.read_text(encoding="utf-8").replace('"version": 1', '"version": 2'), encoding="utf-8")
    with pytest.raises(CheckpointError, match="version 2"):
        Shards(tmp_path / "x", verify=False)
