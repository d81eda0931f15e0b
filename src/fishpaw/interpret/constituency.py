"""A tree of phrases from an impact matrix, cut from the top: inside a phrase words change each other more than across its border.

A part of three words and more is cut before word k, 1 <= k <= n - 2, where an objective is greatest; word k heads the right part, and the
tree is [left, [k, rest]]. Two objectives are known by this name. `article` is that of kexue.fm/archives/7476, which restates the
paper (arXiv:2004.14786). `code` is that of the program published with the paper: it is another formula.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from fishpaw.errors import DataError

__all__ = ["MOST", "OBJECTIVES", "Objective", "Tree", "article", "brackets", "code", "constituents", "phrases"]

Tree: TypeAlias = "int | tuple[Tree, Tree]"
"""A word by its number, from 0, or two trees."""

Objective = Callable[[Tensor], Tensor]
"""An impact matrix [n n], n >= 2 -> the worth of a cut before word k, for k = 1 … n - 1: [n - 1], the greatest is the best."""

MOST = 400
"""Words of a tree; one can be as deep as it has words."""


def article(impact: Tensor) -> Tensor:
    """mean F[<k, <k] + mean F[>=k, >=k] - mean F[<k, >=k] - mean F[>=k, <k], in fp64; the diagonal of zeros counts."""
    left, right, between, k = _blocks(impact, skip=0)
    n = len(impact)
    return left / k**2 + right / (n - k) ** 2 - between / (k * (n - k))


def code(impact: Tensor) -> Tensor:
    """-(sum F[<k, <k] / 2k + sum F[>k, >k] / 2(n - k) - (sum F[<k, >k] + sum F[>k, <k]) / k(n - k)), in fp64.

    The published program looks for the least of what stands in brackets, and leaves out row and column k. It thus prefers cuts with
    little impact inside the parts and much between them, the opposite of what the paper says.
    """
    left, right, between, k = _blocks(impact, skip=1)
    n = len(impact)
    return -(left / (2 * k) + right / (2 * (n - k)) - between / (k * (n - k)))


OBJECTIVES: Mapping[str, Objective] = {"article": article, "code": code}
"""By name."""


def constituents(impact: Tensor, *, objective: Objective = article) -> Tree:
    """An impact matrix [n n] -> the tree of n words, by the greatest value of the objective at each cut (of equal ones the first).
    Errors: DataError for no word, more than MOST, and a matrix that isn't square."""
    if impact.dim() != 2 or len(impact) != impact.shape[1] or not 0 < len(impact) <= MOST:
        raise DataError(f"An impact matrix has shape {tuple(impact.shape)}.", fix=f"Give [n, n] for 1 to {MOST} words.")
    return _tree(impact.double(), 0, objective)


def brackets(tree: Tree, words: Sequence[str]) -> str:
    """(a (b c)), with the words for their numbers; ( and ) in a word are -LRB- and -RRB-, as treebanks write them."""
    if isinstance(tree, int):
        return words[tree].replace("(", "-LRB-").replace(")", "-RRB-")
    return f"({brackets(tree[0], words)} {brackets(tree[1], words)})"


def phrases(tree: Tree) -> set[tuple[int, int]]:
    """(first word, one behind the last) of each part of two words and more, the whole included: what F1 of unlabelled brackets counts."""
    found: set[tuple[int, int]] = set()

    def walk(part: Tree) -> tuple[int, int]:
        if isinstance(part, int):
            return part, part + 1
        span = walk(part[0])[0], walk(part[1])[1]
        found.add(span)
        return span

    walk(tree)
    return found


def _tree(impact: Tensor, start: int, objective: Objective) -> Tree:
    n = len(impact)
    if n == 1:
        return start
    if n == 2:
        return start, start + 1
    k = int(objective(impact)[: n - 2].argmax()) + 1
    return _tree(impact[:k, :k], start, objective), (start + k, _tree(impact[k + 1 :, k + 1 :], start + k + 1, objective))


def _blocks(impact: Tensor, *, skip: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums within what is before k, within what begins `skip` after k, and between them both ways; and k = 1 … n - 1, all [n - 1]."""
    n = len(impact)
    sums = torch.zeros(n + 1, n + 1, dtype=torch.float64)                                          # of all before row i and column j
    sums[1:, 1:] = impact.double().cumsum(0).cumsum(1)
    k = torch.arange(1, n)
    right = k + skip
    within = sums[n, n] - sums[right, n] - sums[n, right] + sums[right, right]
    between = sums[k, n] - sums[k, right] + sums[n, k] - sums[right, k]
    return sums[k, k], within, between, k.double()
