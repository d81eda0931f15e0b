"""Dropout (arXiv:1207.0580) whose random numbers cost a CPU less: 16 bits an element, four from each number drawn, where torch draws 64."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Dropout", "drop"]

_STEPS = 1 << 16


class Dropout(nn.Dropout):
    """nn.Dropout by `drop`: in training each element is 0 with probability p, else divided by 1 - p; otherwise the identity."""

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape -> the same shape."""
        return drop(x, self.p, training=self.training)


def drop(x: Tensor, p: float, *, training: bool = True) -> Tensor:
    """As torch's dropout; on a CPU p is rounded to 1/65536. Reads torch's own random state, on one thread: the same for any number."""
    if not training or p == 0:
        return x
    lost = round(p * _STEPS)
    if x.device.type != "cpu" or not 0 < lost < _STEPS:
        return functional.dropout(x, p)
    drawn = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)              # all 64 bits of each
    lanes = drawn.view(torch.int16)[: x.numel()].view(x.shape)
    kept = (lanes >= lost - _STEPS // 2).to(x.dtype).mul_(_STEPS / (_STEPS - lost))
    return x * kept
