"""Scaled dot-product attention, softmax(q k^T / sqrt(d)) v (arXiv:1706.03762): fused where nothing needs the matrix, explicit elsewhere.

The explicit path serves positions that read the scores (NEZHA, ReRoPE), attention maps, RealFormer's residual scores
(arXiv:2012.11747): A_n = q k^T / sqrt(d) + A_(n-1), carried unmasked and without the position's bias; and other ways to make shares of
the scores, each a file that overrides `shares`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fishpaw import checks
from fishpaw.attention.memory import KeyValue
from fishpaw.config import ModelConfig
from fishpaw.contracts import Attended, Attention, Memory, View

__all__ = ["Softmax", "build", "masked_softmax", "visible", "visible_count"]


class Softmax(Attention):
    """q [b h q d], k [b g k d], v [b g k e] -> out [b h q e]. A query that sees nothing gets 0. Scores and sums in fp32 or better.

    size: d. scale: what q k^T is multiplied by, None for 1 / sqrt(d). Errors: ConfigError for a scale that isn't above 0.
    """

    honours = frozenset({"embed", "rotate", "bias", "score", "mix"})
    rules = frozenset({"window", "exclude_self"})
    has_scores = True
    fused = True
    """Whether torch's kernel makes the same shares: a softmax, after `sharpness`."""

    def __init__(self, size: int, *, scale: float | None = None, dropout: float = 0.0, residual: bool = False) -> None:
        super().__init__()
        checks.number("The attention's scale", scale, optional=True)
        self.scale = 1 / math.sqrt(size) if scale is None else float(scale)
        self.dropout = dropout
        self.residual = residual

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
        q, k = view.position.rotate(q, k, view.at)
        if memory is not None:
            assert isinstance(memory, KeyValue)
            k, v = memory.read() if k is None or v is None else memory.append(k, v)
        if k is None or v is None:
            raise ValueError("attention without keys needs a memory that holds them")
        dropout = self.dropout if self.training else 0.0
        if self.fused and not (weights or self.residual or view.position.hooks() & {"score", "mix"}):
            return Attended(self._fuse(q, k, v, view, dropout))
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        scores = view.position.score(q, k, view.at)                                                 # [b h q k]
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * self.scale
        if carry is not None:
            scores = scores + carry
        share = self.shares(scores if view.bias is None else scores + view.bias, view)
        mixed = functional.dropout(share, dropout).to(v.dtype)
        out = mixed @ v
        extra = view.position.mix(mixed, view.at)
        if extra is not None:
            out = out + extra
        return Attended(out, scores if self.residual else None, share if weights else None)

    def shares(self, scores: Tensor, view: View) -> Tensor:
        """Scores with their bias -> what each query takes of each key, [b h q k] both. 0 for a key it doesn't see, finite gradients."""
        sharp = self.sharpness(view)
        return masked_softmax(scores if sharp is None else scores * sharp.to(scores.dtype), visible(view))

    def sharpness(self, view: View) -> Tensor | None:
        """What a query's scores and bias are multiplied by, fp64, [b 1 1|q 1]; None for 1."""
        return None

    def memory(self, room: int | None = None) -> Memory:
        return KeyValue(room)

    def _fuse(self, q: Tensor, k: Tensor, v: Tensor, view: View, dropout: float) -> Tensor:
        additive, sharp = view.additive, self.sharpness(view)
        if sharp is not None:
            sharp = sharp.to(torch.promote_types(q.dtype, torch.float32))
            q = (q * sharp).to(q.dtype)
            if additive is not None and view.bias is not None:
                additive = (view.bias * sharp).to(view.bias.dtype)
                additive = additive if view.mask is None else additive.masked_fill(~view.mask, float("-inf"))
        triangle = view.clock == "causal" and view.mask is None and not view.rules and q.shape[2] > 1
        return functional.scaled_dot_product_attention(
            q, k, v, additive, dropout, is_causal=triangle, scale=self.scale, enable_gqa=q.shape[1] != k.shape[1]
        )


def masked_softmax(scores: Tensor, seen: Tensor | None) -> Tensor:
    """softmax over the keys seen, [b h q k]; rows that see nothing are 0, with finite gradients."""
    if seen is None:
        return scores.softmax(-1)
    return scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1) * seen


def visible(view: View) -> Tensor | None:
    """True where a query sees a key, [b 1 1|q k] or [q k]; None where every query sees every key."""
    if view.mask is None and view.clock == "causal" and view.grid.t > 1:
        return torch.ones(view.grid.t, view.k.keep.shape[1], dtype=torch.bool, device=view.k.keep.device).tril()
    return view.mask


def visible_count(view: View) -> Tensor:
    """How many keys each query sees, whole numbers, [b 1 1|q 1] or [q 1] or [1]."""
    seen = visible(view)
    if seen is None:
        return torch.full((1,), view.k.keep.shape[1], device=view.k.keep.device)
    return seen.sum(-1, keepdim=True)


def build(config: ModelConfig, *, scale: float | None = None) -> Softmax:
    """scale: None for 1/sqrt(head_size), T5 takes 1.0; attention_dropout; residual_scores."""
    return Softmax(config.width, scale=scale, dropout=config.attention_dropout, residual=config.residual_scores)
