"""Lines in memory: where they end, a random key each, their order by key, a copy in that order, and a digest of a multiset of lines.

The order is a pure function of seed and line number, so that it depends on no buffer's size: line i has 64 bits of Philox
(doi:10.1145/2063384.2063405), and lines stand in the order of their bits. Should two be equal, fresh bits decide, so that every
permutation is exactly as probable as any other. Bytes are moved by numpy: a line of 2^k to 2^(k+1) - 1 bytes is two overlapping pieces of
2^k bytes, and all pieces of one size are fetched at once, about a GB a second.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TypeAlias

import numpy
from numpy.typing import NDArray

__all__ = ["BLOCK", "Bits", "Bytes", "Numbers", "arranged", "fingerprint", "gather", "hexadecimal", "keys", "line_ends", "parse", "rank"]

Bytes: TypeAlias = NDArray[numpy.uint8]
Bits: TypeAlias = NDArray[numpy.uint64]
Numbers: TypeAlias = NDArray[numpy.int64]

BLOCK = 2**21
"""Bytes that are copied at once: they stay in the processor's cache."""

_SCAN, _LINES = 2**18, 2**13
_LONG = 2**13                                                        # lines from here on are handled one by one
_KEYS, _TIES, _WEIGHTS = (int.from_bytes(word, "big") for word in (b"shuffle", b"ties", b"weights"))


def line_ends(source: Bytes, *, most: int) -> Numbers:
    """Where the first `most` lines end: the places after their newlines, [n]."""
    found, count = [], 0
    for start in range(0, source.size, _SCAN):                       # in pieces: a mask of the whole would be written to memory and read
        ends = numpy.flatnonzero(source[start : start + _SCAN] == 10)
        found.append(ends + (start + 1))
        count += ends.size
        if count >= most:
            break
    return numpy.concatenate(found)[:most] if found else numpy.empty(0, numpy.int64)


def keys(seed: int, first: int, count: int) -> Bits:
    """Random keys of the lines first … first + count - 1, [count]."""
    block, skip = divmod(first, 4)                                   # Philox makes four at a time
    philox = numpy.random.Philox(key=(seed % 2**64) << 64 | _KEYS, counter=block)
    return philox.random_raw(skip + count)[skip:]


def rank(keys: Bits, *, seed: int) -> Numbers:
    """The order by key, [n]: position i of the result is line order[i]. Lines with equal keys are put in a fresh random order."""
    if keys.size < 2:
        return numpy.arange(keys.size)
    least = keys.min()
    spread = 64 - int(keys.max() - least).bit_length()               # the lines of a bucket have their first bits in common
    top = ((keys - least) << numpy.uint64(min(spread, 63)) >> numpy.uint64(32)).astype(numpy.uint32)
    order = numpy.argsort(top.astype(numpy.uint16), kind="stable")   # by counting, 16 bits at a time: three times as fast as by 64 bits
    order = order[numpy.argsort((top >> numpy.uint32(16)).astype(numpy.uint16)[order], kind="stable")]
    top = top[order]
    same = numpy.flatnonzero(top[1:] == top[:-1])                    # few: one chance in 2^33 a pair
    for run in numpy.split(same, numpy.flatnonzero(numpy.diff(same) > 1) + 1) if same.size else ():
        places = slice(int(run[0]), int(run[-1]) + 2)
        order[places] = _settled(order[places], keys, seed)
    return order


def gather(source: Bytes, starts: Numbers, lengths: Numbers, out: Bytes, *, total: Bits | None = None) -> None:
    """Copy the lines at `starts` [n] of `lengths` [n], at least 1 each, one after another into `out`; add their hashes to `total` [2]."""
    places = numpy.cumsum(lengths) - lengths                         # [n]
    for size, at in _sizes(lengths):
        begin, place, length = starts[at], places[at], lengths[at]
        if size >= _LONG:
            for b, p, n in zip(begin.tolist(), place.tolist(), length.tolist(), strict=True):
                out[p : p + n] = source[b : b + n]
                if total is not None:
                    total += _long(source[b : b + n])
        else:
            pieces, into, rest = _pieces(source, size), _pieces(out, size), length - size
            head, tail = pieces[begin], pieces[begin + rest]         # [n] of `size` bytes
            into[place], into[place + rest] = head, tail
            if total is not None:
                total += _hashes(head, tail, length)


def arranged(
    source: Bytes, starts: Numbers, lengths: NDArray[numpy.integer], order: Numbers, buffers: Iterator[Bytes], *, total: Bits | None = None
) -> Iterator[tuple[int, int, Bytes]]:
    """Lines in `order`, a block at a time: (first, last + 1, their bytes), in the next of `buffers`, each of BLOCK bytes.

    A line that is longer than a buffer is given as it lies in `source`. Hashes of all lines are added to `total` [2].
    """
    at = 0
    while at < len(order):
        some = order[at : at + _LINES]
        sizes = lengths[some].astype(numpy.int64)                    # [n]
        ends = numpy.cumsum(sizes)
        count = int(numpy.searchsorted(ends, BLOCK, side="right"))
        if count:
            out = next(buffers)[: int(ends[count - 1])]
            gather(source, starts[some[:count]], sizes[:count], out, total=total)
        else:
            count, start = 1, int(starts[some[0]])
            out = source[start : start + int(sizes[0])]
            if total is not None:
                total += _long(out)
        yield at, at + count, out
        at += count


def fingerprint(source: Bytes, lengths: Numbers) -> Bits:
    """The sum of a 128-bit hash a line, [2]: whatever the order, the same for the same lines. `source` is lines one after another.

    Hash: words times random odd numbers modulo 2^64, of the first and of the last 2^k bytes apart, then both mixed; lines of 8 KB and
    more: BLAKE2. It finds faults, not forgeries.
    """
    total, places = numpy.zeros(2, numpy.uint64), numpy.cumsum(lengths) - lengths
    for start in range(0, len(lengths), _LINES):
        some = slice(start, start + _LINES)
        for size, at in _sizes(lengths[some]):
            begin, length = places[some][at], lengths[some][at]
            if size >= _LONG:
                for b, n in zip(begin.tolist(), length.tolist(), strict=True):
                    total += _long(source[b : b + n])
            else:
                pieces = _pieces(source, size)
                total += _hashes(pieces[begin], pieces[begin + (length - size)], length)
    return total


def hexadecimal(digest: Bits) -> str:
    """A sum as it is shown and stored."""
    return "".join(f"{int(half):016x}" for half in digest)


def parse(digest: str) -> Bits:
    """What `hexadecimal` wrote."""
    return numpy.array([int(digest[:16], 16), int(digest[16:], 16)], numpy.uint64)


def _settled(lines: Numbers, keys: Bits, seed: int) -> Numbers:
    """Lines, ascending, by all 64 bits, and where these are equal, too, by fresh ones."""
    settled = []
    for key in numpy.unique(keys[lines]):
        tied = lines[keys[lines] == key]
        bits = numpy.random.Philox(key=(seed % 2**64) << 64 | _TIES, counter=int(key) << 192)
        drawn = bits.random_raw(tied.size)
        while numpy.unique(drawn).size < drawn.size:
            drawn = bits.random_raw(tied.size)
        settled.append(tied[numpy.argsort(drawn)])
    return numpy.concatenate(settled)


def _hashes(head: NDArray[numpy.void], tail: NDArray[numpy.void], lengths: Numbers) -> Bits:
    """The sum of the hashes of lines that are each covered by two pieces [n] of 2^k bytes."""
    words, ends = numpy.dtype(f"<u{min(head.itemsize, 8)}"), []
    for piece, weights in zip((head, tail), _ODD, strict=True):
        bits = piece.view(words).reshape(len(lengths), -1).astype(numpy.uint64, copy=False)    # [n words]
        bits ^= bits >> numpy.uint64(32)                             # else the last byte of a word reaches the last byte of a product only
        ends.append(numpy.einsum("nw,w->n", bits, weights[: bits.shape[1]]))
    one, other = ends[0] + lengths.astype(numpy.uint64) * _ODD[0, -1], ends[1]                 # [n]
    halves = (_mixed(one + other * _ODD[1, -1]), _mixed(other + one * _ODD[1, -2]))
    return numpy.array([half.sum(dtype=numpy.uint64) for half in halves])


def _long(line: Bytes) -> Bits:
    return numpy.frombuffer(hashlib.blake2b(line.data, digest_size=16).digest(), "<u8").astype(numpy.uint64)


def _sizes(lengths: Numbers) -> Iterator[tuple[int, Numbers]]:
    """For each power of two: which lines are that long, but not twice that; all long ones together."""
    powers = (numpy.frexp(numpy.minimum(lengths, _LONG))[1] - 1).astype(numpy.uint8)
    for power in numpy.flatnonzero(numpy.bincount(powers)).tolist():
        yield 1 << power, numpy.flatnonzero(powers == power)


def _pieces(source: Bytes, size: int) -> NDArray[numpy.void]:
    """A view of every piece of so many bytes, wherever it begins."""
    return numpy.ndarray((source.size - size + 1,), dtype=f"V{size}", buffer=source, strides=(1,))


def _mixed(bits: Bits) -> Bits:
    """The finaliser of SplitMix64: each bit of the result depends on each bit."""
    bits = (bits ^ (bits >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> numpy.uint64(31))


_ODD = numpy.random.Philox(key=_WEIGHTS).random_raw(2 * (_LONG // 8 + 2)).reshape(2, -1) | numpy.uint64(1)     # [head or tail, word]
