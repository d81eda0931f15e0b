"""Mitchell's arithmetic: laws of products and quotients in four float types, IEEE's special cases, matmul and its two gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fishpaw.errors import DataError
from fishpaw.lab import mitchell_arithmetic
from fishpaw.lab.mitchell_arithmetic import BALANCE, balanced, convolve, divide, layout, matmul, multiply, straight, throughout

torch.set_num_threads(1)
FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_products_and_quotients_keep_their_bounds_and_signs(dtype: torch.dtype) -> None:
    a, b = drawn(10_007, dtype=dtype).double(), drawn(10_007, seed=1, dtype=dtype).double()
    clear = (a.abs() > 0.01) & (b.abs() > 0.01)                       # fp16: neither the product nor a number is subnormal
    a, b = a[clear], b[clear]
    product = multiply(a.to(dtype), b.to(dtype)).double() / (a * b)   # bits are added, nothing is rounded: fp64 has the ratio to 1e-16
    quotient = divide(a.to(dtype), b.to(dtype)).double() / (a / b)
    assert 8 / 9 - 1e-15 <= product.min() < 0.9 and 0.99 < product.max() <= 1
    assert 1 - 1e-15 <= quotient.min() < 1.01 and 1.11 < quotient.max() <= 9 / 8 + 1e-15


@pytest.mark.parametrize("dtype", FLOATS)
def test_powers_of_two_are_exact(dtype: torch.dtype) -> None:
    a, powers = drawn(1009, dtype=dtype), torch.exp2(torch.arange(-3, 4).repeat(145)[:1009]).to(dtype)
    a = torch.where(a.abs() < 0.01, 1, a)
    assert multiply(a, powers).equal(a * powers) and multiply(powers, a).equal(a * powers) and divide(a, powers).equal(a / powers)


@pytest.mark.parametrize("dtype", FLOATS)
def test_zero_infinity_and_nan_are_as_in_ieee(dtype: torch.dtype) -> None:
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0, 2.0, -0.5], dtype=dtype)
    for mine, theirs in ((multiply, torch.mul), (divide, torch.div)):
        found, expected = mine(special[:, None], special[None]), theirs(special[:, None], special[None])
        torch.testing.assert_close(found, expected, atol=0, rtol=0, equal_nan=True)
        numbers = ~expected.isnan()
        assert found.signbit()[numbers].equal(expected.signbit()[numbers])


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_too_large_is_infinite_and_what_is_too_small_is_zero(dtype: torch.dtype) -> None:
    information = torch.finfo(dtype)
    largest, least = torch.tensor(information.max, dtype=dtype), torch.tensor(information.smallest_normal, dtype=dtype)
    one, below = torch.ones((), dtype=dtype), (least.view(layout(dtype).integer) - 1).view(dtype)
    assert multiply(largest, -largest).item() == -math.inf and multiply(largest, 2 * one).item() == math.inf
    assert divide(largest, least).item() == math.inf and divide(-largest, 0.5 * one).item() == -math.inf
    assert multiply(largest, one).item() == largest.item() == divide(largest, one).item()
    assert multiply(least, one).item() == least.item() == divide(least, one).item()
    for tiny in (multiply(least, -0.5 * one), divide(-least, 2 * one), multiply(-below, one), divide(below, -one), multiply(-least, least)):
        assert tiny.item() == 0 and tiny.signbit()
    assert multiply(below, largest).item() == 0                       # a subnormal number counts as 0 …
    assert multiply(below, one / 0).isnan() and divide(below, below).isnan() and divide(one, below).item() == math.inf


def test_what_the_library_promises_of_shapes_and_types() -> None:
    a, b = drawn(3, 1, 7), drawn(5, 1)
    assert multiply(a, b).shape == (3, 5, 7) and divide(a, b).shape == (3, 5, 7)
    torch.testing.assert_close(balanced(a, b), multiply(a, b) * BALANCE)
    assert ((balanced(a, b) / (a * b) - 1).abs() <= 1 / 17 + 1e-6).all()                # two roundings of fp32
    shifted = multiply(torch.tensor(3.0), torch.tensor(4.0), offset=1.0)
    assert shifted.item() == 24                                       # a whole unit of log2 doubles
    for wrong in (lambda: multiply(a, b.double()), lambda: multiply(a.int(), b.int()), lambda: layout(torch.int32),
                  lambda: matmul(drawn(3, 5), drawn(7, 5)), lambda: straight(drawn(5), drawn(5, 3))):  # fmt: skip
        with pytest.raises(DataError):
            wrong()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("most", [1, 100, 2**17])
def test_matmul_is_the_sum_of_products_whatever_the_block(dtype: torch.dtype, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mitchell_arithmetic, "_MOST_PRODUCTS", most)
    a, b = drawn(2, 5, 11, dtype=dtype), drawn(11, 3, seed=1, dtype=dtype)
    a[0, 1, ::2], b[3] = 0, -0.0
    for scale in (1, 2.0 ** (4 if dtype == torch.float16 else 60)):   # the second is beyond what the short way takes
        expected = multiply(scale * a[..., None], b).sum(-2)
        torch.testing.assert_close(matmul(scale * a, b), expected, atol=0, rtol=0)
    a[1, 2, 3] = math.nan
    a[1, 3, 4] = math.inf
    assert matmul(a, b)[1, 2].isnan().all() and not matmul(a, b)[1, 3].isfinite().any() and matmul(a, b)[0].isfinite().all()
    planted = multiply(a[0].abs()[..., None], b).sum(-2)              # signs forgotten
    assert not torch.allclose(matmul(a[0], b), planted)


def test_the_short_way_keeps_tiny_numbers_and_zero() -> None:
    """Numbers whose products are subnormal or less: 0, with both ways."""
    exponents = torch.arange(-126, 40, dtype=torch.float64)
    a = torch.cat([torch.zeros(2), (1.37 * exponents.exp2()).float(), torch.tensor([1e-40])])
    found = torch.stack([matmul(a[:, None], one.reshape(1, 1)).flatten() for one in a])  # each a sum of one product
    assert found.equal(multiply(a[:, None], a[None]).T + 0.0)         # a sum of -0 is -0; there is none here
    assert (found[0] == 0).all() and (found[-1] == 0).all()


def test_gradients_are_those_that_the_names_say() -> None:
    a, b, upstream = drawn(2, 5, 7).requires_grad_(), drawn(7, 3, seed=1).requires_grad_(), drawn(2, 5, 3, seed=2)
    plain = torch.autograd.grad(a @ b, (a, b), upstream)
    for found, expected in zip(torch.autograd.grad(straight(a, b), (a, b), upstream), plain, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)               # sums in another order, fp32
    own = torch.autograd.grad(throughout(a, b), (a, b), upstream)
    assert own[0].equal(matmul(upstream, b.detach().T)) and own[1].equal(matmul(a.detach().flatten(0, 1).T, upstream.flatten(0, 1)))
    for found, expected in zip(own, plain, strict=True):
        error = (found - expected).norm() / expected.norm()
        assert 0.001 < error < 0.12                                   # not the true one, and as near as products are
    assert straight(a, b).detach().equal(matmul(a, b)) and not matmul(a, b).requires_grad


def test_a_convolution_is_as_near_as_products_are_and_exact_for_powers_of_two() -> None:
    images, kernels = drawn(2, 3, 7, 5), drawn(4, 3, 3, 2, seed=1)
    powers = kernels.sign() * kernels.abs().log2().round().exp2()
    expected = torch.nn.functional.conv2d(images, powers)
    torch.testing.assert_close(convolve(images, powers), expected, atol=1e-5, rtol=1e-5)
    true = torch.nn.functional.conv2d(images, kernels)
    error = (convolve(images, kernels, product=matmul) - true).norm() / true.norm()
    assert 0.001 < error < 0.12
    weights = kernels.requires_grad_()
    (found,) = torch.autograd.grad(convolve(images, weights).sum(), weights)
    (wanted,) = torch.autograd.grad(torch.nn.functional.conv2d(images, weights).sum(), weights)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-5)                     # 40 terms in another order
