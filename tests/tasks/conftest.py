"""Tiny models of each family, with a tokenizer each, and a set of texts that two letters tell apart."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer

from fishpaw.config import ModelConfig
from fishpaw.data.labelled import LabelledText
from fishpaw.model.transformer import Transformer
from fishpaw.text.bpe import ByteLevel
from fishpaw.text.learn import characters
from fishpaw.text.pipeline import Pipeline
from fishpaw.text.wordpiece import WordPiece
from fishpaw.weights.save import save

LETTERS = "今天气我们去公园玩吧房间前台很热情下次还住这里的了是不好坏，。"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    """pretrained("bert" | "roformer" | "gpt2") -> a saved folder; weights large enough for differences to show."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            torch.manual_seed(7)
            config, tokenizer = _gpt2() if family == "gpt2" else _encoder(family)
            model = Transformer(config)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() > 1:
                        parameter.normal_(std=0.6)
            made[family] = tmp_path_factory.mktemp(family) / "model"
            save(model, made[family], tokenizer)
        return made[family]

    return make


@pytest.fixture
def tiny():
    """tiny(vocabulary) -> one RoFormer layer, 16 wide, without dropout."""
    def make(vocab_size: int = 50, **changes: object) -> ModelConfig:
        return ModelConfig(**{
            "family": "roformer", "vocab_size": vocab_size, "hidden_size": 16, "layers": 1, "attention_heads": 2, "intermediate_size": 32,
            "position": "rotary", "norm": {"name": "layer", "eps": 1e-12}, "dropout": 0.0, "attention_dropout": 0.0,
            "init_std": 0.2, **changes,
        })

    return make


@pytest.fixture
def pipeline():
    """pipeline("<s> $A </s>") -> a tokenizer.json with a token a letter that puts these around a text; <mask> takes blanks before it."""
    def make(template: str) -> Pipeline:
        names = ["<pad>", "</s>", "<unk>", "<s>", "<mask>"]
        rust = RustTokenizer(models.WordLevel({token: id for id, token in enumerate([*names, *LETTERS])}, unk_token="<unk>"))
        rust.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        rust.decoder = decoders.Fuse()
        rust.add_special_tokens([AddedToken(name, lstrip=name == "<mask>", special=True) for name in names])
        rust.post_processor = processors.TemplateProcessing(single=template, special_tokens=[(name, names.index(name)) for name in names])
        return Pipeline({"tokenizer.json": rust.to_str().encode("utf-8")})

    return make


@pytest.fixture
def toy():
    """toy(count, pairs=…) -> texts with 好 (pos) or 坏 (neg) somewhere among letters that say nothing; of pairs: in the second."""
    def make(count: int, *, seed: int = 0, pairs: bool = False) -> list[LabelledText]:
        chance = random.Random(seed)
        made = []
        for number in range(count):
            letters = chance.choices(LETTERS[:20], k=chance.randint(0, 9))
            letters.insert(chance.randint(0, len(letters)), "好坏"[number % 2])
            label = ("pos", "neg")[number % 2]
            text = "".join(letters)
            made.append(LabelledText("今天" if pairs else text, text if pairs else None, (label,), "toy.tsv", number + 1))
        return made

    return make


def _encoder(family: str) -> tuple[ModelConfig, WordPiece]:
    vocab = characters([LETTERS + "it's don't"], least=1)
    config = ModelConfig(
        family=family, vocab_size=len(vocab), hidden_size=12, layers=1, attention_heads=2, intermediate_size=20, max_positions=31,
        position="learned" if family == "bert" else "rotary", norm={"name": "layer", "eps": 1e-12},
        heads=("pooler", "nsp", "mlm") if family == "bert" else ("mlm",),
    )
    return config, WordPiece(vocab)


def _gpt2() -> tuple[ModelConfig, ByteLevel]:
    """Three merges, so that some characters are one token and some three; 好 is e5 a5 bd."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("å", "¥"), ("å¥", "½"), ("ä", "»")]
    tokens = [*letters, "å¥", "å¥½", "ä»", "<|endoftext|>"]
    config = ModelConfig(
        family="gpt2", vocab_size=len(tokens), hidden_size=12, layers=1, attention_heads=2, intermediate_size=20, max_positions=53,
        norm={"name": "layer", "eps": 1e-5}, norm_at="pre", embedding_norm=False, segments=0, activation="gelu_tanh", mask="causal",
        heads=("lm",), pad_id=len(tokens) - 1,
    )
    return config, ByteLevel({token: number for number, token in enumerate(tokens)}, merges)
