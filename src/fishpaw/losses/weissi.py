"""WEISSI: a penalty of weights that rescaling layers against each other doesn't change (arXiv:2008.02965; kexue.fm/archives/7681).

In a network of ReLU layers f doesn't change if layer l's matrix is multiplied by g_l > 0, the product of all g being 1, and its bias by
g_1 … g_l. (The article multiplies the bias by g_l alone: that changes f.) L2 does change, so training may lower it and gain nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from fishpaw import checks
from fishpaw.errors import ConfigError

__all__ = ["balanced", "matrices", "rescaled", "weissi"]


def weissi(weights: Iterable[Tensor], *, scale: float = 1.0, direction: float = 1.0, least: float = 1e-12) -> Tensor:
    """scale x sum of log |W| + direction x sum of |W / |W||_1 -> [], fp32 at least; |W| is the Frobenius norm.

    weights: one a layer, as `matrices` finds them. The first term's gradient is scale W / |W|^2, decay that grows as the layer shrinks, at
    whose norm `least` it ends (log |W| has no minimum); the second is 1 for one entry, sqrt(entries) where all are equal: it makes sparse.
    Multiplied by factors whose product is 1 the layers have the same penalty; whatever the factors, the second term is the same. In place
    of weight decay, not beside it. Where a norm follows (LayerNorm, BatchNorm), a layer's scale has no effect, and the first term only
    changes how far a step turns it. In training: `penalties.with_term(loss, lambda model: weissi(matrices(model), …), weight=…)`.
    """
    checks.number("scale", scale, least=0)
    checks.number("direction", direction, least=0)
    checks.number("least", least)
    wide = [weight.to(torch.promote_types(weight.dtype, torch.float32)) for weight in weights]
    if not wide:
        raise ConfigError("There is no matrix to penalise.", fix="Give the weights of at least one layer.")
    norms = [torch.linalg.vector_norm(weight).clamp_min(least) for weight in wide]
    terms = [scale * norm.log() + direction * weight.abs().sum() / norm for weight, norm in zip(wide, norms, strict=True)]
    return torch.stack(terms).sum()


def matrices(model: nn.Module, *, exempt: Iterable[str] = ()) -> list[Tensor]:
    """The weights of the layers: parameters that learn, of two dimensions or more, but for embedding tables (and heads tied to them) and
    those whose name holds one of `exempt`. Errors: ConfigError for a name in `exempt` that fits none."""
    names = tuple(exempt)
    for part in names:
        if not any(part in name for name, _ in model.named_parameters()):
            raise ConfigError(f"exempt names {part!r}, which no parameter has in its name.", fix="Use part of a name.")
    tables = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters(recurse=False)}
    return [parameter for name, parameter in model.named_parameters()
            if parameter.requires_grad and parameter.ndim > 1 and id(parameter) not in tables and not any(part in name for part in names)]


def rescaled(
    weights: Sequence[Tensor], biases: Sequence[Tensor | None], factors: Sequence[float]
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Layers x -> W_l x + b_l with ReLU or another positively homogeneous function between them, first to last -> the layers whose product
    is the same function times the product of all factors: W_l by its factor, b_l by the product of the factors up to its own.

    Errors: ConfigError for lengths that differ and factors that aren't positive.
    """
    if not len(weights) == len(biases) == len(factors):
        raise ConfigError(f"{len(weights)} weights, {len(biases)} biases, {len(factors)} factors.", fix="Give one of each a layer.")
    for factor in factors:
        checks.number("A factor", factor, least=1e-300, most=1e300)
    logs = [math.log(factor) for factor in factors]
    so_far = [math.exp(math.fsum(logs[: index + 1])) for index in range(len(logs))]
    scaled = [None if bias is None else bias * factor for bias, factor in zip(biases, so_far, strict=True)]
    return [weight * factor for weight, factor in zip(weights, factors, strict=True)], scaled


def balanced(weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> tuple[list[Tensor], list[Tensor | None]]:
    """The same function with layers of equal norm, the geometric mean of theirs: of all rescalings the one of least L2, to begin training
    from.

    As `rescaled`, whose errors it has; ConfigError for a layer of zeros, which no factor makes larger.
    """
    norms = [float(torch.linalg.vector_norm(weight.detach().double())) for weight in weights]
    if not all(0 < norm < math.inf for norm in norms):
        raise ConfigError(f"The layers have norms {norms[:20]}.", fix="Leave out layers of zeros.")
    mean = math.exp(math.fsum(map(math.log, norms)) / len(norms)) if norms else 1.0
    return rescaled(weights, biases, [mean / norm for norm in norms])
