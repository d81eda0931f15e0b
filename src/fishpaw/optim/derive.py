"""Any torch optimizer with transforms around it, which is a torch optimizer again. https://kexue.fm/archives/7094.

A step: accumulate gradients, divide by the count, clip · scale rates · the base's own step · changes of the move, inner ones first ·
lookahead and averages. Within each of these the order is the one given; between them it doesn't matter.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast, overload

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Adam, AdamW, Optimizer

from fishpaw.errors import ConfigError
from fishpaw.optim import adapted
from fishpaw.optim.schedules import piecewise
from fishpaw.optim.transforms import (
    OWN,
    Accumulate,
    Average,
    Change,
    Clip,
    Later,
    LayerAdaptation,
    Lazy,
    Moves,
    PiecewiseLinear,
    Rates,
    Transform,
    WeightDecay,
    copy_each,
)

__all__ = ["Derived", "derive", "describe"]

_Kind = TypeVar("_Kind")
_UPDATES, _CALLS, _COUNTED = "updates", "calls", "counted"         # in each group, as plain numbers: any checkpoint of groups has them


def derive(base: Optimizer | Sequence[Optimizer], transforms: Sequence[Transform] = ()) -> Derived:
    """`base` with `transforms` around it, inner ones first: derive(AdamW(…), [WeightDecay(), LayerAdaptation()]) is LAMB.

    base: any optimizer of torch or with its interface; several, each with parameters of its own, become one. It is used up: step the
    result. It must be made over model.named_parameters() where a transform goes by names. State: the base's, and what transforms say.
    Raises ConfigError for names that fit no parameter, a decay in base and transforms, two of what there can be one of, LBFGS.
    """
    return Derived([base] if isinstance(base, Optimizer) else list(base), tuple(transforms))


def describe(optimizer: Optimizer) -> str:
    """What an optimizer is, in a line that is the same in another process: which base, with what defaults, and transforms."""
    return optimizer.description if isinstance(optimizer, Derived) else type(optimizer).__name__


class Derived(Optimizer):
    """See `derive`. param_groups, state, state_dict, hooks and torch's schedulers work as with any optimizer; it resumes to the bit.

    A parameter without gradient is passed over, as by torch's optimizers. No parameters can be added later.
    """

    def __init__(self, bases: Sequence[Optimizer], transforms: Sequence[Transform]) -> None:
        _refuse(bases, transforms)
        self._transforms = tuple(transforms)
        self._changes = [one for one in transforms if isinstance(one, Change)]
        self._laters = [one for one in transforms if isinstance(one, Later)]
        self._own = OWN | {later.key for later in self._laters}
        self._accumulate, self._clip = _single(transforms, Accumulate), _single(transforms, Clip)
        schedule = _single(transforms, PiecewiseLinear)
        self._factor = piecewise(schedule.knots) if schedule else None
        self._exchanged: list[tuple[Tensor, Tensor]] = []
        self._copies: dict[tuple[Tensor, str], Tensor] = {}
        self._scratch: dict[torch.dtype, Tensor] = {}
        self.description = "; ".join([*(_described(base) for base in bases), *map(_repr, transforms)])
        self._spans: list[tuple[Optimizer, int, int]] = []
        groups: list[dict[str, Any]] = []
        for base in bases:
            absorbs = type(base) is AdamW and isinstance(next(iter(self._changes), None), WeightDecay)
            split = [part for group in base.param_groups for part in self._split(group, absorbs)]
            self._spans.append((base, len(groups), len(groups) + len(split)))
            groups += split
        _check_names(groups, transforms)
        super().__init__(groups, {name: value for base in bases for name, value in base.defaults.items()})
        for base in bases:
            self.state.update(base.state)
        self._covered = [self._covering(change) for change in self._changes]
        self._fast = self._adaptable()
        self._closed = True

    @property
    def accumulates(self) -> bool:
        """True if several calls of `step` make one update."""
        return self._accumulate is not None

    @property
    def updates(self) -> int:
        """Updates so far."""
        return int(self.param_groups[0][_UPDATES])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if getattr(self, "_closed", False):
            raise ConfigError("A derived optimizer takes no more parameters.", fix="Give all at the start.")
        super().add_param_group(param_group)

    @overload
    def step(self, closure: None = None, *, count: float | Tensor = 1.0) -> None: ...

    @overload
    def step(self, closure: Callable[[], float], *, count: float | Tensor = 1.0) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None, *, count: float | Tensor = 1.0) -> float | None:
        """One call. count: what the loss is a sum over (rows, tokens), if it is a sum; gradients, which it changes, are divided by it.

        Calls whose counts are 0 together change nothing: no moment, no rate, no decay.
        """
        if self._exchanged:
            raise ConfigError("The averaged weights are in the model.", fix="End `averaged()` before the next step.")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not 0 <= float(count) < math.inf:
            raise ConfigError(f"count is {float(count)}.", fix="It is the number of rows or tokens that the loss sums over.")
        found = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        if any(p.grad.is_sparse for part in found for p in part):
            raise ConfigError("A gradient is sparse.", fix="Make the embedding with sparse=False; Lazy() spares the rows without gradient.")
        total = self._collect(found, float(count))
        if total and (gradients := [p.grad for part in found for p in part]):
            self._scale(gradients, total)
            self._update(found)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        numbered = [p for group in self.param_groups for p in group["params"]]
        for index, state in state_dict["state"].items():           # torch gives them the parameter's type: too narrow for an average
            for key in OWN & state.keys():
                self.state[numbered[index]][key] = state[key].to(numbered[index].device, copy=True)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the model has the averaged weights (of transform Average; before the first update its own)."""
        self.exchange()
        try:
            yield
        finally:
            self.restore()

    @torch.no_grad()
    def exchange(self) -> None:
        """Put the averages into the model, for good if `restore` isn't called. Raises ConfigError without transform Average."""
        average = next((one for one in self._laters if isinstance(one, Average)), None)
        if average is None:
            raise ConfigError("This optimizer keeps no average.", fix="Give it the transform Average().")
        if self._exchanged:
            raise ConfigError("The averaged weights are in the model already.", fix="Call restore() first.")
        for parameter, state in self.state.items():
            if average.key in state and self.updates:
                self._exchanged.append((parameter, parameter.detach().clone()))
                parameter.copy_(state[average.key] / (1 - average.decay**self.updates))

    @torch.no_grad()
    def restore(self) -> None:
        """Take `exchange` back."""
        for parameter, own in self._exchanged:
            parameter.copy_(own)
        self._exchanged = []

    def _split(self, group: dict[str, Any], absorbs: bool) -> list[dict[str, Any]]:
        """The group by rates, and by what decays in AdamW's own kernel, where it costs nothing."""
        rates = [one for one in self._transforms if isinstance(one, Rates)]
        decay = self._changes[0] if absorbs else None
        names = _names(group)
        parts: dict[tuple[float, float], list[int]] = {}
        for number, (name, parameter) in enumerate(zip(names, group["params"], strict=True)):
            own = decay.rate if isinstance(decay, WeightDecay) and decay.covers(name, parameter) else 0.0
            parts.setdefault((math.prod(one.of(name) for one in rates), own), []).append(number)
        split = []
        for (multiplier, own), numbers in parts.items():
            part = {**group, "params": [group["params"][i] for i in numbers], _UPDATES: 0, _CALLS: 0, _COUNTED: 0.0}
            if "param_names" in group:
                part["param_names"] = [names[i] for i in numbers]
            part.update({key: group[key] * multiplier for key in ("lr", "initial_lr") if key in group})
            if absorbs:
                part["weight_decay"] = own
            split.append(part)
        return split

    def _covering(self, change: Change) -> set[int]:
        """The parameters (by id) that a change is for; of AdamW's own decay none are left."""
        covered = set()
        for base, begin, end in self._spans:
            if not (change is self._changes[0] and isinstance(change, WeightDecay) and type(base) is AdamW):
                for group in self.param_groups[begin:end]:
                    covered |= {id(p) for name, p in zip(_names(group), group["params"], strict=True) if change.covers(name, p)}
        return covered

    def _adaptable(self) -> set[int]:
        """The parameters whose one change is layer adaptation of fused Adam: LAMB's."""
        chosen: set[int] = set()
        for base, begin, end in self._spans:
            if type(base) in (Adam, AdamW):
                fused = [g for g in self.param_groups[begin:end] if g.get("fused") and (type(base) is AdamW or not g["weight_decay"])]
                chosen |= {id(p) for group in fused for p in group["params"]}
        for change, covered in zip(self._changes, self._covered, strict=True):
            chosen = chosen & covered if isinstance(change, LayerAdaptation) else chosen - covered
        return chosen if any(isinstance(change, LayerAdaptation) for change in self._changes) else set()

    def _collect(self, found: list[list[nn.Parameter]], count: float) -> float | None:
        """Add gradients up; the sum of counts once there is an update to make of p.grad, else None."""
        if self._accumulate is None:
            return count
        first = self.param_groups[0]
        total, calls = first[_COUNTED] + count, first[_CALLS] + 1
        last = calls == self._accumulate.n
        for group, part in zip(self.param_groups, found, strict=True):
            group[_COUNTED], group[_CALLS] = (0.0, 0) if last else (total, calls)
            for p in group["params"] if last else ():
                if p.grad is None and "gradient_sum" in self.state.get(p, {}):       # it had one in a call before
                    p.grad = torch.zeros_like(p)
                    part.append(p)
            for p in part:
                if "gradient_sum" not in self.state[p]:
                    self.state[p]["gradient_sum"] = torch.zeros_like(p)
            sums, gradients = [self.state[p]["gradient_sum"] for p in part], [cast(Tensor, p.grad) for p in part]
            if not part:
                continue
            if last:
                torch._foreach_add_(gradients, sums)
                torch._foreach_zero_(sums)
            else:
                torch._foreach_add_(sums, gradients)
        return total if last else None

    def _scale(self, gradients: list[Tensor], total: float) -> None:
        """From sums to means, and clip, in one pass."""
        scale: float | Tensor = 1 / total
        if self._clip is not None:
            length = nn.utils.get_total_norm(gradients) / total
            scale = (self._clip.norm / (length + 1e-6)).clamp(max=1.0) / total
            if scale.device.type == "cpu":
                scale = float(scale)
        if isinstance(scale, Tensor) or scale != 1:
            torch._foreach_mul_(gradients, scale)

    def _update(self, found: list[list[nn.Parameter]]) -> None:
        """One update, of the parameters `found` in each group."""
        updates = self.updates
        learning = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        for later in self._laters:
            for p in learning:
                if later.key not in self.state[p]:
                    self.state[p][later.key] = later.begin(p, updates)
        kept = [(group["lr"], group["params"]) for group in self.param_groups]
        try:
            if self._factor is not None:
                for group in self.param_groups:
                    group["lr"] = group["lr"] * self._factor(updates)
            work = []
            for group, part in zip(self.param_groups, found, strict=True):
                group["params"] = self._adapt(group, part)
                work += self._prepare(group)
            for base, begin, end in self._spans:
                base.state, base.param_groups = self.state, self.param_groups[begin:end]
                if parts := [p for group in base.param_groups for p in group["params"]]:
                    with self._hidden(parts):
                        base.step()
            for change, moves in work:
                change.change(moves)
        finally:
            for group, (rate, parameters) in zip(self.param_groups, kept, strict=True):
                group["lr"], group["params"] = rate, parameters
        for group in self.param_groups:
            group[_UPDATES] = updates + 1
        for later in self._laters:
            later.act(learning, [self.state[p][later.key] for p in learning], updates + 1)

    def _adapt(self, group: dict[str, Any], found: list[nn.Parameter]) -> list[nn.Parameter]:
        """Take LAMB's step on a CPU with what it fits; the parameters that are left."""
        left = []
        for p in found:
            if id(p) not in self._fast or not _is_plain_adam(group) or not adapted.fits(p, self.state[p]):
                left.append(p)
                continue
            scratch = self._scratch.get(p.dtype)
            if scratch is None or len(scratch) < p.numel():
                scratch = self._scratch[p.dtype] = torch.zeros(p.numel(), dtype=p.dtype)
            adapted.adapted_step(
                p, cast(Tensor, p.grad), self.state[p], rate=group["lr"], betas=group["betas"], epsilon=group["eps"],
                decay=group["weight_decay"], scratch=scratch,
            )  # fmt: skip
        return left

    @contextmanager
    def _hidden(self, parameters: list[nn.Parameter]) -> Iterator[None]:
        """Without what is ours, where there is nothing else: torch's optimizers take it for their own first state, made already."""
        hidden = {p: self.state.pop(p) for p in parameters if self.state[p].keys() <= self._own}
        try:
            yield
        finally:
            for p, state in hidden.items():
                self.state[p].update(state)

    def _prepare(self, group: dict[str, Any]) -> list[tuple[Change, Moves]]:
        """Copy what the changes must know of the time before the base's step."""
        rate, work = float(group["lr"]), []
        leading: list[Tensor] = []
        copied: dict[int, tuple[Tensor, Tensor]] = {}              # what is copied, by id, and its copy
        for number, (change, covered) in enumerate(zip(self._changes, self._covered, strict=True)):
            parameters = [p for p in group["params"] if id(p) in covered]
            if not parameters:
                continue
            if number == 0 and isinstance(change, WeightDecay):
                leading = parameters                               # γ λ θ is the same before the base's step: no copy
                continue
            before = [self._copy(p, "", p, copied) for p in parameters]
            states = [self.state[p] for p in parameters]
            held = [{key: self._copy(p, key, value, copied) for key, value in change.hold(state).items()}
                    for p, state in zip(parameters, states, strict=True)]  # fmt: skip
            work.append((change, Moves(rate, parameters, before, [cast(Tensor, p.grad) for p in parameters], states, held)))
        if copied:
            copy_each([copy for _, copy in copied.values()], [tensor for tensor, _ in copied.values()])
        if leading and isinstance(self._changes[0], WeightDecay):
            torch._foreach_mul_(leading, 1 - rate * self._changes[0].rate)
        return work

    def _copy(self, parameter: Tensor, key: str, tensor: Tensor, copied: dict[int, tuple[Tensor, Tensor]]) -> Tensor:
        """Where a copy of a parameter or of its state goes: memory that is kept from step to step."""
        copy = self._copies.get((parameter, key))
        if copy is None:
            copy = self._copies[parameter, key] = torch.empty_like(tensor)
        copied[id(tensor)] = tensor, copy
        return copy


def _refuse(bases: Sequence[Optimizer], transforms: Sequence[Transform]) -> None:
    if not bases:
        raise ConfigError("There is no optimizer to derive from.", fix="Give one, or a list of them.")
    for base in bases:
        if isinstance(base, Derived):
            raise ConfigError("The base is derived already.", fix="Give all transforms at once.")
        if isinstance(base, LBFGS) or not isinstance(base, Optimizer):
            raise ConfigError(f"{type(base).__name__} can't be derived from.", fix="Give a torch optimizer that takes one gradient a step.")
    kinds = (Change, Later, Accumulate, Clip, PiecewiseLinear, Rates)
    if wrong := [one for one in transforms if not isinstance(one, kinds)]:
        raise ConfigError(f"{wrong[0]!r} is no transform.", fix="Use those of fishpaw.optim.transforms, made: Lookahead(), not Lookahead.")
    names = [one.key if isinstance(one, Later) else type(one).__name__ for one in transforms if not isinstance(one, (Change, Rates))]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"{twice[0]} is there twice.", fix="Leave one out.")
    if any(isinstance(one, WeightDecay) for one in transforms):
        for base in bases:
            if decay := next((group["weight_decay"] for group in base.param_groups if group.get("weight_decay")), None):
                what = f"{type(base).__name__} decays by itself (weight_decay={decay}; some do by default), and so does WeightDecay."
                raise ConfigError(what, fix="Make it with weight_decay=0, or leave WeightDecay out.")


def _check_names(groups: list[dict[str, Any]], transforms: Sequence[Transform]) -> None:
    known = [name for group in groups for name in group.get("param_names", ())]
    for one in transforms:
        chosen = one.exclude if isinstance(one, (WeightDecay, LayerAdaptation)) else one.rows if isinstance(one, Lazy) else ()
        for part in [*chosen, *(one.multipliers if isinstance(one, Rates) else ())]:
            if isinstance(part, str) and not known:
                what = f"{type(one).__name__} goes by names ({part!r}), but the optimizer was given none."
                raise ConfigError(what, fix="Make it with model.named_parameters() in place of model.parameters().")
            if isinstance(part, str) and not any(part in name for name in known):
                what = f"{type(one).__name__} names {part!r}, which no parameter has in its name."
                raise ConfigError(what, fix="Use part of a name in model.named_parameters().")


def _single(transforms: Sequence[Transform], kind: type[_Kind]) -> _Kind | None:
    return next((one for one in transforms if isinstance(one, kind)), None)


def _names(group: dict[str, Any]) -> list[str]:
    return list(group.get("param_names") or [""] * len(group["params"]))


def _is_plain_adam(group: dict[str, Any]) -> bool:
    return isinstance(group["lr"], float) and not any(group.get(name) for name in ("amsgrad", "maximize", "capturable", "differentiable"))


def _described(base: Optimizer) -> str:
    told = ", ".join(f"{name}={value!r}" for name, value in base.defaults.items() if value is not None and value is not False)
    return f"{type(base).__name__}({told})"


def _repr(transform: Transform) -> str:
    """As a dataclass says it, but with the names of functions, not their addresses."""
    if not dataclasses.is_dataclass(transform):
        return type(transform).__name__
    values = {field.name: getattr(transform, field.name) for field in dataclasses.fields(transform)}
    for name, value in values.items():
        if isinstance(value, (tuple, list)):
            values[name] = tuple(getattr(one, "__qualname__", one) for one in value)
    return f"{type(transform).__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"
