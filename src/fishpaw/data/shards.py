"""Texts as token ids on disk: documents end to end in memory-mapped files with checksums, and the pieces of them that training reads.

A folder of shards: shards.json (what it holds), tokens-NNNNN.npy (ids, 16 bits where the vocabulary fits), documents-NNNNN.npy (where each
one ends), words-NNNNN.npy (a bit a token: begins a word; only if given), manifest.json (SHA-256). Plain .npy, which any reader of
numpy's format can map.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import ArrayLike, NDArray

from fishpaw import checks
from fishpaw.errors import CheckpointError, DataError
from fishpaw.files import folder_atomic, read_digest, verify_manifest

__all__ = ["Document", "Piece", "Pieces", "Shards", "write"]

Ids = NDArray[numpy.int64]
Flags = NDArray[numpy.bool_]

_FACTS = "shards.json"
_VERSION = 1
_ANEW = "Write it anew."


@dataclass(frozen=True)
class Document:
    """The tokens of one text, ids [n] without special ones; words [n]: True where a token begins a word, None where nobody asked."""

    ids: ArrayLike
    words: ArrayLike | None = None


def write(
    documents: Iterable[Document],
    folder: str | Path,
    *,
    vocab_size: int,
    shard_tokens: int = 1 << 26,
    facts: dict[str, Any] | None = None,
    tell: Callable[[int], None] | None = None,
) -> Shards:
    """Write documents, streamed, in files of about `shard_tokens` tokens; the folder appears whole or not at all. Empty ones are left out.

    facts: what a reader must know (a digest of the vocabulary, the sources), kept in shards.json. tell: called with the number of tokens
    that each document added. Errors: DataError for ids outside the vocabulary, words of another length or on some documents only, and
    where nothing is left; FishpawError where the disk refuses.
    """
    checks.whole("vocab_size", vocab_size, least=1)
    checks.whole("shard_tokens", shard_tokens, least=1)
    dtype = numpy.uint16 if vocab_size <= 1 << 16 else numpy.uint32
    sizes: list[dict[str, int]] = []
    worded: bool | None = None
    with folder_atomic(folder) as new:
        ids: list[NDArray[Any]] = []
        words: list[Flags] = []
        held = count = 0

        def close() -> None:
            nonlocal held
            name = f"{len(sizes):05d}.npy"
            numpy.save(new / f"tokens-{name}", numpy.concatenate(ids))
            numpy.save(new / f"documents-{name}", numpy.cumsum([len(one) for one in ids], dtype=numpy.int64))
            if worded:
                numpy.save(new / f"words-{name}", numpy.packbits(numpy.concatenate(words)))
            sizes.append({"tokens": held, "documents": len(ids)})
            ids.clear()
            words.clear()
            held = 0

        for document in documents:
            own = numpy.asarray(document.ids)
            count += 1
            if not own.size:
                continue
            if own.dtype.kind not in "iu" or own.ndim != 1:
                raise DataError(f"Document {count}: ids of {own.dtype}, shape {own.shape}.", fix="Give a list of whole numbers.")
            if own.min() < 0 or own.max() >= vocab_size:
                raise DataError(f"Document {count}: ids from {own.min()} to {own.max()}, but the vocabulary has {vocab_size}.",
                                fix="Encode it with the vocabulary that is given.")
            worded = document.words is not None if worded is None else worded
            if worded != (document.words is not None):
                raise DataError(f"Document {count}: words are given for some documents only.", fix="Give them for all, or for none.")
            if document.words is not None:
                begins = numpy.asarray(document.words, dtype=numpy.bool_)
                if begins.shape != own.shape:
                    raise DataError(f"Document {count}: {begins.size} words for {own.size} ids.", fix="Give one flag a token.")
                words.append(begins)
            ids.append(own.astype(dtype))
            held += len(own)
            if tell is not None:
                tell(len(own))
            if held >= shard_tokens:
                close()
        if ids:
            close()
        if not sizes:
            raise DataError("No document holds a token.", fix="Give at least one text.")
        head = {"version": _VERSION, "vocab_size": vocab_size, "words": bool(worded), "shards": sizes, "facts": facts or {}}
        (new / _FACTS).write_text(json.dumps(head, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return Shards(folder)


class Shards:
    """Documents on disk: len(shards) of them, shards[i] -> Document; nothing is read before it is asked for.

    verify: compare every byte with the manifest first (about a second a gigabyte). digest: stands for all of it. facts: as they were
    written. Errors: CheckpointError that names the file that is missing, changed or of another version.
    """

    def __init__(self, folder: str | Path, *, verify: bool = True) -> None:
        self.folder = Path(folder)
        if not (self.folder / _FACTS).is_file():
            raise CheckpointError(f"{self.folder} holds no {_FACTS}.", fix="Give a folder that data.shards.write or fishpaw pretrain made.")
        self.digest = verify_manifest(self.folder) if verify else read_digest(self.folder)
        try:
            head = json.loads((self.folder / _FACTS).read_text(encoding="utf-8"))
            if head["version"] != _VERSION:
                raise CheckpointError(f"{self.folder / _FACTS}: version {head['version']!r}, but {_VERSION} is read.", fix=_ANEW)
            self.vocab_size: int = head["vocab_size"]
            self.facts: dict[str, Any] = head["facts"]
            names = [f"{index:05d}.npy" for index in range(len(head["shards"]))]
            self._tokens = [numpy.load(self.folder / f"tokens-{name}", mmap_mode="r") for name in names]
            self._ends = [numpy.load(self.folder / f"documents-{name}") for name in names]
            self._words = [numpy.load(self.folder / f"words-{name}", mmap_mode="r") for name in names] if head["words"] else None
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise CheckpointError(f"{self.folder}: no sound shards ({type(error).__name__}: {error}).", fix=_ANEW) from error
        self._first = numpy.cumsum([0, *(len(ends) for ends in self._ends)])                       # documents before each shard
        self._before = numpy.cumsum([0, *(len(tokens) for tokens in self._tokens)])                # tokens before each shard

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> Document:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = int(numpy.searchsorted(self._first, index, side="right")) - 1
        ends, own = self._ends[shard], index - int(self._first[shard])
        start, end = int(ends[own - 1]) if own else 0, int(ends[own])
        return Document(*self._read(shard, start, end))

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
        return int(self._before[-1])

    @property
    def ends(self) -> Ids:
        """Where each document ends, counted in tokens over all shards, [documents]."""
        return numpy.concatenate([ends + before for ends, before in zip(self._ends, self._before, strict=False)])

    def read(self, start: int, end: int) -> tuple[Ids, Flags | None]:
        """ids and words of the tokens from `start` to `end`, counted over all shards, within one document."""
        shard = int(numpy.searchsorted(self._before, start, side="right")) - 1
        before = int(self._before[shard])
        if end - before > len(self._tokens[shard]):
            raise IndexError(f"tokens {start} to {end} are not of one document")
        return self._read(shard, start - before, end - before)

    def _read(self, shard: int, start: int, end: int) -> tuple[Ids, Flags | None]:
        ids = self._tokens[shard][start:end].astype(numpy.int64)
        if self._words is None:
            return ids, None
        bits = numpy.unpackbits(self._words[shard][start // 8 : -(-end // 8)])
        return ids, bits[start % 8 : start % 8 + len(ids)].astype(numpy.bool_)


@dataclass(frozen=True)
class Piece:
    """What training reads at once: ids [n] of one document, words [n] or None; whether it begins, and whether it ends its document.

    What is drawn at random for it comes from `generator`, whose bits depend on (seed, epoch, index) alone: neither the number of
    processes nor the batch it is in changes them.
    """

    ids: Ids
    words: Flags | None
    begins: bool
    ends: bool
    index: int
    epoch: int
    source: Pieces

    def __len__(self) -> int:
        return len(self.ids)

    def generator(self, *, stream: int = 0) -> numpy.random.Generator:
        """A new generator; its bits are Philox's (doi:10.1145/2063384.2063405). stream: others are independent of it, and of
        the order of epochs (data/order.py), which has the first."""
        key = (self.source.seed % 2**64) << 64 | self.epoch << 40 | self.index
        return numpy.random.Generator(numpy.random.Philox(key=key, counter=(stream + 1) << 128))

    def elsewhere(self, generator: numpy.random.Generator) -> Piece:
        """Another piece, drawn from all."""
        return self.source.visit(int(generator.integers(len(self.source))), self.epoch)


class Pieces(Sequence[Piece]):
    """Documents cut into pieces of `length` tokens; the rest of a document is a shorter piece, left out below `least` tokens (at most
    `length`) unless it is the whole document. No piece crosses from one document into the next.

    visit(index, epoch): the piece as that epoch reads it (Piece.generator). Errors: DataError where no piece is left.
    """

    def __init__(self, shards: Shards, length: int, *, least: int = 8, seed: int = 0) -> None:
        checks.whole("length", length, least=1)
        self.shards, self.length, self.seed = shards, length, seed
        ends = shards.ends
        starts = numpy.concatenate([[0], ends[:-1]])
        counts = -(-(ends - starts) // length)                                                     # pieces a document
        owner = numpy.repeat(numpy.arange(len(ends)), counts)
        within = numpy.arange(len(owner)) - numpy.repeat(numpy.cumsum(counts) - counts, counts)
        self._starts = starts[owner] + within * length
        self._ends = numpy.minimum(self._starts + length, ends[owner])
        kept = (self._ends - self._starts >= min(least, length)) | (counts[owner] == 1)
        self._starts, self._ends = self._starts[kept], self._ends[kept]
        self._begins, self._closes = (within == 0)[kept], (self._ends == ends[owner][kept])
        if not len(self._starts):
            raise DataError(f"{shards.folder} holds no piece to read.", fix="Give more text.")

    @property
    def lengths(self) -> Ids:
        """Tokens a piece, [pieces]."""
        lengths: Ids = self._ends - self._starts
        return lengths

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.visit(one, 0) for one in range(*index.indices(len(self)))]
        return self.visit(index, 0)

    def visit(self, index: int, epoch: int) -> Piece:
        """The piece `index` as `epoch` reads it."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        ids, words = self.shards.read(int(self._starts[index]), int(self._ends[index]))
        return Piece(ids, words, bool(self._begins[index]), bool(self._closes[index]), index, epoch, self)
