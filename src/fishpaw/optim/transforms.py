"""What `derive` puts around an optimizer, each a frozen value: decay, adaptation, rates, accumulation, lookahead, laziness, averages.

Notation: the base moves θ to θ − γ h(g), with the rate γ of the parameter's group; Δ is what all steps so far have moved θ by.
https://kexue.fm/archives/7094, and 6794 on accumulation; each class names its paper.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fishpaw.errors import ConfigError
from fishpaw.optim.schedules import piecewise

__all__ = ["OWN", "Accumulate", "Average", "Change", "Clip", "Exclusion", "Later", "LayerAdaptation", "Lazy", "Lookahead", "Moves",
           "PiecewiseLinear", "Rates", "Transform", "WeightDecay", "copy_each", "named_by", "vectors"]  # fmt: skip

Exclusion = Sequence[str | Callable[[str, Tensor], bool]]
"""Parts of names ("embedding") and functions of (name, parameter) such as `vectors`; one that holds is enough."""

OWN = frozenset({"slow", "average", "gradient_sum"})
"""Keys of the optimizer's state that are the transforms' and not the base's."""

_SMALLEST_RATE = 1e-30
_BLOCK = 1 << 18                 # numbers: two such blocks in fp32 are what a core keeps close


def vectors(name: str, parameter: Tensor) -> bool:
    """Biases, the parameters of norms, single numbers: for `exclude`."""
    return parameter.ndim <= 1


def named_by(exclusion: Exclusion, name: str, parameter: Tensor) -> bool:
    """True if one of `exclusion` holds."""
    return any(part in name if isinstance(part, str) else part(name, parameter) for part in exclusion)


def copy_each(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy in place; in one call but for tensors that are spread over processes, for which torch has none."""
    if any(hasattr(tensor, "full_tensor") for tensor in targets):
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)
    else:
        torch._foreach_copy_(targets, sources)


@dataclasses.dataclass
class Moves:
    """Parameters of one group in one step, for a `Change`."""

    rate: float
    """γ of the group, in this step."""
    parameters: list[Tensor]
    """θ as the base and the changes so far have left it."""
    before: list[Tensor]
    """Copies of θ before the step."""
    gradients: list[Tensor]
    states: list[dict[str, Any]]
    held: list[dict[str, Tensor]] = dataclasses.field(default_factory=list)
    """Copies of what `hold` named, from before the step."""


class Change:
    """Changes how far parameters move; the order of changes counts, inner ones first."""

    def covers(self, name: str, parameter: Tensor) -> bool:
        """True if it is for this parameter."""
        raise NotImplementedError

    def hold(self, state: dict[str, Any]) -> dict[str, Tensor]:
        """What of a parameter's state it must know as it was before the base's step."""
        return {}

    def change(self, moves: Moves) -> None:
        """Change `moves.parameters` in place."""
        raise NotImplementedError


class Later:
    """Acts on parameters after each update; in order."""

    key: str
    """Of its tensor in the optimizer's state."""

    def begin(self, parameter: Tensor, updates: int) -> Tensor:
        """Its tensor for a parameter that has not moved in all the `updates` before."""
        raise NotImplementedError

    def act(self, parameters: list[Tensor], own: list[Tensor], updates: int) -> None:
        """Change parameters, or `own`, in place after update number `updates`, counted from 1."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class WeightDecay(Change):
    """Decoupled decay: θ ← θ − γ h − γ λ θ. Not L2 in the loss, but for SGD. No state. arXiv:1711.05101.

    rate: λ. Before LayerAdaptation it counts in its h (LAMB), after it it doesn't. torch's AdamW does it in its own kernel.
    """

    rate: float = 0.01
    exclude: Exclusion = ()

    def __post_init__(self) -> None:
        _number("WeightDecay: rate", self.rate, least=0)

    def covers(self, name: str, parameter: Tensor) -> bool:
        return not named_by(self.exclude, name, parameter)

    def change(self, moves: Moves) -> None:
        torch._foreach_add_(moves.parameters, moves.before, alpha=-moves.rate * self.rate)


@dataclasses.dataclass(frozen=True)
class LayerAdaptation(Change):
    """Each tensor moves in proportion to its norm: θ ← θ + Δ |θ| / |h|, h = Δ / γ; Δ alone where a norm is 0. arXiv:1904.00962.

    With Adam and WeightDecay inside it is LAMB (fishpaw.optim.lamb). Without decay each step is |Δ| = γ |θ| long. No state; a copy of the
    covered parameters is kept between steps to save its allocation (not with fused Adam on a CPU: one of the largest tensor).
    """

    exclude: Exclusion = ()

    def covers(self, name: str, parameter: Tensor) -> bool:
        return not named_by(self.exclude, name, parameter)

    def change(self, moves: Moves) -> None:
        torch._foreach_sub_(moves.parameters, moves.before)                       # Δ
        size, moved = (torch.stack([_whole(n) for n in torch._foreach_norm(tensors)]) for tensors in (moves.before, moves.parameters))
        ratio = torch.where((size > 0) & (moved > 0), size * max(moves.rate, _SMALLEST_RATE) / moved, 1.0)       # [parameters]
        torch._foreach_mul_(moves.parameters, ratio.unbind())
        torch._foreach_add_(moves.parameters, moves.before)


@dataclasses.dataclass(frozen=True)
class Lazy(Change):
    """Rows of a table without gradient are not moved: embeddings of tokens that are not in the batch. No state.

    rows: which parameters, by parts of their names. moments: what becomes of the base's moments of these rows, "kept" (as torch's
    SparseAdam and TensorFlow's LazyAdam) or "decayed" (as bert4keras: they go on, only θ stays). A change after it does move the rows.
    """

    rows: Sequence[str] = ("embedding",)
    moments: Literal["kept", "decayed"] = "kept"

    def __post_init__(self) -> None:
        if self.moments not in ("kept", "decayed"):
            raise ConfigError(f"Lazy: moments is {self.moments!r}.", fix='Choose "kept" or "decayed".')

    def covers(self, name: str, parameter: Tensor) -> bool:
        return parameter.ndim >= 2 and named_by(self.rows, name, parameter)

    def hold(self, state: dict[str, Any]) -> dict[str, Tensor]:
        if self.moments == "decayed":
            return {}
        return {key: value for key, value in state.items() if isinstance(value, Tensor) and value.ndim >= 2 and key not in OWN}

    def change(self, moves: Moves) -> None:
        of_each = zip(moves.parameters, moves.before, moves.gradients, moves.states, moves.held, strict=True)
        for parameter, before, gradient, state, held in of_each:
            flat = gradient.flatten(1)
            active = ((flat.amax(1) != 0) | (flat.amin(1) != 0)).nonzero().squeeze(1)         # two fast passes; a nan is a gradient
            pairs = [(parameter, before), *((state[key], old) for key, old in held.items() if len(old) == len(parameter))]
            for new, old in pairs:
                rows = new.index_select(0, active)                 # [active …]
                new.copy_(old)
                new.index_copy_(0, active, rows)


@dataclasses.dataclass(frozen=True)
class Lookahead(Later):
    """Slow weights Θ: every k updates Θ ← Θ + α (θ − Θ), θ ← Θ, from Θ = θ at the start. State: a copy of θ. arXiv:1907.08610."""

    k: int = 5
    alpha: float = 0.5
    key = "slow"

    def __post_init__(self) -> None:
        _count("Lookahead: k", self.k)
        _number("Lookahead: alpha", self.alpha, least=0, most=1)

    def begin(self, parameter: Tensor, updates: int) -> Tensor:
        return parameter.detach().clone()

    def act(self, parameters: list[Tensor], own: list[Tensor], updates: int) -> None:
        if updates % self.k:
            return
        pairs = list(zip(own, parameters, strict=True))
        blocks = [pair for pair in pairs if all(_is_plain(tensor) for tensor in pair)]
        for slow, fast in blocks:                                  # a block is still in the cache when it is copied: 55 ms a sync, not 78
            for one, other in zip(slow.view(-1).split(_BLOCK), fast.view(-1).split(_BLOCK), strict=True):
                one.lerp_(other, self.alpha)
                other.copy_(one)
        if len(blocks) < len(pairs):
            rest = [pair for pair in pairs if not all(_is_plain(tensor) for tensor in pair)]
            torch._foreach_lerp_([slow for slow, _ in rest], [fast for _, fast in rest], self.alpha)
            copy_each([fast for _, fast in rest], [slow for slow, _ in rest])


@dataclasses.dataclass(frozen=True)
class Average(Later):
    """Moving average of the weights: M ← β M + (1 − β) θ, from 0; the average is M / (1 − β^t). arXiv:1412.6980, 7.2.

    State: M, at least fp32. `Derived.averaged()` puts the average in place of θ. decay: β; it looks about 1 / (1 − β) updates back.
    """

    decay: float = 0.999
    key = "average"

    def __post_init__(self) -> None:
        _number("Average: decay", self.decay, least=0, most=1)
        if self.decay == 1:
            raise ConfigError("Average: decay is 1.", fix="It must be less: 1 would never take a weight up.")

    def begin(self, parameter: Tensor, updates: int) -> Tensor:
        return parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32)) * (1 - self.decay**updates)

    def act(self, parameters: list[Tensor], own: list[Tensor], updates: int) -> None:
        wide = [p if p.dtype == m.dtype else p.to(m.dtype) for p, m in zip(parameters, own, strict=True)]
        torch._foreach_lerp_(own, wide, 1 - self.decay)


@dataclasses.dataclass(frozen=True)
class Accumulate:
    """An update every n calls of `step`, from all their gradients, as if they were one batch. State: a tensor as large as θ.

    The gradient is Σ g / Σ count over the n calls. By default count = 1: g of mean losses, batches of equal size. For tokens:
    sum.backward(), then step(count=tokens): the mean over all tokens, not a mean of means. Everything else counts updates, not calls.
    In `fit` it is Options.accumulate that does this.
    """

    n: int

    def __post_init__(self) -> None:
        _count("Accumulate: n", self.n)


@dataclasses.dataclass(frozen=True)
class Clip:
    """g ← g min(1, norm / |g|), |g| of all parameters together, after accumulation. No state. arXiv:1211.5063."""

    norm: float = 1.0

    def __post_init__(self) -> None:
        _number("Clip: norm", self.norm, least=0)
        if self.norm == 0:
            raise ConfigError("Clip: norm is 0.", fix="It must be more.")


@dataclasses.dataclass(frozen=True)
class PiecewiseLinear:
    """The rate of update t (from 0) is γ times `schedules.piecewise(knots)(t)`; with another schedule the product of both. No state."""

    knots: Mapping[int, float]

    def __post_init__(self) -> None:
        piecewise(self.knots)


@dataclasses.dataclass(frozen=True)
class Rates:
    """Rates of one's own: γ times the product of all multipliers whose key is part of the parameter's name. No state.

    They are rates in all else, too: of decay, and of layer adaptation, wherever in the order it stands. arXiv:1801.06146.
    """

    multipliers: Mapping[str, float]

    def __post_init__(self) -> None:
        for part, multiplier in self.multipliers.items():
            _number(f"Rates: {part!r}", multiplier, least=0)

    def of(self, name: str) -> float:
        """The multiplier of a parameter."""
        return math.prod(multiplier for part, multiplier in self.multipliers.items() if part in name)


Transform = WeightDecay | LayerAdaptation | Lazy | Lookahead | Average | Accumulate | Clip | PiecewiseLinear | Rates | Change | Later


def _is_plain(tensor: Tensor) -> bool:
    """True for a tensor on the CPU, in one piece, not spread over processes."""
    return tensor.device.type == "cpu" and tensor.is_contiguous() and not hasattr(tensor, "full_tensor")


def _whole(norm: Tensor) -> Tensor:
    """A norm of a tensor that is spread over processes (fully_shard), of all of it; any other as it is."""
    full = getattr(norm, "full_tensor", None)
    return norm if full is None else full()


def _number(name: str, value: object, *, least: float, most: float = math.inf) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value) or not least <= value <= most:
        limits = f"{least} or more" if most == math.inf else f"from {least} to {most}"
        raise ConfigError(f"{name} is {value!r}.", fix=f"It must be a number, {limits}.")


def _count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} is {value!r}.", fix="It must be a whole number, 1 or more.")
