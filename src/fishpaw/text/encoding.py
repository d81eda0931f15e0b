"""What a tokenizer returns, what every tokenizer can do, and how two texts share a limited length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from fishpaw.errors import ConfigError, DataError

__all__ = ["Encoding", "Pieces", "Side", "Tokenizer", "affixes", "assemble", "check_pairs", "room", "share"]

Side = Literal["left", "right"]


@dataclass(frozen=True)
class Encoding:
    """One encoded text or pair, a list entry a token: ids; segments, 0 for the first text and 1 for the second (its [SEP] included);
    tokens as the vocabulary spells them; offsets (start, end) in characters of the original text that the token is from
    (its own text in a pair); (0, 0) for [CLS] and [SEP] that were added."""

    ids: list[int]
    segments: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.ids)


class Pieces(NamedTuple):
    """The tokens of one text, nothing added: ids, tokens and offsets of the same length."""

    ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]


class Tokenizer(Protocol):
    """What tasks and the loader ask of a tokenizer. tokens: by id, as the vocabulary spells them; eos_id: what ends a text; mask_id:
    DataError where there is no mask."""

    @property
    def tokens(self) -> tuple[str, ...]: ...
    @property
    def special_ids(self) -> frozenset[int]: ...
    @property
    def size(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def mask_id(self) -> int: ...
    def encode(self, text: str, pair: str | None = None, *, max_length: int | None = None, truncate: Side = "right",
               special: bool = True) -> Encoding: ...
    def encode_batch(self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, max_length: int | None = None,
                     truncate: Side = "right", special: bool = True) -> list[Encoding]: ...
    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str: ...
    def save(self, folder: Path) -> None: ...


def assemble(first: Pieces, second: Pieces | None, *, max_length: int | None, truncate: Side,
             start: tuple[int, str] | None = None, end: tuple[int, str] | None = None, middle: tuple[int, str] | None = None) -> Encoding:
    """[start] first [end], or [start] first [end] [middle] second [end], cut to `max_length` tokens with the added ones counted.

    `truncate` names the side that is cut off, of both texts. Raises ConfigError when not even the added tokens fit.
    """
    left = room(max_length, (start is not None) + (end is not None) * (1 if second is None else 2)
                + (second is not None and middle is not None), truncate)
    if left is not None:
        lengths = share(len(first.ids), 0 if second is None else len(second.ids), left)
        first = _cut(first, lengths[0], truncate)
        second = None if second is None else _cut(second, lengths[1], truncate)
    ids, segments, tokens, offsets = [], [], [], []             # type: list[int], list[int], list[str], list[tuple[int, int]]
    for segment, part in enumerate((first,) if second is None else (first, second)):
        before, after = start if segment == 0 else middle, end
        for id, token in () if before is None else (before,):
            ids.append(id)
            tokens.append(token)
            offsets.append((0, 0))
        ids += part.ids
        tokens += part.tokens
        offsets += part.offsets
        for id, token in () if after is None else (after,):
            ids.append(id)
            tokens.append(token)
            offsets.append((0, 0))
        segments += [segment] * (len(ids) - len(segments))
    return Encoding(ids, segments, tokens, offsets)


def room(max_length: int | None, added: int, truncate: Side) -> int | None:
    """How many of `max_length` tokens are left beside the `added` special ones; None for no limit. Raises ConfigError for a side that is
    none, or when not even the special tokens fit."""
    if truncate not in ("left", "right"):
        raise ConfigError(f"truncate={truncate!r} is not a side.", fix="Use 'left' or 'right'.")
    if max_length is None:
        return None
    if max_length < added or max_length < 1:
        raise ConfigError(f"max_length={max_length} leaves no room for {added} special tokens.", fix="Raise max_length.")
    return max_length - added


def share(first: int, second: int, room: int) -> tuple[int, int]:
    """Two lengths after taking from the longer until both fit in `room`. Where both are cut and `room` is odd, the longer
    keeps one more (the second, of equals), as transformers' `longest_first` does."""
    if first + second <= room:
        return first, second
    short, long = min(first, second), max(first, second)
    if short <= room - short:
        long = room - short
    else:
        short, long = room // 2, room - room // 2
    return (long, short) if first > second else (short, long)


def affixes(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that a tokenizer puts before a text, and behind it. DataError where it has no token for "a", to find out by."""
    whole, bare = tokenizer.encode("a").ids, tokenizer.encode("a", special=False).ids
    if not bare:
        raise DataError('The tokenizer makes no token of "a".', fix="Look at its normalizer, or add the letter to its vocabulary.")
    start = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), 0)
    return tuple(whole[:start]), tuple(whole[start + len(bare) :])


def check_pairs(texts: Sequence[str], pairs: Sequence[str] | None) -> None:
    """Raise DataError for a string where a list belongs, or for lists of different lengths."""
    if isinstance(texts, str) or isinstance(pairs, str):
        raise DataError("encode_batch was given one string.", fix="Use encode(text), or pass a list of texts.")
    if pairs is not None and len(pairs) != len(texts):
        raise DataError(f"{len(texts)} texts but {len(pairs)} pairs.", fix="Give one pair for each text.")


def _cut(pieces: Pieces, length: int, side: Side) -> Pieces:
    if len(pieces.ids) <= length:
        return pieces
    window = slice(0, length) if side == "right" else slice(len(pieces.ids) - length, None)
    return Pieces(pieces.ids[window], pieces.tokens[window], pieces.offsets[window])
