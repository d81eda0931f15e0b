"""One process is a team without others; what several are asked for is checked."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from fishpaw.errors import ConfigError
from fishpaw.train.team import Team, company, leads

CPU = torch.device("cpu")


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


def test_one_process_is_alone_whatever_the_scheduler_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")                            # of something else: torchrun sets more
    assert type(company("sharded", CPU)) is Team
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert type(company("replicated", CPU)) is Team


def test_another_way_is_refused() -> None:
    wrong: Any = "split"
    with pytest.raises(ConfigError, match="parallel is 'split'"):
        company(wrong, CPU)


def test_several_processes_on_another_device_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with pytest.raises(ConfigError, match="can't train on the device 'mps'"):
        company("replicated", torch.device("mps"))


def test_the_loop_does_not_load_what_one_process_does_without() -> None:
    code = "import sys, fishpaw.train.loop; print('fishpaw.train.distributed' in sys.modules, 'torch.distributed.fsdp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["False", "False"]


def test_a_forward_is_the_loss_of_the_model() -> None:
    model = nn.Linear(3, 2)
    forward = Team().prepare(model, lambda given, batch: (given(batch).sum(), 4))
    total, count = forward(torch.ones(5, 3), True)
    assert count == 4 and torch.equal(total, model(torch.ones(5, 3)).sum())


def test_the_first_process_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert leads()                                                   # of something else
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert not leads()
    monkeypatch.setenv("RANK", "0")
    assert leads()
