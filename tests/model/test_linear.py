"""The matrix product of a layer, and what it starts from."""

from __future__ import annotations

import pytest
import torch

from fishpaw.model.linear import Linear

torch.set_num_threads(1)


def test_it_is_x_times_the_transposed_weight_plus_bias():
    layer = Linear(5, 7, std=0.3).double()
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(3, 5, dtype=torch.float64)
    expected = torch.tensor([[sum(a * b for a, b in zip(row, weight, strict=True)) + bias for weight, bias in
                              zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)] for row in x.tolist()], dtype=torch.float64)
    assert float((layer(x) - expected).detach().abs().max()) < 1e-12


@pytest.mark.parametrize("std", [0.02, 0.6])
def test_it_starts_normal_with_no_bias(std):
    layer = Linear(101, 103, std=std)
    assert float(layer.weight.detach().std()) == pytest.approx(std, rel=0.05) and not layer.bias.detach().any()
    layer.weight.data.zero_()
    layer.reset_parameters()
    assert float(layer.weight.detach().std()) == pytest.approx(std, rel=0.05)
    assert Linear(3, 5, std=std, bias=False).bias is None
