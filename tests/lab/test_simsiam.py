"""SimSiam: every row holds; planted faults turn them; figures; the full form at a tiny size, stopped and gone on with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fishpaw.errors import ConfigError, DataError
from fishpaw.lab import siamese_toy, simsiam
from fishpaw.lab.findings import Found
from fishpaw.lab.images import Images
from fishpaw.lab.self_supervised import VARIANTS, negative_cosine
from fishpaw.lab.siamese_toy import stopped
from fishpaw.lab.simsiam import Size, draw, full, measure

torch.set_num_threads(1)
TINY = Size(images=64, held=32, epochs=1, seeds=2, width=2, size=13, bottleneck=5, batch=32, views=2)


@pytest.fixture(scope="module")
def found() -> Found:
    return measure()


def verdict(rows, words: str) -> str:
    rows = [row for row in rows if words in row.claim.en]
    assert len(rows) == 1, words
    return rows[0].verdict


def test_every_row_holds_and_has_both_languages(found: Found) -> None:
    assert [row.claim.en for row in found.rows if row.verdict != "holds"] == []
    assert len(found.rows) == 26 and all(row.claim.en and row.claim.zh and row.interval is None for row in found.rows)


def test_other_seeds_hold_too_and_the_same_seed_is_the_same(found: Found) -> None:
    assert measure() == found
    other = measure(seed=1)
    assert all(row.verdict == "holds" for row in other.rows) and other != found


@pytest.mark.parametrize("name, fault, says", [
    ("stopped", siamese_toy.whole, "theta at sqrt(0.65)"),
    ("whole", siamese_toy.stopped, "theta ends at 0: collapse"),
    ("target_only", siamese_toy.whole, "second term alone"),
    ("stopped", lambda point: stopped(point) * np.array([1.0, 1.01]), "With stop-gradient phi^2"),
])  # fmt: skip
def test_a_wrong_flow_is_found(name: str, fault, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(siamese_toy, name, fault)
    assert verdict(simsiam._toy()[0], says) == "fails"


def test_a_matrix_flow_without_stop_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    held, freed = siamese_toy.matrix_stopped, siamese_toy.matrix_whole
    unstopped, still = freed(siamese_toy.pairs(7, noise=0.5, seed=1)), held(siamese_toy.pairs(7, noise=0.5, seed=1))
    monkeypatch.setattr(siamese_toy, "matrix_stopped", lambda data: unstopped)
    rows = simsiam._matrices(0)[0]
    assert verdict(rows, "Matrices: P^T P") == verdict(rows, "can't fall below") == "fails"
    monkeypatch.setattr(siamese_toy, "matrix_whole", lambda data: still)
    rows = simsiam._matrices(0)[0]
    assert verdict(rows, "without it, it does") == verdict(rows, "|W| ends at 0") == "fails"


def test_a_target_that_is_not_stopped_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def leaky(variant: Any, network: Any, views: tuple[Tensor, Tensor], **options: Any) -> tuple[Tensor, Tensor]:
        z1, z2 = network(views[0]), network(views[1])
        p1, p2 = network.predictor(z1), network.predictor(z2)
        return negative_cosine(p1, z2) / 2 + negative_cosine(p2, z1), z1          # and one half is forgotten

    monkeypatch.setattr(simsiam, "objective", leaky)
    rows = simsiam._losses(0)[0]
    for says in ("Through a stopped target", "Predictor and stop-gradient on both", "where predictions point"):
        assert verdict(rows, says) == "fails"


def test_a_wrong_sign_of_collapse_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simsiam, "channel_std", lambda z: float(z.std(0).mean()))                # lengths left in
    monkeypatch.setattr(simsiam, "effective_rank", lambda z: float(torch.linalg.svdvals(z).count_nonzero()))
    rows = simsiam._signs(0)[0]
    assert verdict(rows, "Spread over the sphere") == verdict(rows, "effective rank") == "fails"


def test_a_figure_is_drawn_from_json(found: Found) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure(figsize=(9, 4))
    draw(figure, json.loads(json.dumps(found.series, allow_nan=False)))
    figure.canvas.draw()
    assert [axes.get_xlabel() for axes in figure.axes] == [r"$\varphi$ (predictor)", "time (rate x steps)"]


def images(*args: Any, **options: Any) -> Images:
    """Ten kinds of noise around ten colours."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(100) % 10
    colours = torch.randint(0, 200, (10, 3, 1, 1), generator=draw)
    noise = torch.randint(0, 56, (100, 3, 8, 8), generator=draw)
    return Images((colours[labels] + noise).to(torch.uint8), labels, tuple("abcdefghij"))


def test_the_full_form_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simsiam, "read_cifar", images)
    whole = full(tmp_path / "whole", data=tmp_path, tell=lambda line: None, size=TINY)
    trained: list[str] = []
    real = simsiam.train

    def until_stopped(network: Any, pixels: Tensor, variant: Any, **options: Any) -> Any:
        if len(trained) == 5:
            raise KeyboardInterrupt
        trained.append(variant)
        return real(network, pixels, variant, **options)

    monkeypatch.setattr(simsiam, "train", until_stopped)
    with pytest.raises(KeyboardInterrupt):
        full(tmp_path / "parts", data=tmp_path, tell=lambda line: None, size=TINY)
    assert len(list((tmp_path / "parts").iterdir())) == 5
    monkeypatch.setattr(simsiam, "train", real)
    lines: list[str] = []
    assert full(tmp_path / "parts", data=tmp_path, tell=lines.append, size=TINY) == whole
    assert sum("(kept)" in line for line in lines) == 5 and len(list((tmp_path / "parts").iterdir())) == 2 * len(VARIANTS)
    figure = pytest.importorskip("matplotlib.figure").Figure(figsize=(9, 4))
    draw(figure, json.loads(json.dumps(whole.series, allow_nan=False)))
    figure.canvas.draw()
    assert len(figure.axes) == 3 and len(whole.rows) == 17
    drawn = images(tmp_path, per_class=10)
    other = Images(drawn.pixels.flip(0), drawn.labels, drawn.names)
    monkeypatch.setattr(simsiam, "read_cifar", lambda data, per_class: other)
    lines.clear()
    full(tmp_path / "parts", data=tmp_path, tell=lines.append, size=TINY)
    full(tmp_path / "parts", data=tmp_path, tell=lines.append, size=replace(TINY, images=60, held=36))
    assert not any("(kept)" in line for line in lines)                # of other images, or of others to train on, nothing is


def test_verdicts_of_the_full_form_follow_what_was_measured() -> None:
    def run(accuracy: float, spread: float) -> dict[str, Any]:
        return {"accuracy": accuracy, "untrained": 0.3, "losses": [0.0, -0.9], "spread": [1.0, spread], "rank": [9.0, 5.0]}

    good, bad = [run(0.40 + 0.001 * one, 0.99) for one in range(3)], [run(0.1 + 0.001 * one, 0.01) for one in range(3)]
    collapsed = ("no stop-gradient", "no stop-gradient, plain heads", "no predictor", "predictor on both sides")
    claimed = {name: bad if name in collapsed else good for name in VARIANTS}
    assert all(row.verdict == "holds" for row in simsiam._compared(claimed, 0.3, Size()).rows)
    planted = {name: good if name in collapsed else bad for name in VARIANTS}
    assert all(row.verdict == "fails" for row in simsiam._compared(planted, 0.3, Size()).rows)


def test_what_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="train_10k.tar"):
        full(tmp_path, tell=lambda line: None)
    with pytest.raises(DataError, match="train_10k.tar: there is no such file"):
        full(tmp_path, data=tmp_path, tell=lambda line: None)
    monkeypatch.setattr(simsiam, "read_cifar", images)
    with pytest.raises(ConfigError, match="100 images; 90"):
        full(tmp_path, data=tmp_path, tell=lambda line: None, size=Size(images=90, held=20))
    with pytest.raises(ConfigError, match="1 seed"):
        full(tmp_path, data=tmp_path, tell=lambda line: None, size=Size(seeds=1))


@pytest.mark.parametrize("seed", [3, 8])
def test_what_is_conserved_is_so_from_steep_starts_too(seed: int) -> None:
    assert all(row.verdict == "holds" for row in simsiam._matrices(seed)[0])
