"""Training a generator against a discriminator: losses, gradient penalty, the steps; and a small classifier whose features are compared.

Losses: standard, non-saturating (arXiv:1406.2661), hinge (arXiv:1705.02894), WGAN-GP (arXiv:1704.00028), as in kexue.fm/archives/6549.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu, softplus
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

__all__ = ["LOSSES", "Classifier", "Loss", "classify", "gradient_penalty", "losses", "samples", "train"]

Loss = Literal["standard", "hinge", "wgan-gp"]
LOSSES: tuple[Loss, ...] = get_args(Loss)


def losses(name: Loss, real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss [] of its scores of real and of made images [b 1]; WGAN's without the penalty."""
    if name == "standard":
        terms = softplus(-real), softplus(fake)
    elif name == "hinge":
        terms = relu(1 - real), relu(1 + fake)
    else:
        terms = -real, fake
    return torch.stack([one.mean() for one in terms]).sum()


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The mean over rows of (|gradient of the critic| - 1)^2 at points drawn evenly between each real and made image, []; of a linear
    critic w x + c it is (|w| - 1)^2 wherever the points are. Source: arXiv:1704.00028, equation 3."""
    share = torch.rand(len(real), generator=generator).to(real).view(-1, *[1] * (real.dim() - 1))
    points = (share * real + (1 - share) * fake).detach().requires_grad_()
    slopes, = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
    steepness: Tensor = torch.linalg.vector_norm(slopes.flatten(1), dim=1)            # [b]
    return (steepness - 1).square().mean()


def train(
    generator: nn.Module, critic: nn.Module, pixels: Tensor, *, size: int, steps: int, batch: int, loss: Loss, rate: float,
    critic_rate: float, decay: float, draw: torch.Generator, tell: Callable[[str], None], see: Callable[[int, nn.Module], None],
    every: int,
) -> nn.Module:
    """One step of the critic, one of the generator, `steps` times, on pixels [n c s s] in -1 … 1; Adam, betas 0.5 and 0.999. What comes
    back is the generator's mean over its steps, weights and statistics, a step counting `decay` times as much as the next one; 0: the
    generator as it is. It circles around what it looks for, and the mean doesn't (arXiv:1806.04498).

    size: of z. rate: the generator's; narrow networks want more than the 2e-4 of wide ones. see(step, mean) is called before the first
    step, after each `every` steps and after the last: to measure. Images come in a new order each epoch.
    """
    mean = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    makes, judges = (torch.optim.Adam(one.parameters(), lr=speed, betas=(0.5, 0.999)) for one, speed in
                     ((generator, rate), (critic, critic_rate)))  # fmt: skip
    generator.train()
    critic.train()
    order = torch.randperm(len(pixels), generator=draw)
    see(0, mean)
    for step in range(1, steps + 1):
        if len(order) < batch:
            order = torch.randperm(len(pixels), generator=draw)
        real, order = pixels[order[:batch]], order[batch:]
        made = generator(torch.randn(len(real), size, generator=draw))
        judged = critic(torch.cat([real, made.detach()]))
        wrong = losses(loss, *judged.split(len(real)))
        if loss == "wgan-gp":
            wrong = wrong + 10 * gradient_penalty(critic, real, made.detach(), draw)
        judges.zero_grad()
        wrong.backward()
        judges.step()
        critic.requires_grad_(False)                                   # its weights' gradients would be thrown away
        scores = critic(made)
        fooled = softplus(-scores).mean() if loss == "standard" else -scores.mean()
        makes.zero_grad()
        fooled.backward()
        makes.step()
        mean.update_parameters(generator)
        critic.requires_grad_(True)
        if step % every == 0 or step == steps:
            tell(f"step {step} of {steps}: critic {float(wrong.detach()):.3f}, generator {float(fooled.detach()):.3f}")
            see(step, mean)
    return mean


@torch.no_grad()
def samples(generator: nn.Module, z: Tensor, *, batch: int = 256) -> Tensor:
    """z [n d] -> images [n c s s] in -1 … 1, with the running statistics of BatchNorm: an image doesn't depend on its neighbours."""
    generator.eval()
    return torch.cat([generator(some) for some in z.split(batch)])


class Classifier(nn.Module):
    """Images [b c side side] in -1 … 1 -> logits [b classes]; `features` [b 64] is its last layer but one."""

    def __init__(self, *, side: int = 32, channels: int = 1, classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(2 * width * (side // 8) ** 2, 64), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images))
        return logits

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        return torch.cat([self.body(some) for some in images.split(500)])


def classify(classifier: Classifier, pixels: Tensor, labels: Tensor, *, epochs: int, draw: torch.Generator, batch: int = 64) -> None:
    """Train it by Adam at 0.001 on pixels [n c s s] with labels [n]."""
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(pixels), generator=draw).split(batch):
            optimizer.zero_grad()
            cross_entropy(classifier(pixels[rows]), labels[rows]).backward()
            optimizer.step()
