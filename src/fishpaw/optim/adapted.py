"""LAMB's step on a CPU, in blocks: the direction is made, measured and applied while it lies in the cache. arXiv:1904.00962, algorithm 2.

The same as `derive` does in separate passes over all parameters, which wait for the memory, to the rounding of θ + Δ; half the time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["adapted_step", "fits"]

_BLOCK = 1 << 18                 # numbers: five such blocks in fp32 are 5 MB, what two cores keep close


def fits(parameter: Tensor, state: dict[str, Any]) -> bool:
    """True for a parameter that `adapted_step` can take: on the CPU, in one piece, with Adam's moments already there."""
    plain = parameter.device.type == "cpu" and parameter.dtype in (torch.float32, torch.float64) and not hasattr(parameter, "full_tensor")
    return plain and parameter.is_contiguous() and parameter.numel() > 0 and "exp_avg" in state


def adapted_step(
    parameter: Tensor, gradient: Tensor, state: dict[str, Any], *,
    rate: float, betas: tuple[float, float], epsilon: float, decay: float, scratch: Tensor,
) -> None:  # fmt: skip
    """θ ← θ − γ h |θ| / |h|, h = Adam's direction + λ θ, in place; moments and step count in `state`, as torch's fused Adam has them.

    rate: γ. decay: λ. scratch [at least as many as θ]: any numbers, of θ's type. Where |θ| or |h| is 0, θ ← θ − γ h.
    """
    flat, direction = parameter.view(-1), scratch[: parameter.numel()]
    torch._foreach_add_([state["step"]], 1)
    sizes, moved = [], []
    blocks = (tensor.reshape(-1).split(_BLOCK) for tensor in (flat, gradient, state["exp_avg"], state["exp_avg_sq"], direction))
    for own, slope, first, second, way in zip(*blocks, strict=True):
        way.copy_(own)                                             # the kernel leaves θ (1 − (1 + λ)) − Adam's direction = − h
        torch._fused_adamw_(
            [way], [slope], [first], [second], [], [state["step"]], lr=1.0, beta1=betas[0], beta2=betas[1], weight_decay=1 + decay,
            eps=epsilon, amsgrad=False, maximize=False,
        )  # fmt: skip
        sizes.append(torch.dot(own, own))
        moved.append(torch.dot(way, way))
    size, length = (float(torch.stack(squares).sum().sqrt()) for squares in (sizes, moved))
    flat.add_(direction, alpha=rate * (size / length if size > 0 and length > 0 else 1.0))
