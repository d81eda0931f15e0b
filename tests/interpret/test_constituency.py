"""Trees of phrases: both objectives by their formulas and by brute force, planted blocks, and the shape of what comes out."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from fishpaw.errors import DataError
from fishpaw.interpret.constituency import OBJECTIVES, article, brackets, code, constituents, phrases

SIZES = (3, 5, 7, 13)


def random_matrix(n: int, seed: int = 0) -> Tensor:
    matrix = torch.rand(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return matrix.fill_diagonal_(0)


def blocks(first: int, second: int, within: float = 3.0, between: float = 1.0) -> Tensor:
    matrix = torch.full((first + second, first + second), between)
    matrix[:first, :first] = matrix[first:, first:] = within
    return matrix.fill_diagonal_(0)


def brute(matrix: Tensor, k: int, name: str) -> float:
    """Each entry added by itself."""
    n, cells = len(matrix), matrix.tolist()
    if name == "article":
        def mean(rows: range, columns: range) -> float:
            return sum(cells[i][j] for i in rows for j in columns) / (len(rows) * len(columns))

        low, high = range(k), range(k, n)
        return mean(low, low) + mean(high, high) - mean(low, high) - mean(high, low)
    left = sum(cells[i][j] for i in range(k) for j in range(k))
    right = sum(cells[i][j] for i in range(k + 1, n) for j in range(k + 1, n))
    between = sum(cells[i][j] + cells[j][i] for i in range(k) for j in range(k + 1, n))
    return -(left / (2 * k) + right / (2 * (n - k)) - between / (k * (n - k)))


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("n", [2, *SIZES])
def test_objectives_are_their_formulas(name, n):
    matrix = random_matrix(n)
    expected = [brute(matrix, k, name) for k in range(1, n)]
    assert OBJECTIVES[name](matrix).tolist() == pytest.approx(expected, abs=1e-12)
    assert OBJECTIVES[name](matrix.float()).dtype == torch.float64
    other = "code" if name == "article" else "article"
    assert expected != pytest.approx([brute(matrix, k, other) for k in range(1, n)], abs=1e-3)         # planted: two formulas


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("seed", range(5))
def test_each_cut_is_the_best_of_all(name, n, seed):
    """Brute force over every part of the tree."""
    matrix = random_matrix(n, seed)

    def check(tree, start: int, count: int) -> None:
        if count == 1:
            assert tree == start
            return
        if count == 2:
            assert tree == (start, start + 1)
            return
        part = matrix[start : start + count, start : start + count]
        k = max(range(1, count - 1), key=lambda at: brute(part, at, name))
        left, (head, rest) = tree
        assert head == start + k
        check(left, start, k)
        check(rest, start + k + 1, count - k - 1)

    check(constituents(matrix, objective=OBJECTIVES[name]), 0, n)


@pytest.mark.parametrize(("first", "second", "between"), [
    *product([2, 3, 5, 7], [2, 3, 5, 11], [0.0, 1.0, 2.0]),
    *product([1], [2, 3, 5, 11], [0.0, 1.0]),                         # a block of one word is a zero: it stands out less
])  # fmt: skip
def test_the_article_cuts_two_dense_blocks_at_their_border(first, second, between):
    matrix = blocks(first, second, between=between)
    assert int(article(matrix).argmax()) + 1 == first
    assert (0, first) in phrases(constituents(matrix)) or first == 1
    assert (first, first + second) in phrases(constituents(matrix))
    if first != second:
        assert int(article(blocks(second, first)).argmax()) + 1 != first                   # planted: the border elsewhere


def test_the_published_program_does_not():
    """It looks for the least: its cut is anywhere but at the border of two dense blocks, which is where its formula is greatest."""
    matrix = blocks(5, 6, between=0.0)
    assert int(article(matrix).argmax()) + 1 == 5 and int(code(matrix).argmax()) + 1 != 5
    assert int(code(blocks(5, 6, within=0.0, between=1.0)).argmax()) + 1 != 5


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("n", [1, 2, *SIZES])
def test_a_tree_has_each_word_once_in_its_order(name, n):
    tree = constituents(random_matrix(n, 9), objective=OBJECTIVES[name])
    words = [f"w{at}" for at in range(n)]
    shown = brackets(tree, words)
    assert shown.replace("(", " ").replace(")", " ").split() == words and shown.count("(") == shown.count(")") == n - 1
    assert len(phrases(tree)) == n - 1 and (n == 1 or (0, n) in phrases(tree))


def test_brackets_by_hand():
    assert brackets((0, (1, (2, 3))), ["今天", "天气", "(很", "好)"]) == "(今天 (天气 (-LRB-很 好-RRB-)))"
    assert phrases((0, (1, (2, 3)))) == {(0, 4), (1, 4), (2, 4)} and phrases(((0, 1), 2)) == {(0, 3), (0, 2)} and phrases(0) == set()


def test_an_objective_of_ones_own_and_the_deepest_tree():
    right = constituents(torch.zeros(400, 400), objective=lambda matrix: -torch.arange(1, len(matrix)).double())
    assert brackets(right, ["a"] * 400).startswith("(a (a (a (a ") and len(phrases(right)) == 399


@pytest.mark.parametrize("matrix", [torch.zeros(0, 0), torch.zeros(2, 3), torch.zeros(4), torch.zeros(401, 401)])
def test_what_is_no_matrix_of_words_is_refused(matrix):
    with pytest.raises(DataError, match="An impact matrix has shape"):
        constituents(matrix)
