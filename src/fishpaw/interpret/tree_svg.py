"""Impact matrices and trees as SVG: a heat map, a tree of phrases, arcs of dependencies. Plain strings that any browser shows."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from xml.sax.saxutils import escape

from torch import Tensor

from fishpaw.errors import DataError
from fishpaw.interpret.constituency import Tree

__all__ = ["constituency_svg", "dependency_svg", "heat_map"]

SIZE = 16
"""Of the letters, in pixels; everything else is in proportion."""

_CELL, _GAP, _STEP = 28, 14, 34                                       # a cell of the heat map; between words; a level of a tree
_UNFIT = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")                      # what XML can't hold


def heat_map(matrix: Tensor, words: Sequence[str]) -> str:
    """F [n n] and n words -> a square a pair: the darker, the more the word above changes the word at the left; the number is told when the
    pointer rests there. DataError for a matrix of another size."""
    _check(matrix.shape == (len(words), len(words)), f"a matrix of shape {tuple(matrix.shape)}", words)
    values: list[list[float]] = matrix.tolist()
    most = max((value for row in values for value in row), default=0.0) or 1.0
    left = max(map(_width, words), default=0) + _GAP
    parts = []
    for at, word in enumerate(words):
        middle = left + _CELL * at + _CELL / 2
        parts.append(_text(word, left - _GAP / 2, middle + SIZE / 3, anchor="end"))
        parts.append(_text(word, middle + SIZE / 3, left - _GAP / 2, turned=True))
        for other, value in enumerate(values[at]):
            told = f"{word} ← {words[other]}: {value:.4g}"
            parts.append(f'<rect x="{left + _CELL * other:g}" y="{left + _CELL * at:g}" width="{_CELL}" height="{_CELL}" '
                         f'fill="{_shade(value / most)}"><title>{_plain(told)}</title></rect>')
    side = left + _CELL * len(words) + _GAP
    return _page(side, side, parts)


def constituency_svg(tree: Tree, words: Sequence[str]) -> str:
    """A tree of phrases above its words. DataError where its leaves aren't the words, each once and in their order."""
    leaves = _leaves(tree)
    _check(leaves == list(range(len(words))), f"a tree of {len(leaves)} leaves", words)
    middles, width = _middles(words)
    base = _STEP * _height(tree) + SIZE
    lines: list[str] = []

    def draw(part: Tree) -> tuple[float, float]:
        if isinstance(part, int):
            return middles[part], base
        ends = [draw(one) for one in part]
        x, y = sum(one for one, _ in ends) / 2, base - _STEP * _height(part)
        lines.extend(f'<path d="M {x:.1f} {y:g} L {end:.1f} {low:g}"/>' for end, low in ends)
        return x, y

    draw(tree)
    named = [_text(word, x, base + SIZE, anchor="middle") for word, x in zip(words, middles, strict=True)]
    return _page(width, base + 2 * SIZE, [_stroked(lines), *named])


def dependency_svg(heads: Sequence[int], words: Sequence[str]) -> str:
    """The head of each word, -1 for the root -> arcs from heads to dependents, an arrow at the dependent, a straight one into the root.
    DataError for another number of heads and for heads that are no word."""
    _check(len(heads) == len(words) and all(-1 <= head < len(words) for head in heads), f"the heads {[*heads][:20]}", words)
    middles, width = _middles(words)
    far = max((abs(word - head) for word, head in enumerate(heads) if head >= 0), default=0)
    base = _STEP * (far + 1) * 0.75 + SIZE
    lines, arrows = [], []
    for word, head in enumerate(heads):
        x = middles[word]
        if head < 0:
            lines.append(f'<path d="M {x:.1f} {SIZE / 2:g} V {base:g}"/>')
        else:
            start, top = middles[head] + (SIZE / 3 if word > head else -SIZE / 3), base - _STEP * abs(word - head)
            lines.append(f'<path d="M {start:.1f} {base:g} C {start:.1f} {top:g} {x:.1f} {top:g} {x:.1f} {base:g}"/>')
        arrows.append(f'<path d="M {x - 4:.1f} {base - 7:g} L {x + 4:.1f} {base - 7:g} L {x:.1f} {base:g} Z"/>')
    named = [_text(word, x, base + SIZE, anchor="middle") for word, x in zip(words, middles, strict=True)]
    return _page(width, base + 2 * SIZE, [_stroked(lines), *arrows, *named])


def _check(fits: bool, given: str, words: Sequence[str]) -> None:
    if not fits:
        raise DataError(f"There are {len(words)} words, and {given}.", fix="Give the words that it was made of.")


def _leaves(tree: Tree) -> list[int]:
    return [tree] if isinstance(tree, int) else [*_leaves(tree[0]), *_leaves(tree[1])]


def _height(tree: Tree) -> int:
    return 0 if isinstance(tree, int) else 1 + max(map(_height, tree))


def _middles(words: Sequence[str]) -> tuple[list[float], float]:
    """Where the middle of each word stands, one beside the other, and how wide all are."""
    middles, x = [], float(_GAP)
    for word in words:
        wide = max(_width(word), SIZE)
        middles.append(x + wide / 2)
        x += wide + _GAP
    return middles, x


def _width(word: str) -> float:
    return sum(SIZE if unicodedata.east_asian_width(letter) in "WFA" else 0.6 * SIZE for letter in word)


def _shade(share: float) -> str:
    """White to dark blue, 0 to 1."""
    inside = min(1.0, max(0.0, share))
    red, green, blue = (round(255 + (end - 255) * inside) for end in (8, 48, 107))
    return f"#{red:02x}{green:02x}{blue:02x}"


def _plain(text: str) -> str:
    return escape(_UNFIT.sub("\ufffd", text))


def _text(word: str, x: float, y: float, *, anchor: str = "start", turned: bool = False) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turn}>{_plain(word)}</text>'


def _stroked(lines: Sequence[str]) -> str:
    return f'<g fill="none" stroke="#345" stroke-width="1.2">{"".join(lines)}</g>'


def _page(width: float, height: float, parts: Sequence[str]) -> str:
    """All in one file, on white, so that it is read on dark pages, too."""
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" font-family="sans-serif" '
            f'font-size="{SIZE}" fill="#123">\n<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n")
