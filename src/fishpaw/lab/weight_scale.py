"""What L2 and WEISSI (arXiv:2008.02965) make of rescaling layers against each other: laws, a wrong factor of the article, small trainings.

A ReLU network is the same function after W_l -> g_l W_l with the product of all g equal to 1. Sum of |W_l|² changes, and is least where
all norms are equal; WEISSI doesn't change. Measured is `fishpaw.losses.weissi`. The article multiplies the bias of layer l by g_l, which
changes the function: the factor is g_1 … g_l. For a ReLU network without biases <W_l, gradient of the loss> is the same for all layers,
so that along plain gradient descent |W_1|² - |W_2|² shrinks like exp(-2 λ t) under λ/2 sum |W_l|² and stays under WEISSI's first term.
The paper's gains on images and against adversaries aren't measured; one row compares test accuracies on a small set of drawn points, which
says nothing about images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fishpaw.lab.findings import Found, Row, Words, sampled
from fishpaw.losses.weissi import balanced, rescaled, weissi

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SOURCE", "TITLE", "as_printed", "descent", "draw", "layers", "measure", "network", "spread", "squares", "trained"]

TITLE = Words("L2, WEISSI, and layers rescaled against each other", "L2、WEISSI 与层间权重尺度偏移")
SOURCE = "https://kexue.fm/archives/7681"

FACTORS = (3.0, 0.25, 4 / 3)
"""Of three layers; their product is 1."""

SEEDS, TRAIN, CHECK, TEST = 8, 128, 256, 2048
DECAY, PULL, RATE, STEPS = 0.25, 0.05, 0.01, 200
"""Of the plain gradient descent: λ, the weight of WEISSI's first term (it takes 2 x that from each |W|² a unit of time, whatever is left:
a strong one ends a layer), the step's length, the steps."""

STRENGTHS = (0.01, 0.03, 0.1)
"""Of L2, and of both terms of WEISSI: with less or more either has a lower mean accuracy on the points to choose by."""

Penalty = Callable[[Sequence[Tensor]], Tensor]


def layers(sizes: Sequence[int], draws: torch.Generator, *copies: int) -> tuple[list[Tensor], list[Tensor]]:
    """Weights [… out in] of deviation sqrt(2 / in) and biases [… 1 out] of deviation 1/2, fp64; one network a copy."""
    weights, biases = [], []
    for before, after in zip(sizes, sizes[1:], strict=False):
        weights.append(math.sqrt(2 / before) * torch.randn(*copies, after, before, generator=draws, dtype=torch.float64))
        biases.append(0.5 * torch.randn(*copies, 1, after, generator=draws, dtype=torch.float64))
    return weights, biases


def network(weights: Sequence[Tensor], biases: Sequence[Tensor | None], x: Tensor) -> Tensor:
    """x [… n in] -> [… n out], ReLU between the layers."""
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = (x if index == 0 else x.relu()) @ weight.mT                             # [… n out]
        x = x if bias is None else x + bias
    return x


def as_printed(weights: Sequence[Tensor], biases: Sequence[Tensor], factors: Sequence[float]) -> tuple[list[Tensor], list[Tensor]]:
    """The article's rescaling: weight and bias of layer l by g_l. Another function, if there are biases."""
    return [g * one for g, one in zip(factors, weights, strict=True)], [g * one for g, one in zip(factors, biases, strict=True)]


def squares(weights: Sequence[Tensor]) -> Tensor:
    """Sum of |W_l|² -> []."""
    return torch.stack([weight.square().sum() for weight in weights]).sum()


def spread(weights: Sequence[Tensor]) -> list[float]:
    """Weights [s out in] of s networks -> of each log(greatest / least norm of its layers), [s]: 0 where they are balanced."""
    norms = torch.stack([weight.detach().norm(dim=(-2, -1)) for weight in weights])                 # [l s]
    return [float(value) for value in (norms.amax(0) / norms.amin(0)).log()]


def descent(penalty: Penalty, seed: int) -> Tensor:
    """Plain gradient descent of SEEDS networks without biases on drawn targets, each with its penalty -> (|W_1|² - |W_2|²) as a share of
    what it was, before each step and after the last, [steps+1 s]."""
    draws = torch.Generator().manual_seed(seed)
    teacher, _ = layers((7, 11, 1), draws, SEEDS)
    weights, _ = layers((7, 13, 1), draws, SEEDS)
    x = torch.randn(SEEDS, 61, 7, generator=draws, dtype=torch.float64)
    y = network(teacher, (None, None), x)
    weights = [(g * weight).requires_grad_() for g, weight in zip((2.0, 0.5), weights, strict=True)]
    apart = []
    for step in range(STEPS + 1):
        first, second = (weight.detach().square().sum((-2, -1)) for weight in weights)
        apart.append(first - second)                                                # [s]
        if step < STEPS:
            fit = (network(weights, (None, None), x) - y).square().mean((-2, -1)).sum() / 2         # networks don't share weights
            gradients = torch.autograd.grad(fit + penalty(weights), weights)
            weights = [(weight - RATE * slope).detach().requires_grad_() for weight, slope in zip(weights, gradients, strict=True)]
    return torch.stack(apart) / apart[0]


def trained(
    penalty: Penalty, seed: int, *, factors: Sequence[float] = (1.0, 1.0, 1.0), steps: int = 100
) -> tuple[list[float], list[float], list[float]]:
    """SEEDS classifiers 17-29-29-2 with biases, rescaled by `factors` first, trained by Adam on drawn points of which a tenth are labelled
    wrongly -> of each the accuracy on points to choose by, the accuracy on others, the spread of its layers' norms."""
    draws = torch.Generator().manual_seed(seed)
    teacher = layers((17, 23, 2), draws, SEEDS)
    x = torch.randn(SEEDS, TRAIN + CHECK + TEST, 17, generator=draws, dtype=torch.float64)
    logits = network(*teacher, x)
    y = (logits - logits.median(1, keepdim=True).values).argmax(-1)                 # [s n], classes of about one size
    wrong = torch.rand(y.shape, generator=draws) < 0.1
    y[:, :TRAIN] = torch.where(wrong, 1 - y, y)[:, :TRAIN]
    weights, biases = layers((17, 29, 29, 2), draws, SEEDS)
    cumulative = torch.tensor(factors, dtype=torch.float64).cumprod(0).tolist()
    weights = [(g * weight).requires_grad_() for g, weight in zip(factors, weights, strict=True)]
    biases = [(g * bias).requires_grad_() for g, bias in zip(cumulative, biases, strict=True)]
    optimizer = torch.optim.Adam([*weights, *biases], lr=0.01)
    for _ in range(steps):
        fit = cross_entropy(network(weights, biases, x[:, :TRAIN]).flatten(0, 1), y[:, :TRAIN].flatten()) * SEEDS
        optimizer.zero_grad()
        (fit + penalty(weights)).backward()
        optimizer.step()
    with torch.no_grad():
        right = (network(weights, biases, x).argmax(-1) == y).double()
    return right[:, TRAIN : TRAIN + CHECK].mean(1).tolist(), right[:, TRAIN + CHECK :].mean(1).tolist(), spread(weights)


def measure(*, seed: int = 0) -> Found:
    """seed: of all that is drawn; the networks trained beside each other are the samples of the intervals."""
    draws = torch.Generator().manual_seed(seed)
    paths = {"L2": descent(_l2(DECAY / 2), seed), "WEISSI": descent(_each(scale=PULL, direction=0.0), seed)}
    rows = (*_penalty_rows(draws), *_function_rows(draws), *_least_rows(draws), *_path_rows(paths), *_training_rows(seed))
    return Found(rows, _curves(paths, seed))


def draw(figure: Figure, series: Mapping[str, Any]) -> None:
    """Left: penalties along a rescaling. Middle: how far it moves the function. Right: how gradient descent balances two layers."""
    left, middle, right = figure.subplots(1, 3)
    left.loglog(series["g"], series["squares"], label="sum |W|²")
    left.loglog(series["g"], series["weissi"], label="exp(sum log |W|)")
    left.axhline(1, color="grey", linestyle="--", linewidth=0.8)
    left.set(xlabel="g: layers times g, 1/g, 1", ylabel="share of its value at g = 1", title="what a penalty sees")
    left.legend(frameon=False, fontsize=7)
    middle.loglog(series["g"], series["printed"], label="bias times g_l (article)")
    middle.loglog(series["g"], series["cumulative"], label="bias times g_1 … g_l")
    middle.axhline(1e-10, color="grey", linestyle="--", linewidth=0.8)
    middle.set(xlabel="g", ylabel="greatest |f after - f before|", title="the function (dashed: 1e-10)", ylim=(1e-17, 1e2))
    middle.legend(frameon=False, fontsize=7, loc="center")
    for colour, (name, values) in zip(("C0", "C1"), series["paths"].items(), strict=True):
        right.plot(series["time"], values, label=name, color=colour)
    right.plot(series["time"], series["claimed"], "--", color="black", linewidth=0.8, label="exp(-2 λ t)")
    right.axhline(1, color="grey", linestyle="--", linewidth=0.8)
    right.set(xlabel="t = steps x their length", ylabel="(|W1|² - |W2|²), share of the first", title="what training does", ylim=(0, 1.1))
    right.legend(frameon=False, fontsize=7)


def _each(*, scale: float, direction: float) -> Penalty:
    """weissi of each of the networks side by side, summed."""
    return lambda weights: weissi([one for weight in weights for one in weight.unbind(0)], scale=scale, direction=direction)


def _penalty_rows(draws: torch.Generator) -> list[Row]:
    weights = layers((5, 11, 7, 3), draws)[0]
    grown = [5.0 * weights[0], *weights[1:]]
    scale = float(weissi(grown, scale=0.7, direction=0.0) - weissi(weights, scale=0.7, direction=0.0))
    direction = float(weissi(grown, scale=0.0, direction=0.7) - weissi(weights, scale=0.0, direction=0.7))
    leaves = [weight.clone().requires_grad_() for weight in weights]
    slopes = torch.autograd.grad(weissi(leaves, scale=0.7, direction=0.0), leaves)
    pulls = [float((slope * weight).sum()) for slope, weight in zip(slopes, weights, strict=True)]
    return [
        Row(Words("a layer times 5 adds l1 log 5 to the first term (l1 = 0.7)", "某层乘 5，第一项增加 l1 log 5(l1 = 0.7)"),
            0.7 * math.log(5), scale, within=1e-10),
        Row(Words("and nothing to the second", "第二项不变"), 0.0, direction, within=1e-10),
        Row(Words("<W_l, gradient of the first term> is l1 in each layer: least", "各层 <W_l，第一项的梯度> 都等于 l1：最小"),
            0.7, min(pulls), within=1e-12),
        Row(Words("the same: greatest", "同上：最大"), 0.7, max(pulls), within=1e-12),
    ]


def _function_rows(draws: torch.Generator) -> list[Row]:
    weights, biases = layers((5, 11, 7, 3), draws)
    x = torch.randn(101, 5, generator=draws, dtype=torch.float64)
    before, plain = network(weights, biases, x), network(weights, (None,) * 3, x)
    moved, shifted = rescaled(weights, biases, FACTORS)
    return [
        Row(Words("without biases, factors 3, 1/4, 4/3 leave the output alone", "无偏置时，因子 3、1/4、4/3 不改变输出"),
            0.0, float((network(moved, (None,) * 3, x) - plain).abs().max()), within=1e-10),
        Row(Words("WEISSI is the same after it", "WEISSI 也不变"), 0.0, float(weissi(moved) - weissi(weights)), within=1e-10),
        Row(Words("sum |W|² isn't: it is multiplied by", "Σ|W|² 却变了：变为原来的倍数"),
            1.5, float(squares(moved) / squares(weights)), ">="),
        Row(Words("with biases, each times its own factor as in the article: greatest change of the output",
                  "有偏置时按文章各乘本层因子：输出的最大变化"),
            0.1, float((network(*as_printed(weights, biases, FACTORS), x) - before).abs().max()), ">="),
        Row(Words("each bias times the product of the factors up to its layer: the same change", "偏置乘到本层为止的因子之积：同一变化"),
            0.0, float((network(moved, shifted, x) - before).abs().max()), within=1e-10),
        Row(Words("|df/dx| is at most the product of |W_l|: greatest ratio of 60 networks",
                  "|df/dx| 不超过 |W_l| 之积：60 个网络中的最大比值"),
            1.0, _steepest(draws), "<=", within=1e-12),
    ]


def _least_rows(draws: torch.Generator) -> list[Row]:
    weights, biases = layers((5, 11, 7, 3), draws)
    even = balanced(weights, biases)[0]
    mean = math.prod(float(weight.norm()) for weight in weights) ** (1 / 3)
    others = []
    for _ in range(200):
        logs = 0.3 * torch.randn(3, generator=draws, dtype=torch.float64)
        others.append(float(squares(rescaled(even, biases, (logs - logs.mean()).exp().tolist())[0]) / squares(even)))
    return [
        Row(Words("L2 is least where all norms are their geometric mean: sum |W|² there over 3 times its square",
                  "各范数等于几何平均时 L2 最小：此时 Σ|W|² 与其平方的 3 倍之比"),
            1.0, float(squares(even)) / (3 * mean**2), within=1e-12),
        Row(Words("no other factors of product 1 have less: least of 200 over it", "其余积为 1 的因子都不更小：200 组中最小者与它之比"),
            1.0, min(others), ">="),
        Row(Words("so L2 falls without any change of the function, to this share", "因此 L2 可在函数不变时降到原来的这一比例"),
            0.95, float(squares(even) / squares(weights)), "<="),
    ]


def _path_rows(paths: Mapping[str, Tensor]) -> list[Row]:
    claimed = math.exp(-2 * DECAY * RATE * STEPS)
    return [
        sampled(Words("gradient descent under L2: |W_1|² - |W_2|² shrinks like exp(-2 λ t)",
                      "L2 下梯度下降：|W_1|² - |W_2|² 按 exp(-2 λ t) 减小"),
                claimed, paths["L2"][-1].tolist(), within=0.02),
        sampled(Words("under WEISSI's first term it stays as it began", "WEISSI 第一项下它保持不变"),
                1.0, paths["WEISSI"][-1].tolist(), within=0.02),
    ]


def _training_rows(seed: int) -> list[Row]:
    l2 = [trained(_l2(strength), seed) for strength in STRENGTHS]
    shift = [trained(_each(scale=strength, direction=strength), seed) for strength in STRENGTHS]
    better = [b - a for a, b in zip(_chosen(l2), _chosen(shift), strict=True)]
    pulled, left = (trained(penalty, seed, factors=FACTORS)[2] for penalty in (_l2(0.01), _each(scale=0.01, direction=0.01)))
    wider = [b - a for a, b in zip(pulled, left, strict=True)]
    return [
        sampled(Words("Adam, unbalanced start: log(greatest / least norm of layers) with WEISSI above that with L2 (strength 0.01)",
                      "Adam，初始不平衡：WEISSI 训练后各层范数的 log(最大 / 最小) 高于 L2（强度 0.01）"),
                0.0, wider, relation=">="),
        sampled(Words("WEISSI generalises better than L2: test accuracies apart, strengths chosen on other points",
                      "WEISSI 泛化优于 L2：测试准确率之差（强度在另一组点上选）"),
                0.0, better, relation=">="),
    ]


def _l2(strength: float) -> Penalty:
    return lambda weights: strength * squares(weights)


def _chosen(runs: Sequence[tuple[list[float], list[float], list[float]]]) -> list[float]:
    """Of each network the test accuracy with the strength that was best on the points to choose by; the first of equals."""
    return [max(runs, key=lambda run: run[0][at])[1][at] for at in range(SEEDS)]


def _steepest(draws: torch.Generator) -> float:
    """The greatest |df/dx|_2 / product of |W_l| over 60 networks with biases, at one point each. The first is of rank 1 with all signs
    right: there the bound is reached."""
    worst = 0.0
    for index in range(60):
        weights, biases = layers((5, 11, 7, 3), draws)
        if index == 0:
            weights, biases = [torch.ones_like(weight) for weight in weights], [99.0 + bias for bias in biases]
        x = torch.randn(5, generator=draws, dtype=torch.float64)
        slope = torch.autograd.functional.jacobian(lambda at, w=weights, b=biases: network(w, b, at[None])[0], x)
        worst = max(worst, float(torch.linalg.matrix_norm(slope, 2)) / math.prod(float(weight.norm()) for weight in weights))
    return worst


def _curves(paths: Mapping[str, Tensor], seed: int) -> dict[str, Any]:
    draws = torch.Generator().manual_seed(seed)
    weights, biases = layers((5, 11, 7, 3), draws)
    x = torch.randn(101, 5, generator=draws, dtype=torch.float64)
    before = network(weights, biases, x)
    g = torch.logspace(-1, 1, 60, dtype=torch.float64).tolist()                 # without 1, where nothing moves
    found: dict[str, list[float]] = {"squares": [], "weissi": [], "printed": [], "cumulative": []}
    for factor in g:
        factors = (factor, 1 / factor, 1.0)
        moved, shifted = rescaled(weights, biases, factors)
        found["squares"].append(float(squares(moved) / squares(weights)))
        found["weissi"].append(math.exp(float(weissi(moved, direction=0.0) - weissi(weights, direction=0.0))))
        found["cumulative"].append(float((network(moved, shifted, x) - before).abs().max()) + 1e-16)          # logarithmic axes have no 0
        found["printed"].append(float((network(*as_printed(weights, biases, factors), x) - before).abs().max()) + 1e-16)
    time = [RATE * step for step in range(0, STEPS + 1, 2)]
    return {
        **found, "g": g, "time": time, "claimed": [math.exp(-2 * DECAY * t) for t in time],
        "paths": {name: values[::2].mean(1).tolist() for name, values in paths.items()},
    }  # fmt: skip
