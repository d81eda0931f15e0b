"""Texts to one flat array of WordPiece ids at the speed of a table: a character that is always a token by itself is looked up, and only
the runs of other characters (Latin words, digits, kana, whatever joins its neighbours) are given to the tokenizer, once each.

BERT's rules (arXiv:1810.04805, `tokenization.py`) set ideographs and punctuation apart, whatever stands beside them. So a text may be cut
on both sides of such a character, and of white space, without changing an id. Which characters these are is asked of the tokenizer
itself, when a character is first met: no table of Unicode ranges is kept here that could disagree with it.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from fishpaw.text.encoding import Side, room
from fishpaw.text.normalize import mend

__all__ = ["Bulk", "Rows", "cut_rows"]

CHUNK = 2**16                                                   # characters handled at once: the arrays stay in a core's cache
AHEAD = 64                                                      # texts read before the first of them is encoded
MEMORY = 2**16                                                  # runs whose ids are remembered
LONGEST_REMEMBERED = 64                                         # characters; longer runs rarely come back


class Rows(NamedTuple):
    """Encoded texts, one after another: ids int32 [n], and how many of them each text has, lengths int64 [texts]; they sum to n."""

    ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int64]


class Bulk:
    """Encode texts without an object per token. rust: the tokenizer to equal, with BERT's normaliser and pre-tokenizer; fold: its
    normaliser, for one character; whole: the tokens that it finds in raw text as they stand, with their ids, none with a line break."""

    def __init__(self, rust: RustTokenizer, fold: Callable[[str], str], whole: Mapping[str, int], *, cls_id: int, sep_id: int) -> None:
        self.rust, self.fold, self.whole, self.cls_id, self.sep_id = rust, fold, dict(whole), cls_id, sep_id
        self.model, self.lower = rust.model, fold("A") == "a"
        self.table = np.full(0x110000, _UNSEEN, dtype=np.int32)  # code point -> id, or one of the marks below
        self.known: dict[str, bytes] = {}                       # run -> its ids as bytes: a list of them joins to an array in one call
        self._whole = re.compile("|".join(re.escape(token) for token in sorted(whole, key=len, reverse=True)))

    def chunks(self, texts: Iterable[str], *, special: bool = True, max_length: int | None = None,
               truncate: Side = "right") -> Iterator[Rows]:
        """The texts in order, as many at a time as make `CHUNK` characters; no more than such a group, or one text where that is longer,
        is held in memory. [CLS] and [SEP] around each where `special`; at most `max_length` ids a text, cut on the side named.
        Raises DataError for what is not a string, ConfigError for a `max_length` below the number of special tokens."""
        room(max_length, 2 if special else 0, truncate)         # before the first group is asked for
        added = (self.cls_id, self.sep_id) if special else ()
        return (cut_rows(self._encode(group, special) if len(group) > 1 or len(group[0]) <= CHUNK else self._encode_long(group[0], special),
                         max_length, truncate, *added) for group in _groups(texts))

    def parts(self, text: str, size: int) -> Iterator[str]:
        """A text in parts of about `size` characters that encode, one by one, to the ids of the whole. A part is longer only where no
        ideograph, punctuation, white space or special token stands in reach."""
        place = 0
        text = mend(text)
        for hit in self._whole.finditer(text):
            yield from self._pieces(text, place, hit.start(), size)
            yield hit.group()
            place = hit.end()
        yield from self._pieces(text, place, len(text), size)

    def _pieces(self, text: str, place: int, end: int, size: int) -> Iterator[str]:
        while end - place > size:
            reach = size
            while True:
                here = text[place:min(place + reach, end)]
                apart = np.flatnonzero(self._look_up(_codes(here)) != _REST)
                if apart.size or place + reach >= end:
                    break
                reach *= 2
            stop = place + int(apart[-1]) + 1 if apart.size else end
            yield text[place:stop]
            place = stop
        if place < end:
            yield text[place:end]

    def _encode_long(self, text: str, special: bool) -> Rows:
        """One text of many chunks."""
        found = [self._encode(group, False).ids for group in _groups(self.parts(text, CHUNK))]
        if special:
            found = [np.array([self.cls_id], np.int32), *found, np.array([self.sep_id], np.int32)]
        ids = np.concatenate(found)
        return Rows(ids, np.array([ids.size], np.int64))

    def _encode(self, texts: Sequence[str], special: bool) -> Rows:
        joined = "\n" + "\n\n".join(texts) + "\n"               # a line break belongs to no token: room for [CLS] and [SEP]
        try:
            codes = _codes(joined)                              # [c]
        except UnicodeEncodeError:                              # lone surrogates
            joined = mend(joined)
            codes = _codes(joined)
        marks = self._look_up(codes)                            # [c]
        sizes = np.fromiter(map(len, texts), np.int64, len(texts))
        stops = np.cumsum(sizes + 2) - 1                        # the line break after each text
        if special:
            marks[stops], marks[stops - sizes - 1] = self.sep_id, self.cls_id
        for hit in self._whole.finditer(joined):
            marks[hit.start():hit.end()] = _NOTHING
            marks[hit.start()] = self.whole[hit.group()]
        rest = marks == _REST
        single = marks >= 0
        edges = np.flatnonzero(rest[1:] != rest[:-1]) + 1       # the first and the last character are line breaks: never in a run
        starts, ends = edges[0::2], edges[1::2]
        run_ids, run_counts = self._run_ids(_runs(codes, rest, starts, ends))
        counts = single.astype(np.int32)                        # ids that each character brings, a run's all at its first
        counts[starts] = run_counts
        last = np.cumsum(counts, dtype=np.int64)                # ids up to and with each character
        ids = np.empty(int(last[-1]), np.int32)
        ids[last[single] - 1] = marks[single]
        ids[_ranges(last[starts] - run_counts, run_counts)] = run_ids
        return Rows(ids, np.diff(last[stops], prepend=0))

    def _look_up(self, codes: npt.NDArray[np.uint32]) -> npt.NDArray[np.int32]:
        marks = self.table.take(codes)
        if codes.size and marks.min() == _UNSEEN:
            self._learn(set(codes[marks == _UNSEEN].tolist()))
            marks = self.table.take(codes)
        return marks

    def _learn(self, codes: Iterable[int]) -> None:
        """Ask the tokenizer what each of these characters becomes between two letters."""
        for code in codes:
            words = [word for word, _ in _PRE.pre_tokenize_str(f"x{self.fold(chr(code))}x")]
            mark = _REST
            if words[0] == words[-1] == "x" and not unicodedata.combining(chr(code)):
                if len(words) == 2:
                    mark = _NOTHING
                elif len(words) == 3 and len(ids := self.model.tokenize(words[1])) == 1:
                    mark = ids[0].id
            self.table[code] = mark

    def _run_ids(self, runs: list[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """The ids of all runs, one after another, and their number in each."""
        known = self.known
        found = list(map(known.get, runs))
        if None in found:
            new = self._encode_runs(list({run for run, ids in zip(runs, found, strict=True) if ids is None}))
            found = [new[run] if ids is None else ids for run, ids in zip(runs, found, strict=True)]
            if len(known) + len(new) > MEMORY:
                known.clear()
            known.update((run, ids) for run, ids in new.items() if len(run) <= LONGEST_REMEMBERED)
        bytes_found: list[bytes] = found                        # type: ignore[assignment]  # no None is left
        counts = np.fromiter(map(len, bytes_found), np.int64, len(runs)) // 4
        return np.frombuffer(b"".join(bytes_found), np.int32), counts


    def _encode_runs(self, runs: list[str]) -> dict[str, bytes]:
        """Runs of ASCII letters and digits are words that only want lower-casing: the model alone is six times as fast as all of it."""
        words = [run for run in runs if run.isascii() and run.isalnum()]
        others = [run for run in runs if not (run.isascii() and run.isalnum())]
        found = [[token.id for token in self.model.tokenize(word.lower() if self.lower else word)] for word in words]
        found += [one.ids for one in self.rust.encode_batch_fast(others, add_special_tokens=False)]
        return {run: array("i", ids).tobytes() for run, ids in zip(words + others, found, strict=True)}


def cut_rows(rows: Rows, max_length: int | None, truncate: Side, first: int | None = None, last: int | None = None) -> Rows:
    """At most `max_length` ids a text, the side `truncate` cut off. first, last: the ids that every text begins and ends with, and that
    stay: [CLS] and [SEP]."""
    if max_length is None or not rows.lengths.size or int(rows.lengths.max()) <= max_length:
        return rows
    kept = np.minimum(rows.lengths, max_length)
    begins = np.cumsum(rows.lengths) - rows.lengths
    if truncate == "left":
        begins += rows.lengths - kept
    ids = rows.ids[_ranges(begins, kept)]
    ends = np.cumsum(kept)
    if truncate == "left" and first is not None:
        ids[ends - kept] = first
    if truncate == "right" and last is not None:
        ids[ends - 1] = last
    return Rows(ids, kept)


_NOTHING, _REST, _UNSEEN = -1, -2, -3                           # white space; joins its neighbours; not asked for yet
_PRE = BertPreTokenizer()


def _groups(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts of `CHUNK` characters together, or one that is longer."""
    group: list[str] = []
    held, waiting = 0, iter(texts)
    while block := list(islice(waiting, AHEAD)):
        if set(map(type, block)) != {str}:
            block = [mend(text) for text in block]              # raises for what is not a string
        size = sum(map(len, block)) + 2 * len(block)
        for more in [block] if size <= CHUNK else [[text] for text in block]:
            size = sum(map(len, more)) + 2 * len(more)
            if group and held + size > CHUNK:
                yield group
                group, held = [], 0
            group += more
            held += size
    if group:
        yield group


def _codes(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


def _runs(codes: npt.NDArray[np.uint32], rest: npt.NDArray[np.bool_], starts: npt.NDArray[np.intp],
          ends: npt.NDArray[np.intp]) -> list[str]:
    """The runs as strings: they and a line break after each are written out and split, which beats slicing them one by one."""
    taken = rest.copy()
    taken[ends] = True
    chars = codes[taken]
    chars[np.cumsum(ends - starts + 1) - 1] = ord("\n")
    runs = chars.tobytes().decode("utf-32-le").split("\n")
    runs.pop()                                                  # what follows the last line break: nothing
    return runs


def _ranges(begins: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """begins[0], begins[0] + 1, … (sizes[0] of them), begins[1], …"""
    ends = np.cumsum(sizes)
    index: npt.NDArray[np.int64] = np.arange(int(ends[-1]) if ends.size else 0) + np.repeat(begins - (ends - sizes), sizes)
    return index
