"""Norms against their formulas, value and gradient."""

from __future__ import annotations

import pytest
import torch

from fishpaw import norms, switch
from fishpaw.errors import ConfigError

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
    x, spec = torch.zeros(3, 5, requires_grad=True), {"name": name, "condition": 2} if name == "conditional" else name
    out = switch.build("norms", spec, 5)(x, torch.randn(3, 2))
    out.sum().backward()
    assert bool(out.isfinite().all()) and bool(x.grad.isfinite().all())


def test_norms_without_a_parameter():
    x = torch.randn(5, 7, dtype=torch.float64)
    assert switch.build("norms", "none", 7)(x) is x
    bare, plain = switch.build("norms", {"name": "rms", "scale": False}, 7), switch.build("norms", {"name": "layer", "bias": False}, 7)
    assert not list(bare.parameters()) and [name for name, _ in plain.named_parameters()] == ["weight"]
    assert float((bare(x) - rms(x, 1, None, 1e-6)).abs().max()) < 1e-12
    assert float((plain.double()(x) - layer(x, 1, 0, 1e-12)).detach().abs().max()) < 1e-12


# A norm that reads a condition

def told(**options):
    norm = switch.build("norms", {"name": "conditional", "condition": 3, **options}, 7).double()
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    return norm, torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)


@pytest.mark.parametrize("hidden", [None, 11])
@pytest.mark.parametrize("activation", ["linear", "tanh"])
def test_a_conditional_norm_is_its_formula(hidden, activation):
    """bert4keras: gamma + W c and beta + V c; with `hidden`, c goes through a matrix and an activation before."""
    norm, x, condition = told(hidden=hidden, activation=activation, eps=0.3)
    known = condition
    if hidden:
        known = condition @ norm.hidden.weight.T
        known = known.tanh() if activation == "tanh" else known
    rows = [layer(one[None], norm.weight + norm.scale.weight @ c, norm.bias + norm.shift.weight @ c, 0.3)[0]
            for one, c in zip(x, known, strict=True)]  # fmt: skip
    expected = torch.stack(rows)
    assert float((norm(x, condition) - expected).detach().abs().max()) < 1e-12
    assert float((norm(x, condition.roll(1, 0)) - expected).detach().abs().max()) > 1e-2              # another's condition is caught


@pytest.mark.parametrize("hidden", [None, 11])
def test_a_conditional_norm_starts_as_the_plain_one_with_its_names(hidden):
    norm, plain = norms.conditional(7, condition=3, hidden=hidden).double(), norms.layer(7).double()
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter)
    assert norm.conditional and not hasattr(plain, "conditional")
    missing, unexpected = norm.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and missing == [*(["hidden.weight"] if hidden else []), "scale.weight", "shift.weight"]
    x, condition = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    out = norm(x, condition)
    assert float((out - plain(x)).detach().abs().max()) < 1e-12
    out.square().sum().backward()
    assert bool(norm.scale.weight.grad.any()) and bool(norm.shift.weight.grad.any())                  # zero, but not for ever


def test_a_conditional_norm_gives_the_type_that_it_got():
    norm, x, condition = told()
    half = norm.float()(x.bfloat16(), condition)                     # prepared for bf16, weights stay in fp32
    assert half.dtype == torch.bfloat16 and bool((half - norm(x.float(), condition.float())).abs().max() < 0.2)
    assert norm.bfloat16()(x.bfloat16(), condition.float()).dtype == torch.bfloat16


def test_a_condition_that_is_missing_or_of_another_size_is_named():
    norm, x, condition = told()
    with pytest.raises(ValueError, match="no condition, but this norm reads one of 3 units"):
        norm(x)
    with pytest.raises(ValueError, match="a condition of 2"):
        norm(x, condition[:, :2])
    for options, said in (({"condition": 0}, "condition is 0"), ({"condition": True}, "True"), ({"hidden": 1.5}, "hidden is 1.5"),
                          ({"eps": 2}, "eps"), ({"activation": "gel"}, "gel")):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            told(**options)
    with pytest.raises(ConfigError, match="missing a required argument: 'condition'"):
        switch.build("norms", "conditional", 7)
