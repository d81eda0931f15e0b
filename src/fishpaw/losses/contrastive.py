"""Losses over vectors of texts: each is to be nearest to the one it belongs with, among all of the batch (arXiv:1807.03748)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from fishpaw import checks

__all__ = ["in_batch"]


def in_batch(one: Tensor, other: Tensor, *, temperature: float = 0.05) -> tuple[Tensor, Tensor]:
    """sum over pairs i of -log softmax_j(cos(one_i, other_j) / temperature)[i], the mean of both directions, and the number of pairs.

    one, other [p d] -> sum [], count [], in fp32 at least, under autocast too: cosines differ in their third digit. With p = 1 the loss is
    0: there is nothing to be told apart from. No pair: (0, 0). Source: arXiv:1807.03748, with cosines as arXiv:2104.08821. ConfigError: a
    temperature of 0 or less.
    """
    checks.number("The temperature", temperature)
    dtype = torch.promote_types(one.dtype, torch.float32)
    with torch.autocast(one.device.type, enabled=False):                                                  # it would multiply in bf16
        scores = normalize(one.to(dtype), dim=1) @ normalize(other.to(dtype), dim=1).T / temperature      # [p p]
        own = torch.arange(len(scores), device=scores.device)
        total = (cross_entropy(scores, own, reduction="sum") + cross_entropy(scores.T, own, reduction="sum")) / 2
    return total, torch.tensor(float(len(scores)), dtype=dtype, device=scores.device)
