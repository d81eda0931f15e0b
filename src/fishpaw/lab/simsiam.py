"""SimSiam and BYOL: why learning from pairs alone doesn't collapse (kexue.fm/archives/7980; arXiv:2011.10566, arXiv:2006.07733).

measure(): the article's toy and its matrix version, what they conserve and where they end; the loss and its gradients; what a collapse
looks like. Beyond the article: stop-gradient saves only where the conserved number is below 1, and a predictor with stop-gradient on both
sides is nothing but the loss without either, at half the rate. full(): the variants on CIFAR-10.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fishpaw.errors import ConfigError, DataError
from fishpaw.lab import siamese_toy as toy
from fishpaw.lab.findings import Found, Row, Words, interval, sampled
from fishpaw.lab.images import CIFAR, Images, read_cifar
from fishpaw.lab.parts import part
from fishpaw.lab.self_supervised import VARIANTS, Network, Variant, channel_std, effective_rank, nearest, negative_cosine, objective, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SOURCE", "TITLE", "Size", "draw", "full", "measure"]

TITLE = Words("SimSiam and BYOL: what keeps them from collapsing", "SimSiam 与 BYOL：为什么没有坍缩")
SOURCE = "https://kexue.fm/archives/7980"
START = (0.6, 0.1)


def measure(*, seed: int = 0) -> Found:
    """The toys, the loss and the signs of collapse: no data, some seconds."""
    rows, series = _toy()
    for more, curves in (_matrices(seed), _losses(seed), _signs(seed)):
        rows += more
        series |= curves
    return Found(tuple(rows), series)


def _toy() -> tuple[list[Row], dict[str, Any]]:
    start = np.array(START)
    kept, freed = START[0] ** 2 - START[1] ** 2, (START[0] - 1) ** 2 - START[1] ** 2                       # 0.35, 0.15
    paths = {name: toy.runge_kutta(flow, start, time=200, step=0.05)
             for name, flow in (("stopped", toy.stopped), ("whole", toy.whole), ("target only", toy.target_only))}  # fmt: skip
    far = paths["saved no more"] = toy.runge_kutta(toy.stopped, np.array([1.2, 0.4]), time=200, step=0.05)
    (phi, theta), (free_phi, free_theta), (last_phi, _) = paths["stopped"].T, paths["whole"].T, paths["target only"].T
    fine = toy.euler(toy.stopped, start, time=40, step=1e-3)[-1, 1]
    descent = toy.euler(toy.stopped, start, time=100, step=0.1)[-1, 1]
    rows = [
        Row(Words("With stop-gradient phi^2 - theta^2 stays at its start, 0.35: largest change on the way",
                  "有 stop-gradient 时 φ²−θ² 守恒（0.35）：全程最大变化"), 0.0, float(np.abs(phi**2 - theta**2 - kept).max()), within=1e-6),
        Row(Words("… so phi ends at 1", "…于是 φ→1"), 1.0, float(phi[-1]), within=1e-6),
        Row(Words("… and theta at sqrt(0.65): no collapse", "…θ→√0.65：不坍缩"), math.sqrt(0.65), float(theta[-1]), within=1e-6),
        Row(Words("Gradient descent at rate 0.001 ends at theta 0.80624", "学习率 0.001 的梯度下降：θ→0.80624"), 0.80624, float(fine),
            within=1e-5),
        Row(Words("Gradient descent at rate 0.1 ends at theta 0.80797", "学习率 0.1 的梯度下降：θ→0.80797"), 0.80797, float(descent),
            within=1e-5),
        Row(Words("Without it (phi - 1)^2 - theta^2 stays at 0.15: largest change",
                  "没有 stop-gradient 时 (φ−1)²−θ² 守恒（0.15）：最大变化"),
            0.0, float(np.abs((free_phi - 1) ** 2 - free_theta**2 - freed).max()), within=1e-6),
        Row(Words("… theta ends at 0: collapse", "…θ→0：坍缩"), 0.0, float(free_theta[-1]), within=1e-6),
        Row(Words("… phi at 1 - sqrt(0.15)", "…φ→1−√0.15"), 1 - math.sqrt(0.15), float(free_phi[-1]), within=1e-6),
        Row(Words("With the second term alone phi + theta^2 / 2 = 0.605 stays, and phi ends there", "只留第二项：φ+θ²/2 守恒，φ→0.605"),
            0.605, float(last_phi[-1]), within=1e-6),
        Row(Words("Not in the article: from (1.2, 0.4) phi^2 - theta^2 > 1, and theta ends at 0 in spite of stop-gradient",
                  "文中未提：从 (1.2, 0.4) 出发 φ²−θ²>1，即使有 stop-gradient 也有 θ→0"), 0.0, float(far[-1, 1]), within=1e-6),
    ]  # fmt: skip
    return rows, {"plane": {name: path[_places(len(path), 150)].tolist() for name, path in paths.items()}}


def _places(count: int, most: int) -> list[int]:
    """At most `most` indices below `count`, dense at the start, where a flow is fast."""
    return sorted({round((count - 1) * (place / (most - 1)) ** 2) for place in range(most)})


def _matrices(seed: int) -> tuple[list[Row], dict[str, Any]]:
    """The linear encoder W [k d] and predictor P [k k]; the start has P smaller than W, so that what is conserved keeps W from 0."""
    k, d, time, step = 5, 7, 150.0, 0.02                             # at 0.05 the integrator itself drifts by up to 1e-5
    random, data = np.random.default_rng(seed), toy.pairs(d, noise=0.5, seed=seed + 1)
    start = np.concatenate([0.4 * np.eye(k) + 0.1 * random.normal(size=(k, k)), 0.4 * random.normal(size=(d, k))])
    kept = start[:k].T @ start[:k] - start[k:].T @ start[k:]
    least = math.sqrt(-np.minimum(np.linalg.eigvalsh(kept), 0).sum())
    held = toy.runge_kutta(toy.matrix_stopped(data), start, time=time, step=step)
    freed = toy.runge_kutta(toy.matrix_whole(data), start, time=time, step=step)
    coarse, fine = (toy.drift(toy.euler(toy.matrix_stopped(data), start, time=60, step=step)) for step in (0.02, 0.01))
    norms = {name: np.linalg.norm(path[:, k:], axis=(1, 2)) for name, path in (("stopped", held), ("whole", freed))}
    rows = [
        Row(Words("Matrices: P^T P - W W^T doesn't change with stop-gradient: largest change of an entry",
                  "矩阵情形：有 stop-gradient 时 PᵀP−WWᵀ 守恒：元素最大变化"), 0.0, toy.drift(held), within=1e-6),
        Row(Words("… without it, it does", "…没有则不守恒"), 0.1, toy.drift(freed), ">="),
        Row(Words("… gradient descent drifts in proportion to its rate: twice the rate, twice the drift",
                  "…梯度下降的漂移与学习率成正比：学习率加倍，漂移加倍"), 2.0, coarse / fine, within=0.1),
        Row(Words("… so |W| can't fall below what it leaves: |W| at the end", "…于是 |W| 有下界：最终的 |W|"),
            least, float(norms["stopped"][-1]), ">="),
        Row(Words("… without it |W| ends at 0 (1e-32)", "…没有则 |W|→0（1e-32）"), 1e-30, float(norms["whole"][-1]), "<="),
    ]  # fmt: skip
    places = _places(len(held), 150)
    return rows, {"norms": {"time": [step * place for place in places], "least": least,
                            **{name: [max(float(one[place]), 1e-40) for place in places] for name, one in norms.items()}}}  # fmt: skip


class _Fixed(nn.Module):
    """A predictor that says the same whatever it reads: what gradient then reaches the encoder came through the targets."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = nn.Parameter(answer)

    def forward(self, z: Tensor) -> Tensor:
        return self.answer + 0 * z.detach()


def _reach(network: Network, variant: Variant, views: tuple[Tensor, Tensor]) -> Tensor:
    """The gradient of the loss at all weights of encoder and projector, [n]."""
    weights = [*network.encoder.parameters(), *network.projector.parameters()]
    return _flat(torch.autograd.grad(objective(variant, network, views)[0], weights, materialize_grads=True, allow_unused=True))


def _flat(gradients: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([one.flatten() for one in gradients])


def _losses(seed: int) -> tuple[list[Row], dict[str, Any]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(width=2, size=13, bottleneck=5).double()
        one, two, other = (torch.rand(11, 3, 8, 8, dtype=torch.float64) for _ in range(3))
        deaf, still = copy.deepcopy(network), copy.deepcopy(network)
        deaf.predictor, still.predictor = nn.Sequential(_Fixed(torch.randn(11, 13, dtype=torch.float64))), nn.Sequential()

    def least(first: Tensor) -> float:
        return min(float(objective(variant, network, (first, two), target=still, mean=other)[0].detach()) for variant in VARIANTS)

    optimum = float(objective("simsiam", still, (one, one))[0].detach())
    lowest = min(map(least, (one, two, other)))
    z1, z2 = network(one), network(two)
    p1, p2 = network.predictor(z1), network.predictor(z2)
    weights = [*network.encoder.parameters(), *network.projector.parameters()]
    joint, bare = (_flat(torch.autograd.grad(negative_cosine(*ends), weights, retain_graph=True)) for ends in ((p1, p2), (z1, z2)))
    both, alone = (_reach(network, variant, (one, two)) for variant in ("predictor on both sides", "no predictor"))
    twin = objective("byol", network, (one, two), target=copy.deepcopy(network))[0] - objective("simsiam", network, (one, two))[0]
    return [
        Row(Words("The loss is never below -1: least of all variants", "损失不低于 −1：各变体中最小值"), -1.0, lowest, ">=",
            within=1e-12),
        Row(Words("… and is -1 where predictions point as their targets", "…预测与目标同向时等于 −1"), -1.0, optimum, within=1e-9),
        Row(Words("Through a stopped target no gradient comes: largest entry", "stop-gradient 的目标一侧梯度恰为 0：最大值"), 0.0,
            float(_reach(deaf, "simsiam", (one, two)).abs().max())),
        Row(Words("… without stop-gradient some does", "…没有 stop-gradient 则不为 0"), 1e-3,
            float(_reach(deaf, "no stop-gradient", (one, two)).abs().max()), ">="),
        Row(Words("Predictor and stop-gradient on both sides: half the gradient of -cos(p1, p2) with neither (difference)",
                  "两边都有 predictor 和 stop-gradient：梯度恰为无 stop-gradient 时的一半（最大差）"), 0.0,
            float((2 * both - joint).abs().max()), within=1e-9),
        Row(Words("… the same with no predictor on either side: stop-gradient alone only halves the rate",
                  "…两边都无 predictor 时亦然：仅有 stop-gradient 只是学习率减半"),
            0.0, float((2 * alone - bare).abs().max()), within=1e-9),
        Row(Words("BYOL whose target follows at once (momentum 0) is SimSiam: difference of the losses",
                  "目标动量为 0 的 BYOL 就是 SimSiam：损失之差"),
            0.0, float(twin.detach()), within=1e-12),
    ], {}  # fmt: skip


def _signs(seed: int) -> tuple[list[Row], dict[str, Any]]:
    """What z looks like: spread over the sphere, at one point, on a line."""
    n, d = 512, 2048
    draw = torch.Generator().manual_seed(seed)
    healthy, line = torch.randn(n, d, generator=draw), torch.randn(1, d, generator=draw)
    signs = torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0)[:, None]
    return [
        Row(Words("Spread over the sphere in d = 2048, z / |z| has a standard deviation of 1 / sqrt(d) a channel",
                  "d=2048 的球面上均匀分布时，每个通道的标准差为 1/√d"), 0.0221, channel_std(healthy), within=2e-4),
        Row(Words("… at one point 0", "…坍缩到一点时为 0"), 0.0, channel_std(line.expand(n, d)), within=1e-7),
        Row(Words("Not in the paper: on a line through 0 it is still 0.80 / sqrt(d), as if nothing had collapsed",
                  "论文未提：坍缩到过原点的直线时仍有 0.80/√d，看不出坍缩"),
            math.sqrt(2 / math.pi), channel_std(signs * line) * math.sqrt(d), within=0.05),
        Row(Words("… which the effective rank sees: 1", "…而有效秩能看出来：为 1"), 1.0,
            effective_rank(signs * line[:, :256]), within=1e-3),
    ], {}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """images to train on, held ones to be classified; epochs and seeds of each variant; the rest: `self_supervised`."""

    images: int = 5000
    held: int = 2000
    epochs: int = 14
    seeds: int = 3
    width: int = 16
    size: int = 256
    bottleneck: int = 64
    batch: int = 128
    rate: float = 0.06
    decay: float = 5e-4
    momentum: float = 0.99
    views: int = 4


def full(keep: Path, *, seed: int = 0, data: Path | None = None, tell: Callable[[str], None], size: Size = Size()) -> Found:  # noqa: B008 (frozen)
    """Each variant trained on CIFAR-10 from each seed; k nearest neighbours (k = 20, cosine) in the encoder's features of held images.

    keep: a file for each training (variant x seed), which isn't done again. data: the folder that holds images/cifar10_jpg. An interval
    is over seeds; that of raw pixels, which have none, binomial. Errors: ConfigError for too few images or seeds, DataError for no data.
    """
    if data is None:
        raise DataError(f"simsiam's full form trains on {CIFAR}, and no folder is named.",
                        fix="Give data, the folder that holds it: --data DIR, or FISHPAW_DATA.")  # fmt: skip
    if size.seeds < 2:
        raise ConfigError(f"{size.seeds} seed gives no interval.", fix="Take two at least.")
    images = read_cifar(data, per_class=-(-(size.images + size.held) // 10))
    if len(images) < size.images + size.held:
        raise ConfigError(f"{len(images)} images; {size.images} + {size.held} are wanted.", fix="Make images or held smaller.")
    pixels = images.pixels.float() / 255                               # [n 3 32 32]
    runs: dict[str, list[dict[str, Any]]] = {}
    digest = images.digest
    for number in range(size.seeds):                                   # seed by seed: what is there after a part of the time is comparable
        for variant in VARIANTS:
            settings = {**asdict(size), "variant": variant, "seed": seed + number, "data": digest}
            del settings["seeds"]
            result, known = part(keep, f"{variant}-{seed + number}", settings,
                                 lambda v=variant, n=number: _run(v, pixels, images, seed + n, size, tell))  # type: ignore[misc]  # a lambda
            tell(f"{variant}, seed {seed + number}: accuracy {result['accuracy']:.3f}{' (kept)' if known else ''}")
            runs.setdefault(variant, []).append(result)
    raw = _accuracy(pixels.flatten(1) - pixels.flatten(1)[: size.images].mean(0), images, size)
    return _compared(runs, raw, size)


def _run(variant: Variant, pixels: Tensor, images: Images, seed: int, size: Size, tell: Callable[[str], None]) -> dict[str, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(width=size.width, size=size.size, bottleneck=size.bottleneck,
                          heads="plain" if variant == "no stop-gradient, plain heads" else "normed")  # fmt: skip
    before = _accuracy(_features(network, pixels), images, size)
    course = train(network, pixels[: size.images], variant, epochs=size.epochs, batch=size.batch, rate=size.rate, decay=size.decay,
                   momentum=size.momentum, views=size.views, generator=torch.Generator().manual_seed(seed), tell=tell)  # fmt: skip
    return {"accuracy": _accuracy(_features(network, pixels), images, size), "untrained": before, **asdict(course)}


@torch.no_grad()
def _features(network: Network, pixels: Tensor) -> Tensor:
    """[n 8 width]; the untrained network's running statistics are those of a first look at the images, which costs no label."""
    network.train()
    for some in pixels[:2048].split(256):
        network.encoder(some)
    network.eval()
    return torch.cat([network.encoder(some) for some in pixels.split(256)])


def _accuracy(features: Tensor, images: Images, size: Size) -> float:
    first, last = size.images, size.images + size.held
    centre = features[:first].mean(0)                                  # ReLU features all have positive cosines
    found = nearest(features[:first] - centre, images.labels[:first], features[first:last] - centre, k=min(20, first))
    return float((found == images.labels[first:last]).double().mean())


def _compared(runs: Mapping[str, list[dict[str, Any]]], raw: float, size: Size) -> Found:
    accuracy = {name: [one["accuracy"] for one in group] for name, group in runs.items()}
    gains = {name: [one["accuracy"] - one["untrained"] for one in group] for name, group in runs.items()}
    spread = {name: [one["spread"][-1] for one in group] for name, group in runs.items()}
    half = 1.96 * math.sqrt(raw * (1 - raw) / size.held)
    rows = [
        sampled(Words("SimSiam: the spread of z is that of the whole sphere (channel std x sqrt(d) = 1)",
                      "SimSiam：z 布满球面（通道标准差×√d=1）"),
                1.0, spread["simsiam"], within=0.15),
        sampled(Words("SimSiam's features beat the untrained encoder's (nearest neighbours, gain)",
                      "SimSiam 特征优于未训练的编码器（kNN 提升）"),
                0.0, gains["simsiam"], relation=">="),
        sampled(Words("… BYOL's, too", "…BYOL 亦然"), 0.0, gains["byol"], relation=">="),
        Row(Words("… and raw pixels (gain)", "…也优于原始像素（提升）"), 0.0, statistics.fmean(accuracy["simsiam"]) - raw, ">=",
            interval=(interval(accuracy["simsiam"])[0] - raw - half, interval(accuracy["simsiam"])[1] - raw + half)),
    ]  # fmt: skip
    for name, chinese in (("no stop-gradient", "没有 stop-gradient"), ("no stop-gradient, plain heads", "没有 stop-gradient 且头部无 BN"),
                          ("no predictor", "没有 predictor"),
                          ("predictor on both sides", "两边都有 predictor 与 stop-gradient")):  # fmt: skip
        rows += [
            sampled(Words(f"{name}: z collapses (channel std x sqrt(d) = 0)", f"{chinese}：z 坍缩（通道标准差×√d=0）"),
                    0.0, spread[name], within=0.1),
            sampled(Words(f"{name}: the features are worth no more than chance, 0.1", f"{chinese}：特征与随机猜测（0.1）无异"),
                    0.1, accuracy[name], within=0.02),
            sampled(Words(f"{name}: worse than SimSiam (loss of accuracy)", f"{chinese}：不如 SimSiam（精度损失）"), 0.0,
                    [good - bad for good, bad in zip(accuracy["simsiam"], accuracy[name], strict=True)], relation=">="),
        ]  # fmt: skip
    rows.append(sampled(Words("The article's open idea: the mean of several views as target, no predictor, beats the untrained encoder",
                              "文章的设想：以多个增强的均值为目标、无 predictor，优于未训练的编码器"),
                        0.0, gains["mean of views"], relation=">="))  # fmt: skip
    mean = {curve: {name: [statistics.fmean(values) for values in zip(*(one[curve] for one in group), strict=True)]
                    for name, group in runs.items()} for curve in ("losses", "spread", "rank")}  # fmt: skip
    untrained = [group["untrained"] for group in runs["simsiam"]]
    return Found(tuple(rows), {"accuracy": accuracy, "untrained": untrained, "raw": raw, "curves": mean, "size": size.size})


def draw(figure: Figure, series: Mapping[str, Any]) -> None:
    """Quick form: the toy's plane with what it conserves, and |W| over time. Full form: spread, rank and accuracy of the variants."""
    if "plane" in series:
        _draw_toys(figure, series)
    else:
        _draw_variants(figure, series)


def _draw_toys(figure: Figure, series: Mapping[str, Any]) -> None:
    plane, over_time = figure.subplots(1, 2)
    names = {"stopped": "with stop-gradient", "whole": "without", "target only": "target's term alone",
             "saved no more": "with it, from (1.2, 0.4)"}
    for place, (name, path) in enumerate(series["plane"].items()):
        phi, theta = (np.array(one) for one in zip(*path, strict=True))
        plane.plot(phi, theta, color=f"C{place}", linewidth=2.2, label=names[name])
        plane.plot(phi[-1], theta[-1], "o", color=f"C{place}", markersize=6, clip_on=False, zorder=5)
    theta = np.linspace(0, 0.95, 200)
    plane.plot(np.sqrt(0.35 + theta**2), theta, "k--", linewidth=0.9, label="conserved (claimed)")
    plane.plot(1 - np.sqrt(0.15 + theta**2), theta, "k--", linewidth=0.9)
    plane.plot(0.605 - theta**2 / 2, theta, "k--", linewidth=0.9)
    plane.axvline(1, color="0.8", linewidth=0.8, zorder=0)
    plane.set(xlabel=r"$\varphi$ (predictor)", ylabel=r"$\theta$ (encoder)", xlim=(0.3, 1.3), ylim=(0, 0.95),
              title=r"$\frac{1}{2}(\varphi\theta-\theta)^2$: where the flow ends")
    plane.legend(fontsize=7, loc="upper left", framealpha=0.9)
    norms = series["norms"]
    over_time.semilogy(norms["time"], norms["stopped"], label="with stop-gradient", linewidth=2)
    over_time.semilogy(norms["time"], norms["whole"], label="without", linewidth=2)
    over_time.axhline(norms["least"], color="k", linestyle="--", linewidth=0.9, label=r"least that $P^TP-WW^T$ leaves")
    over_time.set(xlabel="time (rate x steps)", ylabel=r"$\|W\|$", title="Linear encoder W, predictor P", ylim=(1e-34, 1e3))
    over_time.legend(fontsize=8, loc="lower left")


def _draw_variants(figure: Figure, series: Mapping[str, Any]) -> None:
    spread, rank, bars = figure.subplots(1, 3, width_ratios=(1, 1, 1.25))
    curves = series["curves"]
    for name in curves["spread"]:
        epochs = range(1, len(curves["spread"][name]) + 1)
        spread.plot(epochs, curves["spread"][name], ".-")
        rank.plot(epochs, curves["rank"][name], ".-")
    spread.axhline(1, color="k", linestyle="--", linewidth=0.8)
    spread.axhline(0, color="k", linestyle="--", linewidth=0.8)
    spread.set(xlabel="epoch", ylabel=r"std of a channel of $z/|z|$, x $\sqrt{d}$", title="1: the sphere, 0: a point", ylim=(-0.05, 1.15))
    rank.set(xlabel="epoch", ylabel=f"effective rank of z (of {series['size']})", title="Directions in use", ylim=(0, None))
    for place, values in enumerate(series["accuracy"].values()):
        mean = statistics.fmean(values)
        half = interval(values)[1] - mean if len(values) > 1 else 0.0
        bars.barh(place, mean, xerr=half, color=f"C{place}", capsize=3)
    bars.axvline(statistics.fmean(series["untrained"]), color="k", linestyle="--", linewidth=0.9, label="untrained")
    bars.axvline(series["raw"], color="k", linestyle=":", linewidth=1.1, label="raw pixels")
    bars.axvline(0.1, color="0.5", linestyle="-.", linewidth=0.9, label="chance")
    bars.set_yticks(range(len(series["accuracy"])), list(series["accuracy"]), fontsize=7)
    bars.invert_yaxis()
    bars.set(xlabel="accuracy of 20 nearest neighbours", title="What the features know", xlim=(0, None))
    bars.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.3, -0.16), ncols=3)
