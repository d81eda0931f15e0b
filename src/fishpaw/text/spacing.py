"""Join word pieces into readable text: no blanks inside Chinese, one between English words, punctuation where a typist puts it.

WordPiece throws blanks away, so this is a set of rules, not an inverse; bert4keras' `decode` set the task.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

__all__ = ["join"]


def join(tokens: Iterable[str]) -> str:
    """Text of WordPiece tokens; "##x" continues the word before it."""
    words: list[str] = []
    for token in tokens:
        if token.startswith("##") and len(token) > 2 and words:
            words[-1] += token[2:]
        else:
            words.append(token)
    out: list[str] = []
    quoted: set[str] = set()                                    # straight quotes that are open
    glued = True                                                # nothing may stand before the first word
    for place, word in enumerate(words):
        before = words[place - 1] if place else ""
        after = words[place + 1] if place + 1 < len(words) else ""
        opening = word in _STRAIGHT and not _is_apostrophe(before, word, after) and word not in quoted
        if not (glued or _tight(before, word, after, opening)):
            out.append(" ")
        out.append(word)
        glued = opening or (word in _STRAIGHT and _is_apostrophe(before, word, after))
        if word in _STRAIGHT and not _is_apostrophe(before, word, after):
            quoted ^= {word}
    return "".join(out)


_STRAIGHT = {'"', "'"}
_OPENING = set("([{<“‘«$#@￥")
_CLOSING = set(".,!?;:)]}>%”’»…")
_BOTH = set("-/_=+&*~^|\\—·–")
_CONTRACTED = {"s", "t", "d", "m", "re", "ve", "ll"}


def _tight(before: str, word: str, after: str, opening: bool) -> bool:
    """Whether no blank goes between two words."""
    left, right = before[-1], word[0]
    if _is_wide(left) or _is_wide(right) or left in _OPENING or left in _BOTH or right in _BOTH or right in _CLOSING:
        return True
    if word in _STRAIGHT:
        return not opening                                      # a closing quote or an apostrophe
    return left in ".,:" and len(before) == 1 and right.isdigit() and right.isascii()


def _is_apostrophe(before: str, word: str, after: str) -> bool:
    return word == "'" and after in _CONTRACTED and before[-1:].isalnum()


def _is_wide(char: str) -> bool:
    """Ideographs, kana, full-width signs and emoji stand without blanks; hangul words do not."""
    return unicodedata.east_asian_width(char) in "WF" and not unicodedata.name(char, "").startswith("HANGUL")
