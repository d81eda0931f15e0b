"""GAN: every row holds; planted faults turn them; figures; the full form at a tiny size, stopped and gone on with."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv_transpose1d

from fishpaw.errors import ConfigError, DataError
from fishpaw.lab import gan
from fishpaw.lab.findings import Found
from fishpaw.lab.gan import Size, draw, full, measure
from fishpaw.lab.gan_networks import SelfMod, generator
from fishpaw.lab.images import Images

torch.set_num_threads(1)
TINY = Size(images=64, judged=64, steps=2, points=1, seeds=2, width=2, z=3, batch=16, epochs=1)


@pytest.fixture(scope="module")
def found() -> Found:
    return measure()


def verdict(rows, words: str) -> str:
    rows = [row for row in rows if words in row.claim.en]
    assert len(rows) == 1, words
    return rows[0].verdict


def test_every_row_holds_and_has_both_languages(found: Found) -> None:
    assert [row.claim.en for row in found.rows if row.verdict != "holds"] == []
    assert len(found.rows) == 24 and all(row.claim.en and row.claim.zh and row.interval is None for row in found.rows)


def test_other_seeds_hold_too_and_the_same_seed_is_the_same(found: Found) -> None:
    state = torch.get_rng_state()
    assert measure() == found and torch.equal(torch.get_rng_state(), state)
    other = measure(seed=1)
    assert all(row.verdict == "holds" for row in other.rows) and other != found


def test_overlaps_are_counted_by_a_loop_too() -> None:
    for kernel in (3, 4, 5):
        written = [0] * 60
        for place in range(25):
            for tap in range(kernel):
                written[2 * place + tap] += 1
        assert set(gan._overlap(kernel, 2).tolist()) == set(map(float, written[10:40]))


def test_a_wrong_stride_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gan, "conv_transpose1d", lambda x, kernel, stride: conv_transpose1d(x.repeat(1, 1, 2), kernel, stride=1))
    assert {row.verdict for row in gan._overlaps()[0][:6]} == {"fails"}


def test_modulation_without_the_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare(SelfMod):
        def forward(self, hidden: Tensor, z: Tensor) -> Tensor:
            return self.norm(hidden) * self.gamma(z)[:, :, None, None] + self.beta(z)[:, :, None, None]

    class Shared(SelfMod):                                            # of the batch, not of each image: AdaIN it isn't
        pass

    monkeypatch.setattr(gan, "SelfMod", Bare)
    monkeypatch.setattr(gan, "AdaIN", Shared)
    rows = gan._modulation()
    for says in ("SELF-MOD whose last", "AdaIN: each", "deviation"):
        assert verdict(rows, says) == "fails"


def test_a_norm_that_is_not_the_largest_singular_value_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def scaled(factor: float):
        def normed(module: nn.Module) -> nn.Module:
            with torch.no_grad():
                module.weight.mul_(factor / torch.linalg.matrix_norm(module.weight.flatten(1)))
            return module
        return normed

    monkeypatch.setattr(gan, "spectral_norm", scaled(1.0))                       # Frobenius: too much is divided away
    assert verdict(gan._spectral(1), "largest singular value") == "fails"
    monkeypatch.setattr(gan, "spectral_norm", scaled(40.0))
    rows = gan._spectral(1)
    for says in ("slope is 1 at most", "still stretch by 3", "kernel / stride"):
        assert verdict(rows, says) == "fails"


def test_a_wrong_penalty_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def squared(critic, real: Tensor, fake: Tensor) -> Tensor:
        points = fake.requires_grad_()
        return torch.autograd.grad(critic(points).sum(), points)[0].flatten(1).norm(dim=1).square().mean()

    monkeypatch.setattr(gan, "gradient_penalty", squared)
    assert {row.verdict for row in gan._penalty()} == {"fails"}


def test_a_wrong_distance_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(mean: Tensor, covariance: Tensor, other: Tensor, second: Tensor) -> float:
        return float((mean - other).square().sum() + (covariance - second).square().sum())

    monkeypatch.setattr(gan, "distance", plain)
    monkeypatch.setattr(gan, "between_sets", lambda one, two: float((one - two).square().sum(1).mean()))
    rows = gan._frechet()
    assert verdict(rows, "two Gaussians") == verdict(rows, "Not 0 for two samples") == "fails"


def test_costs_are_of_the_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gan, "generator", lambda name, **options: generator("dcgan" if name == "resnet" else "resnet", **options))
    rows = gan._costs()[0]
    assert verdict(rows, "1 / 1.5 of ResNet's") == verdict(rows, "as many activations") == "fails"


def test_a_figure_is_drawn_from_json(found: Found) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure(figsize=(9, 4))
    draw(figure, json.loads(json.dumps(found.series, allow_nan=False)))
    figure.canvas.draw()
    assert len(figure.axes) == 4 and len(found.series["costs"]) == 6


def test_the_largest_singular_value_is_found_where_the_next_is_close() -> None:
    torch.manual_seed(6)                                               # 1.0011 after 50 iterations
    assert all(row.verdict == "holds" for row in gan._spectral())


def images(*args: Any, **options: Any) -> Images:
    """Noise of ten lightnesses."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(140) % 10
    pixels = torch.randint(0, 56, (140, 1, 28, 28), generator=draw) + 20 * labels.view(-1, 1, 1, 1)
    return Images(pixels.to(torch.uint8), labels, tuple("0123456789"))


def timeless(found: Found) -> tuple[Any, Any]:
    return [row for row in found.rows if "takes 1.5 times" not in row.claim.en], found.series


def test_the_full_form_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gan, "read_mnist", images)
    whole = full(tmp_path / "whole", data=tmp_path, tell=lambda line: None, size=TINY)
    calls: list[int] = []
    real = gan.train

    def until_stopped(*args: Any, **options: Any) -> Any:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*args, **options)

    monkeypatch.setattr(gan, "train", until_stopped)
    with pytest.raises(KeyboardInterrupt):
        full(tmp_path / "parts", data=tmp_path, tell=lambda line: None, size=TINY)
    assert len(list((tmp_path / "parts").iterdir())) == 4             # the classifier, too
    monkeypatch.setattr(gan, "train", real)
    monkeypatch.setattr(gan, "classify", None)                        # isn't trained again
    lines: list[str] = []
    again = full(tmp_path / "parts", data=tmp_path, tell=lines.append, size=TINY)
    assert timeless(again) == timeless(whole) and sum("(kept)" in line for line in lines) == 3
    assert len(whole.rows) == 10 and whole.series["steps"] == [0, 2]
    figure = pytest.importorskip("matplotlib.figure").Figure(figsize=(9, 4))
    draw(figure, json.loads(json.dumps(whole.series, allow_nan=False)))
    figure.canvas.draw()
    assert len(figure.axes) == 4
    drawn = images(tmp_path)
    monkeypatch.setattr(gan, "read_mnist", lambda data: Images(drawn.pixels.flip(0), drawn.labels, drawn.names))
    with pytest.raises(TypeError, match="NoneType"):                  # of other images the classifier is trained again
        full(tmp_path / "parts", data=tmp_path, tell=lines.append, size=TINY)


def test_colour_images_train_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grey = images()
    monkeypatch.setattr(gan, "read_cifar", lambda data, per_class: Images(grey.pixels.expand(-1, 3, -1, -1), grey.labels, grey.names))
    found = full(tmp_path, data=tmp_path, tell=lambda line: None, size=Size(**{**vars(TINY), "kind": "cifar", "side": 32}))
    grid = found.series["grids"]["dcgan"]
    assert grid["shape"] == [64, 32, 32, 3] and len(base64.b64decode(grid["base64"])) == 64 * 32 * 32 * 3
    figure = pytest.importorskip("matplotlib.figure").Figure(figsize=(9, 4))
    draw(figure, found.series)


def test_verdicts_of_the_full_form_follow_what_was_measured() -> None:
    def run(last: float, seconds: float, reached: int) -> dict[str, Any]:
        distances = [99.0, last if reached == 1 else 50.0, last]
        return {"steps": [0, 10, 20], "distances": distances, "seconds_per_step": seconds, "grid": {}}

    first = {"accuracy": 0.97, "real": 1.0, "noise": 100.0}
    good = {"dcgan": [run(6 + 0.1 * one, 1.0, 2) for one in range(3)], "resnet": [run(5 + 0.1 * one, 2.0, 2) for one in range(3)],
            "self-mod": [run(4 + 0.1 * one, 1.0, 1) for one in range(3)]}  # fmt: skip
    assert [row.verdict for row in gan._compared(good, first, Size()).rows] == ["holds"] * 10
    bad = {"dcgan": [run(40 + 0.1 * one, 1.0, 2) for one in range(3)], "resnet": [run(30 + 0.1 * one, 1.2, 2) for one in range(3)],
           "self-mod": [run(60 + 0.1 * one, 1.0, 2) for one in range(3)]}  # fmt: skip
    rows = gan._compared(bad, {**first, "accuracy": 0.5, "real": 80.0}, Size()).rows
    assert [row.verdict for row in rows] == ["fails"] * 10


def test_what_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="t10k-images"):
        full(tmp_path, tell=lambda line: None)
    with pytest.raises(DataError, match="train_10k.tar: there is no such file"):
        full(tmp_path, data=tmp_path, tell=lambda line: None, size=Size(kind="cifar"))
    monkeypatch.setattr(gan, "read_mnist", images)
    with pytest.raises(ConfigError, match="140 images"):
        full(tmp_path, data=tmp_path, tell=lambda line: None)
    with pytest.raises(ConfigError, match="1 seed"):
        full(tmp_path, data=tmp_path, tell=lambda line: None, size=Size(seeds=1))
