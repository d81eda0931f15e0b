"""Lion by its formula and against pytorch_optimizer."""

from __future__ import annotations

from pathlib import Path
from runpy import run_path

import pytest
import torch

from fishpaw.errors import ConfigError
from fishpaw.optim import lion as module
from fishpaw.optim.derive import derive
from fishpaw.optim.lion import Lion, lion
from fishpaw.optim.transforms import WeightDecay

torch.set_num_threads(1)
SMALL = run_path(str(Path(__file__).with_name("small.py")))
net, fill, train, weights, gap = (SMALL[name] for name in ("net", "fill", "train", "weights", "gap"))


@pytest.mark.parametrize("piece", [1, 1 << 22])
def test_lion_is_the_papers_formula(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE", piece)
    model, theta = net(), weights(net())
    momenta = {name: torch.zeros_like(value) for name, value in theta.items()}
    optimizer = lion(model, learning_rate=0.01, weight_decay=0.3)
    for step in range(9):
        fill(model, step)
        for name, p in model.named_parameters():
            assert p.grad is not None
            decay = 0.3 if p.ndim > 1 else 0
            theta[name] = theta[name] - 0.01 * (torch.sign(0.9 * momenta[name] + 0.1 * p.grad) + decay * theta[name])
            momenta[name] = 0.99 * momenta[name] + 0.01 * p.grad
        optimizer.step()
    assert gap(weights(model), theta) < 1e-12


@pytest.mark.parity
def test_lion_is_pytorch_optimizers() -> None:
    theirs = pytest.importorskip("pytorch_optimizer").Lion
    one, two = net(), net()
    train(theirs(one.parameters(), lr=0.01, betas=(0.9, 0.99), weight_decay=0.1), one, range(50))
    train(derive(Lion(two.parameters(), lr=0.01), [WeightDecay(0.1)]), two, range(50))
    assert gap(weights(one), weights(two)) < 1e-12


def test_lion_alone_has_a_closure_and_refuses_betas() -> None:
    model = net()
    fill(model, 0)
    assert Lion(model.parameters()).step(lambda: 2.5) == 2.5
    with pytest.raises(ConfigError, match="betas is"):
        Lion(model.parameters(), betas=(0.9, 1.0))
