"""How much of a processor a training uses: operations of the model, by the count of arXiv:2204.02311 (appendix B), over a measured peak.

A step takes 6 operations a weight and token (2 forward, 4 backward) in each matrix that a token passes through, and 12 x width x length a
token and layer where attention compares all pairs. Padding, lookups, norms and what is computed twice are not counted: they are what the
share is lost to. Causal masks halve nothing, as in the paper.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fishpaw.config import ModelConfig
from fishpaw.model.linear import product

__all__ = ["Meter", "meter", "peak"]

_SECONDS = 0.15
_SIZE = {"cpu": 1024, "cuda": 8192}


class Meter:
    """Counts the operations of training steps of a Transformer. weights: of the stack's matrices, a layer that is used twice twice.
    width: summed over the layers that compare all pairs.

    Heads count for the rows that they are asked for, as they are called in training mode (a masked language model names few tokens);
    a tied table counts there, and not where it is looked up.
    """

    def __init__(self, transformer: Any) -> None:
        config: ModelConfig = transformer.config
        layers = [transformer.layers[i * len(transformer.layers) // config.layers] for i in range(config.layers)]
        project = transformer.embedding.project
        self.weights = sum(_matrices(layer) for layer in layers) + (0 if project is None else _matrices(project))
        self.width = sum(config.hidden_size for kernel, _ in transformer.kernels() if kernel.reads_mask)      # linear ones need none
        self._asked = 0
        self._hooks = [head.register_forward_hook(functools.partial(self._count, transformer)) for head in transformer.heads.values()]

    def stack(self, lengths: NDArray[numpy.int64]) -> float:
        """Operations of a step over rows of these lengths, [rows], without heads."""
        exact = lengths.astype(numpy.float64)
        return float(6 * self.weights * exact.sum() + 12 * self.width * (exact * exact).sum())

    def heads(self) -> float:
        """Operations of the heads since it was asked before."""
        asked, self._asked = self._asked, 0
        return 6.0 * asked

    def close(self) -> None:
        """Leave the model as it was."""
        for hook in self._hooks:
            hook.remove()

    def _count(self, transformer: Any, head: nn.Module, given: Sequence[Any], out: Any) -> None:
        if head.training and isinstance(given[0], Tensor):
            tied = transformer.table.numel() if getattr(head, "fills", "") == "logits" and getattr(head, "decoder", None) is None else 0
            self._asked += given[0].numel() // given[0].shape[-1] * (_matrices(head) + tied)


def meter(model: nn.Module) -> Meter | None:
    """A meter of the one Transformer in `model`; None where there is none, several, or one with an encoder: which tokens pass through
    which half can't be seen from outside."""
    found = [m for m in model.modules() if isinstance(getattr(m, "config", None), ModelConfig) and hasattr(m, "kernels")]
    return Meter(found[0]) if len(found) == 1 else None


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the fastest of a few large matrix products on this device, measured once a process; random states stay."""
    return _peak(device, dtype, torch.get_num_threads())


@functools.cache
def _peak(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    size = _SIZE.get(device.type, 2048)
    noise = torch.Generator().manual_seed(0)
    one, other = (torch.randn(size, size, generator=noise).to(device=device, dtype=dtype) for _ in range(2))
    ways: list[Callable[[], Tensor]] = [lambda: one @ other]
    if device.type == "cpu" and dtype == torch.float32:
        ways.append(lambda: product(one, other, None))             # what layers multiply with: oneDNN, where that is the faster one
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        return max(2.0 * size**3 / _fastest(way, device) for way in ways)


def _fastest(work: Callable[[], Tensor], device: torch.device) -> float:
    """Seconds of the fastest call, of two at least."""
    best, began = float("inf"), time.perf_counter()
    work()                                                         # the first one brings things into place
    for number in range(100):
        _wait(device)
        before = time.perf_counter()
        work()
        _wait(device)
        best = min(best, time.perf_counter() - before)
        if number and time.perf_counter() - began > _SECONDS:
            break
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _matrices(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.ndim >= 2)
