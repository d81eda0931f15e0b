"""Adafactor by the paper's formula, and how little state it has."""

from __future__ import annotations

from pathlib import Path
from runpy import run_path

import torch
from torch import Tensor

from fishpaw.optim.adafactor import adafactor

torch.set_num_threads(1)
SMALL = run_path(str(Path(__file__).with_name("small.py")))
net, fill, weights, gap = (SMALL[name] for name in ("net", "fill", "weights", "gap"))


def size(value: Tensor) -> float:
    return float((value**2).mean().sqrt())


def test_adafactor_is_the_papers_algorithm() -> None:
    model, theta = net(), weights(net())
    rows: dict[str, Tensor] = {}
    columns: dict[str, Tensor] = {}
    optimizer = adafactor(model, learning_rate=0.5)
    for t in range(1, 12):
        fill(model, t, rows=range(7))
        keep = 1 - t**-0.8
        for name, p in model.named_parameters():
            assert p.grad is not None
            square = p.grad**2
            if p.ndim == 1:
                rows[name] = keep * rows.get(name, torch.zeros(())) + (1 - keep) * square
                v = rows[name]
            else:
                rows[name] = keep * rows.get(name, torch.zeros(())) + (1 - keep) * square.mean(1)
                columns[name] = keep * columns.get(name, torch.zeros(())) + (1 - keep) * square.mean(0)
                v = torch.outer(rows[name], columns[name]) / rows[name].mean()
            u = p.grad / v.sqrt()
            theta[name] = theta[name] - max(1e-3, size(theta[name])) * min(0.5, t**-0.5) * u / max(1.0, size(u))
        optimizer.step()
    assert gap(weights(model), theta) < 1e-9
    held = sum(value.numel() for state in optimizer.state.values() for key, value in state.items() if key != "step")
    assert held == (7 + 5) + (3 + 5) + 5 + 5 + 3


def test_decay_is_decoupled() -> None:
    model, other = net(), net()
    fill(model, 0)
    fill(other, 0)
    adafactor(model, learning_rate=0.1, weight_decay=0.3).step()
    adafactor(other, learning_rate=0.1).step()
    moved = other.get_parameter("inner.weight").detach() - model.get_parameter("inner.weight").detach()
    assert float((moved - 0.03 * net().get_parameter("inner.weight").detach()).abs().max()) < 0.02       # the step follows the decayed size
    assert torch.equal(model.get_parameter("inner.bias"), other.get_parameter("inner.bias"))
