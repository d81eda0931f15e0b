"""Performer's random features re-measured: bias, variance, the error of the output and where it stops falling, and two faults.

kexue.fm/archives/7921 on arXiv:2009.14794. The library's draws and kernel are what is measured. The article's own proposal, fixed radii at
equal steps of probability, is biased low, the more so the fewer features there are; one radius drawn within each step is not. Widely used
code subtracts the largest exponent of all keys and adds an eps: in a causal model earlier outputs then change with later keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fishpaw.attention.performer import Performer, build, draw_directions
from fishpaw.attention.recurrence import PLAIN, dense, divide
from fishpaw.config import ModelConfig
from fishpaw.contracts import Grid, Position, Rows, View
from fishpaw.errors import ConfigError
from fishpaw.lab.findings import Found, Row, Words, interval, sampled
from fishpaw.lab.parts import part

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SOURCE", "TITLE", "Size", "draw", "estimates", "full", "leak", "measure", "output_errors", "radii", "strata"]

TITLE = Words("Performer: what random features estimate, and how far off they are", "Performer：随机特征估计了什么，误差有多大")
SOURCE = "https://kexue.fm/archives/7921"

WIDTH = 16
"""Units of a head, d."""
DRAWS = 20_000
"""Independent estimates behind a mean or a variance."""
GROUPS = 20
"""Equal parts of the draws, for an interval of a variance."""
KINDS = tuple((kind, draw) for kind in ("positive", "hyperbolic") for draw in ("iid", "orthogonal"))
NAMES = {
    ("positive", "iid"): Words("independent vectors", "独立的向量"),
    ("positive", "orthogonal"): Words("vectors at right angles", "正交的向量"),
    ("hyperbolic", "iid"): Words("opposite pairs", "正负成对的向量"),
    ("hyperbolic", "orthogonal"): Words("opposite pairs at right angles", "正交且正负成对的向量"),
}
PAIRS = ((0.6, 0.895), (1.0, math.log(6.21)))
"""|q| = |k| after the division by d^(1/4), and |q + k|²: those of the source's numbers."""
VARIANCES = {(0.6, "iid", "positive"): 1.448, (0.6, "orthogonal", "positive"): 1.14, (0.6, "iid", "hyperbolic"): 0.42,
             (0.6, "orthogonal", "hyperbolic"): 0.127, (1.0, "iid", "positive"): 5.21, (1.0, "orthogonal", "positive"): 4.1,
             (1.0, "iid", "hyperbolic"): 2.2, (1.0, "orthogonal", "hyperbolic"): 1.08}  # fmt: skip
"""m var / e^(2q·k) at d = 16, of m vectors, which opposite pairs use twice."""
FIXED = {(16, 16): 0.838, (16, 64): 0.920, (16, 256): 0.964, (64, 16): 0.951, (64, 64): 0.979, (64, 256): 0.992}
"""(d, m) -> estimate / truth with the article's radii at |q + k| = 2.5."""
ERRORS = {(0.5, 64): 0.0062, (0.5, 256): 0.0029, (0.5, 1024): 0.0015, (0.5, 4096): 0.0008, (1.0, 64): 0.023, (1.0, 256): 0.013,
          (1.0, 1024): 0.0064, (1.0, 4096): 0.0033, (2.0, 4096): 0.10}  # fmt: skip
"""(|q| = |k|, m) -> error of the output as a share of the values' norm; d = 16, 128 keys."""


@dataclass(frozen=True)
class Size:
    """What decides the cost of `full`: draws a cell of norms x features x two kinds; texts of `tokens` keys."""

    norms: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    features: tuple[int, ...] = (64, 256, 1024, 4096)
    draws: int = 32
    texts: int = 4
    tokens: int = 128


def measure(*, seed: int = 0) -> Found:
    """Bias, variance, radii, leak and error law in some seconds on one core."""
    bias, variance = _moments(seed)
    law, curves = _law(seed)
    fixed, bars = _radii()
    rows = (*bias, _kernel_is_the_estimate(seed), *variance, *fixed, *_leaks(seed), *law)
    return Found(rows, {"variances": _bars(variance), "errors": curves, "radii": bars})


def full(keep: Path, *, seed: int = 0, data: Path | None = None, tell: Callable[[str], None], size: Size = Size()) -> Found:
    """The table of errors: norms x features, of m vectors and of m/2 opposite pairs, with intervals over draws. A cell is a file in `keep`,
    and one that is there is read. No data is needed. ConfigError for fewer than two numbers of features, or where they don't rise."""
    if len(size.features) < 2 or list(size.features) != sorted(set(size.features)):
        raise ConfigError(f"features are {size.features}.", fix="Give two numbers at least, rising.")
    cells: dict[tuple[str, float, int], list[tuple[float, float]]] = {}
    for kind in ("positive", "hyperbolic"):
        for norm in size.norms:
            for features in size.features:
                cells[kind, norm, features] = _cell(keep, kind, norm, features, seed, size)
                found = [share for share, _ in cells[kind, norm, features]]
                tell(f"{kind}, |q| = |k| = {norm:g}, {features} features: error {sum(found) / len(found):.4f} of the values' norm")
    curves = [_curve(norm, {m: cells["positive", norm, m] for m in size.features}) for norm in size.norms]
    pairs = [_curve(norm, {m: cells["hyperbolic", norm, m] for m in size.features}) for norm in size.norms]
    return Found(tuple(_table(cells, size)), {"errors": curves, "pairs": pairs})


def draw(figure: Figure, series: Mapping[str, Any]) -> None:
    """Variances beside theory, errors by features and norm, the bias of fixed radii: as many of these as `series` holds."""
    panels = [panel for panel in ("variances", "errors", "pairs", "radii") if panel in series]
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        if panel == "variances":
            _draw_variances(axes, series[panel])
        elif panel == "radii":
            _draw_radii(axes, series[panel])
        else:
            _draw_errors(axes, series[panel], "Error" if panel == "errors" else "Error of pairs")


# The estimate of e^(q·k)


def estimates(w: Tensor, q: Tensor, k: Tensor, kind: str) -> Tensor:
    """w [draws m d], q and k [d] -> of e^(q·k), [draws]: the mean of phi(q) phi(k) over the m vectors (arXiv:2009.14794, lemma 1)."""
    exponents = w @ (q + k)                                          # [draws m]
    exponents = exponents if kind == "positive" else torch.cat((exponents, -exponents), dim=1)
    return (exponents - (q @ q + k @ k) / 2).exp().mean(1)


def _pair(norm: float, total: float, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """q, k [d] of this norm with |q + k|² = total, in a random plane."""
    cosine = total / (2 * norm**2) - 1
    turn = torch.linalg.qr(_normal(size, size, seed=seed)).Q
    return norm * turn[0], norm * (cosine * turn[0] + math.sqrt(1 - cosine**2) * turn[1])


def _moments(seed: int) -> tuple[list[Row], list[Row]]:
    """Rows of the bias, then of the variances."""
    bias, variance, off = [], [], dict.fromkeys(PAIRS, 0.0)
    for draw in ("iid", "orthogonal"):
        w = draw_directions(DRAWS * WIDTH, WIDTH, draw=draw, seed=seed).view(DRAWS, WIDTH, WIDTH)
        for norm, total in PAIRS:
            q, k = _pair(norm, total, WIDTH, seed)
            for kind in ("positive", "hyperbolic"):
                ratio = estimates(w, q, k, kind) / (q @ k).exp()
                off[norm, total] = max(off[norm, total], float((ratio.mean() - 1).abs() / ratio.std()) * math.sqrt(DRAWS))
                if (kind, draw) != ("positive", "iid"):
                    variance.append(_variance(ratio, norm, kind, draw))
    for norm, total in PAIRS:
        bias.append(Row(Words(f"unbiased at |q| = |k| = {norm:g}: the mean estimate lies within 6 standard errors of e^(q·k)",
                              f"|q| = |k| = {norm:g} 时无偏：估计的均值与 e^(q·k) 相差不超过 6 个标准误"),
                        6.0, off[norm, total], "<="))  # fmt: skip
    # The law of independent draws holds in any width; in a plane the many draws that its heavy tails ask for are cheap.
    w = draw_directions(100 * DRAWS, 2, draw="iid", seed=seed)[:, None]
    for norm, total in reversed(PAIRS):
        q, k = _pair(norm, total, 2, seed)
        variance.insert(0, _variance(estimates(w, q, k, "positive") / (q @ k).exp(), norm, "positive", "iid", count=1))
    return bias, sorted(variance, key=lambda row: "= 1:" in row.claim.en)


def _variance(ratio: Tensor, norm: float, kind: str, draw: str, count: int = WIDTH) -> Row:
    found = [count * float(part.var()) for part in ratio.chunk(GROUPS)]
    name, claimed = NAMES[kind, draw], VARIANCES[norm, draw, kind]
    law = {("positive", "iid"): " = e^(|q+k|²) - 1", ("hyperbolic", "iid"): " = cosh(|q+k|²) - 1"}.get((kind, draw), "")
    words = Words(f"|q| = |k| = {norm:g}: m var / e^(2q·k){law}, {name.en}", f"|q| = |k| = {norm:g}：m·方差 / e^(2q·k){law}，{name.zh}")
    return sampled(words, claimed, found, within=claimed * (0.1 if norm < 1 else 0.3))


def _bars(rows: list[Row]) -> list[dict[str, Any]]:
    order = [*KINDS]
    return [{"norm": norm, "claimed": [row.claimed for row in part], "measured": [row.measured for row in part],
             "low": [row.interval[0] for row in part if row.interval], "high": [row.interval[1] for row in part if row.interval]}
            for norm, part in ((PAIRS[0][0], _ordered(rows[:4], order)), (PAIRS[1][0], _ordered(rows[4:], order)))]  # fmt: skip


def _ordered(rows: list[Row], order: list[tuple[str, str]]) -> list[Row]:
    return [next(row for row in rows if row.claim.en.endswith(f", {NAMES[kind].en}")) for kind in order]


def _kernel_is_the_estimate(seed: int) -> Row:
    """The kernel's shares, whose features are rescaled against overflow, beside those of lemma 1, written out."""
    kernel, (q, k) = _kernel("hyperbolic", 37, seed), _normal(2 * 11, WIDTH, seed=seed).view(2, 11, WIDTH)
    scores, w = kernel.queries(q) @ kernel.keys(k).mT, kernel.projection[None]                      # [q k]
    q, k = q / WIDTH**0.25, k / WIDTH**0.25
    naive = torch.stack([torch.cat([estimates(w, one, other, "hyperbolic") for other in k]) for one in q])
    difference = scores / scores.sum(-1, keepdim=True) - naive / naive.sum(-1, keepdim=True)
    return Row(Words("the kernel's shares are those of this estimate", "内核给出的权重就是由该估计得到的权重"),
               0.0, float(difference.abs().max()), within=1e-12)  # fmt: skip


# The article's radii


def radii(probability: Tensor, size: int) -> Tensor:
    """[n] -> the radius R with P(|w| <= R) = probability for w ~ N(0, I) in `size` dimensions, by bisection."""
    low, high = torch.zeros_like(probability), torch.full_like(probability, 1e4)
    half = torch.full_like(probability, size / 2)
    for _ in range(80):                                              # of R²/2: 1e4 / 2^80 is below fp64's rounding
        middle = (low + high) / 2
        below = torch.special.gammainc(half, middle) < probability
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (2 * high).sqrt()


def strata(size: int, features: int, distance: float, *, fixed: bool) -> float:
    """The expected estimate / truth at |q + k| = distance with directions drawn evenly and radii: fixed, R_i at probability i / (m + 1), as
    the article has it; else one drawn within each of m steps of equal probability. Exact, by the mean over directions and quadrature."""
    if fixed:
        r = radii(torch.arange(1, features + 1, dtype=torch.float64) / (features + 1), size)
        return float(_over_directions(r * distance, size).mean()) * math.exp(-(distance**2) / 2)
    edges = radii(torch.arange(features, dtype=torch.float64) / features, size).tolist() + [4 * distance + 2 * math.sqrt(size) + 10]
    nodes = (torch.arange(2001, dtype=torch.float64) / 1000 - 1) * 3  # tanh-sinh: an edge may be a sharp bend
    inner = torch.tanh(math.pi / 2 * nodes.sinh())
    weights = 3e-3 * math.pi / 2 * nodes.cosh() / (math.pi / 2 * nodes.sinh()).cosh() ** 2
    total = 0.0
    for low, high in zip(edges, edges[1:], strict=False):
        r = (low + high) / 2 + (high - low) / 2 * inner
        density = ((size - 1) * r.clamp_min(1e-300).log() - r**2 / 2 - (size / 2 - 1) * math.log(2) - math.lgamma(size / 2)).exp()
        total += float((weights * density * _over_directions(r * distance, size)).sum()) * (high - low) / 2
    return total * math.exp(-(distance**2) / 2)


def _over_directions(length: Tensor, size: int) -> Tensor:
    """[n] -> the mean of e^(length cos) over directions in `size` dimensions: 0F1(; d/2; length²/4)."""
    z, term, total = length**2 / 4, torch.ones_like(length), torch.ones_like(length)
    for index in range(400):
        term = term * z / ((index + 1) * (size / 2 + index))
        total = total + term
    return total


def _radii() -> tuple[list[Row], list[dict[str, Any]]]:
    rows, curves = [], []
    for (size, features), claimed in FIXED.items():
        words = Words(f"the article's fixed radii, d = {size}, m = {features}, |q+k| = 2.5: mean estimate / truth, below 1",
                      f"文章的固定半径，d = {size}，m = {features}，|q+k| = 2.5：估计均值 / 真值，小于 1")  # fmt: skip
        rows.append(Row(words, claimed, strata(size, features, 2.5, fixed=True), within=0.0006))
    right = strata(16, 16, 2.5, fixed=False)
    rows.append(Row(Words("one radius drawn within each step of probability is unbiased: mean estimate / truth, d = m = 16",
                          "每一段概率内随机取一个半径则无偏：估计均值 / 真值，d = m = 16"), 1.0, right, within=1e-6))  # fmt: skip
    counts = [4, 8, 16, 32, 64, 128, 256, 512, 1024]
    for size in (16, 64):
        curves.append({"size": size, "features": counts, "ratio": [strata(size, m, 2.5, fixed=True) for m in counts]})
    return rows, curves


# What a later key changes


def leak(outputs: Callable[[Tensor, Tensor, Tensor], Tensor], q: Tensor, k: Tensor, v: Tensor) -> float:
    """The largest change of an output before the last, when the last key becomes four times as long; q, k, v [b t d]. Causal: 0."""
    longer = torch.cat((k[:, :-1], 4 * k[:, -1:]), dim=1)
    return float((outputs(q, longer, v) - outputs(q, k, v))[:, :-1].abs().max())


def _causal(kernel: Performer) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def outputs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        order = torch.arange(q.shape[1]).expand(q.shape[:2])
        rows, grid = Rows(order, order, order, torch.ones_like(order, dtype=torch.bool)), Grid(*order.shape)
        view = View(grid=grid, source=grid, q=rows, k=rows, position=Position(), clock="causal")
        return kernel(q[:, None], k[:, None], v[:, None], view).out[:, 0]  # type: ignore[no-any-return]  # a module's call is Any

    return outputs


def _widespread(kernel: Performer) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """As in widely used code: features e^(w·x - |x|²/2 - the largest) + 1e-4, the keys' largest over all of them."""

    def outputs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = q / WIDTH**0.25, k / WIDTH**0.25
        asked, known = q @ kernel.projection.T, k @ kernel.projection.T
        queries = (asked - (q**2).sum(-1, keepdim=True) / 2 - asked.amax(-1, keepdim=True)).exp() + 1e-4
        keys = (known - (k**2).sum(-1, keepdim=True) / 2 - known.amax((1, 2), keepdim=True)).exp() + 1e-4
        scores = (queries @ keys.mT).tril()                          # [b q k]
        return scores / scores.sum(-1, keepdim=True) @ v

    return outputs


def _leaks(seed: int) -> list[Row]:
    kernel, generator = _kernel("positive", 44, seed), torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 8, 17, WIDTH, dtype=torch.float64, generator=generator)
    kernel.chunk = 5                                                 # so that states are passed on
    ours = _causal(kernel)
    seen = torch.ones(17, 17, dtype=torch.bool).tril()
    plain = divide(dense(kernel.queries(q), kernel.keys(k), torch.nn.functional.pad(v, (0, 1), value=1), PLAIN, allowed=seen))
    order = torch.arange(17).flip(0)
    whole = [kernel.queries(q) @ kernel.keys(one).mT for one in (k, k[:, order])]
    mixed = [scores / scores.sum(-1, keepdim=True) @ one for scores, one in zip(whole, (v, v[:, order]), strict=True)]
    return [
        Row(Words("a maximum over all keys and an eps: the last key four times longer changes earlier outputs (0.66 was seen)",
                  "对所有键取最大值再加 eps：最后一个键放大四倍会改变之前的输出（曾见 0.66）"),
            0.1, leak(_widespread(kernel), q, k, v), ">="),
        Row(Words("the library's causal form: earlier outputs don't change by a bit", "本库的因果形式：之前的输出一个比特也不变"),
            0.0, leak(ours, q, k, v)),
        Row(Words("the linear causal form is the masked quadratic one", "线性的因果形式等于带掩码的二次形式"),
            0.0, float((ours(q, k, v) - plain).abs().max()), within=1e-10),
        Row(Words("keys in another order give the same outputs", "打乱键的顺序，输出不变"),
            0.0, float((mixed[0] - mixed[1]).abs().max()), within=1e-10),
    ]  # fmt: skip


# The error of the output


def output_errors(norm: float, vectors: int, *, kind: str, seed: int, draws: int, texts: int, tokens: int) -> list[tuple[float, float]]:
    """For each of `draws` draws of `vectors` the error of the output against softmax, |estimate - exact|, as a share of the values' norm
    and of the exact output's. Queries and keys on the sphere of radius `norm` (after the division by d^(1/4)), values N(0, 1)."""
    q, k, v = _texts(norm, texts, tokens, seed)
    exact = (q @ k.mT / math.sqrt(WIDTH)).softmax(-1) @ v
    found = []
    for draw in range(draws):
        kernel = _kernel(kind, vectors, 1000 * seed + draw)
        scores = kernel.queries(q) @ kernel.keys(k).mT               # [b q k]
        off = (scores / scores.sum(-1, keepdim=True) @ v - exact).norm()
        found.append((float(off / v.norm()), float(off / exact.norm())))
    return found


def _law(seed: int) -> tuple[list[Row], list[dict[str, Any]]]:
    rows, curves, counts = [], [], (64, 256, 1024, 4096)
    for norm in (0.5, 1.0, 2.0):
        cells = {m: output_errors(norm, m, kind="positive", seed=seed, draws=8, texts=2, tokens=128) for m in counts}
        curves.append(_curve(norm, cells))
        if norm < 2:
            rows.append(_quartered(norm, cells[64], cells[4096], 3))
    rows.append(sampled(Words("|q| = |k| = 2 and 4,096 features: the error is still a tenth of the output and more",
                              "|q| = |k| = 2、4096 个特征：误差仍在输出的十分之一以上"),
                        0.10, [share for _, share in cells[4096]], relation=">="))  # fmt: skip
    return rows, curves


def _quartered(norm: float, few: list[tuple[float, float]], many: list[tuple[float, float]], steps: float) -> Row:
    """steps: of four times as many features."""
    found = [(more / less) ** (1 / steps) for (more, _), (less, _) in zip(few, many, strict=True)]
    return sampled(Words(f"|q| = |k| = {norm:g}: four times as many features divide the error by two",
                         f"|q| = |k| = {norm:g}：特征数乘以四，误差除以二"), 2.0, found, within=0.3)  # fmt: skip


def _curve(norm: float, cells: Mapping[int, list[tuple[float, float]]]) -> dict[str, Any]:
    curve: dict[str, Any] = {"norm": norm, "features": list(cells), "mean": [], "low": [], "high": []}
    for cell in cells.values():
        found = [share for _, share in cell]
        low, high = interval(found)
        curve["mean"].append(sum(found) / len(found))
        curve["low"].append(low)
        curve["high"].append(high)
    return curve


def _cell(keep: Path, kind: str, norm: float, features: int, seed: int, size: Size) -> list[tuple[float, float]]:
    of: dict[str, int] = {"seed": seed, "draws": size.draws, "texts": size.texts, "tokens": size.tokens}
    vectors = features // 2 if kind == "hyperbolic" else features
    found, _ = part(keep, f"{kind} {norm:g} {features}", {**of, "norm": norm, "vectors": vectors},
                    lambda: {"errors": output_errors(norm, vectors, kind=kind, **of)})  # fmt: skip
    return [(share, relative) for share, relative in found["errors"]]


def _table(cells: Mapping[tuple[str, float, int], list[tuple[float, float]]], size: Size) -> list[Row]:
    rows, few, many = [], size.features[0], size.features[-1]
    for (norm, features), claimed in ERRORS.items():
        if ("positive", norm, features) in cells:
            rows.append(sampled(Words(f"|q| = |k| = {norm:g}, {features} features: error of the output / norm of the values",
                                      f"|q| = |k| = {norm:g}，{features} 个特征：输出误差 / 值的范数"),
                                claimed, [share for share, _ in cells["positive", norm, features]], within=0.15 * claimed))  # fmt: skip
    steps = math.log(many / few, 4)
    rows += [_quartered(norm, cells["positive", norm, few], cells["positive", norm, many], steps) for norm in size.norms if norm <= 1]
    for norm in size.norms:
        relative = [share for _, share in cells["positive", norm, many]]
        if norm > 1:
            rows.append(sampled(Words(f"|q| = |k| = {norm:g}, {many} features: error / norm of the exact output, a tenth and more",
                                      f"|q| = |k| = {norm:g}，{many} 个特征：误差 / 精确输出的范数，仍在十分之一以上"),
                                0.10, relative, relation=">="))  # fmt: skip
    middle = size.features[len(size.features) // 2]
    for norm in size.norms:
        single, pairs = cells["positive", norm, middle], cells["hyperbolic", norm, middle]
        factors = [one / other for (one, _), (other, _) in zip(single, pairs, strict=True)]
        rows.append(sampled(Words(f"|q| = |k| = {norm:g}, {middle} features: error of single vectors / of half as many opposite pairs",
                                  f"|q| = |k| = {norm:g}，{middle} 个特征：单独向量的误差 / 一半数量的正负对的误差"),
                            1.0, factors, relation=">="))  # fmt: skip
    return rows


def _kernel(kind: str, vectors: int, seed: int) -> Performer:
    config = ModelConfig(vocab_size=1, hidden_size=WIDTH, layers=1, attention_heads=1, intermediate_size=1)
    return build(config, kind=kind, features=vectors, seed=seed).double().eval()


def _texts(norm: float, texts: int, tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k on the sphere that becomes one of radius `norm`, values: each [texts tokens d]."""
    x = _normal(3 * texts * tokens, WIDTH, seed=seed + 7).view(3, texts, tokens, WIDTH)
    q, k = normalize(x[:2], dim=-1) * norm * WIDTH**0.25
    return q, k, x[2]


def _normal(rows: int, columns: int, *, seed: int) -> Tensor:
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# The figure


def _draw_variances(axes: Any, bars: list[dict[str, Any]]) -> None:
    for index, group in enumerate(bars):
        where = [place + 0.38 * index - 0.19 for place in range(4)]
        errors = [[mean - low for mean, low in zip(group["measured"], group["low"], strict=True)],
                  [high - mean for mean, high in zip(group["measured"], group["high"], strict=True)]]  # fmt: skip
        axes.bar(where, group["measured"], 0.34, yerr=errors, capsize=2, label=f"|q| = |k| = {group['norm']:g}")
        for place, claimed in zip(where, group["claimed"], strict=True):
            axes.plot([place - 0.19, place + 0.19], [claimed] * 2, "k--", linewidth=1, label="_")
    axes.set_xticks(range(4), ["iid", "orth.", "pairs", "both"])
    axes.set_yscale("log")
    axes.set_ylim(top=axes.get_ylim()[1] * 2.5)
    axes.set_ylabel("m var / exp(2 q·k)")
    axes.set_title("Variance (dashed: claimed)", fontsize=10)
    axes.legend(fontsize=8)


def _draw_errors(axes: Any, curves: list[dict[str, Any]], title: str) -> None:
    for curve in curves:
        errors = [[mean - low for mean, low in zip(curve["mean"], curve["low"], strict=True)],
                  [high - mean for mean, high in zip(curve["mean"], curve["high"], strict=True)]]  # fmt: skip
        name = f"|q| = |k| = {curve['norm']:g}"
        line = axes.errorbar(curve["features"], curve["mean"], yerr=errors, marker="o", markersize=3, label=name)
        first = curve["mean"][0]
        law = [first * math.sqrt(curve["features"][0] / count) for count in curve["features"]]
        axes.plot(curve["features"], law, "--", color=line[0].get_color(), linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("features m")
    axes.set_ylabel("error / norm of the exact output")
    axes.set_title(f"{title} (dashed: 1/sqrt(m))", fontsize=10)
    axes.legend(fontsize=8)


def _draw_radii(axes: Any, curves: list[dict[str, Any]]) -> None:
    for curve in curves:
        axes.plot(curve["features"], curve["ratio"], marker="o", markersize=3, label=f"d = {curve['size']}")
    axes.axhline(1, color="black", linestyle="--", linewidth=1, label="unbiased")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("features m")
    axes.set_ylabel("mean estimate / exp(q·k)")
    axes.set_title("Fixed radii, |q+k| = 2.5", fontsize=10)
    axes.legend(fontsize=8)
