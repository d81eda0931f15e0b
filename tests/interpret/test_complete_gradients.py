"""Complete gradients: as exact as was asked, with few points on smooth lines and more where F bends, and an honest error where they end."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fishpaw.errors import ConfigError, FishpawError
from fishpaw.interpret.complete_gradients import complete_gradients
from fishpaw.interpret.integrated_gradients import integrated_gradients

torch.set_num_threads(1)


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def smooth(x: Tensor) -> Tensor:
    return (x @ draw(5, 7)).tanh().prod(1).mul(50) + x[:, 0] * x[:, 1].exp()


def step(x: Tensor) -> Tensor:
    """Nearly all of its change lies in a fiftieth of the way from 0, in the middle of it."""
    return ((x @ draw(5) - 0.37 * (draw(5, seed=2) @ draw(5))) * 150).sigmoid() + 0.1 * smooth(x)


@pytest.mark.parametrize("f", [smooth, step])
@pytest.mark.parametrize("within", [1e-2, 1e-4, 1e-6])
def test_values_add_up_as_well_as_was_asked_and_each_of_them_is_right(f, within):
    x = draw(5, seed=2)
    found = complete_gradients(f, x, within=within)
    fine = integrated_gradients(f, x, points=1500, rows=1500)
    assert found.relative <= within and (found.at_input, found.at_baseline) == (fine.at_input, fine.at_baseline)
    assert float((found.values - fine.values).abs().max()) <= 3 * within * abs(fine.at_input - fine.at_baseline)


def test_points_are_taken_where_they_are_missing():
    x, places = draw(5, seed=2), []

    def counted(rows: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            places.extend((rows[:, 0] / x[0]).tolist())
        return step(rows)

    found = complete_gradients(counted, x, within=1e-4)
    assert found.points == len(places) and sum(abs(place - 0.37) < 0.1 for place in places) > 0.5 * len(places)
    same = integrated_gradients(step, x, points=found.points)
    assert same.relative > 10 * found.relative                       # spread over the whole line they don't do
    assert complete_gradients(lambda rows: rows.square().sum(1), x).points == 12


def test_a_score_that_swings_on_the_way_is_followed():
    """Three turns between baseline and input; each value is right, not only their sum."""
    def f(rows: Tensor) -> Tensor:
        return (20 * rows[:, 0]).sin() * rows[:, 1]

    x = torch.tensor([1.0, 1.0], dtype=torch.float64)
    fine = integrated_gradients(f, x, points=400, rows=400)
    found = complete_gradients(f, x, within=1e-5)
    torch.testing.assert_close(found.values, fine.values, atol=1e-4, rtol=0)
    planted = integrated_gradients(f, x, points=6)
    assert (planted.values - fine.values).abs().max() > 1e-2


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_batches_of_points_change_nothing(rows):
    x = draw(5, seed=2)
    sizes = []

    def counted(part: Tensor) -> Tensor:
        sizes.append(len(part))
        return step(part)

    torch.testing.assert_close(complete_gradients(counted, x, rows=rows).values, complete_gradients(step, x, rows=7).values,
                               atol=1e-12, rtol=0)
    assert max(sizes) <= rows


def test_where_the_points_end_the_error_is_told():
    x = draw(5, seed=2)
    found = complete_gradients(step, x, within=1e-9, most=30)
    assert found.points <= 30 and found.relative > 1e-9


def test_rounding_is_not_chased_and_no_change_ends_at_once():
    x = draw(5, seed=2).float()
    assert complete_gradients(lambda rows: rows.square().sum(1) + 1000, x, within=1e-12).points == 12
    assert complete_gradients(smooth, x.double(), baseline=x.double()).points == 12


def test_gradients_that_are_no_numbers_are_an_error_and_no_answer():
    """Their sum would be NaN, which no bound finds: F is 0 everywhere, its gradient 0 x inf."""
    with pytest.raises(FishpawError, match="gradients are not finite"):
        complete_gradients(lambda rows: (rows * 0).sqrt().sum(1), draw(5))


@pytest.mark.parametrize("change", [{"within": 0}, {"within": 1}, {"most": 11}, {"rows": 0}, {"baseline": torch.zeros(3)}])
def test_what_cannot_be_is_refused(change):
    with pytest.raises(ConfigError):
        complete_gradients(smooth, draw(5), **change)
