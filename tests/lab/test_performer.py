"""The re-measurement of Performer: its rows hold, a fault in the estimate, the draws, the radii or the kernel turns them."""

from __future__ import annotations

import json
import math

import pytest
import torch

from fishpaw.errors import ConfigError
from fishpaw.lab import performer
from fishpaw.lab.performer import Size, full, measure, radii, strata

torch.set_num_threads(1)
SMALL = Size(norms=(0.5, 2.0), features=(16, 64), draws=3, texts=1, tokens=11)


@pytest.fixture(scope="module")
def found():
    return measure()


@pytest.fixture
def few(monkeypatch):
    """A quarter of the draws: enough for the faults below."""
    monkeypatch.setattr(performer, "DRAWS", 5_000)


def verdicts(rows, words):
    chosen = [row.verdict for row in rows if words in row.claim.en]
    assert chosen
    return chosen


def test_every_row_holds(found):
    assert [row.claim.en for row in found.rows if row.verdict != "holds"] == []


def test_the_rows_hold_what_the_source_claims(found):
    claims = [row.claimed for row in found.rows]
    for number in (1.448, 1.14, 0.42, 0.127, 5.21, 2.2, 1.08, 0.838, 0.920, 0.964, 0.951, 0.979, 0.992):
        assert number in claims
    assert len({row.claim.en for row in found.rows}) == len({row.claim.zh for row in found.rows}) == len(found.rows)


def test_the_same_seed_measures_the_same(few):
    one, two, other = (performer._moments(seed) for seed in (1, 1, 2))
    assert one == two and one != other
    cheap = [(performer._leaks(seed), performer._kernel_is_the_estimate(seed)) for seed in (1, 1)]
    assert cheap[0] == cheap[1]


# Planted faults

def test_an_estimate_without_the_norms_is_biased(few, monkeypatch):
    right = performer.estimates
    monkeypatch.setattr(performer, "estimates", lambda w, q, k, kind: right(w, q, k, kind) * ((k @ k) / 50).exp())
    assert "fails" in verdicts(performer._moments(0)[0], "unbiased")
    assert performer._kernel_is_the_estimate(0).verdict == "fails"


def test_draws_of_another_variance_turn_the_law(few, monkeypatch):
    right = performer.draw_directions
    monkeypatch.setattr(performer, "draw_directions", lambda *arguments, **options: right(*arguments, **options) * 1.1)
    bias, variance = performer._moments(0)
    assert "fails" in verdicts(bias, "unbiased") and "fails" in verdicts(variance, "e^(|q+k|²) - 1")


def test_independent_draws_in_the_place_of_right_angles_are_seen(few, monkeypatch):
    right = performer.draw_directions
    monkeypatch.setattr(performer, "draw_directions", lambda *arguments, draw, seed: right(*arguments, draw="iid", seed=seed))
    variance = performer._moments(0)[1]
    assert "fails" in verdicts(variance, "|q| = |k| = 0.6: m var / e^(2q·k), vectors at right angles")
    assert "fails" in verdicts(variance, "opposite pairs at right angles")


def test_radii_of_another_dimension_turn_the_bias(monkeypatch):
    right = performer.radii
    monkeypatch.setattr(performer, "radii", lambda probability, size: right(probability, size + 1))
    assert set(verdicts(performer._radii()[0], "fixed radii")) == {"fails"}


def test_a_causal_form_that_looks_ahead_is_seen(monkeypatch):
    monkeypatch.setattr(performer, "_causal", performer._widespread)
    rows = performer._leaks(0)
    assert verdicts(rows, "by a bit") == ["fails"] and verdicts(rows, "masked quadratic") == ["fails"]


def test_a_stabiliser_of_each_key_alone_would_not_leak(monkeypatch):
    monkeypatch.setattr(performer, "_widespread", performer._causal)
    assert verdicts(performer._leaks(0), "a maximum over all keys") == ["fails"]


def test_an_error_that_does_not_fall_is_seen(monkeypatch):
    right = performer.output_errors
    monkeypatch.setattr(performer, "output_errors", lambda norm, vectors, **options: right(norm, 64, **options))
    assert set(verdicts(performer._law(0)[0], "four times as many")) == {"fails"}


# Radii, by other ways

@pytest.mark.parametrize("size", [3, 16, 64])
def test_radii_are_the_quantiles_of_drawn_vectors(size):
    r = torch.randn(40_000, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).norm(dim=1)
    for probability in (0.1, 0.5, 0.9):
        found = float(radii(torch.tensor([probability], dtype=torch.float64), size))
        assert float((r <= found).double().mean()) == pytest.approx(probability, abs=4 * 0.5 / math.sqrt(40_000))


def test_the_bias_of_fixed_radii_is_what_drawing_directions_gives():
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(20_000, 16, 16, dtype=torch.float64, generator=generator), dim=-1)
    r = radii(torch.arange(1, 17, dtype=torch.float64) / 17, 16)
    ratio = (directions[..., 0] * r * 1.5).exp().mean(1) / math.exp(1.5**2 / 2)
    error = float(ratio.std()) / math.sqrt(20_000)
    assert float(ratio.mean()) == pytest.approx(strata(16, 16, 1.5, fixed=True), abs=4 * error) and error < 0.005
    assert strata(16, 16, 1.5, fixed=True) < 0.97


@pytest.mark.parametrize(("size", "features"), [(3, 5), (16, 7), (64, 4)])
def test_one_radius_within_each_step_is_unbiased_in_any_width(size, features):
    assert strata(size, features, 2.5, fixed=False) == pytest.approx(1, abs=1e-6)


def test_fixed_radii_come_nearer_with_more_features_and_never_pass_the_truth():
    found = [strata(16, features, 2.5, fixed=True) for features in (4, 16, 64, 256)]
    assert found == sorted(found) and found[-1] < 0.97


# The large form

def test_the_table_is_made_cell_by_cell_and_goes_on_after_a_kill(tmp_path, monkeypatch):
    said: list[str] = []
    whole = full(tmp_path / "one", tell=said.append, size=SMALL)
    assert len(said) == len(list((tmp_path / "one").iterdir())) == 8
    right, calls = performer.output_errors, []

    def killed(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return right(*arguments, **options)

    monkeypatch.setattr(performer, "output_errors", killed)
    with pytest.raises(KeyboardInterrupt):
        full(tmp_path / "two", tell=said.append, size=SMALL)
    resumed = full(tmp_path / "two", tell=said.append, size=SMALL)
    assert resumed == whole and len(calls) == 9                      # three cells, the killed one, five left
    assert full(tmp_path / "two", tell=said.append, size=SMALL) == whole and len(calls) == 9
    (tmp_path / "two" / "positive-2-16.json").write_text("{", encoding="utf-8")
    assert full(tmp_path / "two", tell=said.append, size=SMALL) == whole and len(calls) == 10          # a damaged cell is made again
    assert full(tmp_path / "two", seed=1, tell=said.append, size=SMALL) != whole and len(calls) == 18  # and those of another seed
    assert len(whole.rows) == 5                                      # one step, two too long, pairs at two norms


def test_pairs_have_as_many_features_as_single_vectors(tmp_path, monkeypatch):
    asked: list[tuple[str, int]] = []

    def recorded(norm, vectors, *, kind, **options):
        asked.append((kind, vectors))
        return [(0.1, 0.2), (0.2, 0.3)]

    monkeypatch.setattr(performer, "output_errors", recorded)
    full(tmp_path, tell=lambda line: None, size=SMALL)
    assert set(asked) == {("positive", 16), ("positive", 64), ("hyperbolic", 8), ("hyperbolic", 32)}


# The figure

def test_the_figure_is_drawn_from_what_json_keeps(found, tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    for series, panels in ((found.series, 3), (full(tmp_path, tell=lambda line: None, size=SMALL).series, 2)):
        figure = Figure(figsize=(9, 4))
        kept = json.loads(json.dumps(series))
        assert kept == series
        performer.draw(figure, kept)
        FigureCanvasAgg(figure).draw()
        assert len(figure.axes) == panels and all(axes.get_ylabel() for axes in figure.axes)


def test_features_that_do_not_rise_are_refused_before_anything_is_computed(tmp_path):
    for features in ((64,), (256, 64)):
        with pytest.raises(ConfigError, match="features are"):
            full(tmp_path, tell=lambda line: None, size=Size(features=features))
    assert not [*tmp_path.iterdir()]


def test_the_law_of_the_error_holds_for_other_ratios_than_powers_of_four():
    few, many = [(1.0, 1.0)] * 3, [(8**-0.5, 1.0)] * 3
    assert performer._quartered(0.5, few, many, math.log(8, 4)).measured == pytest.approx(2.0)
