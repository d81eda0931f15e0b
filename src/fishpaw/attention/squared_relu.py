"""Attention without a softmax: a key's share is relu(a)^2 / l, with l the number of keys that the query sees (arXiv:2202.10447).

As in bert4keras's `attention_normalize` ("squared_relu"): a holds scale and bias. Shares don't sum to 1 and aren't bounded, so large scores
need a norm of queries and keys; a query whose scores are all below 0 gets 0, and no gradient.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from fishpaw.attention.softmax import Softmax, visible, visible_count
from fishpaw.config import ModelConfig
from fishpaw.contracts import View

__all__ = ["SquaredRelu", "build"]


class SquaredRelu(Softmax):
    """As Softmax but for the shares; always the explicit path."""

    fused = False

    def shares(self, scores: Tensor, view: View) -> Tensor:
        """relu(scores)^2 / l, [b h q k]; 0 where a query doesn't see the key."""
        seen, count = visible(view), visible_count(view).clamp_min(1)
        return functional.relu(scores if seen is None else scores.masked_fill(~seen, 0)).square() / count.to(scores.dtype)


def build(config: ModelConfig, *, scale: float | None = None) -> SquaredRelu:
    """scale: None for 1/sqrt(head_size); attention_dropout; residual_scores."""
    return SquaredRelu(config.width, scale=scale, dropout=config.attention_dropout, residual=config.residual_scores)
