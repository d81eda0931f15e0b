"""LAMB's step in blocks: the same as in passes over all parameters, and only for what it fits."""

from __future__ import annotations

from pathlib import Path
from runpy import run_path

import pytest
import torch
from torch import nn

from fishpaw.optim import adapted
from fishpaw.optim.derive import derive
from fishpaw.optim.transforms import LayerAdaptation

torch.set_num_threads(1)
SMALL = run_path(str(Path(__file__).with_name("small.py")))
net, train, weights, gap = (SMALL[name] for name in ("net", "train", "weights", "gap"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_blocks_are_passes_and_amsgrad_takes_passes(amsgrad: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapted, "_BLOCK", 11)
    ends = []
    for fused in (True, False):
        model = net().to(dtype)
        base = torch.optim.AdamW(model.named_parameters(), lr=0.01, weight_decay=0.1, amsgrad=amsgrad, fused=fused)
        train(derive(base, [LayerAdaptation(exclude=("norm",))]), model, range(20))
        ends.append(weights(model))
    assert gap(*ends) < (1e-5 if dtype == torch.float32 else 1e-13)


def test_a_parameter_that_is_no_one_piece_is_adapted_all_the_same() -> None:
    ends = []
    for turned in (False, True):
        torch.manual_seed(0)
        start, slope = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
        parameter = nn.Parameter(start.T.contiguous().T if turned else start)
        optimizer = derive(torch.optim.AdamW([parameter], fused=True), [LayerAdaptation()])
        for _ in range(3):
            parameter.grad = torch.empty_like(parameter).copy_(slope)          # laid out as the parameter is, as autograd does it
            optimizer.step()
        assert adapted.fits(parameter, optimizer.state[parameter]) != turned
        ends.append(parameter.detach())
    torch.testing.assert_close(*ends, atol=1e-13, rtol=0)


def test_a_block_that_is_forgotten_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapted, "_BLOCK", 11)
    real = torch.dot
    calls = 0

    def forgetful(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return real(one, two) * (calls != 2)                         # the first block has no part in the norm of the move

    ends = []
    for planted in (False, True):
        model = net()
        optimizer = derive(torch.optim.AdamW(model.named_parameters(), lr=0.01, fused=True), [LayerAdaptation()])
        train(optimizer, model, range(1))
        with monkeypatch.context() as patch:
            if planted:
                patch.setattr(torch, "dot", forgetful)
            train(optimizer, model, range(1, 2))
        ends.append(weights(model))
    assert gap(*ends) > 1e-4
