"""Vectors in bulk: as one by one, in order, whatever stands beside a text; windows and batches as they are promised."""

from __future__ import annotations

import random

import pytest
import torch

import fishpaw.tasks.encode as encoding
from fishpaw.config import ModelConfig
from fishpaw.errors import ConfigError, DataError
from fishpaw.model.transformer import Transformer
from fishpaw.tasks.encode import encode, packed, stream
from fishpaw.text.learn import characters
from fishpaw.text.wordpiece import WordPiece
from fishpaw.weights.load import load

LETTERS = "今天气我们去公园玩吧房间前台很热情"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pair() -> tuple[Transformer, WordPiece]:
    torch.manual_seed(3)
    vocab = characters([LETTERS], least=1)
    config = ModelConfig(
        vocab_size=len(vocab), hidden_size=12, layers=2, attention_heads=3, intermediate_size=20, max_positions=31, init_std=0.5,
        heads=("pooler",),
    )  # fmt: skip
    return Transformer(config).eval(), WordPiece(vocab)


def texts(count: int, seed: int = 0) -> list[str]:
    chance = random.Random(seed)
    return ["".join(chance.choices(LETTERS, k=chance.randint(0, 23))) for _ in range(count)]


def alone(text: str, pair: tuple[Transformer, WordPiece], pool: str) -> torch.Tensor:
    """[d] the naive way: one text, no batch."""
    model, tokenizer = pair
    ids = tokenizer.encode(text, max_length=model.longest).ids or [tokenizer.pad_id]
    with torch.no_grad():
        out = model(torch.tensor([ids]))
    return {"mean": lambda: out.hidden[0].mean(0), "first": lambda: out.hidden[0, 0], "pooler": lambda: out.pooled[0]}[pool]()


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return torch.allclose(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pool", ["mean", "first", "pooler"])
@pytest.mark.parametrize("tokens", [1, 37, 4096])
def test_in_bulk_is_one_by_one_in_order(pair, pool, tokens):
    lines = texts(53)
    found = encode(lines, pair, pool=pool, tokens=tokens)
    wanted = torch.stack([alone(line, pair, pool) for line in lines])
    assert found.shape == (53, 12) and found.dtype == torch.float32 and not found.requires_grad
    assert float((found - wanted).abs().max()) < 5e-6
    shaken = found[torch.randperm(53, generator=torch.Generator().manual_seed(1))]
    assert not same(shaken, wanted)                                  # planted: rows in another order


@pytest.mark.parametrize("family", ["bert", "roformer", "gpt2"])
def test_each_family_and_the_empty_text(pretrained, family):
    loaded = load(pretrained(family))
    lines = ["今天", "", "好" * 9, "it's", ""]
    found = encode(lines, loaded)
    assert same(found, torch.stack([alone(line, loaded, "mean") for line in lines]))
    assert bool(found.isfinite().all()) and torch.equal(found[1], found[4])
    assert torch.equal(encode(lines, pretrained(family)), found)     # a name is as good


@pytest.mark.parametrize("tokens", [1, 19, 10**6])
def test_batches_hold_every_text_once_and_no_more_than_asked(pair, tokens):
    encodings = pair[1].encode_batch(texts(41))
    places, sizes = [], []
    for chosen, batch in packed(encodings, segments=True, tokens=tokens, device=CPU):
        size = sum(len(encodings[one].ids) for one in chosen)
        assert len(batch.ids) == size and (size <= tokens or len(chosen) == 1)
        assert [int(batch.ids[start]) for start in batch.first] == [encodings[one].ids[0] for one in chosen]
        places += chosen
        sizes += [len(encodings[one].ids) for one in chosen]
    assert sorted(places) == list(range(41)) and sizes == sorted(sizes, reverse=True)
    assert list(packed([], segments=False, tokens=5, device=CPU)) == []


def test_a_stream_reads_a_window_and_no_further(pair, monkeypatch):
    monkeypatch.setattr(encoding, "WINDOW", 7)
    lines, read = texts(17), []

    def source():
        for line in lines:
            read.append(line)
            yield line

    found, seen = [], []
    for vectors in stream(source(), pair):
        found.append(vectors)
        seen.append(len(read))
    assert seen == [7, 14, 17] and [len(vectors) for vectors in found] == [7, 7, 3]
    monkeypatch.undo()
    assert same(torch.cat(found), encode(lines, pair))


def test_one_string_is_refused(pair):
    with pytest.raises(DataError, match="one string"):
        encode("今天", pair)


def test_nothing_gives_no_rows(pair):
    assert encode([], pair).shape == (0, 12) and encode(iter(()), pair).shape == (0, 12)
    assert list(stream([], pair)) == []


def test_long_texts_are_cut_where_the_model_ends_or_where_asked(pair):
    assert same(encode(["今" * 99], pair), encode(["今" * 29], pair))
    assert same(encode(["今天气我们"], pair, max_length=4), encode(["今天"], pair))
    assert not same(encode(["今天气"], pair), encode(["今天"], pair))


def test_modes_and_gradients_are_as_they_were(pair):
    model, _ = pair
    model.train()
    model.embedding.eval()
    model.embedding.tokens.weight.requires_grad_(False)
    before = {name: module.training for name, module in model.named_modules()}
    found = encode(["今天"], pair)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert not model.embedding.tokens.weight.requires_grad
    model.eval()
    model.embedding.tokens.weight.requires_grad_(True)
    assert torch.equal(encode(["今天"], pair), found)                 # computed without dropout all the same


def test_what_cannot_be_pooled_is_refused(pair, pretrained):
    with pytest.raises(ConfigError, match=r"The model has no pooler"):
        encode(["今"], load(pretrained("roformer")), pool="pooler")
    with pytest.raises(ConfigError, match=r"pool is 'max'"):
        encode(["今"], pair, pool="max")


def test_a_bar_stands_where_it_is_asked_for(pair, capfd):
    shown = encode(["今", "天"], pair, progress=True)
    assert torch.equal(shown, encode(["今", "天"], pair)) and "2" in capfd.readouterr().err


def test_an_encoder_decoder_is_refused_with_what_to_load(pair):
    shape = ModelConfig(vocab_size=29, hidden_size=12, layers=1, attention_heads=2, intermediate_size=20)
    with pytest.raises(ConfigError, match='encoder-decoder can\'t make vectors.*family="t5_encoder"'):
        encode(["好"], (Transformer(shape.change({"mask": "causal", "encoder": shape})), pair[1]))
