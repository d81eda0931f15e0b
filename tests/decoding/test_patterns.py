"""Every answer under a pattern is a full match as decode gives it, with each kind of tokenizer; all matches are reached, and no others."""

from __future__ import annotations

import importlib.util
import itertools
import re
from pathlib import Path

import pytest
import torch

from fishpaw.decoding.limits import Limits
from fishpaw.decoding.patterns import Pattern
from fishpaw.decoding.processors import TopK
from fishpaw.decoding.sample import sample
from fishpaw.decoding.search import beam, greedy
from fishpaw.errors import ConfigError
from fishpaw.text.vocab import Vocab
from fishpaw.text.wordpiece import WordPiece


def _sibling(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


spelling = _sibling("test_spelling")


class Chance:
    """A Stepper of random logits: a model that knows nothing of the pattern."""

    def __init__(self, vocabulary, seed):
        self.dice, self.vocabulary = torch.Generator().manual_seed(seed), vocabulary

    def start(self, batch, encoder_batch=None):
        return torch.randn(len(batch), self.vocabulary, generator=self.dice) * 3

    def step(self, tokens):
        return torch.randn(len(tokens), self.vocabulary, generator=self.dice) * 3

    def select(self, index):
        pass

    def compact(self):
        pass


EXPRESSIONS = [r"[一-龥]{2,7}", r"(?:yes|no), \w+\.", r'\{"name": "\w{1,8}", "age": \d{1,3}\}', r"\d+(?:-\d+)?", "(?:今天|天气|好)+。?",
               r"[^\n]{0,9}",
               "😀|é|한국", r" a", r"(?:[a-z]+ ){2}[a-z]+"]


@pytest.fixture(scope="module", params=spelling.KINDS)
def tokenizer(request):
    return spelling.trained(request.param)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_answer_is_a_full_match(tokenizer, expression):
    limits = Limits(37, ends=(next(iter(tokenizer.special_ids)),))
    try:
        pattern = Pattern(expression, tokenizer, limits=limits)
    except ConfigError as error:
        assert "no tokens of this tokenizer spell" in str(error)
        assert "<0x41>" not in tokenizer.tokens and "\u0120" not in tokenizer.tokens      # who has bytes spells everything
        return
    for seed in range(2):
        stepper, prompts = Chance(tokenizer.size, seed), [(0,)] * 2
        found = [*greedy(stepper, prompts, limits=limits, processors=[pattern]),
                 *itertools.chain(*beam(stepper, prompts, beams=3, n=3, limits=limits, processors=[pattern])),
                 *itertools.chain(*sample(stepper, prompts, n=3, limits=limits, processors=[pattern, TopK(5)]))]
        for one in found:
            assert one.ended and re.fullmatch(expression, tokenizer.decode(one.content)), tokenizer.decode(one.content)


def walk_all(pattern, tokenizer, longest):
    """Every text that the pattern lets be said in so many tokens, by its own states."""
    found, frontier = set(), [((), pattern.origin(0))]
    for _ in range(longest + 1):
        found |= {tokenizer.decode(said) for said, state in frontier if pattern.least[state] == 0}
        frontier = [((*said, token), target) for said, state in frontier
                    for token, target in zip(*(column.tolist() for column in pattern.moves(state)), strict=True)]
    return found


@pytest.mark.parametrize("expression", ["(?:hello|wor)* ?a{0,2}", '"?[a1]+"?(?: b)?', r"[\w. ]{0,5}", "(?:今|天|1|\\.5)+",
                                        r'(?:"a" ?){1,2}', r"[^a]{3}"])
def test_all_matches_and_only_they_are_reached_with_wordpiece(expression):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "今", "hello", "##天", "a", "1", ".", '"', "b", ".5"]
    tokenizer = WordPiece(Vocab(tuple(words)))
    pattern = Pattern(expression, tokenizer, limits=Limits(9, ends=(3,)))
    piece, barred = words.index("##天"), {words.index('"'), None}      # documented: no piece at the beginning, none behind a straight quote
    every = {tokenizer.decode(ids) for length in range(5) for ids in itertools.product(range(4, len(words)), repeat=length)
             if not any(one == piece and before in barred for before, one in zip((None, *ids), ids, strict=False))}
    assert walk_all(pattern, tokenizer, 4) == {text for text in every if re.fullmatch(expression, text)}


@pytest.mark.parametrize("expression", ["[é中]{1,2}", "中|国", "[^a]", r"\w中?", "(?:é|b)*"])
def test_all_matches_and_only_they_are_reached_byte_by_byte(expression):
    """Characters of several tokens: é is 2 bytes, 中 is 3."""
    from fishpaw.decoding.constraints import UNREACHABLE
    tokenizer = spelling.trained("byte level")
    raw = {byte: tokenizer.index[letter] for letter, byte in spelling_letters().items()}
    only = {raw[byte] for byte in "é中国ab".encode()}
    pattern = Pattern(expression, tokenizer, limits=Limits(9, ends=(tokenizer.eos_id,)))
    found, frontier = set(), [((), pattern.origin(0))]
    for _ in range(7):
        found |= {tokenizer.decode(said) for said, state in frontier if pattern.least[state] == 0}
        frontier = [((*said, token), target) for said, state in frontier
                    for token, target in zip(*(column.tolist() for column in pattern.moves(state)), strict=True) if token in only]
        assert all(pattern.least[target] < UNREACHABLE for _, target in frontier)
    letters = ["é", "中", "国", "a", "b"]
    every = {"".join(text) for length in range(4) for text in itertools.product(letters, repeat=length)}
    expected = {text for text in every if len(text.encode()) <= 6 and re.fullmatch(expression, text)}
    assert {text for text in found if set(text) <= set(letters) and len(text) < 4} == expected


def spelling_letters():
    from fishpaw.decoding.spelling import _letters
    return _letters()


@pytest.mark.parametrize(("expression", "limits", "says"), [
    ("[A-Z]+", Limits(9, ends=(3,)), r"no tokens of this tokenizer spell a text that matches '\[A-Z\]\+'"),
    ("鱼", Limits(9, ends=(3,)), "no tokens of this tokenizer spell"), ("x'", Limits(9, ends=(3,)), "no tokens of this tokenizer spell"),
    ("hello{40}|今{20}", Limits(9, ends=(3,)), "The shortest match of .* takes at least 21 tokens, .* max_new is 9"),
    (r"(a)\1", Limits(9, ends=(3,)), "a back reference at character 4"), ("a", Limits(9), "Pattern needs an end token"),
    ("a", Limits(9, ends=(3,), min_new=2), "min_new is 2"), ("a", Limits(9, ends=(3,), min_ends=2), "min_ends is 2"),
])
def test_what_can_not_be_is_refused(expression, limits, says):
    with pytest.raises(ConfigError, match=says):
        Pattern(expression, spelling.trained("wordpiece"), limits=limits)


def test_the_shortest_way_is_left_open_until_the_last_token():
    """`.*b` with max_new 4: anything, but the third token is a b."""
    tokenizer = spelling.trained("wordpiece")
    limits = Limits(4, ends=(3,))
    for seed in range(30):
        (found,) = greedy(Chance(tokenizer.size, seed), [(0,)], limits=limits, processors=[Pattern("(?:.|\n)*b", tokenizer, limits=limits)])
        assert found.ended and tokenizer.decode(found.content).endswith("b")


def test_a_vocabulary_smaller_than_the_tokenizers_is_told():
    tokenizer = spelling.trained("wordpiece")
    pattern = Pattern(r"\w+", tokenizer, limits=Limits(4, ends=(3,)))
    pattern.start(None, 1)
    with pytest.raises(ConfigError, match="Pattern names token .*; allowed: 0 to 6"):
        pattern(torch.zeros(1, 7), torch.zeros(1, 0, dtype=torch.long))


@pytest.mark.parametrize("expression", [r"\d{4}年\d{1,2}月\d{1,2}日", r'\{"姓名": "[一-龥]{2,4}", "年龄": \d{1,3}\}', r"[一-龥，。]{4,20}"])
def test_googles_vocabulary(data_folder, expression):
    tokenizer = WordPiece(Vocab.load(data_folder / "vocab" / "uer" / "google_zh_vocab.txt"))
    limits = Limits(40, ends=(tokenizer.sep_id,))
    pattern = Pattern(expression, tokenizer, limits=limits)
    for group in sample(Chance(tokenizer.size, 1), [(0,)] * 3, n=5, limits=limits, processors=[pattern]):
        assert all(one.ended and re.fullmatch(expression, tokenizer.decode(one.content)) for one in group)


def test_the_page_runs(monkeypatch, capsys):
    """docs/en/constraints.md from top to bottom, with a small random model in the place of the one it loads."""
    import fishpaw
    from fishpaw.config import ModelConfig
    from fishpaw.model.transformer import Transformer
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"鱼与熊掌兼得今天气很好坏一般年月日，。北京", *"0123456789",
             *(f"##{digit}" for digit in range(10))]
    sizes = {"layers": 1, "hidden_size": 8, "attention_heads": 2, "intermediate_size": 9}
    config = ModelConfig(vocab_size=len(words), heads=("mlm",), mask="unilm", **sizes)
    torch.manual_seed(1)
    monkeypatch.setattr(fishpaw, "load", lambda name, mask: (Transformer(config), WordPiece(Vocab(tuple(words)))))
    page = Path(__file__).resolve().parents[2] / "docs/en/constraints.md"
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        exec(block, names)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] in ("很好", "一般", "很坏") and re.fullmatch(r"\d{4}年\d{1,2}月\d{1,2}日", lines[1])
    assert "北京" in lines[2] and "很好" in lines[2]
    source = "今天北京天气很好，鱼与熊掌兼得。"
    good = [True]
    for end in range(1, len(lines[3]) + 1):
        good.append(any(good[begin] and lines[3][begin:end] in source for begin in range(end - 2)))
    assert good[-1] and len(lines) == 5
