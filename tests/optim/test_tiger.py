"""Tiger by its formula, and, without its scale, against pytorch_optimizer."""

from __future__ import annotations

from pathlib import Path
from runpy import run_path

import pytest
import torch
from torch import Tensor

from fishpaw.optim.derive import derive
from fishpaw.optim.lion import Lion
from fishpaw.optim.tiger import tiger
from fishpaw.optim.transforms import WeightDecay

torch.set_num_threads(1)
SMALL = run_path(str(Path(__file__).with_name("small.py")))
net, fill, train, weights, gap = (SMALL[name] for name in ("net", "fill", "train", "weights", "gap"))


def scale(name: str, value: Tensor) -> Tensor | float:
    if value.ndim <= 1:
        return 0.5
    return (value**2).mean(-1, keepdim=True).sqrt() if name == "embedding.weight" else (value**2).mean().sqrt()


def test_tiger_is_its_formula() -> None:
    model, theta = net(), weights(net())
    momenta = {name: torch.zeros_like(value) for name, value in theta.items()}
    optimizer = tiger(model, learning_rate=0.01, weight_decay=0.3)
    for step in range(9):
        fill(model, step)
        for name, p in model.named_parameters():
            assert p.grad is not None
            momenta[name] = 0.965 * momenta[name] + 0.035 * p.grad
            decay = 0.3 * theta[name] if p.ndim > 1 else 0
            theta[name] = theta[name] - 0.01 * scale(name, theta[name]) * (momenta[name].sign() + decay)
        optimizer.step()
    assert gap(weights(model), theta) < 1e-12
    assert {key for state in optimizer.state.values() for key in state} == {"exp_avg"}


@pytest.mark.parity
def test_without_its_scale_tiger_is_pytorch_optimizers() -> None:
    theirs = pytest.importorskip("pytorch_optimizer").Tiger
    one, two = net(), net()
    train(theirs(one.parameters(), lr=0.01, beta=0.965, weight_decay=0.1), one, range(50))
    train(derive(Lion(two.parameters(), lr=0.01, betas=(0.965, 0.965)), [WeightDecay(0.1)]), two, range(50))
    assert gap(weights(one), weights(two)) < 1e-12
