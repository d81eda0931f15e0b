"""Efficient attention, softmax_d(Q) (softmax_n(K)^T V): linear in the length, normalised by two softmaxes (arXiv:1812.01243).

The shares softmax_d(Q) softmax_n(K)^T are not negative and their rows sum to 1. It sees every token: a softmax over the keys of a text
holds what comes later, so no triangle laid over the product makes it causal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fishpaw.attention.recurrence import Maps, read, repeated, turned
from fishpaw.config import ModelConfig
from fishpaw.contracts import Attended, Attention, Memory, View

__all__ = ["Efficient", "build"]

PIECE = 256
"""Tokens of a piece: of 12 heads of 64 they take 0.8 MB, which stays in the cache."""


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
            q, k, v = (repeated(one.to(wide), q.shape[1]) for one in (q, k, v))
            keep = view.fresh.keep[:, None, :, None]
            if not (weights or "rotate" in view.position.hooks() or torch.compiler.is_exporting()):  # a graph for any length has no loop
                return Attended(_in_pieces(q, k, v, keep).to(dtype))
            q = q.softmax(-1)
            k = k.masked_fill(~keep, torch.finfo(wide).min).softmax(-2) * keep
            q, k = turned(q, k, view)
            assert k is not None
            if weights:
                shares = q @ k.mT                                                # [b h q k]
                return Attended((shares @ v).to(dtype), weights=shares)
            return Attended((q @ (k.mT @ v)).to(dtype))


def _in_pieces(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """The same with nothing to turn, piece by piece: whole softmaxes are memory that grows with the text, and out of the cache it is slow.
    Keys are e^(k - their maximum), whose sum over the positions divides the state at the end."""
    pieces = list(zip(*(one.split(PIECE, -2) for one in (k, v, keep)), strict=True))
    hidden = torch.finfo(k.dtype).min
    top = torch.stack([one.detach().masked_fill(~here, hidden).amax(-2, keepdim=True) for one, _, here in pieces]).amax(0)
    state, total = v.new_zeros(()), v.new_zeros(())
    for one, values, here in pieces:
        features = (one - top).masked_fill_(~here, -torch.inf).exp_()            # [b h n d], 0 for padding
        state, total = state + features.mT @ values, total + features.sum(-2)
    state = state / total.masked_fill(total == 0, 1)[..., None]                  # [b h d e]
    return read(q, state, Maps(lambda one: one.softmax(-1), lambda one: one, chunk=PIECE))


def build(config: ModelConfig) -> Efficient:
    """No options."""
    return Efficient()
