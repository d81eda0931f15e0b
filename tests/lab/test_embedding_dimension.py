"""The analysis of n > 8.33 ln N: rows that hold, faults that turn them, the calculator, and a full form that goes on where it was left."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pytest
import torch

from fishpaw.errors import ConfigError, DataError
from fishpaw.lab import embedding_dimension, skip_gram
from fishpaw.lab.embedding_dimension import Size, dimension, draw, excess, excess_by_angles, full, log_bessel, root
from fishpaw.lab.findings import Found

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def found() -> Found:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding_dimension, "_DRAWS", 3)
        patch.setattr(embedding_dimension, "_FEW", 2)
        return embedding_dimension.measure()


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors of 50 words in the place of 2,000: what is looked at isn't they."""
    for name, value in (("_WORDS", 50), ("_DRAWS", 2), ("_FEW", 2)):
        monkeypatch.setattr(embedding_dimension, name, value)


def failing(result: Found) -> set[str]:
    return {row.claim.en for row in result.rows if row.verdict == "fails"}


def test_what_is_mathematical_holds(found: Found) -> None:
    rows = [row for row in found.rows if row.interval is None]
    assert len(rows) == 19 and all(row.verdict == "holds" for row in rows), failing(found)
    assert not failing(found) and sum(row.interval is not None for row in found.rows) == 4


def test_measuring_again_finds_the_same(cheap: None) -> None:
    assert embedding_dimension.measure(seed=3) == embedding_dimension.measure(seed=3) != embedding_dimension.measure(seed=4)


def test_a_wrong_exponent_of_the_density_turns_the_table(cheap: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_dimension, "excess", lambda n: excess_by_angles(n + 1) + 0.0)      # sin^(n-1)
    turned = failing(embedding_dimension.measure())
    assert {"h_32", "h_512", "the closed form against a sum over angles, n up to 2048", "N = 10000: the n of entropy 0"} <= turned


def test_a_lost_sign_or_a_lost_term_turns_its_rows(cheap: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_dimension, "excess", lambda n: -excess(n))
    monkeypatch.setattr(embedding_dimension, "root", lambda vocabulary: 8.33 * math.log(vocabulary))
    turned = failing(embedding_dimension.measure())
    assert {"h_512 / 512, printed as 0.24 without its sign", "the limit of h_n / n, -(1/2) ln phi",
            "N = 100000: the n of entropy 0"} <= turned  # fmt: skip


def test_rounding_down_turns_the_dimensions_to_take(cheap: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_dimension, "dimension", lambda vocabulary: math.floor(root(vocabulary)))
    assert "N = 100000: dimensions to take" in failing(embedding_dimension.measure())


def test_vectors_of_the_wrong_length_have_another_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_DRAWS", 2), ("_FEW", 2)):
        monkeypatch.setattr(embedding_dimension, name, value)
    true = embedding_dimension.entropy_of_samples
    monkeypatch.setattr(embedding_dimension, "entropy_of_samples", lambda n, generator: true(max(2, n // 2), generator))
    assert "entropy of 2000 random vectors, n = 16: as the formula" in failing(embedding_dimension.measure())


@pytest.mark.parametrize("n", [2.5, 5, 32, 127, 700, 1024])
def test_the_closed_form_is_the_integral(n: float) -> None:
    error = 1e-5 if n < 4 else 1e-9                                   # midpoints: sin^(n-2) has a kink at its ends for n < 4
    assert excess(n) == pytest.approx(excess_by_angles(n), abs=error)
    naive = torch.tensor(float(n), dtype=torch.float64).exp()
    assert math.isfinite(excess(2 * n)) and bool(naive.isfinite()) == (n < 710)


@pytest.mark.parametrize(("order", "x"), [(0.0, 0.5), (0.5, 3.0), (1.5, 5.0), (15, 32.0), (63.0, 127.0), (255.5, 512.0), (999.0, 2000.0)])
def test_the_bessel_function_is_scipy_s(order: float, x: float) -> None:
    special = pytest.importorskip("scipy.special")
    assert log_bessel(order, x) == pytest.approx(math.log(special.ive(order, x)) + x, abs=1e-9)


def test_the_bessel_function_keeps_its_recurrence_and_known_values() -> None:
    assert log_bessel(0.5, 2.0) == pytest.approx(math.log(math.sinh(2) / math.sqrt(math.pi)), abs=1e-14)
    for order, x in ((3.0, 7.0), (11.5, 31.0)):                       # I_(v-1) - I_(v+1) = (2 v / x) I_v
        low, middle, high = (math.exp(log_bessel(order + step, x)) for step in (-1, 0, 1))
        assert low - high == pytest.approx(2 * order / x * middle, rel=1e-12)


def test_the_calculator_rounds_up_and_grows() -> None:
    assert [dimension(n) for n in (10_000, 100_000, 5_000_000)] == [77, 96, 128]
    values = [dimension(n) for n in (2, 3, 10, 100, 1000, 21_128, 10**9)]
    assert values == sorted(values) and values[0] >= 1
    for n in (2, 97, 21_128):
        least = dimension(n)
        assert 2 * math.log(n) + excess(least) <= 0 < 2 * math.log(n) + excess(least - 1)
    for wrong in (1, 0, -5, 2.0, "100", True):
        with pytest.raises(ConfigError, match="vocabulary"):
            dimension(wrong)  # type: ignore[arg-type]  # that is the test


SMALL = Size(letters=3000, least=1, dimensions=(2, 4, 8), seeds=2, steps=4, batch=16, held=50)


def corpus(folder: Path) -> Path:
    """Thirty records of 97 characters, drawn."""
    at = folder / "corpus" / "laws_lawrefbook"
    at.mkdir(parents=True)
    drawn = torch.randint(0x4E00, 0x4E40, (30, 97), generator=torch.Generator().manual_seed(0)).tolist()
    lines = [json.dumps({"text": "".join(map(chr, one))}, ensure_ascii=False) for one in drawn]
    with gzip.open(at / "docs.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    return folder


def test_the_full_form_resumes_part_by_part(cheap: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, told = corpus(tmp_path / "data"), []
    whole = full(tmp_path / "whole", data=data, tell=told.append, size=SMALL)
    assert len(whole.rows) == len(embedding_dimension.measure().rows) + 2 and len(whole.series["losses"]) == 2
    assert len([line for line in told if "held-out loss" in line]) == 6

    trained, true = [], skip_gram.train

    def stopped(text: skip_gram.Characters, size: int, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(size)
        return true(text, size, **options)  # type: ignore[arg-type]  # passed on as it is

    monkeypatch.setattr(skip_gram, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        full(tmp_path / "half", data=data, tell=told.append, size=SMALL)
    monkeypatch.setattr(skip_gram, "train", true)
    assert full(tmp_path / "half", data=data, tell=told.append, size=SMALL) == whole
    assert [line.endswith("(kept)") for line in told if "held-out loss" in line][-6:] == [True] * 3 + [False] * 3

    read = skip_gram.characters
    monkeypatch.setattr(skip_gram, "characters", lambda *given, **options: pytest.fail("nothing is left to read"))
    assert full(tmp_path / "half", data=data, tell=told.append, size=SMALL) == whole
    monkeypatch.setattr(skip_gram, "characters", read)
    path = data / "corpus" / "laws_lawrefbook" / "docs.jsonl.gz"
    path.write_bytes(path.read_bytes() + gzip.compress(b'{"text": "\xe6\x96\xb0"}\n'))
    full(tmp_path / "half", data=data, tell=told.append, size=SMALL)
    assert not any(line.endswith("(kept)") for line in [line for line in told if "held-out loss" in line][-6:])


def test_the_full_form_needs_its_text(tmp_path: Path) -> None:
    for data in (None, tmp_path):
        with pytest.raises(DataError, match=r"corpus/laws_lawrefbook|docs\.jsonl\.gz"):
            full(tmp_path / "keep", data=data, tell=lambda line: None, size=SMALL)


def test_the_share_of_the_gain_is_read_off_between_sizes(cheap: None) -> None:
    quick = embedding_dimension.measure()
    about = {"vocabulary": 100, "unigram": [6.0, 6.0]}                # the rule's n is 38
    flat = embedding_dimension._with_losses(quick, (8, 32, 64), [[5.0, 4.0, 4.0], [5.1, 4.1, 4.1]], about)
    late = embedding_dimension._with_losses(quick, (8, 32, 64), [[5.0, 4.9, 4.0], [5.1, 5.0, 4.1]], about)
    assert (flat.rows[-2].measured, flat.rows[-2].verdict) == (1.0, "holds") and late.rows[-2].verdict == "fails"
    expected = 0.1 + 0.9 * math.log(flat.series["rule"] / 32) / math.log(2)
    assert late.rows[-2].measured == pytest.approx(expected, abs=1e-12) and flat.rows[-1].measured == pytest.approx(1.95)


def test_the_figures_are_drawn_from_a_record(found: Found) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    about = {"vocabulary": 100, "unigram": [6.0, 6.0]}
    whole = embedding_dimension._with_losses(found, (8, 32, 64), [[5.0, 4.0, 4.0], [5.1, 4.1, 4.1]], about)
    for result, count in ((found, 2), (whole, 3)):
        figure = Figure(figsize=(9, 4))
        FigureCanvasAgg(figure)
        draw(figure, json.loads(json.dumps(result.series, allow_nan=False)))
        figure.canvas.draw()
        assert len(figure.axes) == count and all(axes.get_xlabel() and axes.get_ylabel() and axes.lines for axes in figure.axes)
