"""A text coloured by what its parts add to a score: green for it, red against it, the deeper the more; for terminals and as a page of HTML.

The page needs no other file and no network. Texts, labels and tokens are escaped: what stands in a text stays text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

__all__ = ["END", "Piece", "coloured", "head", "in_html", "numbered", "pieces", "section"]

SHADES = {"for": (194, 157, 120, 83, 46), "against": (224, 217, 210, 203, 196)}
"""Of the 256 colours of a terminal, as backgrounds of black letters, so that they can be read on light and dark screens."""

END = "</main></body></html>\n"
"""What closes the page that `head` began."""

_STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.9 system-ui, sans-serif; margin: 2rem auto; max-width: 48rem; padding: 0 1rem; }
section { border-top: 1px solid #8884; padding: .6rem 0; }
h1 { font-size: 1.2rem; } h2 { font-size: 1rem; margin: 0; } p { margin: .3rem 0; white-space: pre-wrap; overflow-wrap: anywhere; }
small { color: #777; } .a { border-bottom: 2px dotted #c00; } span { border-radius: .15em; }
"""


class Piece(NamedTuple):
    """A part of a text and its score; None for what has none: blanks, what is beyond the model's length."""

    text: str
    score: float | None


def pieces(text: str, spans: Iterable[tuple[int, int, float]]) -> list[Piece]:
    """A text cut at the spans (start, end, score), in characters; together the pieces are the text.

    Spans that overlap (several tokens of one character) are one piece, whose score is their sum. Empty spans have no place.
    """
    found: list[Piece] = []
    end = 0
    for first, last, score in _joined(spans):
        if end < first:
            found.append(Piece(text[end:first], None))
        found.append(Piece(text[first:last], score))
        end = last
    return [*found, Piece(text[end:], None)] if end < len(text) else found


def coloured(parts: Sequence[Piece]) -> str:
    """For a terminal of 256 colours; nothing is coloured below a tenth of the largest score."""
    most, shown = _most(parts), []
    for text, score in parts:
        depth = 0 if score is None or not most else round(5 * abs(score) / most)
        shade = SHADES["for" if score is not None and score > 0 else "against"][depth - 1]
        shown.append(f"\x1b[30;48;5;{shade}m{text}\x1b[0m" if depth else text)
    return "".join(shown)


def numbered(parts: Sequence[Piece]) -> str:
    """Without colours: 今+0.031 天-0.002, a blank between pieces; those without a score are left out unless they say something."""
    return " ".join(text if score is None else f"{text}{score:+.3f}" for text, score in parts if score is not None or text.strip())


def in_html(parts: Sequence[Piece]) -> str:
    """Spans whose background is the score, which is their title, too; what speaks against is dotted below, for the colour-blind."""
    most, shown = _most(parts), []
    for text, score in parts:
        if score is None:
            shown.append(escape(text))
            continue
        depth = 0.0 if not most else abs(score) / most
        colour = "0,160,70" if score > 0 else "220,30,30"
        kind = ' class="a"' if score < 0 and depth >= 0.1 else ""
        shown.append(f'<span{kind} style="background:rgba({colour},{0.75 * depth:.2f})" title="{score:+.4g}">{escape(text)}</span>')
    return "".join(shown)


def head(title: str) -> str:
    """The beginning of a page; sections and END follow."""
    legend = in_html([Piece("against", -1.0), Piece(" ", None), Piece("for", 1.0)])
    return (f'<!DOCTYPE html>\n<html><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><main><h1>{escape(title)}</h1><p>{legend}</p>\n")


def section(title: str, texts: Sequence[Sequence[Piece]], note: str = "") -> str:
    """One explanation: its title (the label), the pieces of its text or pair of texts, and a line of figures."""
    shown = "".join(f"<p>{in_html(parts)}</p>" for parts in texts)
    return f"<section><h2>{escape(title)}</h2>{shown}" + (f"<small>{escape(note)}</small>" if note else "") + "</section>\n"


def _joined(spans: Iterable[tuple[int, int, float]]) -> list[tuple[int, int, float]]:
    found: list[tuple[int, int, float]] = []
    for first, last, score in sorted(span for span in spans if span[0] < span[1]):
        if found and first < found[-1][1]:
            before = found.pop()
            found.append((before[0], max(before[1], last), before[2] + score))
        else:
            found.append((first, last, score))
    return found


def _most(parts: Sequence[Piece]) -> float:
    return max((abs(one.score) for one in parts if one.score is not None), default=0.0)
