"""LAMB and Lookahead against pytorch_optimizer; what LAMB leaves to AdamW."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
import torch

from fishpaw.optim.derive import derive
from fishpaw.optim.lamb import lamb
from fishpaw.optim.transforms import LayerAdaptation, Lookahead, WeightDecay

torch.set_num_threads(1)
SMALL = run_path(str(Path(__file__).with_name("small.py")))
net, fill, train, weights, gap, adam = (SMALL[name] for name in ("net", "fill", "train", "weights", "gap", "adam"))


class Uncorrected(torch.optim.Optimizer):
    """Adam without bias correction, as pytorch_optimizer's LAMB has it: a base that torch knows nothing of."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # never called with one
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(m=torch.zeros_like(p), v=torch.zeros_like(p))
                state["m"].lerp_(p.grad, 0.1)
                state["v"].lerp_(p.grad**2, 0.001)
                p -= group["lr"] * state["m"] / (state["v"].sqrt() + 1e-12)


@pytest.mark.parity
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lamb_is_pytorch_optimizers(decay: float) -> None:
    """Theirs has no bias correction: with decay over a base without it, without decay, where the norms cancel the correction, over Adam.

    Without adam_debias=True it divides the rate, which is the length of the step, by 1 - 0.9^t: ten times the rate at first.
    """
    theirs = pytest.importorskip("pytorch_optimizer").Lamb
    one, two = net(), net()
    other = theirs(one.parameters(), lr=0.01, weight_decay=decay, weight_decouple=False, eps=1e-12, adam_debias=True)
    base = Uncorrected(two.named_parameters(), lr=0.01) if decay else torch.optim.Adam(two.named_parameters(), lr=0.01, eps=1e-12)
    ours = derive(base, [WeightDecay(decay), LayerAdaptation()])
    for step in range(100):
        for model, optimizer in ((one, other), (two, ours)):
            fill(model, step, rows=range(7))
            optimizer.step()
    assert gap(weights(one), weights(two)) < 1e-6


@pytest.mark.parity
@pytest.mark.parametrize(("k", "alpha"), [(5, 0.5), (3, 0.8)])
def test_lookahead_is_pytorch_optimizers(k: int, alpha: float) -> None:
    theirs = pytest.importorskip("pytorch_optimizer").Lookahead
    one, two = net(), net()
    train(theirs(torch.optim.AdamW(one.parameters(), lr=0.1), k=k, alpha=alpha), one, range(23))
    train(derive(torch.optim.AdamW(two.parameters(), lr=0.1), [Lookahead(k, alpha)]), two, range(23))
    assert gap(weights(one), weights(two)) < 1e-12


def test_biases_and_norms_take_adamws_steps() -> None:
    one, two = net(), net()
    train(lamb(one, learning_rate=0.1, epsilon=1e-8), one, range(5))
    train(adam(two), two, range(5))
    for name in ("norm.weight", "norm.bias", "inner.bias"):
        torch.testing.assert_close(one.get_parameter(name), two.get_parameter(name), atol=1e-12, rtol=0)
    assert not torch.equal(one.get_parameter("inner.weight"), two.get_parameter("inner.weight"))
