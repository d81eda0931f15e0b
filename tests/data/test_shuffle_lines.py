"""Lines in memory: ends, keys, orders that are uniform, copies and digests, each against the plain Python of it."""

from __future__ import annotations

from itertools import cycle, permutations

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fishpaw.data import shuffle_lines
from fishpaw.data.shuffle_lines import BLOCK, arranged, fingerprint, gather, hexadecimal, keys, line_ends, parse, rank

PLACES = {order: at for at, order in enumerate(permutations(range(6)))}
LIMIT = 841.9                                                        # of chi-square with 719 degrees of freedom, 0.1 %


def chi_square(orders: numpy.ndarray) -> float:
    """Over the 720 orders of six; orders [runs 6]."""
    counts = numpy.bincount([PLACES[tuple(row)] for row in orders.tolist()], minlength=720)
    expected = len(orders) / 720
    return float(((counts - expected) ** 2 / expected).sum())


def packed(lines: list[bytes]) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """Lines as one array, where they start, and their lengths."""
    lengths = numpy.array([len(line) for line in lines], numpy.int64)
    return numpy.frombuffer(b"".join(lines), numpy.uint8).copy(), numpy.cumsum(lengths) - lengths, lengths


# Uniformity

def test_720_orders_of_six_lines_are_equally_probable():
    """100,000 runs; the keys of each run are those of six neighbouring lines."""
    drawn = keys(11, 0, 600_000).reshape(-1, 6)
    orders = numpy.argsort(drawn, axis=1)
    assert (orders[:500] == [rank(row, seed=11) for row in drawn[:500]]).all()
    assert chi_square(orders) < LIMIT


def test_seeds_are_as_good_as_lines():
    assert chi_square(numpy.array([rank(keys(seed, 0, 6), seed=seed) for seed in range(5_000)])) < LIMIT


@pytest.mark.parametrize("bits", [0, 2])
def test_equal_keys_are_put_in_a_uniform_order(bits):
    """Keys of so few bits that nearly all are equal: what decides then is uniform, too."""
    cut = numpy.uint64(2**64 - 2 ** (64 - bits))
    orders = numpy.array([rank(keys(seed, 0, 6) & cut, seed=seed) for seed in range(3_600)])
    assert chi_square(orders) < LIMIT


def test_a_biased_variant_would_be_noticed():
    """Equal keys of eight bits in the order of the input: one pair in 256 is biased by as much."""
    drawn = keys(11, 0, 600_000).reshape(-1, 6) >> numpy.uint64(58)
    assert chi_square(numpy.argsort(drawn, axis=1, kind="stable")) > LIMIT


def article(pieces: list[list[int]], random: numpy.random.Generator) -> list[int]:
    """The method in two stages that is often used: shuffle each piece, then emit the r-th lines of all in random order, r by r."""
    shuffled = [random.permutation(piece).tolist() for piece in pieces]
    made = []
    for at in range(max(map(len, pieces))):
        row = [piece[at] for piece in shuffled if at < len(piece)]
        made += [row[i] for i in random.permutation(len(row))]
    return made


def test_shuffling_pieces_and_merging_them_is_not_uniform():
    random = numpy.random.default_rng(5)
    orders = numpy.array([article([[0, 1], [2, 3], [4, 5]], random) for _ in range(4_000)])
    assert len({tuple(row) for row in orders.tolist()}) == 288
    assert chi_square(orders) > 4 * LIMIT
    assert not (orders[:, 0] // 2 == orders[:, 1] // 2).any()        # the first two lines are never of one piece; of ours, 1 in 5 are
    ours = numpy.argsort(keys(3, 0, 60_000).reshape(-1, 6), axis=1)
    assert (ours[:, 0] // 2 == ours[:, 1] // 2).mean() == pytest.approx(0.2, abs=0.012)


def test_a_short_last_piece_lands_in_the_middle():
    """100 lines behind 10 x 1,000: their mean place is a half; that of the two stages .055."""
    count, last = 10_100, slice(10_000, None)
    places = [numpy.argsort(rank(keys(seed, 0, count), seed=seed))[last].mean() / count for seed in range(60)]
    assert numpy.mean(places) == pytest.approx(0.5, abs=0.01)
    pieces = [list(range(start, min(start + 1000, count))) for start in range(0, count, 1000)]
    random = numpy.random.default_rng(5)
    drifted = numpy.mean([numpy.argsort(article(pieces, random))[last].mean() / count for _ in range(3)])
    assert drifted == pytest.approx(0.055, abs=0.005)


def test_keys_depend_on_seed_and_number_only():
    whole = keys(7, 0, 41)
    assert all((keys(7, first, 41 - first) == whole[first:]).all() for first in range(41))
    assert not (keys(8, 0, 41) == whole).any() and (keys(7 + 2**64, 0, 41) == whole).all()
    far = 2**40 + 3
    assert (keys(7, far, 9)[4:] == keys(7, far + 4, 5)).all()
    assert whole[:3].tolist() == [11994240890589675094, 12679937633209671821, 11655559061437530905]       # stored shuffles go on


@pytest.mark.parametrize("bits", [64, 40, 33, 20, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 3000])
def test_rank_sorts_by_all_bits(bits, count):
    drawn = keys(1, 0, count) >> numpy.uint64(64 - bits)
    order = rank(drawn, seed=1)
    assert sorted(order.tolist()) == list(range(count))
    assert (drawn[order] == numpy.sort(drawn)).all()


# Bytes

@settings(max_examples=50)
@given(st.lists(st.binary(min_size=1, max_size=70), max_size=60), st.randoms(use_true_random=False))
def test_gather_copies_and_hashes_lines(lines, random):
    source, starts, lengths = packed(lines)
    order = numpy.array(random.sample(range(len(lines)), len(lines)), numpy.int64)
    out, total = numpy.empty_like(source), numpy.zeros(2, numpy.uint64)
    gather(source, starts[order], lengths[order], out, total=total)
    assert out.tobytes() == b"".join(lines[i] for i in order)
    assert (total == fingerprint(source, lengths)).all() and (total == fingerprint(out, lengths[order])).all()


@pytest.mark.parametrize("longest", [2, 9, 300, 5000, 8193, 70_001, BLOCK + 7])
def test_arranged_gives_all_lines_in_blocks(longest):
    random = numpy.random.default_rng(longest)
    lines = [random.bytes(int(length)) for length in random.integers(1, longest + 1, min(20_000, 4 * BLOCK // longest + 2))]
    source, starts, lengths = packed(lines)
    order = random.permutation(len(lines))
    buffers, total, made, at = [numpy.empty(BLOCK, numpy.uint8) for _ in range(2)], numpy.zeros(2, numpy.uint64), [], 0
    for first, last, block in arranged(source, starts, lengths.astype(numpy.uint32), order, cycle(buffers), total=total):
        assert first == at < last
        at = last
        made.append(block.tobytes())
    assert at == len(lines) and b"".join(made) == b"".join(lines[i] for i in order)
    assert (total == fingerprint(source, lengths)).all()


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 31, 200, 8191, 8192, 20_000])
def test_a_fingerprint_sees_each_bit_and_each_boundary(length):
    random = numpy.random.default_rng(length)
    source = random.integers(0, 256, 3 * length, dtype=numpy.uint8)
    lengths = numpy.array([length] * 3)
    found = hexadecimal(fingerprint(source, lengths))
    assert hexadecimal(parse(found)) == found and len(found) == 32
    for at in {0, length, 2 * length - 1, length + length // 2, 3 * length - 1}:
        for bit in (1, 128):
            planted = source.copy()
            planted[at] ^= bit
            assert hexadecimal(fingerprint(planted, lengths)) != found
    shifted = numpy.array([length + 1, length - 1, length]) if length > 1 else numpy.array([2, 1])
    assert hexadecimal(fingerprint(source, shifted)) != found
    assert hexadecimal(fingerprint(source[:-length], lengths[:-1])) != found
    twice = numpy.concatenate([source[:length], source[:length], source[2 * length :]])
    assert hexadecimal(fingerprint(twice, lengths)) != found or length == 1


def test_tails_that_change_places_are_seen():
    """A sum over bytes by their place in the line would not see it; nor would one over words see the last byte of two of them."""
    one, other = fingerprint(packed([b"abcdEFGH", b"ijklMNOP"])[0], numpy.array([8, 8])), \
        fingerprint(packed([b"abcdMNOP", b"ijklEFGH"])[0], numpy.array([8, 8]))  # fmt: skip
    assert (one != other).all()
    seen = set()
    for first in range(256):
        line = bytearray(b"x" * 16)
        line[7], line[15] = first, first * 7 % 256
        seen.add(hexadecimal(fingerprint(numpy.frombuffer(bytes(line), numpy.uint8), numpy.array([16]))))
    assert len(seen) == 256


@given(st.binary(max_size=300), st.integers(1, 9))
def test_line_ends(data, most):
    source = numpy.frombuffer(data, numpy.uint8)
    assert line_ends(source, most=most).tolist() == [at + 1 for at, byte in enumerate(data) if byte == 10][:most]


def test_line_ends_over_pieces(monkeypatch):
    monkeypatch.setattr(shuffle_lines, "_SCAN", 7)
    data = b"a\n\nbcdefghijk\nl\n\n\n\n\n\n\n\n\n\nm"
    assert line_ends(numpy.frombuffer(data, numpy.uint8), most=9).tolist() == [i + 1 for i, c in enumerate(data) if c == 10][:9]


def test_the_digest_of_a_text_stays_what_it_is():
    """It is stored: another value would refuse what an older version began."""
    source, _, lengths = packed([b"fish\n", b"bear's paw\n", b"\n", b"x" * 9000])
    assert hexadecimal(fingerprint(source, lengths)) == "4c9f1bf53671f6a70169842b79888743"
