"""What a training run is: every number that decides its result, and a few that only decide what is kept of it. All are checked here."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import torch

from fishpaw.errors import ConfigError

__all__ = ["WITHOUT_EFFECT", "Options", "autocast_dtype"]

WITHOUT_EFFECT = frozenset({"save_every", "save_seconds", "log_every", "threads"})
"""Options that may differ when a run goes on: they don't choose the result. (Threads change the order of sums: said, not refused.)"""

_MOST_EPOCHS = 1000


@dataclass(frozen=True)
class Options:
    """The options of `loop.fit`. Shares and rates are plain numbers; a step is one update of the weights.

    epochs: passes over the data, parts of one too; not used if `steps` is given. steps: updates in all.
    batch_size: rows a batch. token_budget: instead, rows x longest row at most; epochs then differ in steps, and are 1000 at most.
    accumulate: batches an update, weighted by what they count.
    learning_rate: its peak. warmup: share of the steps that lead up to it; then it falls to 0, both linearly.
    weight_decay: of matrices only. clip: largest norm of the whole gradient; None: any.
    precision: "fp32": as the weights are. "bf16": autocast, the weights stay as they are. "fp16" becomes "bf16" on a CPU, with a warning.
    evaluate_every: steps from one evaluation to the next; None: at the end of each epoch. There is always one at the end.
    patience: stop after that many evaluations in a row without a new best; None: never.
    save_every, save_seconds: checkpoints by steps, by time (either may be None); more at each new best, at a signal and at the end.
    log_every: steps a line of the log. threads: of torch, during the run; None: as they are.
    """

    epochs: float = 3.0
    steps: int | None = None
    batch_size: int = 32
    token_budget: int | None = None
    learning_rate: float = 5e-5
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float | None = 1.0
    accumulate: int = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    seed: int = 0
    evaluate_every: int | None = None
    patience: int | None = None
    save_every: int | None = None
    save_seconds: float | None = 300.0
    log_every: int = 10
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "log_every"):
            _whole(name, getattr(self, name), least=1)
        for name in ("steps", "token_budget", "evaluate_every", "patience", "save_every", "threads"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), least=1)
        _whole("seed", self.seed, least=0)
        for name in ("epochs", "learning_rate", "clip", "save_seconds"):
            value = getattr(self, name)
            if value is not None or name in ("epochs", "learning_rate"):
                _number(name, value)
                if value <= 0:
                    raise ConfigError(f"{name} is {value}.", fix="It must be more than 0.")
        if self.token_budget is not None and self.steps is None and self.epochs > _MOST_EPOCHS:
            what = f"epochs is {self.epochs}: with a token budget each is cut anew and counted, {_MOST_EPOCHS} at most."
            raise ConfigError(what, fix="Give steps instead, or batch_size.")
        _number("weight_decay", self.weight_decay)
        if self.weight_decay < 0:
            raise ConfigError(f"weight_decay is {self.weight_decay}.", fix="It must be 0 or more.")
        _number("warmup", self.warmup)
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup is {self.warmup}.", fix="It is a share of all steps: 0 or more, less than 1.")
        if self.precision not in ("fp32", "bf16", "fp16"):
            raise ConfigError(f"precision is {self.precision!r}.", fix='Choose "fp32" or "bf16".')


def autocast_dtype(options: Options, device: torch.device) -> torch.dtype | None:
    """The type to compute in, None for that of the weights. Raises ConfigError where the device has no such type."""
    if options.precision == "fp32":
        return None
    if options.precision == "fp16" and device.type != "cpu":
        raise ConfigError("precision is fp16, which needs its losses scaled.", fix='Use "bf16": as fast and small, no scale to choose.')
    if options.precision == "fp16":
        warnings.warn("fp16 is many times slower than fp32 on a CPU: training in bf16 instead.", stacklevel=3)
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError("This GPU has no bf16.", fix='Use precision="fp32".')
    return torch.bfloat16


def _whole(name: str, value: object, *, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} is {value!r}.", fix=f"It must be a whole number, {least} or more.")


def _number(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise ConfigError(f"{name} is {value!r}.", fix="It must be a finite number.")
