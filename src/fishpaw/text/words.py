"""Cut a text into words before WordPiece (jieba, or any function), and find words and tokens again in the text they came from.

Word-level Chinese vocabularies (RoFormer, WoBERT: https://github.com/ZhuiyiTechnology/WoBERT) hold whole words; jieba proposes,
the vocabulary decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

from tokenizers.pre_tokenizers import BertPreTokenizer

from fishpaw.errors import ConfigError, DataError
from fishpaw.text.normalize import normalize

__all__ = ["WordCutter", "align", "jieba_cutter", "rematch"]

WordCutter = Callable[[str], list[str]]


def jieba_cutter(*, hidden: bool = False) -> WordCutter:
    """jieba's accurate mode without the hidden Markov model, as RoFormer's and WoBERT's vocabularies were made; with it (`hidden`), as
    CPM's was. Raises ConfigError when jieba is not installed."""
    try:
        jieba: Any = import_module("jieba")                     # it has no types
    except ImportError as error:
        raise ConfigError("this tokenizer cuts words with jieba, which is not installed.", fix="Run: pip install jieba") from error
    jieba.setLogLevel(30)                                       # it announces its dictionary on stderr
    cutter = _dictionary(jieba)
    return lambda text: list(cutter.cut(text, HMM=hidden))


def align(text: str, words: Sequence[str]) -> list[tuple[int, int]]:
    """(start, end) in `text` of each word that is not white space. The words must be the text, blanks apart; else DataError."""
    spans, place = [], 0
    for word in words:
        word = word.strip()
        if not word:
            continue
        while place < len(text) and text[place].isspace() and not text.startswith(word, place):
            place += 1
        if not text.startswith(word, place):
            raise DataError(f"pre_tokenize returned the word {word!r:.40}, but the text goes on with {text[place:place + 20]!r}.",
                            fix="It must return the words of the text in order, unchanged and complete.")
        spans.append((place, place + len(word)))
        place += len(word)
    if text[place:].strip():
        raise DataError(f"pre_tokenize dropped {text[place:place + 20]!r}.",
                        fix="It must return the words of the text in order, unchanged and complete.")
    return spans


def rematch(text: str, tokens: Sequence[str], *, lower: bool = True, strip_accents: bool | None = None,
            special: Sequence[str] = ("[PAD]", "[CLS]", "[SEP]", "[MASK]"), unknown: str = "[UNK]") -> list[tuple[int, int]]:
    """(start, end) in `text` of each WordPiece token, for tokens that come without offsets, such as another program's.

    Special tokens get (0, 0); an unknown token gets the word it stands for. Spans never decrease, and the stems of the tokens, in order,
    are the normalised text without its blanks. Tokens may stop early (a text that was cut on the right). Raises DataError with the
    token's number where tokens and text part.
    """
    normal, source = normalize(text, lower=lower, strip_accents=strip_accents, cjk=True)
    words = [span for _, span in BertPreTokenizer().pre_tokenize_str(normal)]
    chars = [index for start, end in words for index in range(start, end)]       # the normalised text without its blanks
    ends = [end for start, end in words for _ in range(start, end)]              # and where the word of each ends
    spans, place = [], 0
    for number, token in enumerate(tokens):
        if token in special:
            spans.append((0, 0))
            continue
        stem = token[2:] if token.startswith("##") and len(token) > 2 else token
        if place >= len(chars):
            raise DataError(f"token {number} ({token!r}) comes after the end of the text.", fix="Give the tokens of this text.")
        length = ends[place] - chars[place] if token == unknown else len(stem)
        here = chars[place:place + length]
        if token != unknown and "".join(normal[index] for index in here) != stem:
            raise DataError(f"token {number} ({token!r}) does not stand in the text at character {source[chars[place]]}.",
                            fix="Give the tokens of this text, from its beginning, and the same lower and strip_accents.")
        spans.append((source[here[0]], source[here[-1]] + 1))
        place += length
    return spans


@lru_cache(maxsize=1)
def _dictionary(jieba: Any) -> Any:
    """One for all, for it takes a second to read; words that a program adds to its own jieba stay out of it."""
    return jieba.Tokenizer()
