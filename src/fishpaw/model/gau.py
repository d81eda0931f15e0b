"""Gated attention units: one layer that is attention and feed-forward at once, o = (u * A v) W_o (FLASH, arXiv:2202.10447).

u and v, each as wide as a feed-forward layer, and a narrow z come from one product and one activation; queries and keys are z with a scale
and an offset of their own. The paper has one head of 128 units, bert4keras's GAU-alpha (https://kexue.fm/archives/9052) too: head_size 128,
attention_heads 1, activation "swish". More heads share z and halve, third … the values between them. About twice as many layers take the
place of so many blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fishpaw import activations, switch
from fishpaw.config import ModelConfig
from fishpaw.contracts import Attention, Memory, View
from fishpaw.errors import ConfigError
from fishpaw.model.block import Surroundings
from fishpaw.model.dropout import Dropout
from fishpaw.model.linear import Linear
from fishpaw.model.refusals import refused

__all__ = ["GatedAttention", "Unit", "build"]

Pair = tuple[Any, Any]


class GatedAttention(nn.Module):
    """x [n d] -> [n d], called as MultiHead is. `project` makes u, v and z, in that order; scale and offset hold a row a query head, then
    a row a key head. Biases and offsets: "qkv" in `biases`; that of the output: "output"."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.keys, self.width, self.units = config.attention_heads, config.keys, config.width, config.intermediate_size
        self.values = self.units // self.heads * self.keys
        size, std, bias = config.hidden_size, config.init_std, "qkv" in config.biases
        self.project = Linear(size, self.units + self.values + self.width, std=std, bias=bias)
        self.scale = nn.Parameter(torch.randn(self.heads + self.keys, self.width) * std)
        self.offset = nn.Parameter(torch.zeros(self.heads + self.keys, self.width)) if bias else None
        self.query_norm: nn.Module | None = switch.build("norms", config.norm, self.width) if config.qk_norm else None
        self.key_norm: nn.Module | None = switch.build("norms", config.norm, self.width) if config.qk_norm else None
        self.output = Linear(self.units, size, std=std, bias="output" in config.biases)
        self.activation = activations.get(config.activation)
        self.kernel: Attention = switch.build("attention", config.turns("attention")[0], config)

    def forward(
        self,
        x: Tensor,
        views: Sequence[View],
        *,
        source: Tensor | None = None,
        carry: Sequence[Any] | None = None,
        memory: Memory | None = None,
        weights: bool = False,
    ) -> tuple[Tensor, list[Any], list[Tensor | None]]:
        """-> output [n d], carry a view, weights [b h q k] a view. source [n d]: what keys and values are made of, if not of x (T-TA)."""
        gate, v, z = self._projected(x)
        asked, z = z, z                                              # [n w]
        if source is not None:
            _, v, z = self._projected(source)
        attended = []
        for index, view in enumerate(views):
            q = self._headed(view.grid.split(asked, 1), slice(0, self.heads), self.query_norm)      # [b h t w]
            k = self._headed(view.source.split(z, 1), slice(self.heads, None), self.key_norm)
            carried = None if carry is None else carry[index]
            attended.append(self.kernel(q, k, view.source.split(v, self.keys), view, carried, memory, weights))
        merged = [view.grid.merge(one.out) for view, one in zip(views, attended, strict=True)]
        out = self.output(gate * (merged[0] if len(merged) == 1 else torch.cat(merged)))
        return out, [one.carry for one in attended], [one.weights for one in attended]

    def _projected(self, x: Tensor) -> Sequence[Tensor]:
        made: Tensor = self.project(x, self.activation)
        parts: Sequence[Tensor] = torch.split(made, [self.units, self.values, self.width], dim=-1)
        return parts

    def _headed(self, z: Tensor, rows: slice, norm: nn.Module | None) -> Tensor:
        turned = z * self.scale[rows, None]
        if self.offset is not None:
            turned = turned + self.offset[rows, None]
        turned = turned.to(z.dtype)                                  # prepared for bf16 the weights stay in fp32
        return turned if norm is None else norm(turned)


class Unit(nn.Module):
    """x [n d] -> [n d], called as a Block is: one residual and one norm, after it or before it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm_at = config.norm_at
        self.attention = GatedAttention(config)
        self.attention_norm: nn.Module = switch.build("norms", config.norm, config.hidden_size)
        self.dropout = Dropout(config.dropout)

    @property
    def kernels(self) -> tuple[Attention, Attention | None]:
        """What attends: to the tokens themselves; to an encoder nothing."""
        return self.attention.kernel, None

    def forward(
        self, x: Tensor, around: Surroundings, carry: Pair = (None, None), memory: tuple[Memory | None, Memory | None] = (None, None)
    ) -> tuple[Tensor, Pair, Pair]:
        """-> x, (self, None) carry for the next layer, (self, None) attention maps a view."""
        own = self.attention_norm(x, around.condition) if self.norm_at == "pre" else x
        out, carried, maps = self.attention(
            own, around.views, source=around.tokens, carry=carry[0], memory=memory[0], weights=around.weights
        )
        x = x + self.dropout(out)
        if self.norm_at == "post":
            x = self.attention_norm(x, around.condition)
        return x, (carried, None), (maps, None)


def build(config: ModelConfig) -> Unit:
    """A gated attention unit. ConfigError for an encoder, the norms "mixed", a gated activation, and values that heads can't share."""
    if config.encoder is not None:
        raise refused("block 'gau' x an encoder")
    if config.norm_at == "mixed":
        raise refused("block 'gau' x norm_at 'mixed'")
    if activations.is_gated(config.activation):
        raise refused("block 'gau' x activation {}", repr(config.activation))
    if config.intermediate_size % config.attention_heads:
        raise ConfigError(
            f"intermediate_size {config.intermediate_size} is not a multiple of attention_heads {config.attention_heads}.",
            fix="Change one of them: the heads of a gated attention unit share its values.",
        )
    return Unit(config)
