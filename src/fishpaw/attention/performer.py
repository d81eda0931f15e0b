"""Performer, or FAVOR+: softmax attention estimated without bias by positive random features, linear in the length (arXiv:2009.14794).

e^(q·k) = E[e^(w·q - |q|²/2) e^(w·k - |k|²/2)] over w ~ N(0, I), with q and k divided by d^(1/4); the mean over m drawn w stands for E. The
error falls as 1/sqrt(m), but its constant grows as e^(|q + k|²/2): beyond scores of about 4 it is large for any m. A model trained with
softmax therefore answers otherwise at first, and recovers when it is trained on.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fishpaw import checks
from fishpaw.attention.recurrence import LinearKind, Maps
from fishpaw.config import ModelConfig
from fishpaw.contracts import Attended, Memory, View
from fishpaw.errors import ConfigError

__all__ = ["Performer", "build", "draw_directions"]

WIDEST = 192
"""Largest head size: beyond it no constant keeps the features of every key from overflow and those of usual ones from underflow in fp32."""

MOST = 2**16
"""Features, at most; the error of 266 and of so many differ by a factor of 16."""

_BACKWARD = "_current_graph_task_id"
"""The name in torch._C of what numbers the backward pass that runs, below 0 if none does."""

_REACH = 70.0
"""Exponents of a key's features lie within +-70: e^70 times 10^7 keys is still a number in fp32, and so is 1 / e^-70."""


class Performer(LinearKind):
    """q [b h q d], k and v [b g k d] -> out [b h q d]. Shares are positive and sum to 1. RoPE turns q and k before the map.

    `projection` [m d], the drawn w, is saved with the model, which then computes the same anywhere; all heads of a layer share it. With
    `redraw`, `seed` and `calls` are saved, too: the draws depend on them alone, so that a resumed run goes on bit for bit. Recomputed
    layers (`recompute`) then need each forward's backward before the next forward.

    No stabiliser looks at other keys (a maximum over all keys leaks the future). The features are, for a constant c_w of each w,
        query: e^(w·q + c_w), divided by its sum over the features        key: e^(w·k - |k|²/2 - c_w)
    What a query is divided by cancels between numerator and denominator, and c_w within each product. c_w = |w|²/2 - 70 makes the key's
    exponent 70 - |k - w|²/2 <= 70: nothing overflows, whatever k. It is held at -70 from below, which is no bias that fp32 could hold
    unless keys are so long (at d = 64: |k| from about 50, logits of 300) that all of it would be 0, and gradients NaN before that; a
    query that sees only such keys takes their mean.
    """

    chunk = 64
    projection: Tensor
    seed: Tensor
    calls: Tensor

    def __init__(self, size: int, *, features: int, kind: str, draw: str, redraw: int | None = None, seed: int | None = None) -> None:
        super().__init__()
        self.kind, self.draw, self.redraw = kind, draw, redraw
        self.scale = size**-0.25
        empty = torch.empty(features, size)
        if empty.is_meta:                                            # whoever builds without memory fills it from elsewhere
            first = 0
        else:
            first = int(torch.randint(2**62, (), device="cpu")) if seed is None else seed
            empty.copy_(draw_directions(features, size, draw=draw, seed=first))
        self.register_buffer("projection", empty)
        if redraw is not None:
            self.register_buffer("seed", torch.tensor(first))
            self.register_buffer("calls", torch.tensor(0))

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
        if self.redraw is not None and self.training and not _recomputed():
            self._count(self.redraw)
        return super().forward(q, k, v, view, carry, memory, weights)

    def maps(self, dtype: torch.dtype) -> Maps:
        w = self.projection.to(dtype)
        w = w if self.kind == "positive" else torch.cat((w, -w))
        shift, w = _half_squares(w), w * self.scale

        def queries(q: Tensor) -> Tensor:
            features: Tensor = functional.linear(q, w, shift).softmax(-1)
            return features

        def keys(k: Tensor) -> Tensor:
            exponents = functional.linear(k, w, _REACH - shift)
            features: Tensor = exponents.sub_(_half_squares(k)[..., None] * self.scale**2).clamp_(min=-_REACH).exp_()
            return features

        return Maps(queries, keys, chunk=self.chunk)

    def queries(self, q: Tensor) -> Tensor:
        """[… n d] -> [… n f]: e^(w·q + |w|²/2), divided by its sum."""
        return self.maps(q.dtype).queries(q)

    def keys(self, k: Tensor) -> Tensor:
        """[… n d] -> [… n f]: e^(70 - |k - w|²/2), e^-70 at the least."""
        return self.maps(k.dtype).keys(k)

    def _count(self, redraw: int) -> None:
        number, due = divmod(int(self.calls), redraw)
        if number and not due:
            seed = (int(self.seed) + number * 0x9E3779B97F4A7C15) % 2**63        # far from what another layer's seed becomes
            self.projection.copy_(draw_directions(*self.projection.shape, draw=self.draw, seed=seed))
        self.calls += 1


def draw_directions(count: int, size: int, *, draw: str, seed: int) -> Tensor:
    """`count` vectors w [count size], each of them N(0, I), fp64. "iid": independent. "orthogonal": at right angles within each block of
    `size`, of lengths drawn anew, which lowers the variance. The same seed gives the same vectors."""
    generator = torch.Generator().manual_seed(seed)
    blocks = -(-count // size)
    gauss = torch.randn(blocks, size, size, generator=generator, dtype=torch.float64, device="cpu")
    if draw == "iid":
        return gauss.view(-1, size)[:count]
    turned, triangle = torch.linalg.qr(gauss)
    turned = turned * triangle.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]     # else the first of each block lies in a half-space
    lengths = torch.randn(blocks, size, size, generator=generator, dtype=torch.float64, device="cpu").norm(dim=-1, keepdim=True)
    w: Tensor = turned.mT * lengths                                              # [blocks d d]
    return w.reshape(-1, size)[:count]


def build(
    config: ModelConfig,
    *,
    features: int | None = None,
    kind: str = "positive",
    draw: str = "orthogonal",
    redraw: int | None = None,
    seed: int | None = None,
) -> Performer:
    """features: drawn vectors, m (None: d ln d, 266 for heads of 64). kind: "positive", or "hyperbolic", which uses w and -w: 2m features
    of lower variance. draw: "orthogonal" or "iid". redraw: calls in training, one a group of rows, until new ones are drawn (None: never).
    seed: of the draws; None: from torch's random numbers, another in each layer; a number draws the same in every layer. Errors:
    ConfigError."""
    size = config.width
    if size > WIDEST:
        raise ConfigError(f"attention 'performer' has heads of {size}, more than {WIDEST}.", fix="Use more heads, or attention 'linear'.")
    checks.whole("attention 'performer': features", features, least=1, most=MOST, optional=True)
    checks.whole("attention 'performer': redraw", redraw, least=1, optional=True)
    checks.whole("attention 'performer': seed", seed, least=0, most=2**63 - 1, optional=True)
    if redraw is not None and not hasattr(torch._C, _BACKWARD):
        raise ConfigError("attention 'performer': redraw can't tell a recomputed layer in this build of torch.", fix="Leave redraw out.")
    checks.one_of("attention 'performer': kind", kind, ("positive", "hyperbolic"))
    checks.one_of("attention 'performer': draw", draw, ("orthogonal", "iid"))
    count = max(1, int(size * math.log(size))) if features is None else features
    return Performer(size, features=count, kind=kind, draw=draw, redraw=redraw, seed=seed)


def _recomputed() -> bool:
    """Whether a backward pass runs: then this is a recomputation (activation checkpointing), which must repeat the features of its
    forward. torch says so by a private name only; `build` refuses `redraw` where it is missing."""
    return bool(getattr(torch._C, _BACKWARD)() >= 0)


def _half_squares(vectors: Tensor) -> Tensor:
    """|x|²/2: [… d] -> […]"""
    return vectors.square().sum(-1) / 2
