"""Sparse softmax: each query attends to the k keys of the highest scores only (the generator of https://kexue.fm/archives/8046).

The softmax over the top k, and 0 elsewhere: no share, no gradient. All keys that tie with the k-th are kept, so that the order in which
keys are stored decides nothing; scores closer than rounding are a tie (the same token twice, without positions).
Meant for fine-tuning: a model trained so from the start underfits.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fishpaw import checks
from fishpaw.attention.softmax import Softmax, masked_softmax, visible
from fishpaw.config import ModelConfig
from fishpaw.contracts import View

__all__ = ["Sparse", "build", "top"]

ROUNDING = 16
"""Scores within this many units of the row's largest rounding error are a tie."""


class Sparse(Softmax):
    """As Softmax but for the shares; always the explicit path. A query that sees k keys or fewer has the plain softmax."""

    fused = False

    def __init__(self, size: int, *, k: int = 16, scale: float | None = None, dropout: float = 0.0, residual: bool = False) -> None:
        super().__init__(size, scale=scale, dropout=dropout, residual=residual)
        checks.whole("The sparse attention's k", k, least=1)
        self.k = k

    def shares(self, scores: Tensor, view: View) -> Tensor:
        """softmax over the k best of the keys seen, [b h q k]."""
        return masked_softmax(scores, top(scores, visible(view), self.k))


def top(scores: Tensor, seen: Tensor | None, k: int) -> Tensor | None:
    """True at the k largest scores of each row [… n] among those seen, and at what ties with the k-th; what is seen where that is all."""
    exporting = torch.compiler.is_exporting()                        # a graph for any length has no branch; it has k keys of -inf more
    if not exporting and scores.shape[-1] <= k:
        return seen
    known = scores.detach()
    if seen is not None:
        known = known.masked_fill(~seen, float("-inf"))
    many = functional.pad(known, (0, k), value=float("-inf")) if exporting else known
    least = many.topk(k, dim=-1, sorted=False).values.amin(-1, keepdim=True)                       # -inf where fewer are seen
    largest = known.masked_fill(known == float("-inf"), 0).abs().amax(-1, keepdim=True)
    kept = known >= least - ROUNDING * torch.finfo(known.dtype).eps * largest
    return kept if seen is None else kept & seen


def build(config: ModelConfig, *, k: int = 16, scale: float | None = None) -> Sparse:
    """k: how many keys a query attends to; scale: None for 1/sqrt(head_size); attention_dropout; residual_scores."""
    return Sparse(config.width, k=k, scale=scale, dropout=config.attention_dropout, residual=config.residual_scores)
