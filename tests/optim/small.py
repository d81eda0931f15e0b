"""A small model with gradients of its own making, for the tests beside it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.norm = nn.LayerNorm(5)
        self.inner = nn.Linear(5, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner(self.norm(self.embedding(ids)).tanh())


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = Net().double()
    for p in model.parameters():
        nn.init.normal_(p)
    return model


def fill(model: nn.Module, seed: int, *, rows: Iterable[int] = (0, 2, 5)) -> None:
    """Gradients; of the embedding only of some rows."""
    noise = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        p.grad = torch.randn(p.shape, generator=noise, dtype=p.dtype)
        if name.startswith("embedding"):
            p.grad[[row for row in range(7) if row not in rows]] = 0


def train(optimizer: torch.optim.Optimizer, model: nn.Module, steps: Iterable[int]) -> None:
    for step in steps:
        fill(model, step, rows=(0, 2, step % 7))
        optimizer.step()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def gap(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    return max(float((one[name] - two[name]).abs().max()) for name in one)


def adam(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.named_parameters(), lr=0.1, **options)


def decayless(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.named_parameters(), lr=0.1, weight_decay=0, fused=True)
