"""Taylor polynomials of exp: even orders are positive, with one minimum; what a softmax made of them keeps and loses (arXiv:2011.11538).

f_n(x) = sum over k <= n of x^k / k!. f_n' = f_(n-1), so at a minimum f_n(x*) = x*^n / n! > 0 for an even n; by parts f_n(x) e^-x = 1 -
integral from 0 to x of e^-t t^n / n!. Measured is the library's own code: `fishpaw.attention.taylor` (the polynomial by Horner's rule, the
minimum, the kernel's shares), and `fishpaw.attention.linear.taylor` (features whose product is f_2 of the score). The source's small gains
on images are printed as pictures and aren't measured again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor

from fishpaw.attention.linear import taylor as features
from fishpaw.attention.taylor import Taylor, lowest, polynomial
from fishpaw.contracts import Grid, Position, Rows, View
from fishpaw.errors import ConfigError
from fishpaw.lab.findings import Found, Row, Words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SOURCE", "TITLE", "draw", "measure", "remainder", "share", "summed"]

TITLE = Words("Even Taylor polynomials of exp, and the softmax made of them", "exp 的偶数阶泰勒多项式及其 softmax")
SOURCE = "https://kexue.fm/archives/7919"

TABLE = {2: (-1.0, 0.5), 4: (-1.59607, 0.270395), 6: (-2.18061, 0.149325), 8: (-2.759, 0.0832715), 10: (-3.33355, 0.0466991)}
"""n: the article's x* and f_n(x*), to six digits each."""


def share(scores: Tensor, order: int, *, tail: str = "polynomial") -> Tensor:
    """scores [… k] -> what the library's kernel takes of each of the k keys, [… k], every key seen."""
    rows = scores.reshape(1, 1, -1, scores.shape[-1])                               # [1 1 q k]
    shares: Tensor = Taylor(1, order=order, tail=tail).shares(rows, _everything(rows.shape[2], rows.shape[3]))
    return shares.reshape(scores.shape)


def remainder(x: float, order: int, *, points: int = 60) -> float:
    """The integral from 0 to x of e^-t t^n / n!, by Gauss and Legendre's rule: to the last digits for |x| <= 10."""
    at, part = numpy.polynomial.legendre.leggauss(points)
    t = (at + 1) * x / 2                                                            # [points]
    return float((part * numpy.exp(-t) * t**order / math.factorial(order)).sum() * x / 2)


def summed(x: Tensor, order: int) -> Tensor:
    """f_n(x) term by term in the type of x: what goes wrong in fp16."""
    total, term = torch.ones_like(x), torch.ones_like(x)
    for k in range(1, order + 1):
        term = term * x / k
        total = total + term
    return total


def measure(*, seed: int = 0) -> Found:
    """seed: of the vectors whose products are taken, and of the scores of the gradient."""
    draws = torch.Generator().manual_seed(seed)
    return Found((*_table_rows(), *_identity_rows(), *_positive_rows(), *_softmax_rows(draws), *_refused_rows()), _curves())


def draw(figure: Figure, series: Mapping[str, Any]) -> None:
    """Left: f_n beside exp, with the minima. Right: what the other of two keys keeps, by the gap between their scores."""
    left, right = figure.subplots(1, 2)
    for order, values, place, value in zip(series["orders"], series["polynomials"], series["places"], series["minima"], strict=True):
        line, = left.semilogy(series["x"], values, label=f"n = {order}")
        left.plot(place, value, "o", color=line.get_color(), markersize=4)
        left.axhline(value, color=line.get_color(), linestyle="--", linewidth=0.6)
    left.semilogy(series["x"], series["exp"], color="black", linewidth=1, label="exp")
    left.set(xlabel="x", ylabel="f_n(x)", ylim=(1e-3, 60), title="dots and dashes: the claimed minima")
    left.legend(frameon=False, fontsize=8, ncols=2, loc="upper center")
    for order, values in zip(series["orders"], series["tails"], strict=True):
        right.loglog(series["gap"], values, label=f"n = {order}")
    right.loglog(series["gap"], series["softmax"], color="black", linewidth=1, label="softmax")
    right.set(xlabel="score of one key, the other has 0", ylabel="share of the other key", ylim=(1e-9, 1), title="tails of order n")
    right.legend(frameon=False, fontsize=8)


def _table_rows() -> list[Row]:
    rows: list[Row] = []
    for order, (place, value) in TABLE.items():
        at = lowest(order)
        found = float(polynomial(torch.tensor(at, dtype=torch.float64), order))
        rows += [
            Row(Words(f"n = {order}: the minimum lies at", f"n = {order}：最小值点"), place, at, within=_half(place)),
            Row(Words(f"n = {order}: and is", f"n = {order}：最小值"), value, found, within=_half(value)),
        ]
    return rows


def _identity_rows() -> list[Row]:
    at_minimum, by_parts = 0.0, 0.0
    for order in (*TABLE, 20):
        x = lowest(order)
        closed = x**order / math.factorial(order)
        at_minimum = max(at_minimum, abs(float(polynomial(torch.tensor(x, dtype=torch.float64), order)) / closed - 1))
    for order in (1, 2, 5, 8, 10):
        for x in (-6.0, -2.5, -0.5, 0.5, 3.0, 8.0):
            integral = remainder(x, order)
            found = float(polynomial(torch.tensor(x, dtype=torch.float64), order)) * math.exp(-x)
            by_parts = max(by_parts, abs(found - (1 - integral)) / max(1, abs(integral)))
    return [
        Row(Words("at its minimum f_n is x^n / n! (relative error, n to 20)", "在最小值点 f_n 等于 x^n / n!（相对误差，n 至 20）"),
            0.0, at_minimum, within=1e-11),
        Row(Words("f_n(x) e^-x = 1 - ∫ e^-t t^n / n! from 0 to x (relative error)", "f_n(x) e^-x = 1 - ∫₀ˣ e^-t t^n / n! dt（相对误差）"),
            0.0, by_parts, within=1e-12),
    ]


def _positive_rows() -> list[Row]:
    grid = torch.cat((torch.arange(-50_000, 50_001, dtype=torch.float64) / 50, torch.arange(-5000, 1, dtype=torch.float64) / 1000))
    ratios = [float(polynomial(grid, order).min()) / (lowest(order) ** order / math.factorial(order)) for order in TABLE]
    odd = max(float(polynomial(torch.tensor(-50.0, dtype=torch.float64), order)) for order in (1, 3, 5, 7, 9))
    half = torch.linspace(-9, -1, 1009, dtype=torch.float16)                        # [1009]
    lost = float(summed(half, 20).min())
    return [
        Row(Words("on -1000 … 1000 no value is below the minimum (least ratio, n = 2 … 10)",
                  "在 -1000 … 1000 上没有低于最小值的点（最小比值，n = 2 … 10）"),
            1.0, min(ratios), ">=", within=1e-12),
        Row(Words("an odd order is negative far to the left (greatest of n = 1 … 9 at -50)",
                  "奇数阶在左侧远处为负（n = 1 … 9 在 -50 处的最大值）"),
            0.0, odd, "<="),
        Row(Words("in fp16, term by term, n = 20 turns negative: its least value on -9 … -1",
                  "fp16 逐项求和的 n = 20 变负：-9 … -1 上的最小值"),
            0.0, lost, "<="),
    ]


def _softmax_rows(draws: torch.Generator) -> list[Row]:
    scores = torch.linspace(-5, 5, 41, dtype=torch.float64)                        # [41]
    far = float((share(scores, 30) - scores.softmax(-1)).abs().max())
    near = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    moved = float((share(near + 1, 2) - share(near, 2)).abs().max())
    still = float(((near + 1).softmax(-1) - near.softmax(-1)).abs().max())
    slope = _logs(lambda gap: float(share(torch.tensor([gap, 0.0], dtype=torch.float64), 2)[1]), 100, 400)
    steps = torch.linspace(-9, 3, 121, dtype=torch.float64)                        # [121]
    flat = float(share(steps, 2, tail="flat").diff().min())
    worst = share(torch.tensor([-6.0, -1.0], dtype=torch.float64), 2)
    return [
        Row(Words("n = 30 is the softmax for |x| <= 5: greatest difference", "n = 30 时与 softmax 相同（|x| ≤ 5）：最大差"),
            0.0, far, within=1e-6),
        Row(Words("the gradient of log share i is f_(n-1)/f_n (x_j) (1[i = j] - share j)",
                  "log p_i 的梯度为 f_(n-1)/f_n (x_j) (1[i = j] - p_j)"),
            0.0, _gradient(draws), within=1e-12),
        Row(Words("not shift invariant: scores 0 1 2 plus 1, n = 2, greatest change of a share",
                  "不具平移不变性：分数 0 1 2 各加 1，n = 2，份额的最大变化"),
            0.02, moved, ">="),
        Row(Words("the softmax is: the same change", "softmax 具有：同样的变化"), 0.0, still, within=1e-15),
        Row(Words("tails are polynomial: slope of log share against log gap, n = 2", "尾部是多项式：n = 2 时 log 份额对 log 差的斜率"),
            -2.0, slope, within=0.02),
        Row(Words("below its minimum f_2 rises: a score of -6 gets this many times the share of -1",
                  "低于最小值点后 f_2 回升：-6 分的份额是 -1 分的倍数"),
            26.0, float(worst[0] / worst[1]), within=1e-12),
        Row(Words("with a flat tail no better score has less (least step of the share)", "截平尾部后分数越高份额不减（份额的最小增量）"),
            0.0, flat, ">="),
        Row(Words("φ(q)·φ(k) = 1 + s + s²/2, s = q·k/√d (relative error)", "φ(q)·φ(k) = 1 + s + s²/2，s = q·k/√d（相对误差）"),
            0.0, _features(draws), within=1e-14),
    ]


def _refused_rows() -> list[Row]:
    refused = 0
    for order in range(1, 40, 2):
        try:
            share(torch.zeros(3), order)
        except ConfigError:
            refused += 1
    return [Row(Words("of the twenty odd orders below 40 the kernel refuses", "40 以下二十个奇数阶中被拒绝的个数"), 20, refused)]


def _gradient(draws: torch.Generator) -> float:
    """The greatest error of the formula against autograd, n = 2, 4, 8, 10."""
    scores = (3 * torch.randn(7, generator=draws, dtype=torch.float64)).requires_grad_()
    worst = 0.0
    for order in (2, 4, 8, 10):
        found = torch.stack([torch.autograd.grad(share(scores, order)[i].log(), scores)[0] for i in range(7)])        # [7 7]
        x = scores.detach()
        slope = polynomial(x, order - 1) / polynomial(x, order)
        worst = max(worst, float((found - slope * (torch.eye(7, dtype=torch.float64) - share(x, order))).abs().max()))
    return worst


def _features(draws: torch.Generator) -> float:
    q, k = torch.randn(2, 31, 13, generator=draws, dtype=torch.float64).unbind(0)   # [31 13] each
    s = q @ k.mT / math.sqrt(13)
    size = 1 + s.abs() + s.square() / 2                                             # what the terms of the product add up to
    return float(((features(q) @ features(k).mT - (1 + s + s.square() / 2)).abs() / size).max())


def _curves() -> dict[str, Any]:
    x = torch.linspace(-6, 4, 201, dtype=torch.float64)                            # [201]
    gap = torch.logspace(-1, 3, 121, dtype=torch.float64)                          # [121]
    pairs = torch.stack((gap, torch.zeros_like(gap)), -1)                          # [121 2]
    orders: Sequence[int] = tuple(TABLE)
    return {
        "x": x.tolist(), "orders": list(orders), "polynomials": [polynomial(x, order).tolist() for order in orders],
        "exp": x.exp().tolist(),
        "places": [TABLE[order][0] for order in orders], "minima": [TABLE[order][1] for order in orders], "gap": gap.tolist(),
        "tails": [share(pairs, order)[:, 1].tolist() for order in orders], "softmax": pairs.softmax(-1)[:, 1].tolist(),
    }  # fmt: skip


def _half(printed: float) -> float:
    """Half a unit of the sixth digit, the article's last."""
    return 0.5 * 10.0 ** (math.floor(math.log10(abs(printed))) - 5)


def _logs(function: Callable[[float], float], low: float, high: float) -> float:
    """The slope between two places on logarithmic axes."""
    return math.log(function(high) / function(low)) / math.log(high / low)


def _everything(queries: int, keys: int) -> View:
    """Every query sees every key."""

    def rows(count: int) -> Rows:
        order = torch.arange(count)[None]                                           # [1 count]
        return Rows(order, order, order, torch.ones(1, count, dtype=torch.bool))

    return View(Grid(1, queries), Grid(1, keys), rows(queries), rows(keys), Position())
