"""One process is a team without others."""

from __future__ import annotations

import numpy
import pytest
import torch
from torch import nn

from fishpaw.errors import ConfigError
from fishpaw.train.team import Team


def test_alone_everything_is_ones_own() -> None:
    team, rows, value = Team(), numpy.arange(5), torch.randn(3, dtype=torch.float64)
    assert team.share(rows) is rows and team.sum([0.1, 2.5]) == [0.1, 2.5] and team.most(7) == 7
    assert team.every("a") == ["a"] and team.told(3.5) == 3.5 and team.whole(value) is value and team.leader
    assert team.spread(value, shape=value.shape, dtype=value.dtype, like=value) is value
    state = torch.get_rng_state()
    team.stir(3, 4)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ConfigError, match="once"):
        team.fail(ConfigError("once.", fix="again"))


def test_a_forward_is_the_loss_of_the_model() -> None:
    model = nn.Linear(3, 2)
    forward = Team().prepare(model, lambda given, batch: (given(batch).sum(), 4))
    total, count = forward(torch.ones(5, 3), True)
    assert count == 4 and torch.equal(total, model(torch.ones(5, 3)).sum())
