"""Two processes train as one: equal, however they are killed, stopped or fail. The runs are in together.py, each in a fresh Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn

from fishpaw.config import ModelConfig
from fishpaw.model.transformer import Transformer
from fishpaw.train.distributed import _units, _used, own_device

SCRIPT = Path(__file__).with_name("together.py")
forked = [
    pytest.mark.skipif(not hasattr(os, "fork") or not distributed.is_gloo_available(), reason="needs fork and torch with gloo"),
    pytest.mark.skipif(not Path("/sys/class/net/lo").exists(), reason="needs the loopback device by its Linux name"),
]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def answers(*scenarios: str) -> dict[str, Any]:
    command = [sys.executable, str(SCRIPT), *scenarios]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def applied(test: Any) -> Any:
    for mark in forked:
        test = mark(test)
    return test


@applied
@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("lamb", marks=pytest.mark.slow)])
def test_two_processes_are_one_and_a_mean_of_means_is_not(optimizer: str) -> None:
    """50 steps in fp32; batches of 5 rows and one, of 2 to 16 tokens; a head that rows of only one process may ask, one that none asks."""
    found = answers(f"equal_{optimizer}")[f"equal_{optimizer}"]
    for way in ("replicated", "sharded"):
        assert found[way]["codes"] == [0, 0], found[way]["said"]
        assert found[way]["gap"] < 1e-5                              # seen: 2e-7 (AdamW), 3e-6 (LAMB), rounding of sums
        assert found[way]["result"][:2] == [50, None]
    assert optimizer == "lamb" or found["planted"] > 1e-3
    still = {name for name, moved in found["moved"].items() if moved == 0}
    assert still == {"heads.nsp.dense.weight", "heads.nsp.dense.bias"}       # without gradient, without decay


@applied
def test_a_run_that_was_killed_goes_on_with_another_number_of_processes() -> None:
    for name, case in answers("killed")["killed"].items():
        if name == "seconds":
            continue
        *others, dead = case["first"]["codes"]
        assert dead == -9 and all(code == 2 for code in others), (name, case)
        assert case["first"]["said"].count("another process of this run is gone") == len(others) == case["first"]["said"].count("\n")
        assert (case["codes"], case["resumed"]) == ([0] * len(case["codes"]), 6), (name, case)
        assert case["gap"] < 1e-5, (name, case)


@applied
def test_signals_stop_all_after_the_same_step_and_draws_go_on_to_the_same_bits() -> None:
    found = answers("stopped", "drawn", "disagreeing")
    for name, number in (("SIGTERM", 15), ("SIGINT", 2)):
        case = found["stopped"][name]
        assert case["codes"] == [128 + number] * 2 and case["said"] == "" and case["gap"] == 0
        assert (case["event"]["event"], case["event"]["step"], case["event"]["signal"]) == ("stop", 5, number)
    assert found["drawn"]["same"] == [True] * 4
    assert found["disagreeing"]["codes"] == [2, 2]
    assert found["disagreeing"]["said"].startswith("Process 1 has another run than process 0: data: digest was 0, now 1.")
    assert found["disagreeing"]["said"].count("\n") == 1


@applied
def test_what_a_model_remembers_beside_its_weights_is_the_leaders() -> None:
    assert answers("redrawn")["redrawn"]["gap"] == 0


@applied
def test_an_error_in_one_process_ends_both_with_one_sentence() -> None:
    found = answers("failing")["failing"]
    for name, says in (("nan", "Step 5: the loss is nan (examples"), ("replicated", "Example 11 is bad. Mend it."),
                       ("sharded", "Example 11 is bad."), ("muon", "Muon needs whole matrices"), ("lazy", "Lazy needs whole")):  # fmt: skip
        assert found[name]["codes"] == [2, 2] and found[name]["said"].startswith(says), found[name]
        assert found[name]["said"].count("\n") == 1
    assert found["event"]["event"] == "fail" and found["event"]["examples"] == found["rows"]
    assert found["again"]["codes"] == [0, 0]                         # from the state before that step


def test_layers_are_units_unless_they_share_with_the_rest() -> None:
    config = ModelConfig(vocab_size=3, hidden_size=6, layers=2, attention_heads=1, intermediate_size=5, heads=("lm",))
    model = Transformer(config)
    assert _units(model) == [model.layers[1], model.layers[0]]
    model.layers[0].register_parameter("table", model.table)
    assert _units(model) == [model.layers[1]]
    assert _units(nn.Linear(3, 2)) == []


def test_used_is_what_a_gradient_reaches() -> None:
    one, two, idle = (torch.ones(3, requires_grad=True) for _ in range(3))
    assert _used((one * two.exp()).sum() + idle.detach().sum()) == {id(one), id(two)}


def test_a_process_owns_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert own_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert own_device() == torch.device("cuda", 3)
