"""Losses for rare classes: their gradients, the borders that they draw, what smooth F1 is worth (kexue.fm/archives/7708, arXiv:2007.07314).

What is measured is `fishpaw.losses.imbalance`. Identities in fp64; borders between two Gaussians of variance 1 at -1 and 1, where the log
odds of a point x are 2 x + ln(rare / frequent): the border that is best for the mean of recalls is 0, that of cross entropy lies at
ln(frequent / rare) / 2. A softmax over w x + b is trained to convergence on the same points with each loss. The article reports no
experiment. Its weighted cross entropy 1 - F/2, F/2 puts the border where p = F/2, F the smooth F1; the best F1 is where p is half of that
F1 itself (arXiv:1402.1892), which is larger: the border is moved too far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fishpaw.lab.findings import Found, Row, Words, sampled
from fishpaw.losses import imbalance
from fishpaw.losses.classification import cross_entropy, multi_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SOURCE", "TITLE", "Loss", "border", "draw", "measure", "points", "trained", "trained_for_f1"]

TITLE = Words("Rare classes: weights, focal loss, smooth F1 and logit adjustment", "类别不平衡：加权、focal、光滑 F1 与 logit adjustment")
SOURCE = "https://kexue.fm/archives/7708"

_SEEDS = 6
_COUNT = 100_000
_RARE = 0.1
_PRIORS = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02)

Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(logits [b 2], labels [b]) -> (sum [], count [])."""


def points(rare: float, *, seed: int, count: int = _COUNT) -> tuple[Tensor, Tensor]:
    """x [count] fp64 and labels [count]: the share `rare` (rounded) has label 1 and comes from N(1, 1), the rest from N(-1, 1)."""
    labels = (torch.arange(count) < round(rare * count)).long()
    noise = torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return noise + 2.0 * labels - 1.0, labels


def trained(x: Tensor, labels: Tensor, loss: Loss, *, start: Tensor | None = None) -> Tensor:
    """weights [2 2]: row 0 slopes, row 1 biases of the two logits, at which the mean loss is least (L-BFGS, fp64), from `start` or 0."""
    inputs = _inputs(x)
    weights = (torch.zeros(2, 2, dtype=torch.float64) if start is None else start.clone()).requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=200, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        total, count = loss(inputs @ weights, labels)
        mean = total / count
        mean.backward()
        return mean

    optimizer.step(closure)
    return weights.detach()


def border(weights: Tensor) -> float:
    """Where the two logits are equal."""
    slope, bias = weights[:, 1] - weights[:, 0]
    return float(-bias / slope)


def trained_for_f1(x: Tensor, labels: Tensor, *, start: Tensor, rounds: int = 4) -> tuple[Tensor, float]:
    """The weights at which `f1_weighted` stands still, and their smooth F1: each round trains with the F of the round before, which
    brings F ten times nearer."""
    weights = start
    for _ in range(rounds):
        f1 = _f1(_scores(_inputs(x) @ weights), labels)
        weights = trained(x, labels, _f1_weighted(f1), start=weights)
    return weights, float(_f1(_scores(_inputs(x) @ weights), labels))


def measure(*, seed: int = 0) -> Found:
    """Identities on 97 random rows; borders over six seeds of 100,000 points; curves of borders from one seed."""
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(97, dtype=torch.float64, generator=generator)
    labels = (torch.rand(97, generator=generator) < 0.3).long()
    logits = torch.randn(97, 5, dtype=torch.float64, generator=generator)
    classes = torch.randint(0, 5, (97,), generator=generator)
    prior = torch.tensor([0.6, 0.2, 0.1, 0.07, 0.03], dtype=torch.float64)
    rows = [*_gradient_rows(scores, labels), *_softmax_rows(logits, classes, prior), *_border_rows(seed)]
    return Found(tuple(rows), {**_border_curves(seed), **_gradient_curves()})


def draw(figure: Figure, series: Mapping[str, Any]) -> None:
    """Left: the trained border by how rare the class is. Right: the gradient at a positive example by its p."""
    left, right = figure.subplots(1, 2)
    for name, style, label in (("cross_entropy", "o-", "cross entropy"), ("focal", "kx", "focal, γ = 2"),
                               ("adjusted", "o-", "logit adjustment"), ("weighted", "k+", "weights 1 / n")):  # fmt: skip
        left.plot(series["rare"], series[name], style, markersize=6, label=label)
    left.plot(series["rare"], series["theory"], color="grey", linestyle="--", linewidth=0.8, label="ln(frequent / rare) / 2")
    left.axhline(0, color="grey", linestyle="--", linewidth=0.8)
    left.set(xscale="log", xlabel="share of the rare class", ylabel="border x", title="Gaussians at ±1; the balanced border is 0")
    left.set_xticks(series["rare"], [f"{share:g}" for share in series["rare"]])
    left.minorticks_off()
    left.legend(frameon=False, fontsize=8)
    for name, label in (("from_entropy", "cross entropy: 1 - p"), ("from_focal", "focal, γ = 2"),
                        ("from_f1", "smooth F1: (1 - F/2) p (1 - p), F = 1/2"), ("from_f1_weighted", "with log p: (1 - F/2)(1 - p)"),
                        ("from_dice", "dice")):  # fmt: skip
        right.plot(series["p"], series[name], label=label)
    right.set(xlabel="p of a positive example", ylabel="-d loss / d score", title="where p is near 0 smooth F1 teaches least")
    right.legend(frameon=False, fontsize=8)


def _gradient_rows(scores: Tensor, labels: Tensor) -> list[Row]:
    y, p = labels.double(), scores.sigmoid()
    f1 = 2 * (y * p).sum() / (y + p).sum()
    n = len(scores)
    found = _slopes(lambda z: imbalance.smooth_f1(z, labels)[0] / n, scores)
    formula = -(2 / (y + p).sum()) * (y - f1 / 2) * p * (1 - p)
    accuracy = _slopes(lambda z: (y * z.sigmoid() + (1 - y) * (1 - z.sigmoid())).sum(), scores)
    entropy = _slopes(lambda z: multi_label(z, labels)[0], scores)
    weighted = _slopes(lambda z: imbalance.f1_weighted(z, labels)[0], scores)
    logs = -(y * (1 - f1 / 2) * (1 - p) - (1 - y) * f1 / 2 * p)
    perfect = torch.where(labels == 1, 40.0, -40.0).double()
    halves = imbalance.f1_weighted(scores, labels, f1=_f1(perfect, labels))[0] / multi_label(scores, labels)[0]
    by_hand = torch.stack([_finite(lambda z: imbalance.dice(z, labels, alpha=1.0)[0], scores, index) for index in range(n)])
    dice = _slopes(lambda z: imbalance.dice(z, labels, alpha=1.0)[0], scores)
    wrong = torch.tensor([-math.log(999)], dtype=torch.float64)                        # p = 0.001 for a positive
    last = torch.ones(1, dtype=torch.long)
    vanishing = _slopes(lambda z: z.sigmoid().sum(), wrong) / _slopes(lambda z: -multi_label(z, last)[0], wrong)
    return [
        Row(Words("gradient of -F1 against -(2 / E[y + p]) E[(y - F1/2) p (1 - p)]", "-F1 的梯度与公式之差"), 0.0, _apart(found, formula),
            within=1e-9),
        Row(Words("the same without the half of F1: off by", "同上，若漏掉 F1 的一半：相差"), 1e-4,
            _apart(found, -(2 / (y + p).sum()) * (y - f1) * p * (1 - p)), ">="),
        Row(Words("gradient of smooth accuracy against (2 y - 1) p (1 - p)", "光滑准确率的梯度与 (2y - 1) p (1 - p) 之差"), 0.0,
            _apart(accuracy, (2 * y - 1) * p * (1 - p)), within=1e-12),
        Row(Words("p = 0.001 of a positive: its gradient over cross entropy's", "正例 p = 0.001：其梯度与交叉熵之比"), 0.001,
            float(vanishing), within=1e-12),
        Row(Words("gradient of cross entropy, which has log p for p, against p - y", "交叉熵（p 换成 log p）的梯度与 p - y 之差"), 0.0,
            _apart(entropy, p - y), within=1e-12),
        Row(Words("log p for p in smooth F1: weights 1 - F1/2 and F1/2", "光滑 F1 中 p 换成 log p：权重 1 - F1/2 与 F1/2"), 0.0,
            _apart(weighted, logs), within=1e-12),
        Row(Words("at F1 = 1 both weights are 1/2", "F1 = 1 时两权重皆为 1/2"), 0.5, float(halves), within=1e-12),
        Row(Words("gradient of dice against finite differences", "dice 的梯度与有限差分之差"), 0.0, _apart(dice, by_hand), within=1e-8),
    ]  # fmt: skip


def _softmax_rows(logits: Tensor, classes: Tensor, prior: Tensor) -> list[Row]:
    plain = cross_entropy(logits, classes)[0]
    slopes = _slopes(lambda z: cross_entropy(z, classes)[0], logits)
    expected = logits.softmax(-1) - torch.nn.functional.one_hot(classes, 5)
    counts = [imbalance.logit_adjusted(logits, classes, scale * prior)[0] for scale in (1.0, 12_345.0)]
    hand = -(logits + prior.log()).log_softmax(-1).gather(1, classes[:, None]).sum()
    return [
        Row(Words("softmax: gradient of cross entropy against p - one-hot", "softmax：交叉熵的梯度与 p - one-hot 之差"), 0.0,
            _apart(slopes, expected), within=1e-12),
        Row(Words("logit adjustment with tau = 0 against cross entropy", "logit adjustment,tau = 0，与交叉熵之差"), 0.0,
            _apart(imbalance.logit_adjusted(logits, classes, prior, tau=0.0)[0], plain), within=1e-12),
        Row(Words("with tau = 1 against cross entropy of z + log prior", "tau = 1，与 z + log 先验的交叉熵之差"), 0.0,
            _apart(counts[0], hand), within=1e-10),
        Row(Words("counts in the place of frequencies change it by", "用频数代替频率，改变了"), 0.0, _apart(counts[0], counts[1]),
            within=1e-10),
        Row(Words("focal loss with gamma = 0 against cross entropy", "focal,gamma = 0，与交叉熵之差"), 0.0,
            _apart(imbalance.focal(logits, classes, gamma=0.0)[0], plain), within=1e-10),
    ]  # fmt: skip


def _border_rows(seed: int) -> list[Row]:
    columns: list[tuple[float, ...]] = []
    prior = torch.tensor([1 - _RARE, _RARE], dtype=torch.float64)
    theory = math.log((1 - _RARE) / _RARE) / 2
    best = max(_hard_f1(x / 1000) for x in range(-1000, 2000))
    for one in range(_SEEDS):
        x, labels = points(_RARE, seed=_SEEDS * seed + one)
        plain = trained(x, labels, cross_entropy)
        other = trained(x, labels, _adjusted(prior))
        late = imbalance.post_hoc(_inputs(x) @ plain, prior).log_softmax(-1)
        apart = _apart(late, (_inputs(x) @ other).log_softmax(-1))
        weighted, f1 = trained_for_f1(x, labels, start=plain)
        here = float(_scores(_inputs(torch.tensor([border(weighted)], dtype=torch.float64)) @ plain).sigmoid())
        reached = _hard_f1(border(weighted))
        recall = _recalls(border(other)) - _recalls(border(plain))
        columns.append((border(other), border(plain), border(plain) - border(other), apart, recall,
                        here - f1 / 2, reached - _hard_f1(border(plain)), best - reached))  # fmt: skip
    adjusted, shifted, moved, differences, recalls, off, gained, lacking = (list(column) for column in zip(*columns, strict=True))
    balanced = Words("balanced accuracy gained on cross entropy: Φ(1) less that at its border", "平衡准确率比交叉熵高：Φ(1) 减其边界处的值")
    return [
        sampled(Words("logit adjustment, a class of 10 %: the border is the balanced one, 0", "logit adjustment，稀有类 10 %：边界为 0"),
                0.0, adjusted, within=0.02),
        sampled(Words("cross entropy: the border is ln(frequent / rare) / slope", "交叉熵：边界在 ln(多/少) / 斜率"), theory, shifted,
                within=0.02),
        sampled(Words("how far apart these borders are", "两边界的距离"), theory, moved, within=0.02),
        Row(Words("adjusting in training or afterwards: log probabilities differ by", "训练时或训练后调整：对数概率相差"), 0.0,
            max(differences), within=1e-5),
        sampled(balanced, _recalls(0.0) - _recalls(theory), recalls, within=0.005),
        sampled(Words("weights 1 - F1/2 and F1/2: at the border p is F1/2, off by", "权重 1 - F1/2 与 F1/2：边界处 p 为 F1/2，相差"), 0.0,
                off, within=0.01),
        sampled(Words("the F1 that they gain on cross entropy", "其 F1 比交叉熵高"), 0.0, gained, relation=">="),
        sampled(Words("the F1 that they lack to the best border: smooth F1 is below F1", "其 F1 距最优边界还差"), 0.005, lacking,
                relation=">="),
    ]  # fmt: skip


def _border_curves(seed: int) -> dict[str, Any]:
    curves: dict[str, Any] = {"rare": list(_PRIORS), "theory": [math.log((1 - rare) / rare) / 2 for rare in _PRIORS]}
    for rare in _PRIORS:
        x, labels = points(rare, seed=seed, count=_COUNT // 4)
        prior = torch.tensor([1 - rare, rare], dtype=torch.float64)
        for name, loss in (("cross_entropy", cross_entropy), ("focal", imbalance.focal), ("weighted", _weighted(1 / prior)),
                           ("adjusted", _adjusted(prior))):  # fmt: skip
            curves.setdefault(name, []).append(border(trained(x, labels, loss)))
    return curves


def _gradient_curves() -> dict[str, Any]:
    p = torch.linspace(0.002, 0.998, 250, dtype=torch.float64)
    scores, labels, half = (p / (1 - p)).log(), torch.ones(250, dtype=torch.long), torch.tensor(0.5, dtype=torch.float64)
    two = torch.stack([torch.zeros_like(scores), scores], 1)
    curves = {
        "p": p, "from_entropy": -_slopes(lambda z: multi_label(z, labels)[0], scores),
        "from_focal": -_slopes(lambda z: imbalance.focal(z, labels)[0], two)[:, 1],
        "from_f1": (1 - half / 2) * _slopes(lambda z: z.sigmoid().sum(), scores),
        "from_f1_weighted": -_slopes(lambda z: imbalance.f1_weighted(z, labels, f1=half)[0], scores),
        "from_dice": -_slopes(lambda z: imbalance.dice(z, labels)[0], scores),
    }  # fmt: skip
    return {name: curve.tolist() for name, curve in curves.items()}


def _adjusted(prior: Tensor) -> Loss:
    return lambda logits, labels: imbalance.logit_adjusted(logits, labels, prior)


def _weighted(weights: Tensor) -> Loss:
    return lambda logits, labels: imbalance.weighted(logits, labels, weights)


def _f1_weighted(f1: Tensor) -> Loss:
    return lambda logits, labels: imbalance.f1_weighted(_scores(logits), labels, f1=f1)


def _inputs(x: Tensor) -> Tensor:
    return torch.stack([x, torch.ones_like(x)], 1)                                     # [b 2]


def _scores(logits: Tensor) -> Tensor:
    return logits[:, 1] - logits[:, 0]                                                 # [b]


def _f1(scores: Tensor, labels: Tensor) -> Tensor:
    y, p = labels.double(), scores.sigmoid()
    return 2 * (y * p).sum() / (y + p).sum()


def _recalls(x: float) -> float:
    """The mean of both recalls of the border x, of the distributions."""
    return 0.5 * (_normal(1 - x) + _normal(1 + x))


def _hard_f1(x: float) -> float:
    """F1 of the rare class for the border x, of the distributions."""
    found, false = _RARE * _normal(1 - x), (1 - _RARE) * _normal(-1 - x)
    return 2 * found / (found + false + _RARE)


def _normal(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _slopes(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    place = at.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(place), place)
    return gradient


def _finite(function: Callable[[Tensor], Tensor], at: Tensor, index: int, *, step: float = 1e-5) -> Tensor:
    up, down = at.clone(), at.clone()
    up[index], down[index] = up[index] + step, down[index] - step
    return (function(up) - function(down)) / (2 * step)


def _apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max())
