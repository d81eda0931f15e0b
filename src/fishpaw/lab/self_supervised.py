"""SimSiam (arXiv:2011.10566) and BYOL (arXiv:2006.07733) on small images: networks, losses, augmentation, training, signs of collapse.

Two views of an image go through the same encoder and projector, f; a predictor h of one is drawn to the other, which the gradient doesn't
enter: L = D(h(z1), stop(z2)) / 2 + D(h(z2), stop(z1)) / 2, D = -cos, z = f(view). The variants take one thing away.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, normalize, one_hot

__all__ = ["VARIANTS", "Course", "Network", "Variant", "augmented", "channel_std", "effective_rank", "encoder", "follow", "nearest",
           "negative_cosine", "objective", "train"]

Variant = Literal["simsiam", "byol", "no stop-gradient", "no stop-gradient, plain heads", "no predictor", "predictor on both sides",
                  "mean of views"]  # fmt: skip
VARIANTS: tuple[Variant, ...] = get_args(Variant)


def encoder(width: int = 16) -> nn.Sequential:
    """[b 3 s s] -> [b 8 width]: four 3 x 3 convolutions with BatchNorm and ReLU, strides 2 2 1 2, then the mean over places."""
    sizes, strides = (3, width, 2 * width, 4 * width, 8 * width), (2, 2, 1, 2)
    layers: list[nn.Module] = []
    for before, after, stride in zip(sizes, sizes[1:], strides, strict=False):
        layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Network(nn.Module):
    """encoder, a projector of three layers, a predictor with a bottleneck.

    heads: normed, with BatchNorm after each layer but the predictor's last, the projector's last without scale and shift, as SimSiam has
    them: z then has mean 0 in a batch, so that it can't go to one point, only to few directions. plain: biases in the place of BatchNorm.
    """

    def __init__(
        self, *, width: int = 16, size: int = 256, bottleneck: int = 64, heads: Literal["normed", "plain"] = "normed"
    ) -> None:  # fmt: skip
        super().__init__()
        plain = heads == "plain"

        def layer(before: int, after: int) -> tuple[nn.Module, ...]:
            return nn.Linear(before, after, bias=plain), *(() if plain else (nn.BatchNorm1d(after),)), nn.ReLU(inplace=True)

        self.encoder = encoder(width)
        self.projector = nn.Sequential(
            *layer(8 * width, size), *layer(size, size), nn.Linear(size, size, bias=plain),
            *(() if plain else (nn.BatchNorm1d(size, affine=False),)),
        )  # fmt: skip
        self.predictor = nn.Sequential(*layer(size, bottleneck), nn.Linear(bottleneck, size))

    def forward(self, views: Tensor) -> Tensor:
        """[b 3 s s] -> z [b size]."""
        projected: Tensor = self.projector(self.encoder(views))
        return projected


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """p, z [b d] -> -(mean over rows of their cosine) [], between -1 and 1."""
    return -(normalize(p, dim=-1) * normalize(z, dim=-1)).sum(-1).mean()


def objective(
    variant: Variant, network: Network, views: tuple[Tensor, Tensor], *, target: Network | None = None, mean: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The loss [] of two views [b 3 s s], and z of the first [b d], which the gradient doesn't enter.

    byol: z is the target's, whose weights `follow` the network's. predictor on both sides: D(h(z1), stop(h(z2))). mean of views: no
    predictor, and in the place of the other view's z that of `mean`, the mean of several views as one image (kexue.fm/archives/7980 asks
    for it as an approximation of the predictor).
    """
    z1, z2 = network(views[0]), network(views[1])
    p1, p2 = (z1, z2) if variant in ("no predictor", "mean of views") else (network.predictor(z1), network.predictor(z2))
    if variant in ("no stop-gradient", "no stop-gradient, plain heads"):
        goals = z1, z2
    elif variant == "byol":
        if target is None:
            raise ValueError("byol needs a target network")
        with torch.no_grad():
            goals = target(views[0]), target(views[1])
    elif variant == "mean of views":
        if mean is None:
            raise ValueError("mean of views needs the mean")
        with torch.no_grad():
            goals = (network(mean),) * 2
    else:
        goals = (p1.detach(), p2.detach()) if variant == "predictor on both sides" else (z1.detach(), z2.detach())
    return negative_cosine(p1, goals[1]) / 2 + negative_cosine(p2, goals[0]) / 2, z1.detach()


@torch.no_grad()
def follow(target: nn.Module, network: nn.Module, momentum: float) -> None:
    """target <- momentum target + (1 - momentum) network, weights and running statistics; momentum 0 makes BYOL SimSiam."""
    pairs = [*zip(target.parameters(), network.parameters(), strict=True), *zip(target.buffers(), network.buffers(), strict=True)]
    for mine, other in pairs:
        if mine.is_floating_point():
            mine.lerp_(other, 1 - momentum)
        else:
            mine.copy_(other)                                         # the number of batches seen


def augmented(pixels: Tensor, generator: torch.Generator, *, least: float = 0.2, jitter: float = 0.4, grey: float = 0.2) -> Tensor:
    """[b 3 s s] in 0 … 1 -> a random view of each: a crop of area `least` … 1 and ratio 3/4 … 4/3 brought back to s x s, a flip in half of
    them, brightness, contrast and saturation times 1 - jitter … 1 + jitter, grey for a share `grey`. The paper's, without hue and blur.
    """
    count = len(pixels)

    def draw(low: float, high: float) -> Tensor:
        return torch.empty(count).uniform_(low, high, generator=generator)

    area, ratio = draw(least, 1), draw(math.log(3 / 4), math.log(4 / 3)).exp().sqrt()
    width, height = ((area.sqrt() * side).clamp(max=1) for side in (ratio, 1 / ratio))
    flip = torch.where(draw(0, 1) < 0.5, -1.0, 1.0)
    zero = torch.zeros(count)
    rows = torch.stack([flip * width, zero, draw(-1, 1) * (1 - width), zero, height, draw(-1, 1) * (1 - height)], -1)
    views = grid_sample(pixels, affine_grid(rows.view(count, 2, 3), list(pixels.shape), False), padding_mode="reflection",
                        align_corners=False)  # fmt: skip
    bright, contrast, colour = (draw(1 - jitter, 1 + jitter).view(count, 1, 1, 1) for _ in range(3))
    views = views * bright
    centre = views.mean((1, 2, 3), keepdim=True)
    views = (views - centre) * contrast + centre
    lightness = (views * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)        # [b 1 s s]
    colour = torch.where(draw(0, 1).view(count, 1, 1, 1) < grey, 0.0, colour)
    return ((views - lightness) * colour + lightness).clamp(0, 1)


def channel_std(z: Tensor) -> float:
    """z [n d] -> the mean over channels of the standard deviation over rows of z / |z|: near 1 / sqrt(d) for directions that spread over
    the sphere, 0 where all are the same. Source: arXiv:2011.10566, section 4.1."""
    return float(normalize(z, dim=-1).std(0).mean())


def effective_rank(z: Tensor) -> float:
    """z [n d] -> exp of the entropy of the singular values of the centred z / |z|, as shares: how many directions are in use, 1 … d. It
    sees the collapse onto a line that `channel_std` doesn't. Source: RankMe, arXiv:2210.02885 (there not centred)."""
    unit = normalize(z.double(), dim=-1)
    values = torch.linalg.svdvals(unit - unit.mean(0))
    shares = values / values.sum().clamp_min(1e-300)
    return float(torch.special.entr(shares).sum().exp())


def nearest(bank: Tensor, labels: Tensor, queries: Tensor, *, k: int = 20, temperature: float = 0.1) -> Tensor:
    """bank [n d] with labels [n], queries [m d] -> the class [m] that the k nearest by cosine vote for, each exp(cos / temperature)."""
    cosines = normalize(queries, dim=-1) @ normalize(bank, dim=-1).T                    # [m n]
    near, at = cosines.topk(k, dim=-1)
    votes = one_hot(labels[at], int(labels.max()) + 1) * ((near - 1) / temperature).exp()[..., None]       # [m k c]
    return votes.sum(1).argmax(-1)


@dataclass(frozen=True)
class Course:
    """A training: one number an epoch of each. spread: channel_std x sqrt(d)."""

    losses: tuple[float, ...]
    spread: tuple[float, ...]
    rank: tuple[float, ...]


def train(
    network: Network, pixels: Tensor, variant: Variant, *, epochs: int, batch: int, rate: float, decay: float, momentum: float,
    views: int, generator: torch.Generator, tell: Callable[[str], None],
) -> Course:
    """Train the network on pixels [n 3 s s] in 0 … 1, by SGD with momentum 0.9 and a rate that falls as a cosine.

    momentum: BYOL's of the target. views: how many are averaged in the variant of that name. A short last batch is dropped.
    """
    network.train()
    target = copy.deepcopy(network) if variant == "byol" else None     # in training, too: its BatchNorm reads the batch, as SimSiam's does
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9, weight_decay=decay)
    steps, step = epochs * (len(pixels) // batch), 0
    course: list[tuple[float, float, float]] = []
    for epoch in range(epochs):
        losses, seen = [], []
        order = torch.randperm(len(pixels), generator=generator)
        for rows in order.split(batch):
            if len(rows) < batch:
                continue
            optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
            one, two = augmented(pixels[rows], generator), augmented(pixels[rows], generator)
            mean = None
            if variant == "mean of views":
                mean = torch.stack([one, two, *(augmented(pixels[rows], generator) for _ in range(views - 2))]).mean(0)
            loss, z = objective(variant, network, (one, two), target=target, mean=mean)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if target is not None:
                follow(target, network, momentum)
            step += 1
            losses.append(float(loss.detach()))
            seen.append(z)
        spread = sum(map(channel_std, seen)) / len(seen) * math.sqrt(seen[-1].shape[-1])
        course.append((sum(losses) / len(losses), spread, effective_rank(seen[-1])))
        tell(f"{variant}, epoch {epoch + 1} of {epochs}: loss {course[-1][0]:.3f}, spread {course[-1][1]:.3f}, rank {course[-1][2]:.1f}")
    return Course(*(tuple(column) for column in zip(*course, strict=True)))
