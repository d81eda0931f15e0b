"""Deletion and insertion: curves by hand, and integrated gradients against chance on a model whose decisive parts are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fishpaw.errors import ConfigError, FishpawError
from fishpaw.interpret.faithfulness import deletion, insertion
from fishpaw.interpret.gradients import gradient_times_input
from fishpaw.interpret.integrated_gradients import integrated_gradients, summed

torch.set_num_threads(1)


def total(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)


def planted_model(x: Tensor) -> Tensor:
    """x [b 11 3] -> [b]: parts 2 and 7 decide, part 4 speaks against, the others hardly matter; saturated, so that gradients vanish."""
    weight = torch.full((11,), 0.01).double()
    weight[[2, 7]], weight[4] = 4.0, -3.0
    return (x.sum(-1) @ weight).sigmoid()


def test_curves_by_hand():
    x = torch.tensor([1.0, 5.0, -2.0])
    away, back = deletion(total, x, x), insertion(total, x, x)
    assert away.shares == back.shares == (0, 1 / 3, 2 / 3, 1)
    assert away.scores == (4, -1, -2, 0) and back.scores == (0, 5, 6, 4)
    assert away.area == pytest.approx((1.5 - 1.5 - 1) / 3) and back.area == pytest.approx((2.5 + 5.5 + 5) / 3)
    with pytest.raises(FishpawError, match="scores of the parts are not finite"):
        deletion(total, x, x * float("nan"))
    wrong = deletion(total, x, -x)                                   # planted: the order turned round
    assert wrong.scores == (4, 6, 5, 0) and wrong.area > away.area


def test_parts_are_rows_of_x_and_what_replaces_them_is_the_baseline():
    x, start = torch.arange(6.0).view(3, 2), torch.full((3, 2), 10.0)
    found = deletion(total, x, torch.tensor([0.0, 2.0, 1.0]), baseline=start)
    assert found.scores == (15, 15 - 5 + 20, 15 - 5 - 9 + 40, 60)
    each = deletion(total, x, torch.tensor([[0.0, 5.0], [1.0, 2.0], [3.0, 4.0]]), baseline=start)
    assert len(each.scores) == 7 and each.scores[1] == 15 - 1 + 10 and each.scores[-1] == 60


def test_equal_scores_go_from_the_first_on_and_batches_change_nothing():
    x = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    alone = deletion(total, x, torch.zeros(5), rows=1)
    assert alone.scores == (31, 30, 28, 24, 16, 0) and all(deletion(total, x, torch.zeros(5), rows=rows) == alone for rows in (2, 64))


def test_fewer_steps_are_some_of_all():
    x = torch.rand(13, generator=torch.Generator().manual_seed(3))
    every, some = insertion(total, x, x), insertion(total, x, x, steps=4)
    held = dict(zip(every.shares, every.scores, strict=True))
    assert some.shares == (0, 3 / 13, 6 / 13, 10 / 13, 1)            # rounded, ties to even
    assert all(held[share] == pytest.approx(score) for share, score in zip(some.shares, some.scores, strict=True))
    assert insertion(total, x, x, steps=99) == every


def test_integrated_gradients_beat_chance_and_the_plain_gradient_on_a_planted_model():
    draw = torch.Generator().manual_seed(5)
    x = torch.rand(11, 3, dtype=torch.float64, generator=draw) + 0.5
    values = integrated_gradients(planted_model, x)
    scores = summed(values.values)
    assert set(scores.topk(2).indices.tolist()) == {2, 7} and int(scores.argmin()) == 4 and values.relative < 1e-6
    areas = {"deletion": deletion(planted_model, x, scores).area, "insertion": insertion(planted_model, x, scores).area}
    chance = [torch.randperm(11, generator=draw).double() for _ in range(40)]
    for name, curve, sign in (("deletion", deletion, 1), ("insertion", insertion, -1)):
        others = [sign * curve(planted_model, x, one).area for one in chance]
        assert sign * areas[name] <= min(others) and sign * areas[name] < sum(others) / 40 - 0.1
        assert sign * curve(planted_model, x, -scores).area > sum(others) / 40                              # planted: the sign turned round
    plain = summed(gradient_times_input(planted_model, x).values)
    assert plain.abs().max() < 0.05 * scores.abs().max()             # saturated: the gradient says that nothing matters


@pytest.mark.parametrize("call", [
    lambda x: deletion(total, x, torch.zeros(4)), lambda x: deletion(total, x, torch.tensor(1.0)),
    lambda x: deletion(total, x, x, steps=0), lambda x: insertion(total, x, x, rows=0), lambda x: insertion(total, x.long(), x),
    lambda x: insertion(total, x, x, baseline=torch.zeros(2)), lambda x: deletion(lambda rows: rows, x, x),
])  # fmt: skip
def test_what_cannot_be_is_refused(call):
    with pytest.raises(ConfigError):
        call(torch.ones(3))
