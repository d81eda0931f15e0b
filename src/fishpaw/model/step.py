"""One step of decoding through a layer in as few calls as it takes: with a few rows a step's time is calls, not arithmetic.

What a Block computes, for the layer that most decoders have; Transformer.prepare binds it once, and tests/model/test_step.py compares.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from fishpaw.attention.memory import KeyValue
from fishpaw.attention.softmax import Softmax
from fishpaw.contracts import Memory, Position, View
from fishpaw.model.block import Block
from fishpaw.model.linear import Packed

__all__ = ["Step", "bind"]


class Step:
    """x [n d] of new tokens, their view, the layer's memory -> [n d]. No gradients; hooks of the modules inside aren't called."""

    def __init__(self, block: Block, project: Packed, output: Packed, up: Packed, down: Packed) -> None:
        attention, kernel = block.attention, block.attention.kernel
        assert isinstance(kernel, Softmax)
        self.project, self.output, self.up, self.down = project, output, up, down
        self.pre = block.norm_at == "pre"
        self.first, self.second = block.attention_norm.forward, block.feed_forward_norm.forward
        self.parts, self.grouped = [attention.heads, attention.keys, attention.keys], attention.heads != attention.keys
        self.heads, self.scale = sum(self.parts), kernel.scale
        self.activation, self.gated = block.feed_forward.activation, block.feed_forward.gated

    def __call__(self, x: Tensor, view: View, memory: Memory) -> Tensor:
        assert isinstance(memory, KeyValue)
        laid = view.grid.split(self.project(self.first(x) if self.pre else x), self.heads)                    # [p h+2g t d]
        q, k, v = torch.split_with_sizes(laid, self.parts, 1)
        q, new = view.position.rotate(q, k, view.at)
        assert new is not None
        k, v = memory.append(new, v)
        out = scaled_dot_product_attention(q, k, v, view.additive, scale=self.scale, enable_gqa=self.grouped)
        x = self.output.add(view.grid.merge(out), x)
        x = x if self.pre else self.first(x)
        asked = self.second(x) if self.pre else x
        if self.gated:
            opened, passed = self.up(asked).chunk(2, dim=-1)
            made = self.activation(opened) * passed
        else:
            made = self.up(asked, self.activation)
        x = self.down.add(made, x)
        return x if self.pre else self.second(x)


def bind(block: nn.Module, position: Position) -> Step | None:
    """The step of a layer that is prepared: softmax in torch's fused kernel, norms before or after that read no condition, no encoder. None
    for any other, which takes its own way."""
    if position.hooks() & {"score", "mix"}:
        return None
    if type(block) is not Block or block.cross is not None or block.norm_at == "mixed" or block.attention.query_norm is not None:
        return None
    kernel, project, feed = block.attention.kernel, block.attention.project, block.feed_forward
    norms = (block.attention_norm, block.feed_forward_norm)
    if type(kernel) is not Softmax or kernel.residual or project is None or any(getattr(norm, "conditional", False) for norm in norms):
        return None
    packed = [project.packed, block.attention.output.packed, feed.up.packed, feed.down.packed]
    if not all(one is not None and one.reordered for one in packed):
        return None
    return Step(block, *(one for one in packed if one is not None))
