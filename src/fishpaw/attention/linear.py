"""Linear attention whose map is a formula: elu(x) + 1 (arXiv:2006.16236), 1 + cosine, or exp's Taylor polynomial of order 2.

elu: features elu(x) + 1; rotary positions turn them in the numerator alone (RoFormer, arXiv:2104.09864, eq. 19). cosine: q·k becomes
1 + cos(q, k), between 0 and 2, of features [1, x/|x|]. taylor: q·k becomes 1 + s + s²/2 with s = q·k/sqrt(d), exact and never below 1/2, of
1 + d + d(d+1)/2 features: nearest to softmax, and slower than it on texts shorter than that. These two take q and k turned, so that no
share is negative.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fishpaw import checks
from fishpaw.attention.recurrence import LinearKind
from fishpaw.config import ModelConfig

__all__ = ["Linear", "build", "cosine", "elu", "taylor"]


class Linear(LinearKind):
    """A feature map for queries and keys alike."""

    def __init__(self, features: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.features = features

    def queries(self, q: Tensor) -> Tensor:
        return self.features(q)


class Elu(Linear):
    """Turned after the map."""

    turns = "features"


class Taylor(Linear):
    """Features are many: below a thousand tokens the polynomial of the scores, which needs none, is less work."""

    chunk, few = 128, 1024

    def similarity(self, q: Tensor, k: Tensor) -> Tensor:
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        return 1 + scores + scores.square() / 2


def elu(x: Tensor) -> Tensor:
    """elu(x) + 1, above 0, [… d] -> [… d]. x + 1 or exp(x), never exp(x) - 1 + 1: in bf16 that is 0 at x = -8."""
    return x.relu() + x.clamp_max(0).exp()


def cosine(x: Tensor) -> Tensor:
    """[1, x / |x|], [… d] -> [… d+1]; [1, 0] for a vector of zeros, with a gradient of 0."""
    square = x.square().sum(-1, keepdim=True)
    unit = x * square.masked_fill(square == 0, 1).rsqrt()
    return torch.cat((torch.ones_like(square), unit), dim=-1)


def taylor(x: Tensor) -> Tensor:
    """[1, x', the products x'_i x'_j / sqrt(2)] with x' = x / d^(1/4), [… d] -> [… 1 + d + d(d+1)/2]: a pair i < j once, times sqrt(2)."""
    d = x.shape[-1]
    x = (x * d**-0.25).mT.contiguous()                                           # tokens side by side: long rows to multiply and to join
    apart = [x[..., step:, :] * x[..., : d - step, :] for step in range(1, d)]   # pairs by their distance: no gathering of columns
    return torch.cat((torch.ones_like(x[..., :1, :]), x, x.square() * math.sqrt(0.5), *apart), dim=-2).mT


KINDS: dict[str, Callable[[], Linear]] = {"elu": lambda: Elu(elu), "cosine": lambda: Linear(cosine), "taylor": lambda: Taylor(taylor)}


def build(config: ModelConfig, *, features: str = "elu") -> Linear:
    """features: "elu", "cosine" or "taylor"."""
    checks.one_of("The linear attention's features", features, sorted(KINDS))
    return KINDS[features]()
