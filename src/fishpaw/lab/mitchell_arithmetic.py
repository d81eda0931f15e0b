"""Mitchell's products and quotients: one addition of the bits that floats are stored as (kexue.fm/archives/7991, arXiv:2012.03458).

A positive float 2^e (1 + m) is stored as the integer (e + bias + m) 2^s, s bits of mantissa. As log2(1 + m) is about m, that integer is
2^s (log2 of the float + bias), so int(a) + int(b) - int(1) holds about a b, and int(a) - int(b) + int(1) about a / b. Nothing is rounded:
the sum is exact. For normal a, b and results the ratio to the true value is 8/9 … 1 for products, 1 … 9/8 for quotients.

All functions take float32, float16, bfloat16 and float64. Signs are combined as usual. A subnormal number counts as 0, as an operand and as
a result, as on a chip that flushes them; what is too large is infinite; nan, inf - inf of the exponents and their like give nan, as IEEE.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import unfold

from fishpaw.errors import DataError

__all__ = ["BALANCE", "Layout", "balanced", "convolve", "divide", "layout", "matmul", "multiply", "straight", "throughout"]

BALANCE = 18 / 17
"""What a product is multiplied by so that its relative error is ±1/17 in place of -1/9 … 0: 8/9 and 1 become 16/17 and 18/17."""

_MOST_PRODUCTS = 2**17
"""So many products a block of `matmul`: half a megabyte an integer tensor of fp32, which a cache holds."""


class Layout(NamedTuple):
    """How a float is stored. integer: the type of its bits; mantissa: how many bits; one: the bits of 1.0; infinity: of inf; least: of the
    least normal number."""

    integer: torch.dtype
    mantissa: int
    one: int
    infinity: int
    least: int


def layout(dtype: torch.dtype) -> Layout:
    """DataError for a type that is no IEEE float of 16, 32 or 64 bits, or bfloat16."""
    known = {torch.float16: (torch.int16, 10, 15), torch.bfloat16: (torch.int16, 7, 127),
             torch.float32: (torch.int32, 23, 127), torch.float64: (torch.int64, 52, 1023)}  # fmt: skip
    if dtype not in known:
        raise DataError(f"A tensor of {dtype}.", fix="Give float32, float16, bfloat16 or float64.")
    integer, mantissa, bias = known[dtype]
    return Layout(integer, mantissa, bias << mantissa, (2 * bias + 1) << mantissa, 1 << mantissa)


def multiply(a: Tensor, b: Tensor, *, offset: float = 0.0) -> Tensor:
    """int(a) + int(b) - int(1), read as a float again: a b (8/9 … 1). Shapes broadcast, one float type; no gradient passes through.

    Exact where a or b is a power of two. offset: added to the sum of logarithms, in units of log2 (a constant of the chip). DataError for
    two types.
    """
    bits = _layout(a, b)
    x, y = _magnitude(a, bits), _magnitude(b, bits)
    shift = bits.one - round(offset * 2**bits.mantissa)
    sign = (a.view(bits.integer) ^ b.view(bits.integer)) & _sign(bits)
    nan = a.isnan() | b.isnan() | (x == bits.infinity) & (y == 0) | (x == 0) & (y == bits.infinity)
    # The sum may need a bit more than the type has: it is bounded before it is made.
    total = torch.minimum(x - shift, bits.infinity - y)
    total = torch.where(total < bits.least - y, 0, total + y)
    total = torch.where((x == 0) | (y == 0), 0, total)
    total = torch.where((x == bits.infinity) | (y == bits.infinity), bits.infinity, total)
    return _float(total, sign, nan, a.dtype)


def divide(a: Tensor, b: Tensor) -> Tensor:
    """int(a) - int(b) + int(1), read as a float again: a / b (1 … 9/8). As `multiply`; x / 0 is inf, 0 / 0 and inf / inf are nan.

    Exact where b is a power of two. A quotient just below the largest number may become inf: it is over-estimated.
    """
    bits = _layout(a, b)
    x, y = _magnitude(a, bits), _magnitude(b, bits)
    sign = (a.view(bits.integer) ^ b.view(bits.integer)) & _sign(bits)
    nan = a.isnan() | b.isnan() | (x == 0) & (y == 0) | (x == bits.infinity) & (y == bits.infinity)
    gap = x - y                                                       # within the type: both are positive
    total = torch.where(gap >= bits.infinity - bits.one, bits.infinity, torch.where(gap < bits.least - bits.one, 0, gap + bits.one))
    total = torch.where((x == 0) | (y == bits.infinity), 0, total)
    total = torch.where((x == bits.infinity) | (y == 0), bits.infinity, total)
    return _float(total, sign, nan, a.dtype)


def balanced(a: Tensor, b: Tensor) -> Tensor:
    """18/17 of `multiply`: a relative error of ±1/17, at the price of a true product, which a sum of many pays once."""
    return multiply(a, b) * BALANCE


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a [… m k], b [k n] -> [… m n]: products by `multiply`, sums of floats as usual. No gradient. Memory: a block of 2^17 products at a
    time, or k n of them if that is more. DataError for shapes that don't meet, or two types."""
    if b.ndim != 2 or a.ndim < 1 or a.shape[-1] != b.shape[0]:
        raise DataError(f"Tensors of shapes {list(a.shape)} and {list(b.shape)}.", fix="Give [… m k] and [k n].")
    bits = _layout(a, b)
    rows = a.detach().reshape(-1, a.shape[-1])                                         # [m k]
    columns = b.detach().contiguous()                                                  # [k n]
    size = max(1, _MOST_PRODUCTS // max(1, b.numel()))
    if _is_tame(rows, bits) and _is_tame(columns, bits):
        x, y = _centred(rows, bits, bits.one // 2), _centred(columns, bits, bits.one - bits.one // 2)
        signs = rows.view(bits.integer) & _sign(bits), columns.view(bits.integer) & _sign(bits)
        pairs = zip(x.split(size), signs[0].split(size), strict=True)
        blocks = [_tame_products(part, y, sign, signs[1], bits).view(a.dtype).sum(1) for part, sign in pairs]
    else:
        blocks = [multiply(part[:, :, None], columns[None]).sum(1) for part in rows.split(size)]  # [size n]
    return torch.cat(blocks).reshape(*a.shape[:-1], b.shape[1])


def straight(a: Tensor, b: Tensor) -> Tensor:
    """`matmul` forwards; backwards the gradient of the plain product, a surrogate: Mitchell's own derivative is one of steps."""
    return _made(_Straight, a, b)


def throughout(a: Tensor, b: Tensor) -> Tensor:
    """`matmul` forwards, and in both products of the plain product's gradient, too: no multiplication is left."""
    return _made(_Throughout, a, b)


def convolve(images: Tensor, kernels: Tensor, *, product: Callable[[Tensor, Tensor], Tensor] = straight) -> Tensor:
    """images [b c h w], kernels [o c y x] -> [b o h-y+1 w-x+1], each product by `product` (`matmul`, `straight`, `throughout`)."""
    height, width = kernels.shape[2:]
    windows = unfold(images, (height, width)).mT                                       # [b places c*y*x]
    out = product(windows, kernels.flatten(1).T)                                       # [b places o]
    return out.mT.reshape(len(images), len(kernels), images.shape[2] - height + 1, images.shape[3] - width + 1)


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return matmul(a, b)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        gradient = gradients[0]
        return gradient @ b.T, a.flatten(0, -2).T @ gradient.flatten(0, -2)


class _Throughout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return matmul(a, b)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        return matmul(gradient, b.T), matmul(a.flatten(0, -2).T, gradient.flatten(0, -2))


def _is_tame(x: Tensor, bits: Layout) -> bool:
    """All finite and so small (2^42 in fp32) that no product is too large. Of no numbers: true."""
    largest = torch.iinfo(bits.integer).max
    return x.numel() == 0 or int((x.view(bits.integer) & largest).max()) < bits.one + bits.one // 3


def _centred(x: Tensor, bits: Layout, middle: int) -> Tensor:
    """The bits less `middle`, about half of one's, so that two of them add up to a product's. 0 becomes so negative that every sum with it
    is below 0: tame numbers are less than 5/6 of one's bits here, and 0 is minus that."""
    magnitude = _magnitude(x, bits)
    return torch.where(magnitude == 0, -(bits.one - bits.one // 6), magnitude - middle)


def _tame_products(x: Tensor, y: Tensor, x_sign: Tensor, y_sign: Tensor, bits: Layout) -> Tensor:
    """Bits of all products of `_centred` x [m k] and y [k n], [m k n], as `multiply` has them, in a fifth of its steps."""
    total = x[:, :, None] + y                                                          # [m k n]
    total.masked_fill_(total < bits.least, 0)
    return total.bitwise_or_(x_sign[:, :, None] ^ y_sign)


def _made(function: type[torch.autograd.Function], a: Tensor, b: Tensor) -> Tensor:
    if a.ndim < 2:
        raise DataError(f"A tensor of shape {list(a.shape)}.", fix="Give [… m k] and [k n].")
    made: Tensor = function.apply(a, b)
    return made


def _layout(a: Tensor, b: Tensor) -> Layout:
    if a.dtype != b.dtype:
        raise DataError(f"Tensors of {a.dtype} and {b.dtype}.", fix="Convert one: the bits of both are added.")
    return layout(a.dtype)


def _sign(bits: Layout) -> int:
    return int(torch.iinfo(bits.integer).min)


def _magnitude(x: Tensor, bits: Layout) -> Tensor:
    """The bits without the sign; 0 for a subnormal number. Those of nan are above infinity's: they are marked apart."""
    magnitude = x.detach().view(bits.integer) & torch.iinfo(bits.integer).max
    return torch.where(magnitude < bits.least, 0, magnitude.clamp_max(bits.infinity))


def _float(total: Tensor, sign: Tensor, nan: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.where(nan, torch.nan, (total | sign).view(dtype))
