"""The analysis of shuffles: its rows, the two stages against a plain reading of them, and faults that must turn its verdicts."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy
import pytest

from fishpaw.data import shuffle as files
from fishpaw.data import shuffle_lines as lines
from fishpaw.lab import shuffle
from fishpaw.lab.findings import Found


@pytest.fixture(scope="module")
def found() -> Found:
    return shuffle.measure(seed=0)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the runs: planted faults are large."""
    monkeypatch.setattr(shuffle, "_RUNS", 6_000)
    monkeypatch.setattr(shuffle, "_TAILS", 20)


def verdicts(found: Found) -> dict[str, str]:
    return {row.claim.en: row.verdict for row in found.rows}


def failed(found: Found, beginning: str) -> bool:
    (verdict,) = [verdict for claim, verdict in verdicts(found).items() if claim.startswith(beginning)]
    return verdict == "fails"


def test_every_claim_holds(found: Found) -> None:
    assert set(verdicts(found).values()) == {"holds"}, verdicts(found)


def test_each_fault_has_its_size(found: Found) -> None:
    """288 of 720 orders, equally frequent: chi-square is runs x (720 / 288 - 1) and what chance adds, 2.5 x 287 on average."""
    measured = {row.claim.en: row.measured for row in found.rows}
    (chi,) = [value for claim, value in measured.items() if claim.startswith("Chi-square of the two stages")]
    assert abs(chi - (60_000 * 1.5 + 2.5 * 287)) < 5 * 2.5 * (2 * 287) ** 0.5
    assert [value for claim, value in measured.items() if claim.startswith("Of 120 orders")] == [40]


def slow(pieces: list[int], random: numpy.random.Generator) -> tuple[int, ...]:
    """The two stages, line by line."""
    starts = numpy.cumsum([0, *pieces])
    shuffled = [random.permutation(numpy.arange(low, high)).tolist() for low, high in zip(starts, starts[1:], strict=False)]
    made: list[int] = []
    for at in range(max(pieces)):
        made += random.permutation([piece[at] for piece in shuffled if at < len(piece)]).tolist()
    return tuple(made)


def test_the_two_stages_are_those_of_the_article() -> None:
    """Both give the same orders, each about as often: the largest difference of frequencies is within chance (32 orders, 20,000 runs)."""
    random = numpy.random.default_rng(3)
    pieces = [2, 2, 1]
    fast = shuffle.two_stages(pieces, random, runs=20_000)
    plain = [slow(pieces, random) for _ in range(20_000)]
    of_fast, of_slow = (numpy.unique(numpy.array(one), axis=0, return_counts=True) for one in (fast, plain))
    assert (of_fast[0] == of_slow[0]).all() and {tuple(row) for row in of_fast[0].tolist()} == shuffle.reached(pieces)
    assert numpy.abs(of_fast[1] - of_slow[1]).max() < 5 * (2 * 20_000 / len(of_fast[0])) ** 0.5


def test_the_rule_draws_rounds_uniformly() -> None:
    """A piece of 2 beside one of 5: each of the 10 pairs of rounds is equally frequent (chi-square with 9 degrees, 0.1 % limit 27.9)."""
    rounds = shuffle._drawn(2, 5, numpy.random.default_rng(1), 20_000)
    _, counts = numpy.unique(rounds, axis=0, return_counts=True)
    assert len(counts) == 10 and ((counts - 2_000) ** 2 / 2_000).sum() < 27.9


def test_every_order_is_a_permutation() -> None:
    random = numpy.random.default_rng(0)
    for made in (shuffle.two_stages((7, 7, 3), random, runs=11), shuffle.two_stages((7, 7, 3), random, runs=11, repaired=True),
                 shuffle.orders(17, seed=3, runs=11)):  # fmt: skip
        assert (numpy.sort(made, axis=1) == numpy.arange(17)).all()


FAULTS: list[tuple[object, str, Callable[..., object], str]] = [
    (lines, "rank", lambda keys, *, seed: numpy.argsort(keys >> numpy.uint64(60), kind="stable"), "Chi-square of ours"),
    (lines, "rank", lambda keys, *, seed: numpy.arange(keys.size), "Of 720 orders, ours"),
    (files, "order", lambda count, *, seed=0: numpy.arange(count), "The same, ours"),
    (files, "order", lambda count, *, seed=0: numpy.arange(count), "Lines that the files"),
    (shuffle, "orders", lambda count, *, seed, runs: shuffle.two_stages((2, 2, 2), numpy.random.default_rng(0), runs=runs), "Ours: share"),
    (shuffle, "two_stages", lambda pieces, random, *, runs, repaired=False: random.permuted(
        numpy.tile(numpy.arange(sum(pieces)), (runs, 1)), axis=1), "As many come out"),
    (shuffle, "_drawn", lambda count, rounds, random, runs: numpy.tile(numpy.arange(count), (runs, 1)), "The same with the article's"),
]  # fmt: skip


@pytest.mark.parametrize(("owner", "name", "fault", "row"), FAULTS, ids=[f"{row} {name}" for _, name, _, row in FAULTS])
def test_a_planted_fault_turns_its_verdict(
    owner: object, name: str, fault: Callable[..., object], row: str, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, fault)
    assert failed(shuffle.measure(seed=0), row)


def test_it_is_deterministic_and_its_figure_is_drawn_from_what_json_keeps(small: None) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    one, other = shuffle.measure(seed=5), shuffle.measure(seed=5)
    assert one == other and one.rows != shuffle.measure(seed=6).rows
    series = json.loads(json.dumps(one.series))
    assert series == one.series
    figure = Figure(figsize=(9, 4))
    FigureCanvasAgg(figure)
    shuffle.draw(figure, series)
    figure.canvas.draw()
    assert len(figure.axes) == 2 and all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
