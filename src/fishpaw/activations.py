"""Activations by name: elementwise functions of a tensor, in the dtype that comes in. A gated unit is a name, too: one half of what a
feed-forward layer makes goes through its activation and multiplies the other half.

gelu: arXiv:1606.08415 · swish: arXiv:1710.05941 · squared relu: arXiv:2109.08668 · squareplus: arXiv:2112.11687 · gated: arXiv:2002.05202
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from fishpaw.checks import shown
from fishpaw.errors import ConfigError
from fishpaw.switch import nearest

__all__ = ["GATED", "NAMES", "Activation", "gelu", "gelu_tanh", "get", "is_gated", "relu", "squared_relu", "squareplus", "swish", "tanh"]

Activation = Callable[[Tensor], Tensor]


def gelu(x: Tensor) -> Tensor:
    """x Φ(x), with the normal distribution function itself (erf). BERT's."""
    return functional.gelu(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """gelu by its approximation x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2, within 5e-4 of it. GPT-2's and bert4keras's."""
    return functional.gelu(x, approximate="tanh")


def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return functional.relu(x)


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)². Primer's."""
    return functional.relu(x).square()


def squareplus(x: Tensor, *, b: float = 4.0) -> Tensor:
    """(x + √(x² + b)) / 2: a smooth relu without exp. b > 0.

    b = 4 has softplus's curvature at 0, b = 1.52382103 is nearest to softplus everywhere, b -> 0 is relu. The root is a
    hypot, so that a large x doesn't overflow, and a negative x uses b / (2 (√(x² + b) - x)), which cancels nothing.
    """
    if not b > 0:
        raise ConfigError(f"squareplus needs b > 0; it has b = {b!r}.", fix="Use b = 4, or relu for the limit b = 0.")
    root = torch.hypot(x, x.new_tensor(b).sqrt())
    return torch.where(x < 0, b / (2 * (root + x.abs())), (root + x) / 2)                            # |x| has no gradient at 0, x has


def swish(x: Tensor) -> Tensor:
    """x sigmoid(x), also called silu."""
    return functional.silu(x)


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent. The pooler's."""
    return torch.tanh(x)


# Ours first, then what transformers and bert4keras call them in their configurations.
NAMES: dict[str, Activation] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": relu,
    "squared_relu": squared_relu,
    "squareplus": squareplus,
    "swish": swish,
    "tanh": tanh,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu2": squared_relu,
    "silu": swish,
}

GATED: dict[str, Activation] = {"geglu": gelu, "geglu_tanh": gelu_tanh, "reglu": relu, "swiglu": swish}


def get(name: str | Activation) -> Activation:
    """The function of this name, or the function itself; of a gated unit, that of its first half. An unknown name is a ConfigError that
    lists the names and says the nearest."""
    if callable(name):
        return name
    if isinstance(name, str) and name in NAMES | GATED:
        return (NAMES | GATED)[name]
    raise ConfigError(f"There is no activation {shown(name)}.", fix=nearest(shown(name).strip("'").lower(), sorted(NAMES | GATED)))


def is_gated(name: str | Activation) -> bool:
    """Whether this is the name of a gated unit, which needs twice as many units before it."""
    return isinstance(name, str) and name in GATED
