"""Losses of language models that are proven to end: self-terminating (arXiv:2002.02492) and non-monotonic (NMST, arXiv:2210.00660)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from fishpaw.errors import DataError

__all__ = ["non_monotone", "self_terminating"]


def self_terminating(logits: Tensor, targets: Tensor, generated: Tensor, *, end: int, epsilon: float,
                     ignore: int = -100) -> tuple[Tensor, Tensor]:
    """sum over targets of -log p(target), and the number of targets that count, where at a row's t-th generated token

        p(end) = 1 - a_t,   p(v) = a_t softmax(the logits without the end's),   a_t = product over i <= t of (1 - epsilon) sigmoid(z_i[end])

    in log space: log a is a running sum of log sigmoids, in fp64. logits [b t v]: raw, each row in its order; targets [b t] int64: the
    token that the logits are to predict (`ignore`: none that counts). generated [b t] bool: where the recursion runs; before it, in the
    given context, a = 1, so that the end can't come there: a context is scored by the other tokens' softmax, or ignored. A generated
    token that is ignored still counts a step. -> sum [], count [], fp32 at least; no target: (0, 0). 0 < epsilon < 1.
    Raises DataError for an end in the context (on the CPU; on a GPU the loss is infinite).
    """
    steps = (logsigmoid(logits[..., end].double()) + math.log1p(-epsilon)).masked_fill(~generated, 0.0)       # [b t]
    return _loss(logits, targets, generated, steps.cumsum(1), end, ignore)


def non_monotone(logits: Tensor, targets: Tensor, generated: Tensor, *, end: int, epsilon: float,
                 ignore: int = -100) -> tuple[Tensor, Tensor]:
    """As self_terminating, with a_t = (1 - epsilon)^t sigmoid(-z_t[end]): the end's probability may fall again, its bound only rises."""
    step = generated.cumsum(1).double()                                                                       # [b t]
    log_alive = logsigmoid(-logits[..., end].double()) + step * math.log1p(-epsilon)                          # [b t]
    return _loss(logits, targets, generated, log_alive.masked_fill(~generated, 0.0), end, ignore)


def _loss(logits: Tensor, targets: Tensor, generated: Tensor, log_alive: Tensor, end: int, ignore: int) -> tuple[Tensor, Tensor]:
    closing = targets == end                                                                                  # [b t]
    if logits.device.type == "cpu" and bool((closing & ~generated).any()):
        row, column = (closing & ~generated).nonzero()[0].tolist()
        raise DataError(f"Row {row} of a batch ends in its context, at target {column}.", fix="Ignore it there, or let `generated` begin.")
    others = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)                           # [b t v]
    others[..., end] = float("-inf")
    chosen = targets.masked_fill(closing, ignore)                                                             # [b t]
    total = cross_entropy(others.flatten(0, 1), chosen.flatten(), ignore_index=ignore, reduction="sum")
    alive = log_alive.masked_fill(chosen == ignore, 0.0).sum()
    # Where nothing closes, a number of which the logarithm is finite: its gradient is thrown away, and must not be nan.
    ended = torch.where(closing, log_alive, -1.0).expm1().neg().log().masked_fill(~closing, 0.0).sum()
    return total - (alive + ended).to(total.dtype), (targets != ignore).sum().to(total.dtype)
