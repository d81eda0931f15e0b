"""Norms against their formulas, value and gradient."""

from __future__ import annotations

import pytest
import torch

from fishpaw import norms, switch

torch.set_num_threads(1)


def layer(x, weight, bias, eps):
    rows = []
    for row in x:
        mean = sum(row) / len(row)
        variance = sum((one - mean) ** 2 for one in row) / len(row)
        rows.append((row - mean) / (variance + eps) ** 0.5 * weight + bias)
    return torch.stack(rows)


def rms(x, weight, bias, eps):
    return torch.stack([row / (sum(one**2 for one in row) / len(row) + eps) ** 0.5 * weight for row in x])


@pytest.mark.parametrize("eps", [None, 0.3])
@pytest.mark.parametrize(("name", "naive", "default"), [("layer", layer, 1e-12), ("rms", rms, 1e-6)])
def test_a_norm_is_its_formula(name, naive, default, eps):
    norm = switch.build("norms", name if eps is None else {"name": name, "eps": eps}, 7).double()
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    found, expected = norm(x), naive(x, norm.weight, getattr(norm, "bias", None), default if eps is None else eps)
    assert float((found - expected).detach().abs().max()) < 1e-12
    direction = torch.randn(5, 7, dtype=torch.float64)
    one, other = (torch.autograd.grad((value * direction).sum(), [x, norm.weight]) for value in (found, expected))
    assert max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True)) < 1e-11
    assert float((naive(x, norm.weight, getattr(norm, "bias", None), 0.1) - found).detach().abs().max()) > 1e-3      # a wrong eps is caught


def test_a_norm_starts_as_the_plain_one_and_says_what_it_has():
    assert [name for name, _ in norms.layer(5).named_parameters()] == ["weight", "bias"]
    assert [name for name, _ in norms.rms(5).named_parameters()] == ["weight"]
    x = torch.randn(3, 5, dtype=torch.float64)
    found = norms.layer(5).double()(x)
    assert float(found.mean(-1).detach().abs().max()) < 1e-12 and float((found.var(-1, unbiased=False) - 1).detach().abs().max()) < 1e-9
    assert float((norms.rms(5).double()(x).square().mean(-1) - 1).detach().abs().max()) < 1e-5


@pytest.mark.parametrize("name", switch.names("norms"))
def test_a_row_of_zeros_is_finite_with_its_gradient(name):
    x = torch.zeros(3, 5, requires_grad=True)
    out = switch.build("norms", name, 5)(x)
    out.sum().backward()
    assert bool(out.isfinite().all()) and bool(x.grad.isfinite().all())


def test_norms_without_a_parameter():
    x = torch.randn(5, 7, dtype=torch.float64)
    assert switch.build("norms", "none", 7)(x) is x
    bare, plain = switch.build("norms", {"name": "rms", "scale": False}, 7), switch.build("norms", {"name": "layer", "bias": False}, 7)
    assert not list(bare.parameters()) and [name for name, _ in plain.named_parameters()] == ["weight"]
    assert float((bare(x) - rms(x, 1, None, 1e-6)).abs().max()) < 1e-12
    assert float((plain.double()(x) - layer(x, 1, 0, 1e-12)).detach().abs().max()) < 1e-12
