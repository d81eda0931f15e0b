"""CRC-32C (Castagnoli, RFC 3720 B.4), the checksum of TensorFlow's files, in numpy at about 500 MB/s on one core.

A cyclic sum is linear: the sum of two equal halves is shift(left) ^ right, where shift appends as many zero bits as right is long.
So 32-bit words are folded in pairs, all pairs of a level at once, and a shift is two look-ups in tables of 65,536 entries.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["crc32c", "masked"]

Words = NDArray[np.uint32]


def crc32c(data: bytes | memoryview | NDArray[np.uint8]) -> int:
    """The checksum of the bytes, 0 <= sum < 2**32. Works block by block: 3 MB of extra memory whatever the length."""
    values = np.frombuffer(data, np.uint8)
    if len(values) < 4:
        return _bitwise(values.tolist())
    head = len(values) % _BLOCK
    head += _BLOCK if head < 4 else 0                  # room for the initial state
    padded = np.zeros(1 << max(2, (head - 1).bit_length()), np.uint8)           # zeros in front change nothing
    padded[-head:] = values[:head]
    padded[len(padded) - head : len(padded) - head + 4] ^= 0xFF                 # the initial state, all ones
    state = _fold(padded.view("<u4"))
    for start in range(head, len(values), _BLOCK):
        state = _shift(state, _LEVELS) ^ _fold(values[start : start + _BLOCK].copy().view("<u4"))
    return int(_shift(state, 0)) ^ 0xFFFFFFFF


def masked(checksum: int) -> int:
    """The form in which LevelDB and TensorFlow store a sum, so that a sum of bytes that hold sums stays sound."""
    return (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF


_POLYNOMIAL = 0x82F63B78                                          # bits reversed
_POWERS = 1 << np.arange(16)
_LEVELS = 18
_BLOCK = 4 << _LEVELS                                             # bytes: 1 MiB


def _fold(words: Words) -> np.uint32:
    """[n], n a power of two -> the state after them, one shift by a word short."""
    level = 0
    while len(words) > 1:
        low, high = _tables(level)
        halves = words.view("<u2").reshape(-1, 4)
        folded = low.take(halves[:, 0])
        folded ^= high.take(halves[:, 1])
        folded ^= words[1::2]
        words, level = folded, level + 1
    state: np.uint32 = words[0]
    return state


def _shift(state: np.uint32, level: int) -> np.uint32:
    low, high = _tables(level)
    shifted: np.uint32 = low[state & 0xFFFF] ^ high[state >> 16]
    return shifted


@cache
def _tables(level: int) -> tuple[Words, Words]:
    """The shift by 2**level words, for the low and the high half of a state."""
    if level == 0:
        columns = np.array([_advance(1 << bit, 32) for bit in range(32)], np.uint32)
    else:
        low, high = _tables(level - 1)
        columns = np.concatenate([low[_POWERS], high[_POWERS]])   # half the shift …
        columns = low[columns & 0xFFFF] ^ high[columns >> 16]     # … twice
    return _spanned(columns[:16]), _spanned(columns[16:])


def _spanned(columns: Words) -> Words:
    """[16] values at the powers of two -> [65536] values, by linearity."""
    table = np.zeros(1, np.uint32)
    for column in columns:
        table = np.concatenate([table, table ^ column])
    return table


def _advance(state: int, bits: int) -> int:
    for _ in range(bits):
        state = (state >> 1) ^ (_POLYNOMIAL if state & 1 else 0)
    return state


def _bitwise(values: list[int]) -> int:
    state = 0xFFFFFFFF
    for value in values:
        state = _advance(state ^ value, 8)
    return state ^ 0xFFFFFFFF
