"""CRC-32C: the vectors of RFC 3720, every length near a boundary, and speed in proportion to length."""

from __future__ import annotations

import time

import numpy as np
import pytest

from fishpaw.weights import crc32c as module
from fishpaw.weights.crc32c import crc32c, masked

# RFC 3720, B.4, and the check value of the polynomial
VECTORS = [
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
    (bytes.fromhex("01c0000000000000000000000000000014000000000004000000001400000018280000000000000002000000000000" + "00"), 0xD9963A56),
    (b"123456789", 0xE3069283),
    (b"", 0),
]  # fmt: skip


@pytest.mark.parametrize(("data", "expected"), VECTORS)
def test_published_vectors(data, expected):
    assert crc32c(data) == expected


def naive(data: bytes) -> int:
    state = 0xFFFFFFFF
    for value in data:
        state ^= value
        for _ in range(8):
            state = (state >> 1) ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


@pytest.mark.parametrize("length", [*range(20), 31, 64, 65, 127, 1021, 4096, 4099])
def test_equals_the_definition_bit_by_bit(length):
    data = np.random.default_rng(length).integers(0, 256, length, np.uint8).tobytes()
    assert crc32c(data) == naive(data)


@pytest.mark.parametrize("extra", [-1, 0, 1, 2, 3, 4, 5, 7])
def test_blocks_join_as_one_stream(extra):
    data = np.random.default_rng(3).integers(0, 256, 2 * module._BLOCK + extra, np.uint8)
    low, high = module._tables(0)
    assert crc32c(data) == crc32c(data.tobytes())
    state = ~np.uint32(crc32c(data[:-4]))                            # one more word by the definition, from the state before it
    state ^= data[-4:].view("<u4")[0]
    assert crc32c(data) == int(~(low[state & 0xFFFF] ^ high[state >> 16]))


def test_every_flipped_bit_changes_the_sum():
    data = np.arange(257).astype(np.uint8)
    sums = {crc32c(data)}
    for position in range(len(data)):
        for bit in range(8):
            flipped = data.copy()
            flipped[position] ^= 1 << bit
            sums.add(crc32c(flipped))
    assert len(sums) == 1 + 8 * len(data)


def test_masked_is_leveldbs():
    assert masked(0) == 0xA282EAD8
    assert masked(0x00008000) == 0xA282EAD9                          # rotated right by 15, then the constant


def test_at_least_150_megabytes_a_second():
    data = np.random.default_rng(5).integers(0, 256, 30_000_000, np.uint8)
    best = 1e9
    for _ in range(5):
        start = time.process_time()
        crc32c(data)
        best = min(best, time.process_time() - start)
    assert len(data) / best > 150e6, f"{len(data) / best / 1e6:.0f} MB/s"
