"""Dependencies: both searches beside all trees there are, projectivity, roots, and the counts of UAS."""

from __future__ import annotations

from functools import cache
from itertools import product

import pytest
import torch
from torch import Tensor

from fishpaw.errors import DataError
from fishpaw.interpret.dependency import ALGORITHMS, arc_scores, attached, chu_liu_edmonds, eisner, tree_score


def random_scores(n: int, seed: int) -> Tensor:
    return torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@cache
def trees(n: int) -> list[tuple[int, ...]]:
    """Every tree of n words, as heads."""
    return [heads for heads in product(range(-1, n), repeat=n) if is_tree(heads)]


def is_tree(heads) -> bool:
    if list(heads).count(-1) != 1:
        return False
    for word in range(len(heads)):
        seen = set()
        while word >= 0:
            if word in seen:
                return False
            seen.add(word)
            word = heads[word]
    return True


def projective(heads) -> bool:
    """Each word between a head and its dependent is below the head."""
    def below(word: int, head: int) -> bool:
        while word >= 0 and word != head:
            word = heads[word]
        return word == head

    return all(below(between, head) for word, head in enumerate(heads) if head >= 0
               for between in range(min(word, head) + 1, max(word, head)))  # fmt: skip


def test_there_are_as_many_trees_as_cayley_says_and_as_many_projective_ones():
    assert [len(trees(n)) for n in range(1, 7)] == [n ** (n - 1) for n in range(1, 7)]
    assert [sum(map(projective, trees(n))) for n in range(1, 7)] == [1, 2, 7, 30, 143, 728]            # A006013


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("seed", range(4))
def test_eisner_is_the_best_projective_tree(n, seed):
    scores = random_scores(n, seed)
    every = [heads for heads in trees(n) if projective(heads)]
    best = max(every, key=lambda heads: tree_score(scores, heads))
    assert tuple(eisner(scores)) == best
    for root in range(n):
        rooted = max((heads for heads in every if heads[root] == -1), key=lambda heads: tree_score(scores, heads))
        assert tuple(eisner(scores, root=root)) == rooted
    if n > 2:
        assert tuple(eisner(scores.T)) != best                         # planted: heads and dependents exchanged


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("seed", range(12))
def test_chu_liu_edmonds_is_the_best_tree_of_all(n, seed):
    scores = random_scores(n, 50 + seed)
    best = max(trees(n), key=lambda heads: tree_score(scores, heads))
    assert tuple(chu_liu_edmonds(scores)) == best
    for root in range(n):
        rooted = max((heads for heads in trees(n) if heads[root] == -1), key=lambda heads: tree_score(scores, heads))
        assert tuple(chu_liu_edmonds(scores, root=root)) == rooted


def test_cycles_within_cycles_are_broken_where_it_costs_least():
    """Two pairs whose words choose each other, and together a cycle of two pairs: the greedy choice is no tree."""
    scores = torch.zeros(5, 5)
    for head, word, worth in ((1, 2, 9), (2, 1, 9), (3, 4, 9), (4, 3, 9), (2, 3, 6), (4, 1, 6), (0, 1, 1), (0, 3, 2)):
        scores[head, word] = worth
    greedy = scores.masked_fill(torch.eye(5, dtype=torch.bool), -1).argmax(0).tolist()
    assert not is_tree([-1, *greedy[1:]])
    assert chu_liu_edmonds(scores, root=0) == max(
        (list(heads) for heads in trees(5) if heads[0] == -1), key=lambda heads: tree_score(scores, heads))  # fmt: skip


def test_arcs_that_cross_part_the_two():
    scores = torch.zeros(4, 4)
    scores[0, 2] = scores[2, 0] = scores[3, 1] = scores[1, 3] = 5.0
    scores[0, 3] = scores[3, 0] = 1.0
    crossing, plain = chu_liu_edmonds(scores), eisner(scores)
    assert tree_score(scores, crossing) == 11 > tree_score(scores, plain) and projective(plain) and not projective(crossing)


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
@pytest.mark.parametrize("n", [2, 3, 17, 41])
def test_what_comes_out_is_a_tree_whatever_the_scale_and_the_diagonal(algorithm, n):
    scores = random_scores(n, n)
    for root in (None, 0, n // 2, n - 1):
        heads = algorithm(scores, root=root)
        assert is_tree(heads) and (root is None or heads[root] == -1)
        assert algorithm(3 * scores + 100, root=root) == heads         # every tree has n - 1 arcs
        assert algorithm(scores.clone().fill_diagonal_(1e6), root=root) == heads
    assert tree_score(scores, chu_liu_edmonds(scores)) >= tree_score(scores, eisner(scores)) - 1e-9
    assert is_tree(algorithm(torch.zeros(n, n)))
    assert scores.equal(random_scores(n, n))                           # nothing was written into it


def test_a_chain_whose_words_change_the_next_one_is_found():
    """f(i, i - 1) is large: each word hangs on the one before it."""
    impact = torch.zeros(7, 7)
    impact[range(1, 7), range(6)] = 1.0
    for algorithm in ALGORITHMS.values():
        assert algorithm(arc_scores(impact), root=0) == [-1, 0, 1, 2, 3, 4, 5]
        assert algorithm(impact, root=6) == [1, 2, 3, 4, 5, 6, -1]     # the other direction


def test_a_tree_of_hundreds_of_words_is_no_deep_recursion():
    n = 300
    scores = random_scores(n, 0)
    scores[range(1, n), range(n - 1)] = scores[range(n - 1), range(1, n)] = 50.0           # neighbours choose each other: many cycles
    assert is_tree(chu_liu_edmonds(scores, root=n // 2))


def test_attached_counts_heads_with_and_without_direction():
    assert attached([-1, 0, 1, 2], [-1, 0, 3, 0]) == (2, 3, 4)
    assert attached([1, -1, 1], [-1, 0, 1]) == (1, 2, 3)               # 1 hangs on 0 in truth, here 0 on 1
    assert attached([-1, 0, 0], [-1, 0, 1], counted=[False, True, True]) == (1, 1, 2)
    assert attached([-1], [-1]) == (1, 1, 1)


@pytest.mark.parametrize("call", [
    lambda: eisner(torch.zeros(0, 0)), lambda: chu_liu_edmonds(torch.zeros(2, 3)), lambda: eisner(torch.zeros(3, 3), root=3),
    lambda: chu_liu_edmonds(torch.zeros(3, 3), root=-1), lambda: eisner(torch.full((2, 2), float("nan"))),
    lambda: attached([0], [0, 1]), lambda: attached([0], [0], counted=[]),
])  # fmt: skip
def test_what_cannot_be_is_refused(call):
    with pytest.raises(DataError):
        call()
