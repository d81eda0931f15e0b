"""The re-measurement of rotary positions: its rows hold, and a fault in the turn, the tables, the bases or the window turns them."""

from __future__ import annotations

import gzip
import json

import numpy
import pytest
import torch

from fishpaw.lab import extrapolation, rope
from fishpaw.lab.extrapolation import CORPUS, VARIANTS
from fishpaw.lab.rope import Size, decay, full, measure

torch.set_num_threads(1)
SMALL = Size(layers=1, width=16, heads=2, vocabulary=40, characters=3000, length=8, steps=4, rows=4, lengths=(8, 16, 32), window=4,
             texts=3, judged=5)  # fmt: skip


@pytest.fixture(scope="module")
def found():
    return measure()


def failing(rows):
    return " · ".join(row.claim.en for row in rows if row.verdict == "fails")


def test_every_row_holds(found):
    assert [row.claim.en for row in found.rows if row.verdict != "holds"] == []
    assert len({row.claim.en for row in found.rows}) == len({row.claim.zh for row in found.rows}) == len(found.rows)


def test_the_same_seed_measures_the_same(found):
    assert measure() == found
    assert [row.claim.en for row in measure(seed=5).rows if row.verdict != "holds"] == []


def test_the_rows_hold_what_the_source_claims(found):
    claims = [row.claimed for row in found.rows]
    for number in (32.5, 31.538, 17.954, 12.629, 10.227, 6.543, 82684.6, 85550.4, 5e-5, 1.7e-4, 1.1e-3):
        assert number in claims


# Planted faults

def test_queries_turned_the_other_way_are_seen(monkeypatch):
    right = rope.Rotary._turned
    monkeypatch.setattr(rope.Rotary, "_turned", lambda self, x, cos, sin: right(self, x, cos, -sin))
    said = failing(rope._rotation(0))
    assert "2 x 2 rotations" in said and "complex multiplication" in said


def test_a_turn_that_is_none_is_seen(monkeypatch):
    """Each of a pair multiplied by a cosine and no sine: norms and the identity go."""
    right = rope.Rotary._turned
    monkeypatch.setattr(rope.Rotary, "_turned", lambda self, x, cos, sin: right(self, x, cos, 0 * sin))
    said = failing(rope._rotation(0))
    assert "R_(m-n)" in said and "norms are kept" in said


def test_angles_that_begin_at_one_are_seen(monkeypatch):
    right = rope.Rotary.at
    monkeypatch.setattr(rope.Rotary, "at", lambda self, q, k, new, dtype: right(self, q + 1, k + 1, new + 1, dtype))
    assert "R_0" in failing(rope._rotation(0))


def test_angles_in_fp32_are_seen(monkeypatch):
    def rounded(pos, frequencies):
        angle = (pos[:, None, :, None].float() * frequencies.float()).double()
        return angle.cos(), angle.sin()

    monkeypatch.setattr("fishpaw.positions.rotary.angles", rounded)
    assert "the library's tables" in failing(rope._drift(0)[0])


def test_exact_angles_do_not_drift_as_the_source_says(monkeypatch):
    monkeypatch.setattr(rope, "_rounded", lambda x, place: rope.turned(x, [place] * len(x)))
    assert failing(rope._drift(0)[0]).count("angles rounded to fp32") == 3


def test_queries_that_turn_faster_than_keys_are_seen_in_a_model(monkeypatch):
    right = rope.Rotary.at
    monkeypatch.setattr(rope.Rotary, "at", lambda self, q, k, new, dtype: right(self, q * 1.5, k, new, dtype))
    assert "shift of all positions" in failing(rope._model(0))


def test_another_base_turns_the_decay_index(monkeypatch):
    right = rope.Rotary
    monkeypatch.setattr(rope, "Rotary", lambda size, *arguments, **options: right(size, 500.0))
    assert failing(rope._decay(0)).count("decay index at") == 5     # at distance 0 any base gives 32.5


def test_another_order_of_the_units_is_seen(monkeypatch):
    monkeypatch.setattr(rope, "turn_halves", rope.turn_pairs)
    assert "half-split" in failing(rope._layouts(0)) and "without the permutation" in failing(rope._layouts(0))


def test_another_exponent_turns_the_bases(monkeypatch):
    monkeypatch.setattr(rope.rotary_ntk, "base", lambda theta, factor, size: theta * factor)
    said = failing(rope._bases())
    assert "d = 128" in said and "d = 64" in said and "slowest pair" in said


def test_another_window_is_seen(monkeypatch):
    right = rope.ReRoPE
    monkeypatch.setattr(rope, "ReRoPE", lambda rotary, window: right(rotary, window - 1))
    assert "min(distance, 5)" in failing(rope._windows(0))


def test_a_turned_denominator_is_seen(monkeypatch):
    monkeypatch.setattr(rope.linear.Elu, "turns", "vectors")
    assert rope._linear(0).verdict == "fails"


# Laws beside the rows

def test_the_decay_index_is_its_double_sum_and_less_than_at_zero():
    size = 14
    frequencies = [10_000.0 ** (-2 * i / size) for i in range(7)]
    for m in (0, 3, 29):
        partial = [abs(sum(complex(numpy.cos(m * f), numpy.sin(m * f)) for f in frequencies[:count])) for count in range(1, 8)]
        assert float(decay([m], size)[0]) == pytest.approx(sum(partial) / 7, abs=1e-12)
    index = decay(list(range(1, 2000)), 128)
    assert float(index.max()) < 32.5 and float(index[-500:].mean()) < float(index[:500].mean()) / 1.5


# The large form

@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, draw = tmp_path_factory.mktemp("data"), numpy.random.default_rng(0)
    (folder / CORPUS).parent.mkdir(parents=True)
    with gzip.open(folder / CORPUS, "wt", encoding="utf-8") as file:
        for index in range(30):
            text = "".join(chr(0x4E00 + one) for one in draw.integers(0, 30, 90))
            file.write(json.dumps({"id": str(index), "text": text}) + "\n")
    return folder


def test_the_large_form_goes_on_after_a_kill(data, tmp_path, monkeypatch):
    said: list[str] = []
    whole = full(tmp_path / "one", data=data, tell=said.append, size=SMALL)
    assert sum(" at " in line for line in said) == 3 * len(VARIANTS) and len(whole.rows) == 9
    right, calls = extrapolation.judge, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return right(*arguments)

    monkeypatch.setattr(extrapolation, "judge", killed)
    with pytest.raises(KeyboardInterrupt):
        full(tmp_path / "two", data=data, tell=said.append, size=SMALL)
    assert full(tmp_path / "two", data=data, tell=said.append, size=SMALL) == whole
    assert len(calls) == 3 * len(VARIANTS) + 1


def readings(losses):
    """loss of two texts by position and length, as `full` finds them."""
    return {name: {length: {"loss": [loss, loss + 0.1], "accuracy": [0.1, 0.2]} for length, loss in zip((8, 16, 32), three, strict=True)}
            for name, three in losses.items()}  # fmt: skip


def test_rows_of_the_large_form_follow_the_losses():
    losses = dict.fromkeys(VARIANTS, (3.0, 3.0, 2.9))
    losses |= {"RoPE": (3.0, 3.5, 4.0), "interpolation": (3.0, 4.0, 5.0), "NTK": (3.0, 3.1, 3.2), "YaRN": (3.0, 3.0, 3.1),
               "ReRoPE log-n": (3.0, 2.9, 2.8)}  # fmt: skip
    rows = rope._read_on(readings(losses), SMALL)
    assert {row.verdict for row in rows} == {"holds"}
    worse = readings(losses | {"ReRoPE": (3.1, 4.0, 5.0)})
    assert [row.verdict for row in rope._read_on(worse, SMALL)] == ["holds"] * 5 + ["fails", "holds", "fails", "fails"]


# The figures

def test_the_figures_are_drawn_from_what_json_keeps(found, data, tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    for series, panels in ((found.series, 3), (full(tmp_path, data=data, tell=lambda line: None, size=SMALL).series, 2)):
        figure = Figure(figsize=(9, 4))
        kept = json.loads(json.dumps(series))
        assert kept == series
        rope.draw(figure, kept)
        FigureCanvasAgg(figure).draw()
        assert len(figure.axes) == panels
