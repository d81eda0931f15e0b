"""Activations: values worked out by hand, laws, gradients, names."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from fishpaw import activations
from fishpaw.activations import gelu, gelu_tanh, get, relu, squared_relu, squareplus, swish, tanh
from fishpaw.errors import ConfigError

OURS = [gelu, gelu_tanh, relu, squared_relu, squareplus, swish, tanh]
PHI_OF_1 = 0.8413447460685429                                    # standard normal distribution function at 1, from tables


@pytest.mark.parametrize(
    ("function", "at_minus_1", "at_0", "at_2"),
    [
        (gelu, PHI_OF_1 - 1, 0.0, 2 * 0.9772498680518208),
        (gelu_tanh, -(1 - math.tanh(math.sqrt(2 / math.pi) * 1.044715)) / 2, 0.0, 1 + math.tanh(math.sqrt(2 / math.pi) * 2.35772)),
        (relu, 0.0, 0.0, 2.0),
        (squared_relu, 0.0, 0.0, 4.0),
        (squareplus, (math.sqrt(5) - 1) / 2, 1.0, 1 + math.sqrt(2)),
        (swish, -1 / (1 + math.e), 0.0, 2 / (1 + math.exp(-2))),
        (tanh, -math.tanh(1), 0.0, math.tanh(2)),
    ],
)
def test_values_worked_out_by_hand(function, at_minus_1, at_0, at_2):
    x = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    assert_close(function(x), torch.tensor([at_minus_1, at_0, at_2], dtype=torch.float64), atol=1e-14, rtol=0)


@pytest.mark.parametrize("function", OURS)
def test_gradients_equal_finite_differences(function):
    x = torch.randn(13, dtype=torch.float64) * 3
    assert x.abs().min() > 1e-3                                  # relu has no derivative at 0
    assert torch.autograd.gradcheck(function, x.requires_grad_())


@pytest.mark.parametrize("function", OURS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_shape_and_dtype_stay_and_the_tails_are_finite(function, dtype):
    x = torch.tensor([[-1e4, -30.0, 0.0], [30.0, 1e4, -0.0]], dtype=dtype, requires_grad=True)
    out = function(x)
    out.sum().backward()
    assert (out.shape, out.dtype) == (x.shape, dtype)
    assert out.isfinite().all() and x.grad.isfinite().all()


def test_gelu_tanh_is_near_gelu_and_is_another_function():
    x = torch.linspace(-6, 6, 1201, dtype=torch.float64)
    gap = (gelu(x) - gelu_tanh(x)).abs().max()
    assert 1e-4 < gap < 5e-4                                     # so that a checkpoint loaded with the wrong one is noticed


def test_squareplus_laws():
    x = torch.linspace(-50, 50, 1001, dtype=torch.float64)
    for b in (0.5, 4.0, 7.0):
        assert_close(squareplus(x, b=b) * squareplus(-x, b=b), torch.full_like(x, b / 4), atol=1e-12, rtol=1e-12)
        assert_close(squareplus(x, b=b) - squareplus(-x, b=b), x, atol=1e-12, rtol=1e-12)
        assert (squareplus(x, b=b) > relu(x)).all() and (squareplus(x, b=b).diff() > 0).all()
    gap = (squareplus(x, b=1.52382103) - functional.softplus(x, threshold=100)).abs().max()
    assert_close(gap.item(), 0.0759315, atol=1e-4, rtol=0)       # the least greatest distance to softplus; a grid of 0.1
    above = squareplus(x, b=4 * math.log(2) ** 2) - functional.softplus(x, threshold=100)
    assert_close(above.min().item(), 0.0, atol=1e-12, rtol=0)    # from this b on it is never below softplus; they touch at 0


def test_squareplus_rises_by_a_half_at_zero():
    """The gradient there was 0: that of |x|, which the branch of x >= 0 was written with."""
    x = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(squareplus(x, b=3.0).sum(), x)
    assert_close(gradient, (1 + x.detach() / (x.detach() ** 2 + 3).sqrt()) / 2, atol=1e-15, rtol=0)


def test_squareplus_keeps_its_digits_far_left():
    """Planted fault: the formula as it is written in the paper cancels to 0 there."""
    x = torch.tensor([-1e4], dtype=torch.float32)
    expected = torch.tensor([1e-4])                              # b / 4|x|
    assert_close(squareplus(x), expected, atol=0, rtol=1e-6)
    with pytest.raises(AssertionError):
        assert_close((x + (x * x + 4).sqrt()) / 2, expected, atol=0, rtol=1e-6)


@pytest.mark.parametrize("b", [0.0, -1.0, math.nan])
def test_squareplus_refuses_b(b):
    with pytest.raises(ConfigError, match="b > 0"):
        squareplus(torch.zeros(2), b=b)


def test_every_public_function_has_its_own_name():
    for function in OURS:
        assert get(function.__name__) is get(function) is function
    assert {*activations.NAMES.values()} == {*OURS}


@pytest.mark.parametrize(("name", "near"), [("gleu", "'gelu'"), ("swsh", "'swish'"), ("square_plus", "'squareplus'"), ("Gelu", "'gelu'")])
def test_unknown_name_says_the_nearest(name, near):
    with pytest.raises(ConfigError, match=f"Did you mean {near}"):
        get(name)


@pytest.mark.parametrize("name", ["", "os:system", None, ["gelu"]])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(ConfigError, match="squared_relu"):       # the list
        get(name)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["gelu", "gelu_new", "gelu_pytorch_tanh", "silu", "swish", "relu", "relu2", "tanh"])
def test_transformers_means_the_same_by_a_name(name):
    theirs = pytest.importorskip("transformers.activations").ACT2FN[name]
    x = torch.linspace(-5, 5, 997, dtype=torch.float64)
    assert_close(get(name)(x), theirs(x), atol=1e-12, rtol=0)
    if name == "gelu":                                           # planted fault: the other gelu
        with pytest.raises(AssertionError):
            assert_close(gelu_tanh(x), theirs(x), atol=1e-12, rtol=0)
