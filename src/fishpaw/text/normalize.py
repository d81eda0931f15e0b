"""Normalise a text as BERT does, and remember which character of the original each normalised character came from.

BERT's rules (arXiv:1810.04805, `tokenization.py`): drop control characters, turn every white space into a blank, put
blanks around CJK ideographs, strip accents (NFD without marks), lower-case. All of them act on one character at a time,
so a table of characters is enough; it is filled from the `tokenizers` package, whose Unicode tables are the ones that
the encoder itself uses (unicodedata would disagree on characters that were assigned later).
"""

from __future__ import annotations

import re
from functools import lru_cache

from tokenizers.normalizers import BertNormalizer

from fishpaw.errors import DataError

__all__ = ["half_width", "is_cjk", "mend", "normalize"]


def normalize(text: str, *, lower: bool = True, strip_accents: bool | None = None, cjk: bool = True) -> tuple[str, list[int]]:
    """The normalised text and, for each of its characters, the index of the character of `text` that it came from.

    `strip_accents=None` follows `lower`; `cjk` puts a blank on both sides of every ideograph (they share its index). Indices never
    decrease. A lone surrogate counts as U+FFFD, which BERT drops. A text of 10^6 characters takes about 0.2 s.
    """
    table = _table(lower, lower if strip_accents is None else strip_accents, cjk)
    folded = [table[char] for char in mend(text)]
    return "".join(folded), [index for index, chars in enumerate(folded) for _ in chars]


def half_width(text: str) -> str:
    """Full-width forms (Ａ！０ and the ideographic blank) as ASCII, one character for one: indices stay valid."""
    return text.translate(_HALF)


def mend(text: str) -> str:
    """The same text with lone surrogates, which no UTF-8 can carry, as U+FFFD. Raises DataError for what is not a string."""
    if not isinstance(text, str):
        raise DataError(f"a text is a {type(text).__name__}, not a string: {text!r:.60}.", fix="Pass a str; decode bytes first.")
    try:
        text.encode("utf-8")                                    # much faster than a search, and nearly always enough
    except UnicodeEncodeError:
        return _SURROGATE.sub("\ufffd", text)
    return text


def is_cjk(char: str) -> bool:
    """Whether BERT sets this character apart: an ideograph. Kana and hangul are not, and form words."""
    return _table(False, False, True)[char] == f" {char} "


_SURROGATE = re.compile("[\ud800-\udfff]")
_HALF = {0x3000: 0x20} | {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}


class _Table(dict[str, str]):
    """Character -> what it becomes: nothing, itself, or several characters. Filled as characters are met."""

    def __init__(self, rule: BertNormalizer) -> None:
        super().__init__()
        self.rule = rule

    def __missing__(self, char: str) -> str:
        self[char] = folded = self.rule.normalize_str(char)
        return folded


@lru_cache(maxsize=8)
def _table(lower: bool, strip_accents: bool, cjk: bool) -> _Table:
    return _Table(BertNormalizer(clean_text=True, handle_chinese_chars=cjk, strip_accents=strip_accents, lowercase=lower))
