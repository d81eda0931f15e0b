"""Loss of language models: cross entropy over the vocabulary at the tokens that are to be predicted. arXiv:1810.04805, section 3.1."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

__all__ = ["masked_cross_entropy"]


def masked_cross_entropy(logits: Tensor, targets: Tensor, *, smoothing: float = 0.0, ignore: int = -100) -> tuple[Tensor, Tensor]:
    """sum over targets of -log softmax(logits)[target], and the number of targets that count.

    logits [n v], targets [n] int64 (`ignore`: nothing to predict there) -> sum [], count [], fp32 at least: 21,128 terms of a bf16
    softmax lose two digits. Accumulate both over batches and devices and divide once: then each token weighs the same, however
    they were cut into batches. No target, or n = 0: (0, 0), gradients 0. A shift by one, as causal models need, is the caller's.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))               # [n v]
    total = cross_entropy(logits, targets, ignore_index=ignore, reduction="sum", label_smoothing=smoothing)
    return total, (targets != ignore).sum().to(logits.dtype)
