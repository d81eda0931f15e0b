"""A small model read at lengths that it wasn't trained on: the weights stay, the same characters are asked about, a killed run goes on."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import numpy
import pytest
import torch

from fishpaw.errors import DataError
from fishpaw.lab import extrapolation
from fishpaw.lab.extrapolation import CORPUS, VARIANTS, Size, judge, position, prepare, read, train

torch.set_num_threads(1)
SMALL = Size(layers=1, width=16, heads=2, vocabulary=40, characters=3000, length=8, steps=4, rows=4, lengths=(8, 16, 32), window=4,
             texts=3, judged=5)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """30 documents of 90 ideographs."""
    folder, draw = tmp_path_factory.mktemp("data"), numpy.random.default_rng(0)
    (folder / CORPUS).parent.mkdir(parents=True)
    with gzip.open(folder / CORPUS, "wt", encoding="utf-8") as file:
        for index in range(30):
            text = "".join(chr(0x4E00 + one) for one in draw.integers(0, 30, 90))
            file.write(json.dumps({"id": str(index), "text": text}) + "\n")
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    text = prepare(data, 0, SMALL)
    return text, train(tmp_path_factory.mktemp("trained"), text, 0, SMALL, lambda line: None)


def test_unseen_texts_are_long_enough_and_not_among_the_pieces(data):
    text = prepare(data, 0, SMALL)
    assert text.unseen.shape == (3, 33) and text.pieces.shape == (27 * 11, 9) and text.tokens == 35
    pieces = {tuple(piece) for piece in text.pieces.tolist()}
    for one in text.unseen.tolist():
        assert not any(tuple(one[start : start + 9]) in pieces for start in range(25))
    follows = sum(int(one[-1] == other[0]) for one, other in zip(text.pieces, text.pieces[1:], strict=False))
    assert follows >= 27 * 10                                        # a piece begins where the one before ended: nothing is left unasked


def test_the_same_seed_gives_the_same_text_and_another_another(data):
    one, two, other = (prepare(data, seed, SMALL) for seed in (0, 0, 1))
    assert one.digest == two.digest != other.digest


def test_missing_and_too_little_data_are_named(data, tmp_path):
    with pytest.raises(DataError, match="laws_lawrefbook"):
        prepare(None, 0, SMALL)
    with pytest.raises(DataError, match="docs.jsonl.gz"):
        prepare(tmp_path, 0, SMALL)
    other = tmp_path / CORPUS
    other.parent.mkdir(parents=True)
    other.write_bytes(gzip.compress(b'{"text": "a"}\n{"title": "b"}\n'))
    with pytest.raises(DataError, match='docs.jsonl.gz, line 2: no field "text"'):
        prepare(tmp_path, 0, SMALL)
    with pytest.raises(DataError, match="0 unseen texts of 513 characters"):
        prepare(data, 0, Size(lengths=(8, 512)))


def test_at_the_trained_length_every_scaled_position_is_rotary(trained):
    text, model = trained
    plain = None
    for variant in VARIANTS:
        if "ReRoPE" not in variant:
            reader = extrapolation.Transformer(extrapolation._config(variant, 8, text.tokens, SMALL)).eval()
            reader.load_state_dict(model.state_dict())
            found = judge(reader, text.unseen[:, -9:].long(), 5)
            plain = plain or found
            assert found["loss"] == pytest.approx(plain["loss"], abs=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_position_can_read_and_answers_in_its_own_way(trained, variant, tmp_path):
    text, model = trained
    reading = read(tmp_path, model, text, variant, 32, 0, SMALL)
    assert len(reading["loss"]) == len(reading["accuracy"]) == 3
    assert all(0 < loss < 10 for loss in reading["loss"]) and all(0 <= share <= 1 for share in reading["accuracy"])
    plain = read(tmp_path, model, text, "RoPE", 32, 0, SMALL)
    assert (reading["loss"] == plain["loss"]) == (variant == "RoPE")


def test_leaky_distances_end_at_a_trained_one():
    size = Size()
    spec = position("leaky ReRoPE", 1024, size)
    longest = size.window + (1023 - size.window) / spec["stretch"]
    assert longest == pytest.approx(127)


def test_a_judgement_is_the_last_characters_from_all_before(trained):
    text, model = trained
    ids = text.unseen.long()
    found = judge(model, ids, 5, rows=2)
    with torch.no_grad():
        logits = model(ids[:, :-1]).logits.log_softmax(-1)
    expected = -logits.gather(2, ids[:, 1:, None])[..., 0][:, -5:].mean(1)
    assert found["loss"] == pytest.approx(expected.tolist(), abs=1e-5)
    assert found["accuracy"] == pytest.approx((logits.argmax(-1) == ids[:, 1:])[:, -5:].float().mean(1).tolist())
    assert found["loss"] != pytest.approx(judge(model, ids[:, :-1], 5)["loss"], abs=1e-3)          # the planted fault: other characters


def test_what_was_read_is_not_read_again_and_what_was_trained_not_trained(data, tmp_path, monkeypatch):
    text, said = prepare(data, 0, SMALL), []
    first = train(tmp_path, text, 0, SMALL, said.append)
    once = read(tmp_path, first, text, "NTK", 16, 0, SMALL)
    right = extrapolation.judge
    monkeypatch.setattr(extrapolation, "judge", None)
    monkeypatch.setattr(extrapolation, "_loss", None)
    again = train(tmp_path, text, 0, SMALL, said.append)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    assert read(tmp_path, again, text, "NTK", 16, 0, SMALL) == once
    monkeypatch.setattr(extrapolation, "judge", lambda *arguments: asked.append(1) or right(*arguments))
    asked: list[int] = []
    (tmp_path / "ntk-16.json").write_text('{"settings": {', encoding="utf-8")
    assert read(tmp_path, again, text, "NTK", 16, 0, SMALL) == once and len(asked) == 1        # a damaged file is made again
    read(tmp_path, again, text, "NTK", 16, 1, SMALL)
    read(tmp_path, again, replace(text, unseen=text.unseen.flip(0)), "NTK", 16, 1, SMALL)
    assert len(asked) == 3                                           # and so is that of another seed or text


def test_a_training_that_is_killed_goes_on_to_the_same_weights(data, tmp_path, monkeypatch):
    text = prepare(data, 0, SMALL)
    whole = train(tmp_path / "one", text, 0, SMALL, lambda line: None)
    right, calls = extrapolation._loss, []

    def killed(model, batch):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return right(model, batch)

    monkeypatch.setattr(extrapolation, "_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "two", text, 0, SMALL, lambda line: None)
    other = replace(text, pieces=text.pieces.flip(0))
    train(tmp_path / "two", other, 0, SMALL, lambda line: None)        # another text is another training, in a folder of its own
    resumed = train(tmp_path / "two", text, 0, SMALL, lambda line: None)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
