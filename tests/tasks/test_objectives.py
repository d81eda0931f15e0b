"""Objectives: rows by hand and by plain loops; who sees whom, by gradients; the same piece asks the same in any process."""

from __future__ import annotations

from dataclasses import replace

import numpy
import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch
from fishpaw.data.shards import Document, Pieces, write
from fishpaw.errors import ConfigError
from fishpaw.model.transformer import Transformer
from fishpaw.tasks.objectives import (
    NAMES,
    Autoencoding,
    Contrastive,
    Masked,
    NextSentence,
    NextToken,
    SpanCorruption,
    Special,
    UniLM,
    parse,
)

torch.set_num_threads(1)
CLS, SEP, MASK, STOP, SIZE = 2, 3, 4, 7, 1009
SPECIAL = Special(cls=CLS, sep=SEP, mask=MASK, vocab_size=SIZE, stops=frozenset({STOP}))
DRAW = numpy.random.default_rng(0)
LENGTHS = [1, 2, 5, 31, 97, 64, 200, 13]
TEXTS = [numpy.where(DRAW.random(n) < 0.1, STOP, DRAW.integers(8, SIZE, n)) for n in LENGTHS]
ALL = [Masked(), NextSentence(), Autoencoding(), NextToken(), UniLM(), SpanCorruption(), Contrastive()]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    flags = [numpy.random.default_rng(n).random(n) < 0.6 for n in LENGTHS]
    documents = [Document(ids, begins) for ids, begins in zip(TEXTS, flags, strict=True)]
    return Pieces(write(documents, tmp_path_factory.mktemp("shards") / "x", vocab_size=SIZE), 60, seed=5)


def every(pieces, epochs=20):
    return [pieces.visit(index, epoch) for epoch in range(epochs) for index in range(len(pieces))]


def bits(piece):
    """The draws of a piece, by numpy alone."""
    return numpy.random.Generator(numpy.random.Philox(key=5 << 64 | piece.epoch << 40 | piece.index, counter=1 << 128))


# Rows by plain loops

def test_masked_rows_hide_some_tokens_and_ask_for_them(pieces):
    hidden = total = 0
    for piece in every(pieces):
        (row,) = Masked().rows(piece, SPECIAL)
        whole = [CLS, *piece.ids.tolist(), SEP]
        asked = dict(zip(row.at.tolist(), row.targets.tolist(), strict=True))
        assert len(row) == len(whole) and set(row.segments.tolist()) == {0} and row.follows is None and not row.view
        for place, token in enumerate(whole):
            assert asked.get(place, token) == token
            assert place in asked or row.ids[place] == token
        assert not {0, len(whole) - 1} & set(asked)
        hidden += sum(row.ids[place] == MASK for place in asked)
        total += len(piece.ids)
    assert 0.10 < hidden / total < 0.14                              # 80 % of 15 %
    shifted = [row.targets.tolist() != row.ids[row.at - 1].tolist() for row in (Masked().rows(one, SPECIAL)[0] for one in every(pieces, 1))]
    assert any(shifted)                                              # the planted fault: places that forget [CLS]


def test_masked_words_are_hidden_whole(pieces):
    for piece in every(pieces, 5):
        (row,) = Masked(words=True, rate=0.4).rows(piece, SPECIAL)
        places = set((row.at - 1).tolist())
        owner = (numpy.cumsum(piece.words) - piece.words[0]).tolist()
        assert all(at in places for at, word in enumerate(owner) if word in {owner[one] for one in places})


def test_next_token_rows_ask_each_token_for_the_next(pieces):
    for piece in every(pieces, 1):
        (row,) = NextToken().rows(piece, SPECIAL)
        whole = [CLS, *piece.ids.tolist(), *([SEP] if piece.ends else [])]
        assert row.ids.tolist() == whole and row.segments.tolist() == [0] + [1] * (len(whole) - 1)
        assert list(zip(row.at.tolist(), row.targets.tolist(), strict=True)) == [(at, whole[at + 1]) for at in range(len(whole) - 1)]
    assert not all(piece.ends for piece in every(pieces, 1))
    (row,) = NextToken().rows(pieces[3], replace(SPECIAL, cls=None))
    assert row.ids[0] == SEP                                         # GPT-2 has one token for both


def test_unilm_rows_read_a_beginning_and_write_the_rest(pieces):
    for piece in every(pieces, 3):
        rows = UniLM().rows(piece, SPECIAL)
        if len(piece.ids) < 2:
            assert rows == []
            continue
        ids, cut = piece.ids.tolist(), int(bits(piece).integers(1, len(piece.ids)))
        whole = [CLS, *ids[:cut], SEP, *ids[cut:], *([SEP] if piece.ends else [])]
        assert rows[0].ids.tolist() == whole and rows[0].segments.tolist() == [0] * (cut + 2) + [1] * (len(whole) - cut - 2)
        asked = list(zip(rows[0].at.tolist(), rows[0].targets.tolist(), strict=True))
        assert asked == [(at, whole[at + 1]) for at in range(cut + 1, len(whole) - 1)]
        assert len(asked) == len(ids) - cut + piece.ends             # the planted fault would be one less: [SEP] of the source asks, too


def test_an_encoder_reads_the_beginning_and_its_decoder_writes_the_rest(pieces):
    (row,) = UniLM().rows(pieces[3], replace(SPECIAL, start=0))
    ids, cut = pieces[3].ids.tolist(), int(bits(pieces[3]).integers(1, len(pieces[3].ids)))
    assert row.source.tolist() == [CLS, *ids[:cut], SEP]
    assert row.ids.tolist() == [0, *ids[cut:]] and row.targets.tolist() == [*ids[cut:], SEP]
    assert row.at.tolist() == list(range(len(row.ids)))


def restored(source, target, sentinel):
    """The text, by a loop: what stands behind a sentinel in the target goes where it stands in the source."""
    parts, held = {}, None
    for token in target:
        held = token if sentinel(token) else held
        parts.setdefault(held, [])
        if not sentinel(token):
            parts[held].append(token)
    return [token for one in source for token in (parts[one] if sentinel(one) else [one])]


@pytest.mark.parametrize("start", [None, 0])
def test_corrupted_spans_can_be_put_back(pieces, start):
    sentinels = tuple(range(SIZE, SIZE + 40))
    special = replace(SPECIAL, sentinels=sentinels, start=start)
    for piece in every(pieces, 3):
        rows = SpanCorruption(rate=0.3).rows(piece, special)
        if len(piece.ids) < 2:
            assert rows == []
            continue
        (row,) = rows
        if start is None:
            read = row.ids[row.segments == 0].tolist()
            assert row.ids[row.segments == 1].tolist() == row.targets.tolist()
            assert row.at.tolist() == list(range(len(read) - 1, len(row) - 1))
        else:
            read = row.source.tolist()
            assert row.ids.tolist() == [start, *row.targets.tolist()[:-1]] and row.at.tolist() == list(range(len(row)))
        target = row.targets.tolist()
        assert (read[0], read[-1], target[-1]) == (CLS, SEP, SEP)
        assert restored(read[1:-1], target[:-1], lambda token: token >= SIZE) == piece.ids.tolist()
        used = [token for token in target if token >= SIZE]
        assert used == list(sentinels[: len(used)]) and [token for token in read if token >= SIZE] == used[:-1]


def test_masks_stand_for_spans_where_there_are_no_sentinels(pieces):
    (row,) = SpanCorruption().rows(pieces[4], SPECIAL)
    read, target = row.ids[row.segments == 0].tolist(), row.targets.tolist()
    assert read.count(MASK) + 1 == target.count(MASK) > 1
    number = iter(range(SIZE, SIZE + 40)).__next__
    read, target = ([number() if token == MASK else token for token in part] for part in (read, target))
    following = {token: SIZE + at for at, token in enumerate(one for one in target if one >= SIZE)}
    written = [following.get(token, token) for token in target[:-1]]
    assert restored(read[1:-1], written, lambda token: token >= SIZE) == pieces[4].ids.tolist()


def test_the_second_sentence_follows_or_is_from_elsewhere(pieces):
    follows = asked = 0
    for piece in every(pieces):
        rows = NextSentence().rows(piece, SPECIAL)
        if len(piece.ids) < 2:
            assert rows == []
            continue
        (row,) = rows
        cut = row.segments.tolist().index(1) - 2
        whole = row.ids.copy()
        whole[row.at] = row.targets
        first, second = whole[1 : cut + 1].tolist(), whole[cut + 2 : -1].tolist()
        assert (whole[0], whole[cut + 1], whole[-1]) == (CLS, SEP, SEP) and first == piece.ids[:cut].tolist() and second
        assert row.segments.tolist() == [0] * (cut + 2) + [1] * (len(second) + 1)
        stops = [at + 1 for at, token in enumerate(piece.ids.tolist()[:-1]) if token == STOP]
        assert cut in stops or not stops
        assert row.follows == (second == piece.ids[cut:].tolist()) or len(second) < 3
        assert len(second) == len(piece.ids) - cut or not row.follows
        assert any(" ".join(map(str, second)) in " ".join(map(str, text.tolist())) for text in TEXTS)
        assert not {0, cut + 1, len(whole) - 1} & set(row.at.tolist())
        follows += row.follows
        asked += 1
    assert abs(follows / asked - 0.5) < 0.12
    (row,) = NextSentence(words=True).rows(pieces[4], SPECIAL)
    assert len(row.at)


def test_autoencoding_asks_for_every_ordinary_token(pieces):
    piece = replace(pieces[3], ids=numpy.where(numpy.arange(31) == 7, 1, pieces[3].ids))             # one [UNK]
    (row,) = Autoencoding().rows(piece, SPECIAL)
    whole = [CLS, *piece.ids.tolist(), SEP]
    assert row.ids.tolist() == whole and row.at.tolist() == [at for at, token in enumerate(whole) if token > 4]
    assert row.targets.tolist() == [token for token in whole if token > 4] and len(row.at) == 30


def test_pairs_are_neighbours_or_the_same_text_twice(pieces):
    same = count = 0
    for piece in every(pieces):
        rows = Contrastive(longest=9).rows(piece, SPECIAL)
        if len(piece.ids) < 8:
            assert rows == []
            continue
        one, other = rows
        ids = piece.ids.tolist()
        texts = [row.ids.tolist()[1:-1] for row in rows]
        assert all((row.ids[0], row.ids[-1], row.view, len(row.at), set(row.segments.tolist())) == (CLS, SEP, True, 0, {0}) for row in rows)
        assert all(0 < len(text) <= 9 for text in texts)
        joined = texts[0] + texts[1]
        if texts[0] == texts[1]:
            same += 1
            joined = texts[0]
        assert any(ids[at : at + len(joined)] == joined for at in range(len(ids)))
        count += 1
    assert abs(same / count - 0.5) < 0.12
    assert len({tuple(map(int, row.ids)) for row in Contrastive(same=1.0).rows(pieces[4], SPECIAL)}) == 1
    assert len({tuple(map(int, row.ids)) for row in Contrastive(same=0.0).rows(pieces[4], SPECIAL)}) == 2


@pytest.mark.parametrize("objective", ALL, ids=lambda one: type(one).__name__)
def test_rows_fit_and_depend_on_the_piece_alone(pieces, objective):
    fitting = Pieces(pieces.shards, objective.room(37), seed=5)
    for index in range(len(fitting)):
        rows = objective.rows(fitting.visit(index, 2), SPECIAL)
        again = objective.rows(Pieces(fitting.shards, objective.room(37), seed=5).visit(index, 2), SPECIAL)
        assert all(len(row) <= 37 for row in rows)
        assert [[one.tolist() for one in (row.ids, row.at, row.targets)] for row in rows] == [
            [one.tolist() for one in (row.ids, row.at, row.targets)] for row in again]
    if type(objective) is not Contrastive:                           # no shorter than need be; few end
        assert max(len(row) for index in range(len(fitting)) for row in objective.rows(fitting[index], SPECIAL)) >= 36
    if type(objective) not in (NextToken, Autoencoding):             # another epoch asks something else
        one, other = (objective.rows(pieces.visit(4, epoch), SPECIAL)[0] for epoch in (0, 1))
        assert (one.ids.tolist(), one.at.tolist()) != (other.ids.tolist(), other.at.tolist())


# Who sees whom

def seen(model, rows, row, question):
    """Which tokens of each row the logits of one question depend on: gradients that aren't exactly 0."""
    batch = Batch.packed([torch.from_numpy(one.ids) for one in rows], segments=[torch.from_numpy(one.segments) for one in rows])
    embedded = model.table[batch.ids].detach().requires_grad_()
    at = batch.first[row] + int(rows[row].at[question])
    model(batch, embedded=embedded, logits_at=at[None]).logits.sum().backward()
    return [part.abs().amax(-1).gt(0).tolist() for part in batch.unpack(embedded.grad)]


def test_each_row_sees_what_its_objective_says(pieces):
    """In one batch, with one mask: MLM both ways, GPT to the left, UniLM its source and to the left."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab_size=SIZE, hidden_size=14, layers=2, attention_heads=2, head_size=6, intermediate_size=19,
                                    mask="unilm", position="rotary", heads=("mlm",), init_std=0.6)).double().eval()
    rows = [objective.rows(pieces.visit(3, 1), SPECIAL)[0] for objective in (Masked(rate=0.3), NextToken(), UniLM())]
    for row, one in enumerate(rows):
        for question in {0, len(one.at) // 2, len(one.at) - 1}:
            at, source = int(one.at[question]), int((one.segments == 0).sum())
            expected = {0: [True] * len(one), 1: [place <= at for place in range(len(one))],
                        2: [place < source or place <= at for place in range(len(one))]}[row]
            found = seen(model, rows, row, question)
            assert found[row] == expected and not any(map(any, found[:row] + found[row + 1 :]))
            if row:
                assert int(one.ids[at + 1]) == one.targets[question] and not expected[at + 1]         # never what is asked for
    planted = replace(rows[1], segments=numpy.zeros_like(rows[1].segments))                           # as if it were BERT's
    assert seen(model, [planted], 0, 3)[0][4]


# What can't be

@pytest.mark.parametrize("make", [lambda: Masked(rate=0.0), lambda: Masked(rate=1.0), lambda: NextSentence(rate=2.0),
                                  lambda: NextSentence(sentence=0.0), lambda: SpanCorruption(mean=0.5), lambda: SpanCorruption(rate=1.0),
                                  lambda: Contrastive(same=1.5), lambda: Contrastive(longest=3), lambda: Contrastive(temperature=0.0)])
def test_numbers_that_are_none_are_refused(make):
    with pytest.raises(ConfigError):
        make()


def test_words_that_nobody_wrote_are_asked_for_by_name(tmp_path):
    pieces = Pieces(write([Document(TEXTS[4])], tmp_path / "plain", vocab_size=SIZE), 60)
    for objective in (Masked(words=True), NextSentence(words=True)):
        with pytest.raises(ConfigError, match="knows no words"):
            objective.rows(pieces[0], SPECIAL)


def test_names_and_shares_of_the_command_line():
    assert parse(["mlm=0.5", "unilm = 2"]) == {Masked(): 0.5, UniLM(): 2.0} and parse(["tta"]) == {Autoencoding(): 1.0}
    assert parse(["mlm", "nsp"], words=True) == {Masked(words=True): 1.0, NextSentence(words=True): 1.0}
    assert {type(one) for one in parse(list(NAMES))} == {type(one) for one in ALL}
    for wrong, said in ((["bert"], "unknown"), (["mlm=x"], "share of mlm"), (["mlm=0"], "share"), (["mlm=nan"], "share"),
                        (["mlm", "mlm=2"], "twice")):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            parse(wrong)
