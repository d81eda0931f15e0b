"""GAN architectures: DCGAN, ResNet, SELF-MOD, and what holds for their parts (kexue.fm/archives/6549; arXiv:1810.01365, arXiv:1802.05957).

measure(): where transposed convolutions overlap, what modulation is at its start, spectral norm, gradient penalty, Fréchet distance, and a
table of costs. Beyond the article: dividing a convolution by the norm of its weight as a matrix leaves it a slope of up to kernel / stride,
and the distance of two samples of one distribution isn't 0. full(): the three generators on MNIST or CIFAR-10.
"""

from __future__ import annotations

import base64
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv_transpose1d, interpolate, pad
from torch.nn.utils.parametrizations import spectral_norm

from fishpaw.errors import ConfigError, DataError
from fishpaw.lab.findings import Found, Row, Words, sampled
from fishpaw.lab.frechet import between_sets, distance
from fishpaw.lab.gan_networks import AdaIN, SelfMod, cost, discriminator, generator, residual_discriminator
from fishpaw.lab.gan_training import Classifier, Loss, classify, gradient_penalty, samples, train
from fishpaw.lab.images import CIFAR, MNIST, Images, read_cifar, read_mnist
from fishpaw.lab.parts import part

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SOURCE", "TITLE", "Size", "draw", "full", "measure"]

TITLE = Words("GAN architectures: DCGAN, ResNet, SELF-MOD", "GAN 架构：DCGAN、ResNet 与 SELF-MOD")
SOURCE = "https://kexue.fm/archives/6549"
MADE_BY = ("dcgan", "resnet", "self-mod")


def measure(*, seed: int = 0) -> Found:
    """The parts of the networks and their costs: no data, some seconds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rows, series = _overlaps()
        rows += _modulation() + _spectral() + _penalty() + _frechet()
        costs, table = _costs()
    return Found(tuple(rows + costs), {**series, **table})


def _overlap(kernel: int, stride: int) -> Tensor:
    """What a transposed convolution of ones makes of a constant 1 along one axis, without the ends: how often a place is written."""
    whole = conv_transpose1d(torch.ones(1, 1, 16), torch.ones(1, 1, kernel), stride=stride).flatten()
    return whole[2 * kernel : -2 * kernel]


def _overlaps() -> tuple[list[Row], dict[str, Any]]:
    found = {kernel: _overlap(kernel, 2) for kernel in (3, 4, 5)}
    larger = interpolate(torch.ones(1, 3, 8, 8), scale_factor=2.0)
    smooth = nn.Conv2d(3, 5, 3)(larger).detach()                       # [1 5 14 14]
    rows = []
    for kernel, least, most in ((4, 2, 2), (5, 2, 3), (3, 1, 2)):
        even = "evenly" if least == most else "unevenly (checkerboard)"
        chinese = "均匀" if least == most else "不均匀（棋盘效应）"
        rows += [
            Row(Words(f"A transposed convolution, kernel {kernel}, stride 2, overlaps {even}: least often",
                      f"核 {kernel} 步长 2 的转置卷积重叠{chinese}：最少次数"),
                float(least), float(found[kernel].min())),
            Row(Words(f"… kernel {kernel}: most often", f"…核 {kernel}：最多次数"), float(most), float(found[kernel].max())),
        ]  # fmt: skip
    rows.append(Row(Words("Nearest upsampling and a 3 x 3 convolution make a constant of a constant: spread",
                          "最近邻上采样加 3×3 卷积把常数变成常数：极差"),
                    0.0, float((smooth.amax((2, 3)) - smooth.amin((2, 3))).max()), within=1e-6))  # fmt: skip
    return rows, {"overlap": {str(kernel): one.tolist() for kernel, one in found.items()}}


def _modulation() -> list[Row]:
    hidden, z = 2 + 5 * torch.randn(17, 7, 11, 11), torch.randn(17, 13)
    begun, moved, adapted = SelfMod(7, 13), SelfMod(7, 13), AdaIN(7, 13)
    for weight in (*begun.gamma[-1].parameters(), *begun.beta[-1].parameters()):
        nn.init.zeros_(weight)
    plain = nn.BatchNorm2d(7, affine=False)(hidden)
    styled = adapted(hidden, z).detach()
    scale, shift = 1 + adapted.gamma(z).detach(), adapted.beta(z).detach()                      # [b c]
    return [
        Row(Words("SELF-MOD whose last layers are 0 is BatchNorm without scale and shift: largest difference",
                  "末层为 0 的 SELF-MOD 等于无仿射的 BN：最大差"),
            0.0, float((begun(hidden, z).detach() - plain).abs().max()), within=1e-6),
        Row(Words("… with others it isn't", "…末层不为 0 则不等"), 0.01, float((moved(hidden, z).detach() - plain).abs().max()), ">="),
        Row(Words("AdaIN: each image's channel has mean beta: largest difference", "AdaIN：每个样本每通道的均值为 β：最大差"), 0.0,
            float((styled.mean((2, 3)) - shift).abs().max()), within=1e-4),
        Row(Words("… and deviation |gamma|", "…标准差为 |γ|"), 0.0,
            float((styled.std((2, 3), correction=0) - scale.abs()).abs().max()), within=1e-4),
    ]  # fmt: skip


def _slope(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> float:
    """The largest |f(x) - f(y)| / |x - y| of 64 random pairs, half of them close together."""
    x, y = torch.randn(64, *shape), torch.randn(64, *shape)
    y[32:] = x[32:] + 1e-2 * y[32:]
    with torch.no_grad():
        return float(((function(x) - function(y)).flatten(1).norm(dim=1) / (x - y).flatten(1).norm(dim=1)).max())


def _spectral(iterations: int = 50) -> list[Row]:
    layer, judge = nn.Linear(48, 64), discriminator(width=4)
    spectral_norm(layer)
    for _ in range(20 * iterations):                                   # many: the first two singular values may be close
        layer(torch.zeros(1, 48))
    for _ in range(iterations):
        judge(torch.zeros(1, 1, 32, 32))
    layer.eval()
    judge.eval()
    flat = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular", bias=False)
    strided = nn.Conv2d(1, 1, 4, stride=2, padding=1, padding_mode="circular", bias=False)
    for one in (flat, strided):
        nn.init.ones_(one.weight)
        spectral_norm(one)
    even = torch.ones(1, 1, 16, 16)
    slopes = [float((one(even).norm() / even.norm()).detach()) for one in (flat, strided)]
    return [
        Row(Words("A dense layer after power iterations has the largest singular value 1 (by SVD)",
                  "幂迭代后全连接层的最大奇异值为 1（SVD）"), 1.0,
            float(torch.linalg.svdvals(layer.weight.detach())[0]), within=1e-3),
        Row(Words("… so its slope is 1 at most, on random pairs",
                  "…故其 Lipschitz 常数不超过 1（随机点对）"), 1.0, _slope(layer, (48,)), "<=", 1e-3),
        Row(Words("DCGAN's discriminator, spectral norm in each layer: slope on random pairs",
                  "每层谱归一化的 DCGAN 判别器：随机点对上的斜率"), 1.0,
            _slope(judge, (1, 32, 32)), "<=", 1e-3),
        Row(Words("Not in the article: a 3 x 3 convolution divided by the norm of its weight as a matrix can still stretch by 3",
                  "文中未提：3×3 卷积按矩阵谱范数归一化后仍可放大 3 倍"), 3.0, slopes[0], within=1e-5),
        Row(Words("… a 4 x 4 one of stride 2 by 2: kernel / stride",
                  "…步长 2 的 4×4 卷积可放大 2 倍：核/步长"), 2.0, slopes[1], within=1e-5),
    ]  # fmt: skip


def _penalty() -> list[Row]:
    weight = torch.randn(3 * 5 * 5, dtype=torch.float64)
    real, fake = (torch.randn(7, 3, 5, 5, dtype=torch.float64) for _ in range(2))

    def penalty(direction: Tensor) -> float:
        return float(gradient_penalty(lambda x: x.flatten(1) @ direction + 0.7, real, fake).detach())

    return [
        Row(Words("Gradient penalty of a linear critic w x + c: (|w| - 1)^2",
                  "线性判别器 w·x+c 的梯度惩罚：(|w|−1)²"), (float(weight.norm()) - 1) ** 2,
            penalty(weight), within=1e-9),
        Row(Words("… 0 where |w| = 1", "…|w|=1 时为 0"), 0.0, penalty(weight / weight.norm()), within=1e-12),
    ]  # fmt: skip


def _frechet() -> list[Row]:
    size, count = 32, 500
    turn = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))[0]
    first, second = (torch.rand(size, dtype=torch.float64) * 3 for _ in range(2))
    means = torch.randn(2, size, dtype=torch.float64)
    closed = float((means[0] - means[1]).square().sum() + (first.sqrt() - second.sqrt()).square().sum())
    covariances = [turn @ one.diag() @ turn.T for one in (first, second)]
    features, same = torch.randn(2, count, size)
    bias = size**2 / (2 * count) + 2 * size / count
    return [
        Row(Words("The Fréchet distance of a set from itself", "一组特征与自身的 Fréchet 距离"), 0.0,
            between_sets(features, features), within=1e-6),
        Row(Words("… of two Gaussians with common axes: |m1 - m2|^2 + sum of (s1 - s2)^2",
                  "…同主轴的两个高斯：|m₁−m₂|²+Σ(s₁−s₂)²"),
            closed, distance(means[0], covariances[0], means[1], covariances[1]), within=1e-3),
        Row(Words("Not 0 for two samples of one distribution: d^2 / 2n + 2d / n to first order (d = 32, n = 500)",
                  "同一分布的两组样本距离不为 0：一阶近似 d²/2n+2d/n（d=32，n=500）"),
            bias, between_sets(features, same), within=0.2 * bias),
    ]  # fmt: skip


def _costs() -> tuple[list[Row], dict[str, Any]]:
    """At 128 x 128 with 64 channels before the last layer, up to 1,024, z of 128; nothing is computed: shapes only."""
    with torch.device("meta"):
        nets: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
            f"{name} G": (generator(name, side=128, channels=3, size=128, width=64), (128,))
            for name in (*MADE_BY, "self-mod resnet")
        }  # fmt: skip
        nets["SN-DCGAN D"] = discriminator(side=128, channels=3, width=64), (3, 128, 128)
        nets["SN-ResNet D"] = residual_discriminator(side=128, channels=3, width=64), (3, 128, 128)
        wide, narrow = (generator(name, side=side, channels=3, size=128, width=16) for name, side in (("dcgan", 512), ("resnet", 256)))
    found = {name: cost(net, shape) for name, (net, shape) in nets.items()}
    doubled = cost(narrow, (128,)).activations / cost(wide, (128,)).activations
    rows = [
        Row(Words("DCGAN's generator needs less than 1 / 1.5 of ResNet's multiplications (more than 50 % faster)",
                  "DCGAN 生成器的乘法量不到 ResNet 的 1/1.5（快 50% 以上）"), 1.5,
            found["resnet G"].multiply_adds / found["dcgan G"].multiply_adds, ">="),
        Row(Words("ResNet at 256 x 256 keeps as many activations as DCGAN at 512 x 512",
                  "ResNet 在 256² 的激活量不少于 DCGAN 在 512² 的"), 1.0, doubled, ">="),
        Row(Words("SELF-MOD adds little to DCGAN: share of multiplications", "SELF-MOD 增加的计算很少：乘法量之比"), 1.01,
            found["self-mod G"].multiply_adds / found["dcgan G"].multiply_adds, "<="),
    ]  # fmt: skip
    return rows, {"costs": {name: asdict(one) for name, one in found.items()}}


@dataclass(frozen=True)
class Size:
    """images to train on; judged: how many made images are compared with as many held ones; seeds and steps of each generator; side: pixels
    that 32 are averaged to, 16 for a quarter of the time; decay: of the mean of a generator's weights, which makes the images."""

    kind: Literal["mnist", "cifar"] = "mnist"
    images: int = 7500
    judged: int = 2500
    side: int = 16
    steps: int = 2500
    points: int = 10
    seeds: int = 3
    width: int = 32
    z: int = 64
    batch: int = 64
    rate: float = 1e-3
    critic_rate: float = 2e-3
    decay: float = 0.995
    loss: Loss = "hinge"
    epochs: int = 5


def full(keep: Path, *, seed: int = 0, data: Path | None = None, tell: Callable[[str], None], size: Size = Size()) -> Found:  # noqa: B008 (frozen)
    """DCGAN, ResNet and SELF-MOD against the same discriminator, from each seed; the Fréchet distance of what they make from held images,
    in the features of a small classifier trained in this run, not Inception's: its numbers compare with each other only.

    keep: a file for the classifier and for each training (generator x seed), which isn't done again. data: the folder that holds
    images/mnist_t10k or images/cifar10_jpg. Intervals are over seeds. Errors: ConfigError for too few images or seeds,
    DataError for no data.
    """
    images = _images(data, size)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[: size.images + size.judged]
    pixels, labels = _scaled(images.pixels[order], size.side), images.labels[order]             # [n c s s]
    learn, held = pixels[: size.images], pixels[size.images :]
    settings = {**asdict(size), "seed": seed, "data": images.digest}
    del settings["seeds"]
    first, _ = part(keep, "classifier", settings, lambda: _classifier(learn, labels, held, size, seed, tell))
    tell(f"classifier: accuracy {first['accuracy']:.3f}; real against real {first['real']:.3f}, noise {first['noise']:.1f}")
    judge = Classifier(side=size.side, channels=pixels.shape[1])
    judge.load_state_dict(safetensors.torch.load(base64.b64decode(first["weights"])))
    judge.eval()
    truth = judge.features(held)
    runs: dict[str, list[dict[str, Any]]] = {}
    for number in range(size.seeds):
        for name in MADE_BY:
            result, known = part(keep, f"{name}-{seed + number}", {**settings, "run": seed + number, "generator": name},
                                 lambda m=name, n=number: _run(m, learn, judge, truth, seed + n, size, tell))  # type: ignore[misc]  # a lambda
            tell(f"{name}, seed {seed + number}: distance {result['distances'][-1]:.2f}{' (kept)' if known else ''}")
            runs.setdefault(name, []).append(result)
    return _compared(runs, first, size)


def _images(data: Path | None, size: Size) -> Images:
    if size.seeds < 2:
        raise ConfigError(f"{size.seeds} seed gives no interval.", fix="Take two at least.")
    if data is None:
        wanted = MNIST[0] if size.kind == "mnist" else CIFAR
        raise DataError(f"gan's full form trains on {wanted}, and no folder is named.",
                        fix="Give data, the folder that holds it: --data DIR, or FISHPAW_DATA.")  # fmt: skip
    wanted_count = size.images + size.judged
    images = read_mnist(data) if size.kind == "mnist" else read_cifar(data, per_class=-(-wanted_count // 10))
    if len(images) < wanted_count or size.images < size.judged:
        raise ConfigError(f"{len(images)} images for {size.images} to train on and {size.judged} to judge by.",
                          fix="Make both smaller; judged is at most images.")  # fmt: skip
    return images


def _scaled(pixels: Tensor, side: int) -> Tensor:
    """uint8 [n c x x], x up to 32 -> [n c side side] in -1 … 1: a black margin around smaller ones, then means of squares."""
    edge = (32 - pixels.shape[-1]) // 2
    return avg_pool2d(pad(pixels, (edge,) * 4).float(), 32 // side) / 127.5 - 1


def _classifier(learn: Tensor, labels: Tensor, held: Tensor, size: Size, seed: int, tell: Callable[[str], None]) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Classifier(side=size.side, channels=learn.shape[1])
    tell("training the classifier whose features are compared")
    classify(judge, learn, labels[: len(learn)], epochs=size.epochs, draw=draw)
    judge.eval()
    truth = judge.features(held)
    with torch.no_grad():
        known = torch.cat([judge(some).argmax(1) for some in held.split(500)])
    noise = torch.empty(held.shape).uniform_(-1, 1, generator=draw)
    return {"accuracy": float((known == labels[len(learn) :]).double().mean()),
            "real": between_sets(judge.features(learn[: size.judged]), truth),
            "noise": between_sets(judge.features(noise), truth),
            "weights": base64.b64encode(safetensors.torch.save(dict(judge.state_dict()))).decode("ascii")}  # fmt: skip


def _run(
    name: str, learn: Tensor, judge: Classifier, truth: Tensor, seed: int, size: Size, tell: Callable[[str], None]
) -> dict[str, Any]:  # fmt: skip
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        maker = generator(name, side=size.side, channels=learn.shape[1], size=size.z, width=size.width)
        critic = discriminator(side=size.side, channels=learn.shape[1], width=size.width)
    z = torch.randn(size.judged, size.z, generator=draw)               # the same at each look
    steps: list[int] = []
    distances: list[float] = []
    looking = 0.0

    def see(step: int, mean: nn.Module) -> None:
        nonlocal looking
        began = time.process_time()
        steps.append(step)
        distances.append(between_sets(judge.features(samples(mean, z)), truth))
        looking += time.process_time() - began

    began = time.process_time()                                        # the processor's: other work doesn't count
    mean = train(maker, critic, learn, size=size.z, steps=size.steps, batch=size.batch, loss=size.loss, rate=size.rate,
                 critic_rate=size.critic_rate, decay=size.decay, draw=draw, tell=lambda line: tell(f"{name}, seed {seed}, {line}"),
                 see=see, every=max(size.steps // size.points, 1))  # fmt: skip
    seconds = time.process_time() - began - looking
    made = ((samples(mean, z[:64]) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)            # [64 s s c]
    grid = {"shape": [*made.shape], "base64": base64.b64encode(made.numpy().tobytes()).decode("ascii")}
    return {"steps": steps, "distances": distances, "seconds_per_step": seconds / size.steps, "grid": grid}


def _compared(runs: Mapping[str, list[dict[str, Any]]], first: Mapping[str, Any], size: Size) -> Found:
    last = {name: [one["distances"][-1] for one in group] for name, group in runs.items()}
    half = 1.96 * math.sqrt(first["accuracy"] * (1 - first["accuracy"]) / size.judged)
    rows = [Row(Words("The classifier whose features are compared knows what it sees: accuracy on held images",
                      "提供特征的小分类器在留出图像上的准确率"),
                0.9 if size.kind == "mnist" else 0.4, first["accuracy"], ">=",
                interval=(first["accuracy"] - half, first["accuracy"] + half))]  # fmt: skip
    for name in MADE_BY:
        rows += [
            sampled(Words(f"{name}: Fréchet distance (features of a classifier trained in this run, not Inception's), a tenth of noise's",
                          f"{name}：Fréchet 距离（本次训练的小分类器特征，非 Inception）低于噪声的十分之一"),
                    first["noise"] / 10, last[name], relation="<="),
            sampled(Words("… and not below real images against real ones",
                          "…且不低于真实图像之间的距离"), first["real"], last[name], relation=">="),
        ]  # fmt: skip
    pairs = list(zip(runs["dcgan"], runs["self-mod"], strict=True))
    rows += [
        sampled(Words("SELF-MOD's distance is 5 to 35 % below DCGAN's: relative change",
                      "SELF-MOD 的距离比 DCGAN 低 5–35%：相对变化"), -0.2,
                [own["distances"][-1] / base["distances"][-1] - 1 for base, own in pairs], within=0.15),
        sampled(Words("… it comes to DCGAN's last distance in 2/3 of the steps (50 % faster); 1 where it never does",
                      "…达到 DCGAN 最终距离只需 2/3 的步数（快 50%）；从未达到则计 1"), 2 / 3,
                [_reached(own, base["distances"][-1]) for base, own in pairs], relation="<="),
        sampled(Words("A step of ResNet takes 1.5 times as long as one of DCGAN at least", "ResNet 每步耗时至少为 DCGAN 的 1.5 倍"), 1.5,
                [large["seconds_per_step"] / small["seconds_per_step"] for small, large in zip(runs["dcgan"], runs["resnet"], strict=True)],
                relation=">="),
    ]  # fmt: skip
    curves = {name: [statistics.fmean(values) for values in zip(*(one["distances"] for one in group), strict=True)]
              for name, group in runs.items()}  # fmt: skip
    return Found(tuple(rows), {
        "steps": runs["dcgan"][0]["steps"], "distances": curves, "last": last, "real": first["real"], "noise": first["noise"],
        "grids": {name: group[0]["grid"] for name, group in runs.items()},
    })  # fmt: skip


def _reached(run: Mapping[str, Any], wanted: float) -> float:
    """After which share of the steps the distance is `wanted` or less; 1 where it never is."""
    return next((step / run["steps"][-1] for step, value in zip(run["steps"], run["distances"], strict=True) if value <= wanted), 1.0)


def draw(figure: Figure, series: Mapping[str, Any]) -> None:
    """Quick form: overlaps and costs. Full form: an 8 x 8 grid of each generator's images, and the distance over steps."""
    if "overlap" in series:
        _draw_parts(figure, series)
    else:
        _draw_images(figure, series)


def _draw_parts(figure: Figure, series: Mapping[str, Any]) -> None:
    overlaps, *bars = figure.subplots(1, 4, width_ratios=(1.5, 1, 1, 1))
    for place, (kernel, values) in enumerate(series["overlap"].items()):
        overlaps.step(range(len(values)), values, where="mid", color=f"C{place}", label=f"kernel {kernel}")
    for claimed in (1, 2, 3):
        overlaps.axhline(claimed, color="k", linestyle="--", linewidth=0.9)
    overlaps.set(xlabel="place along one axis (pixels)", ylabel="times written", ylim=(0.5, 3.7), xlim=(0, 12), yticks=(1, 2, 3),
                 title="Transposed conv., stride 2")
    overlaps.legend(loc="upper right", ncols=3, fontsize=7, columnspacing=0.8, handlelength=1.2)
    names = list(series["costs"])
    for axes, (field, title, unit) in zip(bars, (("parameters", "parameters, million", 1e6), ("multiply_adds", "multiply-adds, G", 1e9),
                                                 ("activations", "activations, MB", 2**20 / 4)), strict=True):  # fmt: skip
        values = [series["costs"][name][field] / unit for name in names]
        axes.barh(range(len(names)), values, color=["C0" if name.endswith("G") else "C1" for name in names])
        for place, value in enumerate(values):
            axes.text(value, place, f" {value:.3g}", va="center", fontsize=7)
        axes.set(title=title, xlim=(0, 1.3 * max(values)))
        axes.set_yticks(range(len(names)), names if axes is bars[0] else [""] * len(names), fontsize=7)
        axes.invert_yaxis()
        axes.set_xlabel("one 128 x 128 image" if field != "parameters" else "128 x 128")


def _draw_images(figure: Figure, series: Mapping[str, Any]) -> None:
    *grids, curves = figure.subplots(1, len(series["grids"]) + 1)
    for axes, (name, grid) in zip(grids, series["grids"].items(), strict=True):
        images = torch.frombuffer(bytearray(base64.b64decode(grid["base64"])), dtype=torch.uint8).view(grid["shape"])         # [64 s s c]
        side, depth = images.shape[1], images.shape[-1]
        sheet = images.view(8, 8, side, side, depth).permute(0, 2, 1, 3, 4).reshape(8 * side, 8 * side, depth)
        axes.imshow(sheet.expand(-1, -1, 3).numpy(), interpolation="nearest")
        axes.set_title(name)
        axes.set_axis_off()
    for name, values in series["distances"].items():
        curves.semilogy(series["steps"], values, label=name)
    curves.axhline(series["real"], color="k", linestyle="--", linewidth=0.9, label="real against real")
    curves.axhline(series["noise"], color="0.5", linestyle=":", linewidth=1.1, label="noise")
    curves.set(xlabel="steps", title="Fréchet distance,\nfeatures of a small classifier")
    curves.legend(fontsize=7)
