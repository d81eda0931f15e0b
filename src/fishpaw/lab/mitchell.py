"""How far a product made by one addition of bits is from the true one, and whether a small network learns with it (kexue.fm/archives/7991).

What is measured is `mitchell_arithmetic`. With a = 2^p (1 + x), b = 2^q (1 + y) there are two cases: the product is 2^(p+q) (1 + x + y) for
x + y < 1, else 2^(p+q+1) (x + y). `by_hand` does just that, in whole numbers, and must agree bit for bit. Printed results of the article
hold; the network of this file is small, that of the paper is ResNet-50 (arXiv:2012.03458).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fishpaw.lab.findings import Found, Row, Words, sampled
from fishpaw.lab.mitchell_arithmetic import balanced, divide, layout, multiply, straight, throughout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SOURCE", "TITLE", "accuracies", "by_hand", "draw", "mean_error", "measure"]

TITLE = Words("Multiplying by adding bits: Mitchell's product in floats", "用加法做乘法：浮点数的 Mitchell 近似")
SOURCE = "https://kexue.fm/archives/7991"

_FLOATS = {torch.float32: ("<f", "<I"), torch.float16: ("<e", "<H"), torch.bfloat16: ("<f", "<I"), torch.float64: ("<d", "<Q")}
_PAIRS = 2_000_000
_SEEDS = 5

Product = Callable[[Tensor, Tensor], Tensor]


def by_hand(a: float, b: float, dtype: torch.dtype) -> float:
    """The approximate product of two numbers of a float type, by sign, exponent and mantissa in Python's whole numbers."""
    s = layout(dtype).mantissa
    top = layout(dtype).infinity >> s                                                  # the exponent of inf and nan
    (a_sign, p, x), (b_sign, q, y) = (_split(value, dtype, s, top) for value in (a, b))
    sign, kinds = -1.0 if a_sign != b_sign else 1.0, {_kind(p, x, top), _kind(q, y, top)}
    if "nan" in kinds or kinds == {"infinite", "zero"}:
        return math.nan
    if "infinite" in kinds or "zero" in kinds:
        return sign * (math.inf if "infinite" in kinds else 0.0)
    exponent, mantissa = p + q - top // 2, x + y
    if mantissa >= 1 << s:                                                             # x + y >= 1
        exponent, mantissa = exponent + 1, mantissa - (1 << s)
    if exponent <= 0 or exponent >= top:
        return sign * (0.0 if exponent <= 0 else math.inf)
    return sign * math.ldexp((1 << s) + mantissa, exponent - top // 2 - s)


def mean_error(*, logarithmic: bool, steps: int = 1000) -> float:
    """The mean of 1 - product / true product: mantissas uniform, or numbers uniform in their logarithm; steps² midpoints, fp64."""
    middles = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    values = middles.exp2() if logarithmic else 1 + middles                            # [steps]
    return float(1 - (multiply(values[:, None], values[None]) / torch.outer(values, values)).mean())


def accuracies(products: Mapping[str, Product], *, seed: int, steps: int = 200) -> dict[str, float]:
    """The share of 4001 new points that networks 12 -> 32 -> 7 have right which differ in nothing but how they multiply. 7 classes of 3
    Gaussian clusters each, 64 points a step, Adam."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(7, 3, 12, generator=generator)
    first, second = torch.randn(12, 32, generator=generator) / 12**0.5, torch.randn(32, 7, generator=generator) / 32**0.5
    batches = [_points(centres, 64, generator) for _ in range(steps)]
    test, answers = _points(centres, 4001, generator)
    right = {}
    for name, product in products.items():
        parameters = [part.clone().requires_grad_() for part in (first, torch.zeros(32), second, torch.zeros(7))]
        optimizer = torch.optim.Adam(parameters, lr=0.01)
        for points, labels in batches:
            optimizer.zero_grad()
            cross_entropy(_network(points, parameters, product), labels).backward()
            optimizer.step()
        with torch.no_grad():
            right[name] = float((_network(test, parameters, product).argmax(-1) == answers).double().mean())
    return right


def measure(*, seed: int = 0) -> Found:
    """Two million pairs of fp32 for the bounds, a grid for the means, five seeds for the network."""
    generator = torch.Generator().manual_seed(seed)
    rows = [*_printed_rows(generator), *_bound_rows(generator), *_law_rows(generator), *_balance_rows(generator)]
    learnt = [accuracies({"true": torch.matmul, "straight": straight, "throughout": throughout}, seed=seed + one) for one in range(_SEEDS)]
    for name, en, zh in (("straight", "true products backwards", "反向用真乘法"), ("throughout", "backwards, too", "反向也用近似")):
        gained = [100 * (one[name] - one["true"]) for one in learnt]
        rows.append(sampled(Words(f"a small network, {en}: points of accuracy more than with true products, at least -1",
                                  f"小网络，{zh}：准确率比真乘法高多少点，至少 -1"), -1.0, gained, relation=">="))  # fmt: skip
    return Found(tuple(rows), {**_curves(generator), "accuracy": {name: [one[name] for one in learnt] for name in learnt[0]}})


def draw(figure: Figure, series: Mapping[str, Any]) -> None:
    """Left: the worst lines of product and quotient. Right: how the relative errors of products are distributed."""
    left, right = figure.subplots(1, 2)
    for name, label in (("square", "product (1 + x)(1 + x)"), ("balanced", "the same, times 18/17"), ("quotient", "quotient 1 / (1 + x)")):
        left.plot(series["x"], series[name], label=label)
    for level in (8 / 9, 1.0, 9 / 8):
        left.axhline(level, color="grey", linestyle="--", linewidth=0.8)
    left.set(xlabel="mantissa x", ylabel="approximate / true", title="dashed: 8/9, 1 and 9/8", ylim=(0.87, 1.17))
    left.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)
    right.step(series["errors"], series["density"], where="mid", label="product")
    right.step(series["errors"], series["balanced_density"], where="mid", label="product times 18/17")
    for level in (-100 / 9, -100 / 17, 100 / 17):
        right.axvline(level, color="grey", linestyle="--", linewidth=0.8)
    right.set(xlabel="relative error, %", ylabel="share of pairs per percent of error, %", title="dashed: -1/9 and ±1/17")
    right.legend(facecolor="white", framealpha=1, edgecolor="none", fontsize=8, loc="upper left")


def _printed_rows(generator: torch.Generator) -> list[Row]:
    factors = torch.tensor([12.3, 4.56])
    cut = ((factors.view(torch.int32) >> 14) << 14).view(torch.float32)                # 9 of 23 bits of mantissa
    any_floats = _floats(torch.float32, 10_007, generator)
    powers = torch.exp2(torch.arange(-30, 31)).repeat(165)[: len(any_floats)]
    normal = any_floats.abs().clamp(2.0**-60, 2.0**60).copysign(any_floats)
    inexact = _different(multiply(normal, powers), normal * powers) + _different(divide(normal, powers), normal / powers)
    half = torch.tensor(1.5)
    return [
        Row(Words("12.3 × 4.56 in fp32 (56.088 truly)", "fp32 的 12.3 × 4.56（真值 56.088）"), 53.68, _at(multiply, factors), within=5e-6),
        Row(Words("the same with mantissas cut to 9 bits", "同上，尾数截断为 9 位"), 53.625, _at(multiply, cut)),
        Row(Words("1.5 × 1.5, exactly", "1.5 × 1.5（精确）"), 2.0, float(multiply(half, half))),
        Row(Words("products and quotients with a power of two that aren't exact", "与 2 的幂相乘除而不精确的个数"), 0.0,
            float(inexact)),
    ]  # fmt: skip


def _bound_rows(generator: torch.Generator) -> list[Row]:
    a, b = (_wide(generator) for _ in range(2))
    ratio = multiply(a, b).double() / (a.double() * b.double())
    quotient = divide(a, b).double() / (a.double() / b.double())
    half = torch.tensor(1.5, dtype=torch.float64)
    return [
        Row(Words("2e6 random pairs: the least ratio of product to truth", "二百万随机对：积与真值之比的最小值"), 0.88889,
            float(ratio.min()), within=1e-4),
        Row(Words("no ratio is below 8/9", "比值不小于 8/9"), 8 / 9, float(ratio.min()), ">=", 1e-15),
        Row(Words("no ratio is above 1", "比值不大于 1"), 1.0, float(ratio.max()), "<="),
        Row(Words("the worst case is x = y = 1/2: 8/9", "最坏情形 x = y = 1/2:8/9"), 8 / 9, float(multiply(half, half) / 2.25),
            within=1e-15),
        Row(Words("the same pairs: the greatest ratio of quotient to truth", "同样的数对：商与真值之比的最大值"), 1.12499,
            float(quotient.max()), within=1e-4),
        Row(Words("no ratio of quotients is above 9/8", "商的比值不大于 9/8"), 9 / 8, float(quotient.max()), "<=", 1e-15),
        Row(Words("none is below 1", "也不小于 1"), 1.0, float(quotient.min()), ">=", 1e-15),
        # Both claims were sampled from 2e6 pairs: their standard error is 2e-5.
        Row(Words("mean relative error, mantissas uniform", "平均相对误差，尾数均匀"), 0.03849, mean_error(logarithmic=False), within=5e-5),
        Row(Words("mean relative error, numbers log-uniform", "平均相对误差，对数均匀"), 0.03818,
            mean_error(logarithmic=True), within=5e-5),
    ]


def _law_rows(generator: torch.Generator) -> list[Row]:
    rows, a, b = [], _wide(generator), _wide(generator)
    rising = a.sort().values
    over = (multiply(a, b).double() > a.double() * b.double()).sum()
    rows.append(Row(Words("products that are over-estimated", "高估的积的个数"), 0.0, float(over)))
    rows.append(Row(Words("pairs whose order matters", "交换后结果不同的对数"), 0.0, float((multiply(a, b) != multiply(b, a)).sum())))
    falls = (multiply(rising, b[0]).diff() < 0).sum() + (divide(rising, b[0]).diff() < 0).sum() + (divide(b[0], rising).diff() > 0).sum()
    rows.append(Row(Words("places where a product or quotient isn't monotone", "积或商不单调的位置数"), 0.0, float(falls)))
    for dtype in _FLOATS:
        x, y = (_floats(dtype, 2003, generator) for _ in range(2))
        expected = torch.tensor([by_hand(*pair, dtype) for pair in zip(x.tolist(), y.tolist(), strict=True)], dtype=torch.float64)
        wrong = _different(multiply(x, y).double(), expected)
        name = str(dtype).removeprefix("torch.")
        claim = Words(f"{name}, any bits: products that differ from the same by hand in whole numbers",
                      f"{name}，任意比特：与整数手算不同的积的个数")  # fmt: skip
        rows.append(Row(claim, 0.0, float(wrong)))
    return rows


def _balance_rows(generator: torch.Generator) -> list[Row]:
    a, b = (1 + torch.rand(_PAIRS, generator=generator, dtype=torch.float64) for _ in range(2))
    error = balanced(a, b) / (a * b) - 1
    diagonal = 1 + torch.arange(4096, dtype=torch.float64) / 4096                      # x = y: the worst is among them, below and above
    worst = [float((multiply(diagonal, diagonal, offset=k / 1024) / diagonal**2 - 1).abs().max()) for k in range(40, 100)]
    return [
        Row(Words("times 18/17: the greatest error upwards", "乘以 18/17：最大正误差"), 1 / 17, float(error.max()), within=1e-4),
        Row(Words("times 18/17: the greatest error downwards", "乘以 18/17：最大负误差"), -1 / 17, float(error.min()), within=1e-4),
        Row(Words("a constant k added to the sum of bits does it less well: the best greatest error, (1 - k)(3 - k)² = 8",
                  "改为在比特和上加常数 k 则较差：最好的最大误差，(1 - k)(3 - k)² = 8"), 0.068858, min(worst), within=5e-4),
    ]  # fmt: skip


def _curves(generator: torch.Generator) -> dict[str, Any]:
    x = torch.linspace(0, 1, 201, dtype=torch.float64)[:-1]
    value = 1 + x
    a, b = (1 + torch.rand(_PAIRS // 10, generator=generator, dtype=torch.float64) for _ in range(2))
    edges = torch.linspace(-12, 7, 77, dtype=torch.float64)                            # quarters of a percent
    curves = {"x": x, "square": multiply(value, value) / value**2, "balanced": balanced(value, value) / value**2,
              "quotient": divide(torch.ones_like(value), value) * value, "errors": (edges[1:] + edges[:-1]) / 2}  # fmt: skip
    for name, product in (("density", multiply), ("balanced_density", balanced)):
        counts = torch.histogram(100 * (product(a, b) / (a * b) - 1), edges).hist
        curves[name] = 400 * counts / len(a)
    return {name: curve.tolist() for name, curve in curves.items()}


def _at(product: Product, factors: Tensor) -> float:
    return float(product(factors[0], factors[1]))


def _wide(generator: torch.Generator) -> Tensor:
    """fp32 numbers from 2^-20 to 2^20, log-uniform in the exponent, uniform in the mantissa, [2e6]."""
    exponents = torch.randint(-20, 20, (_PAIRS,), generator=generator)
    return torch.ldexp(1 + torch.rand(_PAIRS, generator=generator), exponents)


def _floats(dtype: torch.dtype, count: int, generator: torch.Generator) -> Tensor:
    """Floats of random bits, nan and infinity among them; each seventh is one of the special ones."""
    bits = layout(dtype)
    information = torch.iinfo(bits.integer)
    high = torch.randint(-(2**31), 2**31, (count,), generator=generator)
    low = torch.randint(0, 2**32, (count,), generator=generator)
    drawn = (high * 2**32 + low) >> (64 - information.bits)                           # the upper bits are as random as the lower
    special = torch.tensor([0, 1, bits.least - 1, bits.least, bits.one, bits.infinity - 1, bits.infinity, bits.infinity + 1])
    drawn[::7] = special[torch.randint(0, len(special), (len(drawn[::7]),), generator=generator)] | drawn[::7] & information.min
    return drawn.to(bits.integer).view(dtype)


def _split(value: float, dtype: torch.dtype, s: int, top: int) -> tuple[bool, int, int]:
    """Sign, exponent and mantissa as they are stored."""
    as_float, as_bits = _FLOATS[dtype]
    (stored,) = struct.unpack(as_bits, struct.pack(as_float, value))
    if dtype == torch.bfloat16:
        stored >>= 16                                                                  # the upper half of a float32
    return bool(stored // ((top + 1) << s)), stored >> s & top, stored & ((1 << s) - 1)


def _kind(exponent: int, mantissa: int, top: int) -> str:
    if exponent == top:
        return "nan" if mantissa else "infinite"
    return "normal" if exponent else "zero"                                            # subnormal numbers count as 0


def _different(found: Tensor, expected: Tensor) -> int:
    """How many differ; nan is nan, and -0 isn't 0."""
    same = (found == expected) & (found.signbit() == expected.signbit()) | found.isnan() & expected.isnan()
    return int((~same).sum())


def _points(centres: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    labels = torch.randint(0, len(centres), (count,), generator=generator)
    which = torch.randint(0, centres.shape[1], (count,), generator=generator)
    return centres[labels, which] + 1.5 * torch.randn(count, centres.shape[2], generator=generator), labels


def _network(points: Tensor, parameters: list[Tensor], product: Product) -> Tensor:
    first, first_bias, second, second_bias = parameters
    return product((product(points, first) + first_bias).relu(), second) + second_bias  # [b 7]
