"""One layer: attention, cross-attention where there is an encoder, feed-forward; each with residual and norm, after it (post, as in
BERT), before it (pre, as in GPT-2; arXiv:2002.04745) or mixed (as in GPT2-ML: both norms at the feed-forward, one before, one after)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fishpaw import activations, switch
from fishpaw.config import ModelConfig
from fishpaw.contracts import Attention, Memory, View
from fishpaw.model.dropout import Dropout
from fishpaw.model.linear import Linear
from fishpaw.model.multihead import MultiHead
from fishpaw.model.refusals import refused

__all__ = ["Block", "FeedForward", "Surroundings", "build"]

Pair = tuple[Any, Any]


@dataclass(frozen=True)
class Surroundings:
    """What every layer of one forward shares: views of the tokens and, in a decoder, of its encoder; tokens [n d], the source of keys
    and values in T-TA; encoded [m d], None once the memories hold it; condition [n c] of conditional norms; whether attention maps are
    wanted."""

    views: Sequence[View]
    cross: Sequence[View] = ()
    tokens: Tensor | None = None
    encoded: Tensor | None = None
    condition: Tensor | None = None
    weights: bool = False


class FeedForward(nn.Module):
    """x [n d] -> activation(x W1 + b1) W2 + b2, [n d]; gated: (activation(x W1 + b1) * (x W3 + b3)) W2 + b2, W1 and W3 one matrix."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gated = activations.is_gated(config.activation)
        bias, units = "feed_forward" in config.biases, config.intermediate_size
        self.up = Linear(config.hidden_size, 2 * units if self.gated else units, std=config.init_std, bias=bias)
        self.down = Linear(units, config.hidden_size, std=config.init_std, bias=bias)
        self.activation = activations.get(config.activation)

    def forward(self, x: Tensor) -> Tensor:
        if self.gated:
            opened, passed = self.up(x).chunk(2, dim=-1)
            made = self.activation(opened) * passed
        else:
            made = self.up(x, self.activation)
        out: Tensor = self.down(made)
        return out


class Block(nn.Module):
    """x [n d] -> [n d]; the same for padded, packed and cached tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.norm_at == "mixed" and config.encoder is not None:
            raise refused("norm_at 'mixed' x an encoder")
        self.norm_at = config.norm_at
        self.attention = MultiHead(config, source_size=config.hidden_size if config.stream == "positions" else None)
        self.attention_norm: nn.Module = switch.build("norms", config.norm, config.hidden_size)
        self.cross = MultiHead(config, source_size=config.encoder.hidden_size) if config.encoder else None
        self.cross_norm: nn.Module | None = switch.build("norms", config.norm, config.hidden_size) if config.encoder else None
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm: nn.Module = switch.build("norms", config.norm, config.hidden_size)
        self.dropout = Dropout(config.dropout)

    @property
    def kernels(self) -> tuple[Attention, Attention | None]:
        """What attends: to the tokens themselves, and to the encoder."""
        return self.attention.kernel, None if self.cross is None else self.cross.kernel

    def forward(
        self, x: Tensor, around: Surroundings, carry: Pair = (None, None), memory: tuple[Memory | None, Memory | None] = (None, None)
    ) -> tuple[Tensor, Pair, Pair]:
        """-> x, (self, cross) carry for the next layer, (self, cross) attention maps a view."""
        condition, shown = around.condition, around.weights
        own = self._before(x, self.attention_norm, condition)
        out, own_carry, own_maps = self.attention(own, around.views, source=around.tokens, carry=carry[0], memory=memory[0], weights=shown)
        if self.norm_at == "mixed":
            x = x + self.dropout(out)
            x = self.feed_forward_norm(x + self.dropout(self.feed_forward(self.attention_norm(x, condition))), condition)
            return x, (own_carry, None), (own_maps, None)
        x = self._after(x, out, self.attention_norm, condition)
        cross_carry, cross_maps = None, None
        if self.cross is not None and self.cross_norm is not None:
            asked = self._before(x, self.cross_norm, condition)
            out, cross_carry, cross_maps = self.cross(
                asked, around.cross, source=around.encoded, carry=carry[1], memory=memory[1], weights=shown
            )
            x = self._after(x, out, self.cross_norm, condition)
        x = self._after(x, self.feed_forward(self._before(x, self.feed_forward_norm, condition)), self.feed_forward_norm, condition)
        return x, (own_carry, cross_carry), (own_maps, cross_maps)

    def _before(self, x: Tensor, norm: nn.Module, condition: Tensor | None) -> Tensor:
        return norm(x, condition) if self.norm_at == "pre" else x

    def _after(self, x: Tensor, out: Tensor, norm: nn.Module, condition: Tensor | None) -> Tensor:
        total: Tensor = x + (self.dropout(out) if self.dropout.training else out)
        if self.norm_at == "post":
            total = norm(total, condition)
        return total


def build(config: ModelConfig) -> Block:
    """A layer of the usual kind."""
    return Block(config)
