"""Generators DCGAN, ResNet and SELF-MOD, discriminators with spectral normalisation, and what each costs (kexue.fm/archives/6549).

Sources: DCGAN arXiv:1511.06434, ResNet arXiv:1704.00028, SELF-MOD arXiv:1810.01365, AdaIN arXiv:1703.06868, spectral norm arXiv:1802.05957.
All generators double 4 x 4 until the side is reached and halve the channels; so they differ in nothing but what they are named for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from fishpaw.errors import ConfigError

__all__ = ["AdaIN", "Cost", "Dcgan", "Plain", "ResNet", "SelfMod", "cost", "discriminator", "generator", "residual_discriminator"]


class Plain(nn.Module):
    """BatchNorm with scale and shift: hidden [b c s s], z unread -> the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, hidden: Tensor, z: Tensor) -> Tensor:
        normed: Tensor = self.norm(hidden)
        return normed


class SelfMod(nn.Module):
    """(1 + gamma(z)) BN(hidden) + beta(z): BatchNorm without scale and shift; gamma and beta by two layers each, hidden 32.

    hidden [b c s s], z [b d] -> the same shape. The 1 makes it BatchNorm where gamma and beta are 0.
    """

    def __init__(self, channels: int, size: int, *, middle: int = 32) -> None:
        super().__init__()
        self.norm: nn.Module = nn.BatchNorm2d(channels, affine=False)
        self.gamma, self.beta = (nn.Sequential(nn.Linear(size, middle), nn.ReLU(), nn.Linear(middle, channels)) for _ in range(2))

    def forward(self, hidden: Tensor, z: Tensor) -> Tensor:
        scale, shift = (one(z)[:, :, None, None] for one in (self.gamma, self.beta))            # [b c 1 1]
        modulated: Tensor = self.norm(hidden) * (1 + scale) + shift
        return modulated


class AdaIN(SelfMod):
    """As `SelfMod`, but mean and deviation are those of each image's own channel: what StyleGAN's layers do."""

    def __init__(self, channels: int, size: int, *, middle: int = 32) -> None:
        super().__init__(channels, size, middle=middle)
        self.norm = nn.InstanceNorm2d(channels)


class Dcgan(nn.Module):
    """z [b d] -> image [b channels side side] in -1 … 1: dense to 4 x 4, then 4 x 4 transposed convolutions of stride 2, norm and ReLU.

    norms: for a number of channels the norm, called with z. Kernel 4 is a multiple of the stride, so that it overlaps evenly.
    """

    def __init__(self, norms: Callable[[int], nn.Module], *, side: int, channels: int, size: int, width: int) -> None:
        super().__init__()
        sizes = [width << (_doublings(side) - 1 - step) for step in range(_doublings(side))]
        self.first = nn.Linear(size, 16 * sizes[0])
        self.norms = nn.ModuleList([norms(one) for one in sizes])
        self.ups = nn.ModuleList([nn.ConvTranspose2d(a, b, 4, 2, 1) for a, b in zip(sizes, [*sizes[1:], channels], strict=True)])

    def forward(self, z: Tensor) -> Tensor:
        hidden = self.first(z).view(len(z), -1, 4, 4)                                           # [b c 4 4]
        for norm, up in zip(self.norms, self.ups, strict=True):
            hidden = up(norm(hidden, z).relu())
        image: Tensor = hidden.tanh()
        return image


class _Up(nn.Module):
    """Norm, ReLU, twice as large, 3 x 3, norm, ReLU, 3 x 3, added to the input, which is made as large and as deep."""

    def __init__(self, norms: Callable[[int], nn.Module], before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = norms(before), norms(after)
        self.conv1, self.conv2 = nn.Conv2d(before, after, 3, 1, 1), nn.Conv2d(after, after, 3, 1, 1)
        self.larger, self.short = nn.UpsamplingNearest2d(scale_factor=2), nn.Conv2d(before, after, 1)

    def forward(self, hidden: Tensor, z: Tensor) -> Tensor:
        inner = self.conv1(self.larger(self.norm1(hidden, z).relu()))
        added: Tensor = self.larger(self.short(hidden)) + self.conv2(self.norm2(inner, z).relu())
        return added


class ResNet(nn.Module):
    """z [b d] -> image [b channels side side] in -1 … 1: dense to 4 x 4, residual blocks that double the side, norm, ReLU, 3 x 3."""

    def __init__(self, norms: Callable[[int], nn.Module], *, side: int, channels: int, size: int, width: int) -> None:
        super().__init__()
        sizes = [max(width << (_doublings(side) - 1 - step), 1) for step in range(_doublings(side))] + [max(width // 2, 1)]
        self.first = nn.Linear(size, 16 * sizes[0])
        self.blocks = nn.ModuleList([_Up(norms, a, b) for a, b in zip(sizes, sizes[1:], strict=False)])
        self.norm, self.last = norms(sizes[-1]), nn.Conv2d(sizes[-1], channels, 3, 1, 1)

    def forward(self, z: Tensor) -> Tensor:
        hidden = self.first(z).view(len(z), -1, 4, 4)
        for block in self.blocks:
            hidden = block(hidden, z)
        image: Tensor = self.last(self.norm(hidden, z).relu()).tanh()
        return image


def generator(name: str, *, side: int = 32, channels: int = 1, size: int = 64, width: int = 16) -> nn.Module:
    """name: dcgan, resnet, self-mod (DCGAN's layers) or self-mod resnet. side: 8, 16, 32 …; size: of z; width: channels before the last
    layer of DCGAN, those at 4 x 4 being width side / 8. Weights N(0, 0.02), of the last layer N(0, 1 / sqrt(inputs)), biases 0.
    Errors: ConfigError for another name or side."""
    kinds: dict[str, tuple[type[Dcgan] | type[ResNet], bool]] = {
        "dcgan": (Dcgan, False), "resnet": (ResNet, False), "self-mod": (Dcgan, True), "self-mod resnet": (ResNet, True),
    }  # fmt: skip
    if name not in kinds:
        raise ConfigError(f"There is no generator {name!r}.", fix=f"Use one of {', '.join(kinds)}.")
    kind, modulated = kinds[name]
    norms: Callable[[int], nn.Module] = (lambda count: SelfMod(count, size)) if modulated else Plain
    network = kind(norms, side=side, channels=channels, size=size, width=width)
    _begun(network)
    last = network.ups[-1] if isinstance(network, Dcgan) else network.last
    if isinstance(last, nn.Conv2d | nn.ConvTranspose2d) and not last.weight.is_meta:
        taps = 9 if isinstance(last, nn.Conv2d) else 4
        nn.init.normal_(last.weight, std=1 / math.sqrt(last.in_channels * taps))                # no norm follows: at 0.02 it begins grey
    return network


def discriminator(*, side: int = 32, channels: int = 1, width: int = 16) -> nn.Sequential:
    """[b channels side side] -> [b 1]: DCGAN's, 4 x 4 convolutions of stride 2 and LeakyReLU 0.2 down to 4 x 4, then dense; each weight
    divided by its largest singular value (a convolution's as a matrix [out, in k k]), in the place of BatchNorm."""
    sizes = [channels, *(width << step for step in range(_doublings(side)))]
    layers: list[nn.Module] = []
    for before, after in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Conv2d(before, after, 4, 2, 1), nn.LeakyReLU(0.2)]
    return _normed(nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * sizes[-1], 1)))


class _Down(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.ReLU(), nn.Conv2d(before, after, 3, 1, 1), nn.ReLU(), nn.Conv2d(after, after, 3, 1, 1),
                                   nn.AvgPool2d(2))  # fmt: skip
        self.short = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(before, after, 1))

    def forward(self, hidden: Tensor) -> Tensor:
        added: Tensor = self.short(hidden) + self.inner(hidden)
        return added


def residual_discriminator(*, side: int = 32, channels: int = 1, width: int = 16) -> nn.Sequential:
    """As `discriminator`, of residual blocks with 3 x 3 convolutions and average pooling, a mirror image of `ResNet`."""
    sizes = [max(width // 2, 1), *(width << step for step in range(_doublings(side)))]
    blocks = [_Down(before, after) for before, after in zip(sizes, sizes[1:], strict=False)]
    return _normed(nn.Sequential(nn.Conv2d(channels, sizes[0], 3, 1, 1), *blocks, nn.ReLU(), nn.Flatten(), nn.Linear(16 * sizes[-1], 1)))


@dataclass(frozen=True)
class Cost:
    """parameters; multiply_adds of one example's forward pass in convolutions and dense layers; activations: numbers that modules give
    for one example, all of which training keeps, four bytes each."""

    parameters: int
    multiply_adds: int
    activations: int


def cost(network: nn.Module, shape: tuple[int, ...]) -> Cost:
    """What one example of `shape` costs. Counted on torch's meta device's shapes: nothing is computed where the network lies on it."""
    device = next(network.parameters()).device
    counts = {"multiply_adds": 0, "activations": 0}

    def see(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        counts["activations"] += output.numel()
        if isinstance(module, nn.Linear):
            counts["multiply_adds"] += output.numel() * module.in_features
        elif isinstance(module, nn.ConvTranspose2d):
            counts["multiply_adds"] += inputs[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Conv2d):
            counts["multiply_adds"] += output.numel() * module.weight[0].numel()

    weighty = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    hooks = [module.register_forward_hook(see) for name, module in network.named_modules()
             if "parametrizations" not in name and (isinstance(module, weighty) or not list(module.children()))]  # fmt: skip
    learning = network.training
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, *shape, device=device))
    finally:
        network.train(learning)
        for hook in hooks:
            hook.remove()
    return Cost(sum(one.numel() for one in network.parameters()), counts["multiply_adds"], counts["activations"])


def _doublings(side: int) -> int:
    doublings = int(math.log2(side / 4)) if side >= 8 else 0
    if doublings < 1 or 4 << doublings != side:
        raise ConfigError(f"A side of {side} pixels isn't 4 doubled some times.", fix="Use 8, 16, 32, 64 …")
    return doublings


def _begun(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d) and not module.weight.is_meta:
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _normed(network: nn.Sequential) -> nn.Sequential:
    _begun(network)
    for module in list(network.modules()):
        if isinstance(module, nn.Linear | nn.Conv2d) and not module.weight.is_meta:              # shapes alone have no norm
            spectral_norm(module)
    return network
