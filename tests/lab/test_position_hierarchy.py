"""The re-measurement of hierarchical positions: laws hold, faults in the formula turn them, the small models are read as is said."""

from __future__ import annotations

import json

import pytest
import torch

from fishpaw.errors import ConfigError
from fishpaw.lab import position_hierarchy as lab
from fishpaw.lab.position_hierarchy import closed_form, defined, measure
from fishpaw.positions.hierarchical import Hierarchical, build

torch.set_num_threads(1)


@pytest.fixture
def short(monkeypatch):
    """Hardly any training: what is read, not what was learned."""
    for name, value in (("STEPS", 3), ("MORE_STEPS", 2), ("ROWS", 4), ("MORE_ROWS", 2), ("TEXTS", 8), ("SEEDS", 2), ("BASE", 8)):
        monkeypatch.setattr(lab, name, value)


def failing(rows):
    return " · ".join(row.claim.en for row in rows if row.verdict == "fails")


@pytest.mark.parametrize("seed", [0, 3])
def test_every_law_holds(seed):
    rows = [*lab._laws(seed), lab._unchanged(seed)]
    assert len(rows) == 10 and [row.claim.en for row in rows if row.verdict != "holds"] == []


def test_the_same_seed_measures_the_same_and_what_was_learned_has_an_interval(short):
    one, two, other = (measure(seed=seed) for seed in (0, 0, 1))
    assert one == two and one.rows != other.rows
    assert [row.interval is not None for row in one.rows] == [False] * 10 + [True] * 5
    assert len({row.claim.en for row in one.rows}) == len({row.claim.zh for row in one.rows}) == 15


# Planted faults

def test_rows_of_the_new_base_alone_are_seen(monkeypatch):
    """u_j in the place of alpha u_i + (1 - alpha) u_j's first block: the first n rows would no longer be the table."""
    def wrong(self, x, pos):
        return x + (self.table.weight - self.alpha * self.table.weight[:1])[pos % self.base]

    monkeypatch.setattr(Hierarchical, "embed", wrong)
    said = failing(lab._laws(0))
    for words in ("first n rows", "alpha u_i", "p_j + alpha", "as neighbours"):
        assert words in said
    assert lab._unchanged(0).verdict == "fails"


def test_digits_the_other_way_round_are_seen(monkeypatch):
    right = Hierarchical.embed
    monkeypatch.setattr(Hierarchical, "embed", lambda self, x, pos: right(self, x, pos % self.base * self.base + pos // self.base))
    said = failing(lab._laws(0))
    assert "first n rows" in said and "alpha u_i" in said and "as neighbours" in said
    assert lab._unchanged(0).verdict == "fails"


def test_another_alpha_is_seen(monkeypatch):
    monkeypatch.setattr(lab, "build", lambda config, alpha=0.4: build(config, alpha=0.3))
    said = failing(lab._laws(0))
    assert "alpha u_i" in said and "p_j + alpha" in said and "as neighbours" in said and "first n rows" not in said


def test_a_block_that_is_scaled_is_seen(monkeypatch):
    right = Hierarchical.embed
    monkeypatch.setattr(Hierarchical, "embed", lambda self, x, pos: right(self, x, pos) * (1 + pos // self.base)[:, None])
    assert "doesn't depend on j" in failing(lab._laws(0))


def test_more_that_learns_is_seen(monkeypatch):
    class Larger(Hierarchical):
        def embed(self, x, pos):
            if not hasattr(self, "second"):
                self.second = torch.nn.Parameter(torch.zeros(self.base, x.shape[-1]))
            return super().embed(x, pos) + self.second[pos // self.base]

    def larger(config, alpha=0.4):
        position = build(config, alpha=alpha)
        position.__class__ = Larger
        return position

    monkeypatch.setattr(lab, "build", larger)
    assert "n x d" in failing(lab._laws(0))


# Formulas by themselves

def test_the_two_formulas_are_one_and_one_half_is_refused():
    table = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for alpha in (0.1, 0.4, 0.7):
        assert float((defined(table, alpha) - closed_form(table, alpha)).abs().max()) < 1e-12
        by_hand = alpha * (table[3] - alpha * table[0]) / (1 - alpha) + (1 - alpha) * (table[2] - alpha * table[0]) / (1 - alpha)
        assert float((defined(table, alpha)[3 * 5 + 2] - by_hand).abs().max()) < 1e-12
    with pytest.raises(ConfigError, match="alpha is 0.5"):
        lab._longer(lab._model("learned", 4).state_dict(), alpha=0.5, seed=0)


# The small models

def test_texts_count_up_and_begin_anew():
    ids, hidden = lab._counting(200, 40, torch.Generator().manual_seed(0))
    steps = (ids[:, 1:] - ids[:, :-1]) % lab.NUMBERS
    assert float((steps == 1).float().mean()) == pytest.approx(0.9 + 0.1 / lab.NUMBERS, abs=0.01)
    assert int(ids.min()) == 0 and int(ids.max()) == lab.NUMBERS - 1
    assert float(hidden.float().mean()) == pytest.approx(0.15, abs=0.01)


def test_both_ways_to_read_on_keep_the_trained_rows(short):
    state = lab._model("learned", lab.BASE).state_dict()
    ids = torch.randint(lab.NUMBERS, (2, lab.BASE), generator=torch.Generator().manual_seed(0))
    plain = lab._model("learned", lab.BASE).eval()
    plain.load_state_dict(state)
    long = torch.randint(lab.NUMBERS, (2, lab.TIMES * lab.BASE), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        readers = [lab._longer(state, alpha=alpha, seed=3) for alpha in (lab.ALPHA, None)]
        for reader in readers:
            assert torch.equal(reader(ids).logits, plain(ids).logits)
        assert not torch.equal(readers[0](long).logits, readers[1](long).logits)


def test_a_model_that_learned_nothing_guesses_and_its_share_counts_masked_places_alone(short):
    placed = lab._answers(lab._model("learned", 8).eval(), 8, 0)
    assert placed[0].shape == placed[1].shape == (8,) and bool((placed[0] <= placed[1]).all())
    assert lab._share((torch.tensor([1, 0, 3]), torch.tensor([2, 2, 4]))) == 0.5
    assert lab._share((torch.tensor([1, 0, 3]), torch.tensor([2, 2, 4])), 2) == 0.75


def test_rows_follow_the_answers():
    """right answers of ten at two places, n = 1, by way of reading; two seeds each."""
    ways = {"hierarchical": (3, 4), "new random rows": (8, 1), "hierarchical, trained on": (7, 7), "new random rows, trained on": (8, 2)}

    def judged(changes):
        found = {name: [(torch.tensor(right), torch.tensor([10, 10]))] * 2 for name, right in {**ways, **changes}.items()}
        return [row.verdict for row in lab._rows(found, [0.8, 0.8])]

    base, lab.BASE = lab.BASE, 1
    try:
        assert judged({}) == ["holds"] * 5
        assert judged({"new random rows": (8, 5)}) == ["holds", "fails", "holds", "holds", "holds"]
        assert judged({"hierarchical, trained on": (1, 1)}) == ["holds", "holds", "fails", "fails", "fails"]
    finally:
        lab.BASE = base


# The figure

def test_the_figure_is_drawn_from_what_json_keeps(short):
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure, series = Figure(figsize=(9, 4)), measure().series
    kept = json.loads(json.dumps(series))
    assert kept == series
    lab.draw(figure, kept)
    FigureCanvasAgg(figure).draw()
    assert len(figure.axes) == 4                                     # and the colours' scale
