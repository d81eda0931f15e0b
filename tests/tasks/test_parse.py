"""Parse: words and characters, the matrix beside a naive one, trees made of it, CoNLL-U, and who can't be asked."""

from __future__ import annotations

import re
from inspect import signature
from pathlib import Path

import pytest
import torch

from fishpaw.cli.parse import parse
from fishpaw.cli.segment import segment
from fishpaw.errors import ConfigError, DataError
from fishpaw.interpret.constituency import code, constituents
from fishpaw.interpret.dependency import chu_liu_edmonds, eisner
from fishpaw.tasks.parse import Impact, Parse, Parsed, conllu
from fishpaw.weights.load import load

WORDS = ["今天", "天气", "很", "don't"]


@pytest.fixture
def bert(pretrained):
    return load(pretrained("bert"))


def naive(model, tokenizer, words):
    """The definition: the text with word i masked, and with i and j; means of the vectors of word i."""
    whole = tokenizer.encode(" ".join(words))
    ends = [0, *(sum(len(tokenizer.encode(word).ids) - 2 for word in words[:at]) for at in range(1, len(words) + 1))]
    places = [range(1 + start, 1 + end) for start, end in zip(ends, ends[1:], strict=False)]

    def vector(at, *masked):
        hidden = {place for word in masked for place in places[word]}
        ids = [tokenizer.mask_id if place in hidden else id for place, id in enumerate(whole.ids)]
        with torch.no_grad():
            return model(torch.tensor([ids])).hidden[0, list(places[at])].mean(0)

    count = range(len(words))
    return torch.tensor([[0.0 if i == j else float((vector(i, i) - vector(i, i, j)).norm()) for j in count] for i in count])


@pytest.mark.parametrize("family", ["bert", "roformer"])
def test_the_matrix_is_the_naive_one_of_words(pretrained, family):
    model, tokenizer = load(pretrained(family))
    task = Parse(model, tokenizer)
    found = task.impact(WORDS)
    torch.testing.assert_close(found.matrix, naive(model, tokenizer, WORDS), atol=1e-4, rtol=0)        # up to 10 here: fp32
    assert found.words == tuple(WORDS) and torch.equal(task.impact(" 今天 天气\u3000很 don't\n").matrix, found.matrix)
    torch.testing.assert_close(task.impact(WORDS, tokens=1).matrix, found.matrix, atol=1e-4, rtol=0)


def test_a_text_without_blanks_is_read_as_characters(bert):
    task = Parse(*bert)
    found = task.impact("今天it很")
    assert found.words == ("今", "天", "it", "很")
    assert torch.equal(found.matrix, task.impact(["今", "天", "it", "很"]).matrix)
    assert task.impact(["今天it很"]).words == ("今天it很",) and task.impact("今").matrix.tolist() == [[0.0]]


def test_trees_are_made_of_the_matrix(bert):
    task = Parse(*bert)
    impact = task.impact(WORDS)
    assert task.constituency(impact).tree == task.constituency(WORDS).tree == constituents(impact.matrix)
    assert task.constituency(impact, objective=code).tree == constituents(impact.matrix, objective=code)
    for algorithm in (eisner, chu_liu_edmonds):
        for root in (None, 2):
            found = task.dependency(impact, algorithm=algorithm, root=root)
            assert list(found.heads) == algorithm(impact.matrix.T, root=root) and found.tree is None
    by_angle = Parse(*bert, metric=lambda one, other: (one - other).abs().sum(-1))
    assert not torch.equal(by_angle.impact(WORDS).matrix, impact.matrix)


def test_the_head_is_the_word_whose_masking_counts():
    """Row i holds what changes word i: 今天 changes 很 most, so 很 hangs on 今天, not 今天 on 很."""
    matrix = torch.tensor([[0.0, 0.1, 0.1], [1.0, 0.0, 0.1], [2.0, 0.1, 0.0]])
    impact = Impact(("今天", "天气", "很"), matrix)
    parsed = Parse.dependency(object.__new__(Parse), impact)
    assert parsed.heads == (-1, 0, 0) and parsed.heads != tuple(eisner(matrix))                        # planted: the matrix itself


def test_a_word_of_a_list_has_no_white_space(bert):
    with pytest.raises(DataError, match="'今\\\\t天' has white space"):
        Parse(*bert).impact(["今\t天", "好"])


def test_what_is_shown_is_brackets_or_conllu():
    impact = Impact(("今天", "很", "好"), torch.zeros(3, 3))
    assert Parsed(impact, tree=(0, (1, 2))).shown == "(今天 (很 好))"
    assert Parsed(impact, heads=(2, 2, -1)).shown == ("1\t今天\t_\t_\t_\t_\t3\t_\t_\t_\n2\t很\t_\t_\t_\t_\t3\t_\t_\t_\n"
                                                      "3\t好\t_\t_\t_\t_\t0\troot\t_\t_\n")  # fmt: skip
    assert Parsed(impact, tree=(0, (1, 2))).figures == {"words": ["今天", "很", "好"], "tree": (0, (1, 2)), "heads": None,
                                                        "impact": [[0.0] * 3] * 3}  # fmt: skip
    assert all(line.count("\t") == 9 for line in conllu([-1, 0], ["a", "b"]).splitlines())


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_runs_and_has_every_option(language, capsys):
    page = (Path(__file__).resolve().parents[2] / "docs" / language / "perturbed_masking.md").read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(block, {})
    assert capsys.readouterr().out.count("\n") == 3
    for verb in (segment, parse):
        options = {f"--{name.replace('_', '-')}" for name in signature(verb).parameters} - {"--texts", "--model", "--change", "--device"}
        assert all(re.search(rf"{option}\b", page) for option in options - {"--limit", "--as-json"})


def test_what_cannot_be_is_refused(bert, pretrained):
    task = Parse(*bert)
    for text, says in (("", "no token to parse"), ("\u200b", "no token to parse"), ([], "no token to parse"),
                       (["今", "\u200b"], r"The word '\\u200b' has no token"), ("今" * 30, "30 tokens, but the model reads 29 beside"),
                       (["今天"] * 401, "401 words; a tree has 400")):  # fmt: skip
        with pytest.raises(DataError, match=says):
            task.impact(text)
    assert len(task.impact("今" * 29).words) == 29
    with pytest.raises(DataError, match="root is word 4"):
        task.dependency(WORDS, root=4)
    with pytest.raises(ConfigError, match="layer is -3"):
        Parse(*bert, layer=-3)
    for name, changes in (("gpt2", {}), ("bert", {"mask": "unilm"}), ("bert", {"heads": ["pooler"]})):
        with pytest.raises(ConfigError, match="needs a masked language model"):
            Parse.load(pretrained(name), changes=changes)
