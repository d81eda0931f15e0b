"""One process is alone, torchrun's are together; what several are asked for is checked."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from fishpaw.errors import ConfigError
from fishpaw.train.launch import company, leads
from fishpaw.train.team import Team

CPU = torch.device("cpu")


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


def test_the_first_process_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert leads()                                                   # of something else
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert not leads()
    monkeypatch.setenv("RANK", "0")
    assert leads()
