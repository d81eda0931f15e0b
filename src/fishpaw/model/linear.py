"""Every matrix product of a layer, x W^T + b, in one place, so that a faster one is one file.

On some processors oneDNN multiplies fp32 matrices twice as fast as what torch calls by default, on most it wins with few rows, once a
weight is in its order. Its operators are those that torch's own compiler uses; their names are private, so they are found by capability,
compared once with the default on this machine, and left alone where they don't win. The results differ in the last bits only.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fishpaw import activations
from fishpaw.config import parse_object
from fishpaw.errors import ConfigError, FishpawError
from fishpaw.files import write_atomic

__all__ = ["Kind", "Linear", "Packed", "path", "product"]

FEWEST = 64
"""Rows below which an unpacked weight isn't worth bringing into oneDNN's order."""

WORTH = 0.95
"""Share of the plain way's time below which the other one is taken."""

Kind = Literal["packed", "dense"]

_FUSED: dict[Callable[[Tensor], Tensor], tuple[str, str]] = {
    activations.gelu: ("gelu", "none"),
    activations.gelu_tanh: ("gelu", "tanh"),
    activations.relu: ("relu", ""),
    activations.swish: ("swish", ""),
    activations.tanh: ("tanh", ""),
}


class Linear(nn.Linear):
    """x [n in] -> [n out]. Weights start normal with standard deviation `std`, biases at 0 (BERT's way).

    `packed`: the weight as inference wants it, beside the one that is trained and saved; see Transformer.prepare.
    """

    def __init__(self, size: int, out: int, *, std: float, bias: bool = True) -> None:
        self.std = std
        super().__init__(size, out, bias=bias)
        self.packed: Packed | None = None

    def reset_parameters(self) -> None:
        """Draw the weights anew. Not where there is no memory: on the meta device torch would import its compiler to do nothing."""
        if not self.weight.is_meta:
            nn.init.normal_(self.weight, std=self.std)
            if self.bias is not None:
                nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, activation: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """x [n in] -> [n out], through the activation, if there is one, in the same pass where that can be."""
        if self.packed is not None:
            return self.packed(x, activation)
        out = product(x, self.weight, self.bias)
        return out if activation is None else activation(out)


class Packed:
    """A weight and its bias for inference: in `dtype`, in oneDNN's order where that is the faster path. No gradients."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        weight = weight.detach().to(dtype)
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.reordered = weight.device.type == "cpu" and dtype in (torch.float32, torch.bfloat16) and path("packed") == "onednn"
        self.weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight) if self.reordered else weight

    def __deepcopy__(self, memo: dict[int, Any]) -> Packed:
        return self                                                  # never changed: a copied model may share it

    def __call__(self, x: Tensor, activation: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """x [n in] -> [n out] in the packed type."""
        if x.dtype != self.weight.dtype:
            x = x.to(self.weight.dtype)
        if not self.reordered:
            out = functional.linear(x, self.weight, self.bias)
            return out if activation is None else activation(out)
        name, algorithm = ("none", "") if activation is None else _FUSED.get(activation, ("none", ""))
        out = torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, name, [], algorithm)
        return out if activation is None or name != "none" else activation(out)

    def add(self, x: Tensor, other: Tensor) -> Tensor:
        """x [n in], other [n out] -> x W^T + b + other, [n out], in one pass. Only where `reordered`."""
        if x.dtype != self.weight.dtype:
            x = x.to(self.weight.dtype)
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, "add")  # type: ignore[no-any-return]  # as above


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [n in] W^T [in out] + b -> [n out], with gradients of any order; oneDNN's where it is faster, torch's elsewhere."""
    if not _suits(x, weight):
        return functional.linear(x, weight, bias)
    if not torch.is_grad_enabled():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]  # torch.ops has no types
    return _Product.apply(x, weight, bias)  # type: ignore[no-any-return, no-untyped-call]  # nor has Function.apply


@functools.cache
def path(kind: Kind = "packed") -> str:
    """"onednn" or "plain": what this process multiplies with, "packed" weights (prepared for inference) or "dense" ones (training).
    FISHPAW_LINEAR = plain | onednn decides; otherwise the faster one in a short measurement, kept in the cache folder, so that one machine
    always gives the same bits."""
    asked = os.environ.get("FISHPAW_LINEAR", "auto")
    if asked not in ("auto", "plain", "onednn"):
        raise ConfigError(f"FISHPAW_LINEAR is {asked!r}.", fix="Set it to plain, onednn or auto.")
    if not _is_there():
        if asked == "onednn":
            raise ConfigError("FISHPAW_LINEAR is onednn, which this build of torch lacks.", fix="Set it to auto.")
        return "plain"
    return _remembered(kind) if asked == "auto" else asked


class _Product(torch.autograd.Function):
    """The product and, in the backward pass, two more of the same kind: dx = dy W, dW = dy^T x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]  # torch.ops has no types

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        dy = grads[0]
        return (
            product(dy, weight.t(), None) if wants_x else None,
            product(dy.t(), x.t(), None) if wants_weight else None,
            dy.sum(0) if wants_bias else None,
        )


def _suits(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()                        # before the length, which a trace must not be bound to
        and x.dtype == weight.dtype == torch.float32
        and x.dim() == 2
        and len(x) >= FEWEST
        and not torch.is_autocast_enabled("cpu")
        and path("dense") == "onednn"
    )


def _is_there() -> bool:
    names = ("_linear_pointwise", "_reorder_linear_weight")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)


def _remembered(kind: Kind) -> str:
    file = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fishpaw" / "linear.json"
    key = f"{_processor()}, torch {torch.__version__}, {torch.get_num_threads()} threads, {kind}"
    try:
        known = parse_object(file.read_text(encoding="utf-8"), str(file)) if file.is_file() else {}
    except (ConfigError, OSError, UnicodeDecodeError):
        known = {}
    if known.get(key) in ("onednn", "plain"):
        return str(known[key])
    chosen = _faster(kind)
    try:
        write_atomic(file, json.dumps({**known, key: chosen}, indent=1) + "\n")
    except FishpawError:                                             # a cache that can't be written is measured again
        pass
    return chosen


def _faster(kind: Kind) -> str:
    """The best of several short runs in turns: with a packed weight few rows and many, else the three products of a training step."""
    many, few, weight = torch.ones(256, 768), torch.ones(32, 768), torch.ones(768, 768)
    reordered = torch.ops.mkldnn._reorder_linear_weight(weight) if kind == "packed" else weight
    pairs = [(many, weight), (few, weight)] if kind == "packed" else [(many, weight), (many, weight.t()), (many.t(), many.t())]
    ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "plain": functional.linear,
        "onednn": lambda a, b: torch.ops.mkldnn._linear_pointwise(a, reordered if kind == "packed" else b, None, "none", [], ""),
    }
    best = {(name, index): float("inf") for name in ways for index in range(len(pairs))}
    with torch.no_grad():
        for _ in range(12):
            for name, multiply in ways.items():
                for index, pair in enumerate(pairs):
                    began = time.perf_counter()
                    multiply(*pair)
                    best[name, index] = min(best[name, index], time.perf_counter() - began)
    total = {name: sum(best[name, index] for index in range(len(pairs))) for name in ways}
    return "onednn" if total["onednn"] < WORTH * total["plain"] else "plain"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
