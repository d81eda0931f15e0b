"""Dropout by 16 bits: the right share, independent, the mean and gradient of torch's, the same for a seed."""

from __future__ import annotations

import pytest
import torch

from fishpaw.model.dropout import Dropout, drop

torch.set_num_threads(1)


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_share_the_scale_and_the_gradient(p, dtype):
    torch.manual_seed(0)
    x = torch.ones(1009, 997, dtype=dtype, requires_grad=True)
    out = drop(x, p)
    out.sum().backward()
    zero = out == 0
    n = x.numel()
    assert abs(float(zero.double().mean()) - p) < 5 * (p * (1 - p) / n) ** 0.5
    kept = out[~zero]
    assert torch.all(kept == torch.tensor(65536 / (65536 - round(p * 65536)), dtype=dtype))
    assert torch.equal(x.grad, out.detach())                         # d(x * m)/dx = m, and x is 1
    for step in (1, 2, 3, 4, 997):                                   # neighbours, of one number and of another, know nothing of each other
        flat = zero.flatten().double()
        both = float((flat[step:] * flat[:-step]).mean())
        assert abs(both - p * p) < 6 * (p * p * (1 - p * p) / n) ** 0.5
    halved = (drop(x, p / 2) == 0).double().mean()                   # the planted fault: another probability
    assert abs(float(halved) - p) > 5 * (p * (1 - p) / n) ** 0.5


def test_a_seed_gives_the_same_again_and_evaluation_the_identity():
    x = torch.randn(7, 13)
    layer = Dropout(0.3)
    torch.manual_seed(1)
    one = layer(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), one) and not torch.equal(layer(x), one)
    assert layer.eval()(x) is x and Dropout(0.0)(x) is x
    assert torch.equal(drop(x, 1.0), torch.zeros(7, 13)) and drop(torch.empty(0, 3), 0.5).shape == (0, 3)
    assert torch.equal(drop(x, 1e-9), x)                             # rounded to nothing by 16 bits: torch's own is asked


def test_any_number_of_threads_gives_the_same():
    x, found = torch.ones(4099, 31), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(2)
        found.append(drop(x, 0.1))
    torch.set_num_threads(1)
    assert torch.equal(*found)
