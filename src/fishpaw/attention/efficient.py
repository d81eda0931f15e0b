"""Efficient attention, softmax_d(Q) (softmax_n(K)^T V): linear in the length, normalised by two softmaxes (arXiv:1812.01243).

The shares softmax_d(Q) softmax_n(K)^T are not negative and their rows sum to 1. It sees every token: a softmax over the keys of a text
holds what comes later, so no triangle laid over the product makes it causal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fishpaw.attention.recurrence import turned
from fishpaw.config import ModelConfig
from fishpaw.contracts import Attended, Attention, Memory, View

__all__ = ["Efficient", "build"]


class Efficient(Attention):
    """q [b h q d], k and v [b g k d] -> out [b h q d]; softmaxes and sums in fp32 or better; padding has a share of 0.

    Rotary positions turn both softmaxed factors, as RoFormer does with features (arXiv:2104.09864, eq. 19); the unturned denominator is 1
    already. Shares may then be negative. There is no matrix of shares for attention dropout to fall on; it is left out.
    """

    honours = frozenset({"embed", "rotate"})
    clocks = frozenset({"full"})
    reads_mask = False

    def forward(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        view: View,
        carry: Any = None,
        memory: Memory | None = None,
        weights: bool = False,
    ) -> Attended:
        if k is None or v is None:
            raise ValueError("efficient attention remembers nothing: give keys and values")
        with torch.autocast(q.device.type, enabled=False):                       # sums over many keys don't fit 8 bits
            dtype, wide = q.dtype, torch.promote_types(q.dtype, torch.float32)
            groups = q.shape[1] // k.shape[1]
            k, v = (one.to(wide).repeat_interleave(groups, dim=1) for one in (k, v))
            keep = view.fresh.keep[:, None, :, None]
            q = q.to(wide).softmax(-1)
            k = k.masked_fill(~keep, torch.finfo(wide).min).softmax(-2) * keep
            q, k = turned(q, k, view)
            assert k is not None
            if weights:
                shares = q @ k.mT                                                # [b h q k]
                return Attended((shares @ v).to(dtype), weights=shares)
            return Attended((q @ (k.mT @ v)).to(dtype))


def build(config: ModelConfig) -> Efficient:
    """No options."""
    return Efficient()
