"""A tree of dependencies from an impact matrix: each word but the root hangs on the word whose masking changes it most, all in all.

Two exact searches for the tree with the greatest sum of scores: `eisner` among projective trees, no arc of which crosses another (Eisner
1996, C96-1058), in O(n^3), and `chu_liu_edmonds` among all (Chu and Liu 1965; Edmonds 1967; H05-1066), in O(n^3) at most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy
from numpy.typing import NDArray
from torch import Tensor

from fishpaw.errors import DataError

__all__ = ["ALGORITHMS", "Algorithm", "Attached", "arc_scores", "attached", "chu_liu_edmonds", "eisner", "tree_score"]

Matrix = NDArray[numpy.float64]
Algorithm = Callable[..., list[int]]


class Attached(NamedTuple):
    """Words with the right head, words that hang on their head or it on them, all words: UAS is right / all, UUAS undirected / all."""

    right: int
    undirected: int
    all: int


def arc_scores(impact: Tensor) -> Tensor:
    """F [n n] -> scores[head, dependent] = f(dependent, head), the head's impact on the dependent, as the paper has it. For the opposite
    direction give F itself."""
    return impact.T


def eisner(scores: Tensor, *, root: int | None = None) -> list[int]:
    """scores[head, dependent] [n n] -> the head of each word, -1 for the root: the projective tree of the greatest sum.

    root: the word that hangs on none; None: whichever gives the best tree. The diagonal isn't read. Errors: DataError for a matrix that
    isn't square or not finite, and a root that is no word.
    """
    worth = _checked(scores, root)
    n = len(worth)
    # Spans left … right, by which end heads them (0 the right one, 1 the left one): open ones lack the other side of their arc's dependent.
    done, arcs = numpy.zeros((n, n, 2)), numpy.zeros((n, n, 2))
    done_at, arcs_at = numpy.zeros((n, n, 2), dtype=int), numpy.zeros((n, n), dtype=int)
    for length in range(1, n):
        for left in range(n - length):
            right = left + length
            halves = done[left, left:right, 1] + done[left + 1 : right + 1, right, 0]
            arcs_at[left, right] = split = left + int(halves.argmax())
            best = halves[split - left]
            arcs[left, right] = best + worth[right, left], best + worth[left, right]
            towards = done[left, left:right, 0] + arcs[left:right, right, 0]
            away = arcs[left, left + 1 : right + 1, 1] + done[left + 1 : right + 1, right, 1]
            done_at[left, right] = left + int(towards.argmax()), left + 1 + int(away.argmax())
            done[left, right] = towards.max(), away.max()
    if root is None:
        root = int((done[0, :, 0] + done[:, n - 1, 1]).argmax())
    heads = [-1] * n
    waiting = [(0, root, 0, True), (root, n - 1, 1, True)]
    while waiting:
        left, right, side, whole = waiting.pop()
        if left == right:
            continue
        if whole:
            split = int(done_at[left, right, side])
            waiting += [(left, split, side, side == 0), (split, right, side, side == 1)]
        else:
            heads[(left, right)[side]] = (left, right)[1 - side]
            waiting += [(left, int(arcs_at[left, right]), 1, True), (int(arcs_at[left, right]) + 1, right, 0, True)]
    return heads


def chu_liu_edmonds(scores: Tensor, *, root: int | None = None) -> list[int]:
    """As `eisner`, among all trees."""
    worth = _checked(scores, root)
    numpy.fill_diagonal(worth, -numpy.inf)
    if root is not None:
        return [-1 if word == root else head for word, head in enumerate(_branching(worth, root))]
    n = len(worth)
    wide = numpy.full((n + 1, n + 1), -numpy.inf)                     # one more word, on which roots hang, too dear to be had twice
    wide[:n, :n] = worth
    wide[n, :n] = -1.0 - 2 * n * max(1.0, float(numpy.abs(worth[~numpy.eye(n, dtype=bool)]).max(initial=0.0)))
    return [-1 if head == n else head for head in _branching(wide, n)[:n]]


ALGORITHMS: Mapping[str, Algorithm] = {"eisner": eisner, "chu-liu-edmonds": chu_liu_edmonds}
"""By name."""


def tree_score(scores: Tensor, heads: Sequence[int]) -> float:
    """The sum of the scores of a tree's arcs."""
    return float(sum(float(scores[head, word]) for word, head in enumerate(heads) if head >= 0))


def attached(predicted: Sequence[int], true: Sequence[int], *, counted: Sequence[bool] | None = None) -> Attached:
    """Heads of the words of a text, beside the true ones. counted: which words count (all; treebanks also leave out punctuation). Add
    the counts of several texts up. DataError for lengths that differ."""
    if len(predicted) != len(true) or counted is not None and len(counted) != len(true):
        raise DataError(f"{len(predicted)} heads for {len(true)} words.", fix="Give one a word.")
    words = [word for word in range(len(true)) if counted is None or counted[word]]
    right = [word for word in words if predicted[word] == true[word]]
    turned = [word for word in words if predicted[word] != true[word] and true[word] >= 0 and predicted[true[word]] == word]
    return Attached(len(right), len(right) + len(turned), len(words))


def _branching(worth: Matrix, root: int) -> list[int]:
    """The best tree of arcs away from the root: each word's best head, and where these make a cycle, the cycle as one word."""
    n = len(worth)
    heads = worth.argmax(0)                                                                        # [n]
    heads[root] = -1
    cycle = _cycle(heads.tolist())
    if not cycle:
        found: list[int] = heads.tolist()
        return found
    inside = numpy.array(cycle)
    outside = numpy.array([word for word in range(n) if word not in {*cycle}])
    into = worth[outside][:, inside] - worth[heads[inside], inside]                                # what it costs to break it at each word
    small = numpy.full((len(outside) + 1, len(outside) + 1), -numpy.inf)                           # the cycle is the last word
    small[:-1, :-1] = worth[numpy.ix_(outside, outside)]
    small[:-1, -1] = into.max(1)
    small[-1, :-1] = worth[numpy.ix_(inside, outside)].max(0)
    small[:, outside.tolist().index(root)] = -numpy.inf
    inner = _branching(small, outside.tolist().index(root))
    for at, head in enumerate(inner[:-1]):
        if head == len(outside):
            heads[outside[at]] = inside[worth[inside, outside[at]].argmax()]
        elif head >= 0:
            heads[outside[at]] = outside[head]
    heads[inside[into[inner[-1]].argmax()]] = outside[inner[-1]]
    whole: list[int] = heads.tolist()
    return whole


def _cycle(heads: Sequence[int]) -> list[int]:
    """The words of one cycle, [] if there is none."""
    seen = [-1] * len(heads)                                                                       # from which word it was first reached
    for start in range(len(heads)):
        word = start
        while word >= 0 and seen[word] < 0:
            seen[word] = start
            word = heads[word]
        if word >= 0 and seen[word] == start:
            cycle = [word]
            while heads[cycle[-1]] != word:
                cycle.append(heads[cycle[-1]])
            return cycle
    return []


def _checked(scores: Tensor, root: int | None) -> Matrix:
    """A copy in fp64, its diagonal 0."""
    if scores.dim() != 2 or scores.shape[0] != scores.shape[1] or not len(scores):
        raise DataError(f"The scores of arcs have shape {tuple(scores.shape)}.", fix="Give [n, n] for one word at least.")
    if root is not None and not 0 <= root < len(scores):
        raise DataError(f"The root is word {root}, but words are 0 to {len(scores) - 1}.", fix="Name one of them.")
    worth: Matrix = scores.detach().cpu().double().numpy().copy()
    numpy.fill_diagonal(worth, 0.0)
    if not numpy.isfinite(worth).all():
        raise DataError("The scores of arcs are not finite.", fix="Give numbers.")
    return worth
