"""Is a shuffle of files larger than memory uniform? The usual method in two stages, its repair, and fishpaw.data.shuffle.

The article shuffles pieces of the input in memory, then reads the r-th lines of all pieces, round by round, and writes each round in
random order. A line's round is its place in its piece, so that two lines of one piece never share a round: not all orders can come out,
and a short last piece, which takes part in the first rounds only, lands in front. The article proposes to pass over the last piece with
probability 1 - (its remaining lines) / (those of another): that draws the rounds it takes part in uniformly, which brings it back to the
middle, but leaves orders out. Ours sorts by random keys (data/shuffle_lines): every order is equally probable.
https://kexue.fm/archives/8662
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
from numpy.typing import NDArray

from fishpaw.data import shuffle as files
from fishpaw.data import shuffle_lines as lines
from fishpaw.lab.findings import Found, Row, Words, sampled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SOURCE", "TITLE", "draw", "measure", "orders", "reached", "two_stages"]

TITLE = Words("Uniform shuffling of files larger than memory", "超出内存的文件如何均匀打乱")
SOURCE = "https://kexue.fm/archives/8662"

_RUNS = 60_000                   # of six lines; with so many, 288 equally frequent orders of 720 have the chi-square that the source names
_LIMIT = 970.5                   # of chi-square with 719 degrees of freedom; one uniform shuffle in 10^9 is beyond it: no seed is
_PIECE, _PIECES, _TAIL = 1000, 10, 100
_TAILS = 200                     # runs of a long shuffle

Numbers = NDArray[numpy.int64]
Round = Callable[[int, int], float]


def two_stages(pieces: Sequence[int], random: numpy.random.Generator, *, runs: int, repaired: bool = False) -> Numbers:
    """The article's method on pieces of so many lines, numbered through -> orders [runs lines].

    Each piece is shuffled, then round r takes the r-th line of every piece in random order. repaired: the last piece, the shortest, takes
    part in a round with probability (its remaining lines) / (those of the first piece), so that both end together.
    """
    longest, starts = max(pieces), numpy.cumsum([0, *pieces])
    rounds = []
    for count in pieces[:-1] if repaired else pieces:
        rounds.append(numpy.tile(numpy.arange(count), (runs, 1)))                      # [runs count]: in which round its i-th line goes out
    if repaired:
        rounds.append(_drawn(pieces[-1], longest, random, runs))
    within = [random.permuted(numpy.tile(numpy.arange(low, high), (runs, 1)), axis=1) for low, high in itertools.pairwise(starts)]
    line, at = numpy.concatenate(within, axis=1), numpy.concatenate(rounds, axis=1)    # [runs lines]
    sequence = numpy.argsort(at + random.random(at.shape), axis=1)                     # by round, in it at random
    return numpy.take_along_axis(line, sequence, axis=1)


def orders(count: int, *, seed: int, runs: int) -> Numbers:
    """Ours -> [runs count]: run k orders the keys of the lines k count … (k + 1) count - 1 of one long input."""
    drawn = lines.keys(seed, 0, runs * count).reshape(runs, count)
    return numpy.array([lines.rank(row, seed=seed) for row in drawn])


def reached(pieces: Sequence[int]) -> set[tuple[int, ...]]:
    """All orders that the two stages can give, by going through every way of shuffling the pieces and every way of mixing the rounds."""
    starts = numpy.cumsum([0, *pieces]).tolist()
    found = set()
    for shuffled in itertools.product(*(itertools.permutations(range(low, high)) for low, high in itertools.pairwise(starts))):
        rounds = [[piece[at] for piece in shuffled if at < len(piece)] for at in range(max(pieces))]
        for mixed in itertools.product(*(itertools.permutations(some) for some in rounds)):
            found.add(tuple(itertools.chain.from_iterable(mixed)))
    return found


def measure(*, seed: int = 0) -> Found:
    """The counts of 720 orders, which of two lines come first, and where a short last piece lands, of both methods."""
    random = numpy.random.default_rng(seed)
    theirs, ours = two_stages((2, 2, 2), random, runs=_RUNS), orders(6, seed=seed, runs=_RUNS)
    counts = {"two stages": _counts(theirs), "ours": _counts(ours)}
    long = [_PIECE] * _PIECES + [_TAIL]
    places = {
        "two stages": numpy.concatenate([_tail(two_stages(long, random, runs=20)) for _ in range(_TAILS // 20)]),
        "repaired": numpy.concatenate([_tail(two_stages(long, random, runs=20, repaired=True)) for _ in range(_TAILS // 20)]),
        "ours": numpy.concatenate([_tail(files.order(sum(long), seed=seed * _TAILS + run)[None]) for run in range(_TAILS)]),
    }
    means = {name: found.mean(axis=1).tolist() for name, found in places.items()}
    few = reached((2, 2, 2))
    rows = (
        Row(Words("Of 720 orders of 3 pieces of 2 lines, the two stages can reach", "3 块各 2 行共 720 种排列，两阶段法可能到达的种数"),
            288, len(few)),
        Row(Words("As many come out when it is run", "实际运行得到的种数"), 288, int(numpy.count_nonzero(counts["two stages"]))),
        Row(Words(f"Chi-square of the two stages, {_RUNS:,} runs", f"两阶段法的卡方（{_RUNS:,} 次）"),
            9e4, _chi(counts["two stages"]), within=1500),
        Row(Words("Of 720 orders, ours reaches", "720 种排列，本库方法到达的种数"), 720, int(numpy.count_nonzero(counts["ours"]))),
        Row(Words("Chi-square of ours, below what one in 10^9 exceeds (719 degrees of freedom)",
                  "本库方法的卡方，低于十亿分之一的界限（自由度 719）"),
            _LIMIT, _chi(counts["ours"]), "<="),
        Row(Words("Two stages: share of orders that begin with two lines of one piece", "两阶段法：前两行同出一块的比例"),
            0.0, _together(theirs)),
        Row(Words("Ours: share of orders that begin with two lines of one piece", "本库方法：前两行同出一块的比例"),
            0.2, _together(ours), within=0.01, interval=_share(_together(ours), _RUNS)),
        sampled(Words("Mean place, from 0 to 1, of a last piece of 100 lines behind 10 of 1000: two stages",
                      "10 块各 1000 行之后，100 行尾块的平均位置（0 到 1）：两阶段法"), 0.055, means["two stages"], within=0.001),
        sampled(Words("The same with the article's rejection rule", "同上，加上原文的拒绝规则"), 0.5, means["repaired"], within=0.01),
        sampled(Words("The same, ours", "同上，本库方法"), 0.5, means["ours"], within=0.01),
        Row(Words("Of 120 orders of 2 + 2 + 1 lines, the rejection rule never reaches",
                  "2 + 2 + 1 行共 120 种排列，拒绝规则仍到不了的种数"), 1, 120 - _repaired_reach(random), ">="),
        Row(Words("Lines that the files of fishpaw.data.shuffle have elsewhere than its order says", "本库写出的文件与其排列不符的行数"),
            0, _misplaced(seed)),
    )  # fmt: skip
    bins = numpy.linspace(0, 1, 41)
    landed = {name: (numpy.histogram(found, bins)[0] / found.size * (len(bins) - 1)).tolist() for name, found in places.items()}
    frequencies = {name: _frequencies(found) for name, found in counts.items()}
    return Found(rows, {"runs": _RUNS, "expected": _RUNS / 720, "frequencies": frequencies, "bins": bins.tolist(), "landed": landed})


def draw(figure: Figure, series: Mapping[str, Any]) -> None:
    """Left: how often each order of six lines came out. Right: where the lines of a short last piece land."""
    left, right = figure.subplots(1, 2)
    for name, colour in (("two stages", "tab:red"), ("ours", "tab:blue")):
        values, numbers = series["frequencies"][name]
        left.bar(values, numbers, width=5, color=colour, alpha=0.8, label=name)
    left.axvline(series["expected"], color="black", linestyle="--", linewidth=1, label="uniform")
    left.set_yscale("log")
    left.set_xlabel(f"times that an order came out, {series['runs']:,} runs")
    left.set_ylabel("orders of 6 lines (of 720)")
    left.legend()
    for name, colour in (("two stages", "tab:red"), ("repaired", "tab:orange"), ("ours", "tab:blue")):
        right.stairs(series["landed"][name], series["bins"], color=colour, label=name, linewidth=1.5)
    right.axhline(1, color="black", linestyle="--", linewidth=1, label="uniform")
    right.set_yscale("log")
    right.set_xlabel("relative position of the last 100 lines of 10,100")
    right.set_ylabel("density")
    right.legend()


def _drawn(count: int, rounds: int, random: numpy.random.Generator, runs: int) -> Numbers:
    """The rounds in which a piece of `count` takes part, by the rule round after round -> [runs count]."""
    left = numpy.full(runs, count)
    taken = numpy.empty((runs, rounds), bool)
    for at in range(rounds):
        taken[:, at] = random.random(runs) < left / (rounds - at)
        left -= taken[:, at]
    return numpy.nonzero(taken)[1].reshape(runs, count)


def _counts(found: Numbers) -> Numbers:
    """How often each of the orders of so many lines is there, [orders]."""
    size = found.shape[1]
    code = found @ size ** numpy.arange(size)                                          # [runs]
    known = numpy.sort(numpy.array(list(itertools.permutations(range(size)))) @ size ** numpy.arange(size))
    return numpy.bincount(numpy.searchsorted(known, code), minlength=len(known))


def _chi(counts: Numbers) -> float:
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2 / expected).sum())


def _together(found: Numbers) -> float:
    return float((found[:, 0] // 2 == found[:, 1] // 2).mean())


def _share(share: float, runs: int) -> tuple[float, float]:
    half = 1.96 * math.sqrt(share * (1 - share) / runs)
    return share - half, share + half


def _tail(found: Numbers) -> NDArray[numpy.float64]:
    """Where the lines of the last piece stand, from 0 to 1 -> [runs tail]."""
    runs, count = found.shape
    at: Numbers = numpy.nonzero(found >= count - _TAIL)[1].reshape(runs, _TAIL)
    return (at + 0.5) / numpy.float64(count)


def _repaired_reach(random: numpy.random.Generator) -> int:
    return int(numpy.count_nonzero(_counts(two_stages((2, 2, 1), random, runs=20_000, repaired=True))))


def _misplaced(seed: int) -> int:
    """Three small shuffles of real files: lines that don't stand where `order` says."""
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="fishpaw-lab-") as name:
        for run, count in enumerate((1, 97, 1009)):
            text = [f"line {number}\n" for number in range(count)]
            (Path(name) / "in.txt").write_text("".join(text), encoding="utf-8")
            # Of the whole process, which may hold other analyses' libraries by now.
            done = files.shuffle([Path(name) / "in.txt"], Path(name) / f"out{run}", memory=2**32, seed=seed + run)
            written = (Path(name) / f"out{run}" / done.files[0].name).read_text(encoding="utf-8").splitlines(keepends=True)
            expected = [text[at] for at in files.order(count, seed=seed + run)]
            wrong += sum(one != other for one, other in zip(written, expected, strict=True))
    return wrong


def _frequencies(counts: Numbers) -> list[list[int]]:
    """Bins of five, [middles, how many orders] without empty ones."""
    values, numbers = numpy.unique(counts // 5 * 5 + 2, return_counts=True)
    return [values.tolist(), numbers.tolist()]
