"""Softmax sharpened by how much a query sees, softmax(a log(l) / log(512)) with l keys, so that its entropy depends less on the length.

From https://kexue.fm/archives/8823 and bert4keras's `attention_normalize` ("softmax_plus"): a is all that stands before the softmax, the
position's bias included; l is at least 16, for a query that sees one key would else have no gradient, and a short text no contrast.
l counts the keys that each query sees: neither padding nor the future, so that a cached step is the same as a full pass.
"""

from __future__ import annotations

import math

from torch import Tensor

from fishpaw.attention.softmax import Softmax, visible_count
from fishpaw.config import ModelConfig
from fishpaw.contracts import View

__all__ = ["SoftmaxPlus", "build"]

LEAST = 16
USUAL = 512
"""The length at which it is the softmax: that of BERT's pretraining."""


class SoftmaxPlus(Softmax):
    """As Softmax, with q (and the bias) multiplied a row at a time: the fused kernel serves it wherever it serves Softmax."""

    def sharpness(self, view: View) -> Tensor:
        """log max(l, 16) / log 512."""
        return visible_count(view).clamp_min(LEAST).double().log() / math.log(USUAL)


def build(config: ModelConfig, *, scale: float | None = None) -> SoftmaxPlus:
    """scale: None for 1/sqrt(head_size); attention_dropout; residual_scores."""
    return SoftmaxPlus(config.width, scale=scale, dropout=config.attention_dropout, residual=config.residual_scores)
