"""A vocabulary of characters out of texts: enough to train a small Chinese model from nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from fishpaw.errors import DataError
from fishpaw.text.normalize import is_cjk, normalize
from fishpaw.text.vocab import SPECIAL, Vocab

__all__ = ["characters"]


def characters(texts: Iterable[str], *, least: int = 2, most: int = 21128, lower: bool = True) -> Vocab:
    """The five special tokens, then every character that the texts hold at least `least` times, the frequent first, `most` tokens in
    all; one that isn't an ideograph stands as a word's beginning and as its continuation (##). Ties keep the order of code points.
    Raises DataError where no character is left."""
    raw: Counter[str] = Counter()
    for text in texts:
        raw.update(text)
    counts: Counter[str] = Counter()
    for char, count in raw.items():                                  # each character once: texts are millions of times as long
        for folded in normalize(char, lower=lower)[0]:
            counts[folded] += count
    ranked = sorted((char for char, count in counts.items() if count >= least and char.strip()), key=lambda char: (-counts[char], char))
    tokens = list(SPECIAL)
    for char in ranked:
        tokens += [char] if is_cjk(char) else [char, f"##{char}"]
    if len(tokens) == len(SPECIAL):
        raise DataError(f"No character stands {least} times in the texts.", fix="Give more text, or a smaller `least`.")
    return Vocab(tuple(tokens[:most]))
