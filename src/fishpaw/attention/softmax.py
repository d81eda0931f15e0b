"""Scaled dot-product attention, softmax(q k^T / sqrt(d)) v (arXiv:1706.03762): fused where nothing needs the matrix, explicit elsewhere.

The explicit path serves positions that read the scores (NEZHA, ReRoPE), attention maps, and RealFormer's residual scores
(arXiv:2012.11747): A_n = q k^T / sqrt(d) + A_(n-1), carried unmasked and without the position's bias.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fishpaw.attention.memory import KeyValue
from fishpaw.config import ModelConfig
from fishpaw.contracts import Attended, Attention, Memory, View

__all__ = ["Softmax", "build", "normalise"]


class Softmax(Attention):
    """q [b h q d], k and v [b g k d] -> out [b h q d]. A query that sees nothing gets 0. Scores and sums in fp32 or better."""

    honours = frozenset({"embed", "rotate", "bias", "score", "mix"})
    rules = frozenset({"window", "exclude_self"})
    has_scores = True

    def __init__(self, size: int, *, dropout: float = 0.0, residual: bool = False) -> None:
        super().__init__()
        self.scale = 1 / math.sqrt(size)
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
        if not (weights or self.residual or view.position.hooks() & {"score", "mix"}):
            triangle = view.clock == "causal" and view.mask is None and not view.rules and q.shape[2] > 1
            out = functional.scaled_dot_product_attention(
                q, k, v, view.additive, dropout, is_causal=triangle, scale=self.scale, enable_gqa=q.shape[1] != k.shape[1]
            )
            return Attended(out)
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        scores = view.position.score(q, k, view.at)                                                 # [b h q k]
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * self.scale
        if carry is not None:
            scores = scores + carry
        share = normalise(scores, view)
        mixed = functional.dropout(share, dropout).to(v.dtype)
        out = mixed @ v
        extra = view.position.mix(mixed, view.at)
        if extra is not None:
            out = out + extra
        return Attended(out, scores if self.residual else None, share if weights else None)

    def memory(self, room: int | None = None) -> Memory:
        return KeyValue(room)


def normalise(scores: Tensor, view: View) -> Tensor:
    """softmax(scores + bias) over the visible keys, [b h q k]; rows that see nothing are 0, with finite gradients."""
    if view.bias is not None:
        scores = scores + view.bias
    mask = view.mask
    if mask is None and view.clock == "causal" and scores.shape[2] > 1:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is None:
        return scores.softmax(-1)
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1) * mask


def build(config: ModelConfig) -> Softmax:
    """Scale 1/sqrt(head_size); attention_dropout; residual_scores."""
    return Softmax(config.width, dropout=config.attention_dropout, residual=config.residual_scores)
