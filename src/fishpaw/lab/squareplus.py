"""SquarePlus against softplus: the nearest one, the ones above it, and what its formula loses to cancellation (arXiv:2112.11687).

f(x) = (x + sqrt(x² + b)) / 2 and log(1 + e^x) share f(x) - f(-x) = x, so their difference D is even, and it rises with b at every x. The
greatest |D| is therefore least where D(0) < 0 and the peak of D on the right are of one size: a larger b lifts the peak, a smaller one
lowers D(0). f touches softplus from above at b = 4 ln² 2. What is measured is `fishpaw.activations.squareplus` in fp64.
The article's b is right to its last digit, 1.523821032…; its error 0.0759315 is 0.07593144994 rounded up once too often, and its place of
the peak, 3.5645, is 3.564621: so flat a peak is 1e-10 lower there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from decimal import Decimal, localcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fishpaw.activations import squareplus
from fishpaw.lab.findings import Found, Row, Words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SOURCE", "TITLE", "above", "difference", "draw", "measure", "naive", "nearest", "peak"]

TITLE = Words("SquarePlus: the constant that is nearest to softplus", "SquarePlus：离 softplus 最近的常数")
SOURCE = "https://kexue.fm/archives/8833"

TOUCHING = 4 * math.log(2) ** 2


def naive(x: Tensor, b: float) -> Tensor:
    """(x + sqrt(x² + b)) / 2 as it is written: left of 0 two numbers of one size cancel."""
    return (x + (x * x + b).sqrt()) / 2


def difference(x: Tensor, b: float) -> Tensor:
    """D(x) = squareplus(x) - log(1 + e^x), in the shape and type of x."""
    return squareplus(x, b=b) - torch.logaddexp(x, torch.zeros_like(x))


def peak(b: float, *, right: float = 8.0) -> tuple[float, float]:
    """(place, D there) of the greatest D on 0 … right: a grid, made finer about its best place five times."""
    low, high = 0.0, right
    for _ in range(6):
        grid = torch.linspace(low, high, 2001, dtype=torch.float64)                 # [2001]
        values = difference(grid, b)
        best = int(values.argmax())
        low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, 2000)])
    return float(grid[best]), float(values[best])


def nearest() -> float:
    """b*: the greatest |D| is least. By halving: with b the peak grows and the gap at 0 shrinks."""
    return _halved(lambda b: peak(b)[1] > -float(difference(torch.zeros(1, dtype=torch.float64), b)), 0.5, TOUCHING)


def above() -> float:
    """The least b with squareplus >= softplus on a grid of -40 … 40, in which 0 is a place."""
    grid = torch.arange(-2000, 2001, dtype=torch.float64) / 50                     # [4001]
    return _halved(lambda b: float(difference(grid, b).min()) >= 0, 0.5, 4.0)


def measure(*, seed: int = 0) -> Found:
    """Nothing is drawn at random: the seed changes nothing."""
    return Found((*_nearest_rows(), *_above_rows(), *_product_rows(), *_slope_rows()), _curves())


def draw(figure: Figure, series: Mapping[str, Any]) -> None:
    """Left: D for four b. Right: the relative error of f far to the left, as written and rationalised."""
    left, right = figure.subplots(1, 2)
    for b, values in zip(series["b"], series["differences"], strict=True):
        left.plot(series["x"], values, label=f"b = {b:.4f}")
    for level in (-series["error"], series["error"]):
        left.axhline(level, color="grey", linestyle="--", linewidth=0.8)
    left.set(xlabel="x", ylabel="squareplus(x) - softplus(x)", title="dashed: ±0.0759, the least greatest distance")
    left.legend(frameon=False, fontsize=8)
    right.loglog(series["far"], series["lost"], label="(x + √(x² + b)) / 2")
    right.loglog(series["far"], series["kept"], label="b / (2 (√(x² + b) - x))")
    right.axhline(1, color="grey", linestyle="--", linewidth=0.8)
    right.set(xlabel="-x", ylabel="relative error, fp64, b = 4", title="left of 0: dashed, no digit is right", ylim=(1e-17, 30))
    right.legend(frameon=False, fontsize=8, loc="center left")


def _nearest_rows() -> list[Row]:
    b = nearest()
    place, top = peak(b)
    grid = torch.arange(40_001, dtype=torch.float64) / 1000                        # [40001]
    bottom = float(difference(torch.zeros(1, dtype=torch.float64), b))
    mirrored = difference(torch.tensor([-place], dtype=torch.float64), b)
    odd = (difference(grid, b) - difference(-grid, b)).abs().max()
    others = [float(difference(grid, b * change).abs().max()) for change in (0.999, 1.001)]
    return [
        Row(Words("the b nearest to softplus", "离 softplus 最近的 b"), 1.52382103, b, within=5e-9),
        Row(Words("its greatest distance to softplus", "此时与 softplus 的最大距离"), 0.0759315, top, within=1e-7),
        Row(Words("the distance is reached from below at 0", "在 0 处从下方达到该距离"), -0.0759314, bottom, within=1e-7),
        Row(Words("and from above at this x", "在此 x 处从上方达到"), 3.5645, place, within=2e-4),
        Row(Words("and at -x as well", "在 -x 处同样"), 0.0759315, float(mirrored), within=1e-7),
        Row(Words("the three extremes have one size", "三个极值大小相等"),
            0.0, max(abs(top + bottom), abs(float(mirrored) - top)), within=1e-12),
        Row(Words("the difference is even: |D(x) - D(-x)|", "差是偶函数：|D(x) - D(-x)|"), 0.0, float(odd), within=1e-13),
        Row(Words("a b of 0.1 % more or less is farther from softplus", "b 增减 0.1 % 都离 softplus 更远"), top + 1e-5, min(others), ">="),
    ]


def _above_rows() -> list[Row]:
    grid = torch.arange(-20_000, 20_001, dtype=torch.float64) / 500                # [40001]
    touching, four = difference(grid, TOUCHING), difference(grid, 4.0)
    zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
    curvature = _second(lambda x: squareplus(x, b=4.0), zero) - _second(lambda x: torch.logaddexp(x, torch.zeros_like(x)), zero)
    return [
        Row(Words("from b = 4 ln² 2 on it is never below softplus", "b 从 4 ln² 2 起处处不低于 softplus"), 1.921812, above(), within=5e-7),
        Row(Words("there the least difference is 0", "此时最小的差是 0"), 0.0, float(touching.min()), within=1e-15),
        Row(Words("and lies at x = 0", "位于 x = 0"), 0.0, abs(float(grid[touching.argmin()])), within=1e-12),
        Row(Words("and the greatest is", "最大的差是"), 0.10387, peak(TOUCHING)[1], within=5e-6),
        Row(Words("b = 4: the greatest difference, 1 - ln 2", "b = 4：最大的差为 1 - ln 2"),
            1 - math.log(2), float(four.abs().max()), within=1e-12),
        Row(Words("b = 4: the same curvature as softplus at 0", "b = 4：在 0 处曲率与 softplus 相同"), 0.0, float(curvature), within=1e-12),
    ]


def _product_rows() -> list[Row]:
    x = torch.logspace(-3, 9, 241, dtype=torch.float64)                            # [241]
    right = torch.stack([(squareplus(x, b=b) * squareplus(-x, b=b) / (b / 4) - 1).abs() for b in (0.5, 1.52382103, 4.0, 7.0)])
    lost = (naive(x, 4.0) * naive(-x, 4.0) - 1).abs()
    small = (naive(-x[x > 1e4].float(), 4.0) * x[x > 1e4].float() - 1).abs()
    return [
        Row(Words("f(x) f(-x) = b / 4: relative error of the rationalised form up to |x| = 1e9",
                  "f(x) f(-x) = b / 4：有理化形式的相对误差（|x| ≤ 1e9）"),
            0.0, float(right.max()), within=1e-12),
        Row(Words("the formula as written loses every digit far to the left", "按原式计算，左侧远处一位数字也不剩"),
            1.0, float(lost.max()), ">="),
        Row(Words("in fp32 it does so at -1e4 already", "fp32 在 -1e4 处已经如此"), 1.0, float(small.min()), ">="),
    ]


def _slope_rows() -> list[Row]:
    x = (torch.arange(-1000, 1001, dtype=torch.float64) / 20).requires_grad_()     # [2001]: with 0, where a sign has a jump
    worst = {"first": 0.0, "second": 0.0, "rise": math.inf, "bend": math.inf, "over": math.inf}
    for b in (0.5, 1.52382103, 4.0):
        value = squareplus(x, b=b)
        first, = torch.autograd.grad(value.sum(), x, create_graph=True)
        second, = torch.autograd.grad(first.sum(), x)
        at, root = x.detach(), (x.detach().square() + b).sqrt()
        worst["first"] = max(worst["first"], float((first.detach() - (1 + at / root) / 2).abs().max()))
        worst["second"] = max(worst["second"], float((second - b / (2 * root**3)).abs().max()))
        worst["rise"] = min(worst["rise"], float(value.detach().diff().min()))
        worst["bend"] = min(worst["bend"], float(second.min()))
        worst["over"] = min(worst["over"], float((value.detach() - at.relu()).min()))
    least = 1e-6
    return [
        Row(Words("the gradient is (1 + x / √(x² + b)) / 2, at 0 too", "梯度为 (1 + x / √(x² + b)) / 2，在 0 处也是"),
            0.0, worst["first"], within=1e-12),
        Row(Words("the second derivative is b / (2 (x² + b)^(3/2))", "二阶导数为 b / (2 (x² + b)^(3/2))"),
            0.0, worst["second"], within=1e-12),
        Row(Words("it rises strictly: least step on a grid of -50 … 50", "严格递增：-50…50 网格上最小的增量"), least, worst["rise"], ">="),
        Row(Words("it is convex: least second derivative there", "凸：其中最小的二阶导数"), least, worst["bend"], ">="),
        Row(Words("it is above relu: least distance there", "高于 relu：其中最小的距离"), least, worst["over"], ">="),
    ]


def _curves() -> dict[str, Any]:
    x = torch.linspace(-9, 9, 181, dtype=torch.float64)                            # [181]
    far = torch.logspace(0, 9, 181, dtype=torch.float64)                           # [181]
    constants = [1.0, nearest(), TOUCHING, 4.0]
    with localcontext() as context:
        context.prec = 50                                                          # what cancels at 1e9 leaves thirty digits
        exact = [float(((Decimal(place) ** 2 + 4).sqrt() - Decimal(place)) / 2) for place in far.tolist()]
    reference = torch.tensor(exact, dtype=torch.float64)                           # [181]
    tiny = 2.0**-54                                                                # a logarithmic axis has no 0
    return {
        "x": x.tolist(), "b": constants, "differences": [difference(x, b).tolist() for b in constants], "error": peak(constants[1])[1],
        "far": far.tolist(), "lost": ((naive(-far, 4.0) / reference - 1).abs() + tiny).tolist(),
        "kept": ((squareplus(-far, b=4.0) / reference - 1).abs() + tiny).tolist(),
    }  # fmt: skip


def _halved(enough: Callable[[float], bool], low: float, high: float) -> float:
    """Where enough(b) turns true between low and high, to the last digits."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _second(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    first, = torch.autograd.grad(function(x), x, create_graph=True)
    second, = torch.autograd.grad(first, x)
    return second
