"""What is added to a loss so that small changes don't change the answer: R-Drop, adversarial steps (FGM, PGD), VAT, a gradient penalty.

Each takes a loss(model, batch) -> (sum, count), as train.loop.fit calls it, and returns another one, sums over examples still:

    fit(model, …, loss=adversarial(loss, model.embedding.tokens, rows=lambda batch: batch.row))

What is moved is the output of one module, `place`, by a hook that is gone when the call returns or raises; weights, their gradients and
the training mode are never touched. All passes that look for a weak spot draw the same dropout (on a CPU and with CUDA), or else they would
find the other mask. If `place` runs several times in a pass, each output is moved on its own, and all must have the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fishpaw import checks
from fishpaw.errors import ConfigError

__all__ = ["Loss", "adversarial", "gradient_penalty", "r_drop", "symmetric_kl", "virtual_adversarial", "with_term"]

Loss = Callable[[nn.Module, Any], tuple[Tensor, Tensor | float]]
Rows = Callable[[Any], Tensor]


def adversarial(
    loss: Loss, place: nn.Module, *, rows: Rows, epsilon: float = 1.0, steps: int = 1, rate: float | None = None, weight: float = 1.0
) -> Loss:
    """loss + weight x the loss where each example's vectors are moved by r, |r| <= epsilon, uphill:

        one step (FGM):   r = epsilon g / |g|,   g = the gradient of the loss at the vectors
        more (PGD):       r <- r + rate g(r) / |g(r)|, brought back to length epsilon where it is longer

    place: a module whose output [n e] or [b t e] are those vectors, the token embedding. rows(batch) [n] or [b t]: which example each
    belongs to; lengths are taken over an example. epsilon: in units of the embedding; to be compared with the length of an example's
    vectors together. rate: default epsilon / steps. Cost: steps + 1 passes forward and about as many back, and memory of two passes. To
    first order the addition is epsilon |g|: `gradient_penalty` has it squared. Source: arXiv:1605.07725 (there on normalised embeddings),
    steps: arXiv:1706.06083. Errors: ConfigError where `place` doesn't run or rows don't fit.
    """
    _check({"epsilon": epsilon, "weight": weight})
    checks.whole("steps", steps, least=1)
    checks.number("rate", rate, optional=True)
    stride = epsilon / steps if rate is None else rate

    def attacked(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor | float]:
        with _rewound(model), _moved(place) as vectors:
            total, count = loss(model, batch)
        owners = _owners(rows(batch), vectors)
        gradients = _gradients(total, vectors, retain=True)
        shifts = [_limited(_unit(g, owners) * stride, owners, epsilon) for g in gradients]
        for _ in range(steps - 1):
            with _rewound(model), _moved(place, shifts) as vectors:
                there, _ = loss(model, batch)
            gradients = _gradients(there, vectors)
            shifts = [_limited(r + _unit(g, owners) * stride, owners, epsilon) for r, g in zip(shifts, gradients, strict=True)]
        with _moved(place, shifts):
            hard, _ = loss(model, batch)
        return total + weight * hard, count

    return attacked


def virtual_adversarial(
    loss: Loss, logits: Callable[[nn.Module, Any], Tensor], place: nn.Module, *, rows: Rows, epsilon: float = 1.0, probe: float = 0.01,
    iterations: int = 1, weight: float = 1.0,
) -> Loss:
    """loss + weight x sum over rows of logits of KL(p || p(r)), p = softmax(logits), a constant, and p(r) where each example's vectors are
    moved by r, |r| = epsilon, in the direction in which the answer changes most.

    logits(model, batch) -> [m c]. Found by power iteration: a random unit d, then d <- the gradient of KL(p || p(probe d)) at d, made a
    unit. Needs no labels: examples whose label is ignored by `loss` teach, too (put some with labels in each batch: a batch whose count is
    0 teaches nothing). place, rows, epsilon, errors: `adversarial`, which follows the label's loss instead. probe: small against epsilon,
    but not below the digits of the type (bf16: 0.1 and more). Cost: iterations + 3 passes forward. Source: arXiv:1704.03976.
    """
    _check({"epsilon": epsilon, "probe": probe, "weight": weight})
    checks.whole("iterations", iterations, least=1)

    def smoothed(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor | float]:
        total, count = loss(model, batch)
        with torch.no_grad(), _rewound(model), _moved(place) as vectors:
            known = _log_softmax(logits(model, batch))
            directions = [torch.randn_like(one) for one in vectors]  # here, where it shifts no other pass's dropout
        owners = _owners(rows(batch), vectors)
        directions = [_unit(one, owners) for one in directions]
        for _ in range(iterations):
            with _rewound(model), _moved(place, [probe * one for one in directions]) as vectors:
                change = _kl(known, _log_softmax(logits(model, batch))).sum()
            directions = [_unit(g, owners) for g in _gradients(change, vectors)]
        with _moved(place, [epsilon * one for one in directions]):
            change = _kl(known, _log_softmax(logits(model, batch))).sum()
        return total + weight * change, count

    return smoothed


def gradient_penalty(loss: Loss, place: nn.Module, *, weight: float = 1.0) -> Loss:
    """loss + weight / 2 x sum over examples of |g|^2, g the gradient of the example's loss at its vectors (output of `place`).

    What `adversarial` adds where r = weight / 2 x g, to first order; smooth, with one pass forward and two back, the second through the
    first. Every part of the model must be differentiable twice; attention takes torch's plain path for that. Needs a loss whose examples
    don't meet before the sum. Source: doi:10.1109/72.165600 (double backpropagation); as what adversarial training does:
    kexue.fm/archives/7234.
    """
    _check({"weight": weight})

    def flattened(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor | float]:
        with sdpa_kernel(SDPBackend.MATH):                           # the fused kernels have no second derivative
            with _moved(place) as vectors:
                total, count = loss(model, batch)
            gradients = _gradients(total, vectors, again=True)
        squares = [g.to(torch.promote_types(g.dtype, torch.float32)).square().sum() for g in gradients]
        return total + weight / 2 * torch.stack(squares).sum(), count

    return flattened


def r_drop(
    ask: Callable[[nn.Module, Any], tuple[Tensor, Tensor]],
    criterion: Callable[[Tensor, Tensor], tuple[Tensor, Tensor | float]],
    *,
    weight: float = 1.0,
    ignore: int = -100,
) -> Loss:
    """The mean of the losses of two passes with different dropout + weight x sum over rows of `symmetric_kl` of their answers.

    ask(model, batch) -> logits [n c], targets [n]; criterion(logits, targets) -> (sum, count), such as classification.cross_entropy or
    generation.masked_cross_entropy. Rows whose target is `ignore` don't count. Without dropout it is `criterion`, at twice the cost.
    weight: that of the authors' code; alpha in the paper's equation 4, which adds both losses, is twice as much. `virtual_adversarial`
    asks for the same constancy against the worst change instead of a random one. Source: arXiv:2106.14448.
    """
    _check({"weight": weight})

    def twice(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor | float]:
        one, targets = ask(model, batch)
        other, _ = ask(model, batch)
        (first, count), (second, _) = criterion(one, targets), criterion(other, targets)
        apart = symmetric_kl(one, other)
        if targets.shape != apart.shape:
            what = f"Targets of shape {list(targets.shape)} for logits {list(one.shape)}."
            raise ConfigError(what, fix="Give one target a row of logits.")
        return (first + second) / 2 + weight * apart.masked_fill(targets == ignore, 0.0).sum(), count

    return twice


def symmetric_kl(first: Tensor, second: Tensor) -> Tensor:
    """logits [… c] twice -> [KL(p || q) + KL(q || p)] / 2 = sum of (p - q) (log p - log q) / 2, [...], fp32 at least."""
    p, q = _log_softmax(first), _log_softmax(second)
    return ((p.exp() - q.exp()) * (p - q)).sum(-1) / 2


def with_term(loss: Loss, term: Callable[[nn.Module], Tensor], *, weight: float = 1.0) -> Loss:
    """loss + weight x count x term(model) []: a penalty of weights, such as `weissi`, beside the mean loss however batches are cut."""
    _check({"weight": weight})

    def penalised(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor | float]:
        total, count = loss(model, batch)
        return total + weight * count * term(model), count

    return penalised


@contextmanager
def _moved(place: nn.Module, shifts: list[Tensor] | None = None) -> Iterator[list[Tensor]]:
    """Inside, the i-th output of `place` is shifts[i] further on; what it then gave is in the list, to differentiate by."""
    seen: list[Tensor] = []

    def move(module: nn.Module, inputs: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or shifts is not None and len(seen) == len(shifts):
            raise ConfigError(f"{type(module).__name__} gives no tensor, or runs more often in one pass than in another.",
                              fix="Name the module of the token vectors, such as model.embedding.tokens.")
        there = output if shifts is None else output + shifts[len(seen)].to(output.dtype)
        if torch.is_grad_enabled() and not there.requires_grad:      # a frozen table
            there.requires_grad_()
        seen.append(there)
        return there

    hook = place.register_forward_hook(move)
    try:
        yield seen
    finally:
        hook.remove()
    if not seen or shifts is not None and len(seen) < len(shifts):
        raise ConfigError(f"{type(place).__name__}, whose output is to be moved, didn't run{' as often as before' if seen else ''}.",
                          fix="Name a module that the loss computes with, such as model.embedding.tokens.")


@contextmanager
def _rewound(model: nn.Module) -> Iterator[None]:
    """The random numbers drawn inside come again afterwards."""
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _gradients(total: Tensor, vectors: list[Tensor], *, retain: bool = False, again: bool = False) -> tuple[Tensor, ...]:
    return torch.autograd.grad(total, vectors, retain_graph=retain or again, create_graph=again, materialize_grads=True)


def _owners(rows: Tensor, vectors: list[Tensor]) -> Tensor:
    """[n]: the example of each vector."""
    flat = rows.flatten()
    for one in vectors:
        if one.dim() < 2 or one.shape[:-1].numel() != len(flat):
            raise ConfigError(f"rows gives {len(flat)} owners of vectors {list(one.shape)}.", fix="Give an example's number a vector.")
    return flat


def _lengths(vectors: Tensor, owners: Tensor) -> Tensor:
    """The norm of all vectors of an example, at each of them, fp32 at least: [… 1]."""
    wide = vectors.to(torch.promote_types(vectors.dtype, torch.float32)).flatten(0, -2)                # [n e]
    scale = wide.abs().amax().clamp_min(torch.finfo(wide.dtype).tiny)                   # squares of tiny gradients would vanish
    squares = wide.new_zeros(len(owners)).index_add(0, owners, (wide / scale).square().sum(-1))
    return (squares[owners].sqrt() * scale).view(*vectors.shape[:-1], 1)


def _unit(vectors: Tensor, owners: Tensor) -> Tensor:
    """Each example's vectors over their norm; 0 stays 0."""
    lengths = _lengths(vectors, owners)
    return vectors / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)


def _limited(vectors: Tensor, owners: Tensor, most: float) -> Tensor:
    lengths = _lengths(vectors, owners)
    return vectors * (most / lengths.clamp_min(most))


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _kl(known: Tensor, other: Tensor) -> Tensor:
    """Logarithms of p and q [… c] -> KL(p || q) [...]."""
    return (known.exp() * (known - other)).sum(-1)


def _check(numbers: Mapping[str, float]) -> None:
    for name, value in numbers.items():
        checks.number(name, value, least=0 if name == "weight" else checks.SMALLEST)
