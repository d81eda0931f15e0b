"""One training run: update, log, evaluate, save, in this order, with every number that changes in one record.

A step takes `accumulate` batches, adds up the gradients of their losses, divides once by what they count, clips, and updates.
"""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fishpaw.data.collate import move
from fishpaw.data.order import Order, Place
from fishpaw.errors import ConfigError, FishpawError
from fishpaw.model.linear import path
from fishpaw.optim.schedules import Schedule
from fishpaw.train import checkpoint
from fishpaw.train.interruption import Interruption
from fishpaw.train.log import Bar, Log
from fishpaw.train.options import Options
from fishpaw.train.post_mortem import dump
from fishpaw.train.randomness import Randomness, isolated
from fishpaw.train.team import Forward, Team
from fishpaw.train.throughput import Meter, peak

__all__ = ["Counted", "Run", "State", "Visited", "environment"]


@runtime_checkable
class Counted(Protocol):
    """A batch that knows the tokens of each row that is read, where these are others than those of its examples."""

    @property
    def lengths(self) -> Sequence[int]: ...


@runtime_checkable
class Visited(Protocol):
    """Examples that are others in each epoch (masked anew, cut elsewhere): what is drawn for one is a function of (index, epoch) alone."""

    def visit(self, index: int, epoch: int) -> Any:
        """The example as this epoch sees it. Epochs count from 0."""


@dataclasses.dataclass
class State:
    """All that changes in a run, besides tensors. JSON."""

    step: int = 0
    place: Place = dataclasses.field(default_factory=lambda: Place(epoch=0, batch=0))
    seconds: float = 0.0
    window: list[float] = dataclasses.field(default_factory=lambda: [0.0] * 4)      # since the last line: loss, weight, tokens, seconds
    stretch: list[float] = dataclasses.field(default_factory=lambda: [0.0] * 2)     # since the last evaluation: loss, weight
    best: dict[str, Any] | None = None
    misses: int = 0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    ended: str | None = None
    log: int = 0
    operations: float = 0.0                                        # of the model, in the window


@dataclasses.dataclass
class Run:
    """What `loop.fit` was given, and what becomes of it."""

    model: nn.Module
    examples: Sequence[Any]
    forward: Forward
    collate: Callable[[list[Any]], Any]
    options: Options
    order: Order
    evaluate: Callable[[nn.Module], dict[str, float]] | None
    monitor: str
    optimizer: torch.optim.Optimizer
    _: dataclasses.KW_ONLY
    factor: Schedule
    total: int
    device: torch.device
    dtype: torch.dtype | None
    out: Path | None
    team: Team = dataclasses.field(default_factory=Team)
    meter: Meter | None = None
    state: State = dataclasses.field(default_factory=State)
    identity: dict[str, Any] = dataclasses.field(default_factory=dict)
    best_weights: dict[str, Tensor] | None = None                  # only where there is no folder for them
    log: Log = dataclasses.field(default_factory=lambda: Log(None))
    bar: Bar = dataclasses.field(default_factory=lambda: Bar(0, start=0, shown=False))
    interruption: Interruption = dataclasses.field(default_factory=Interruption)
    saved_at: float = dataclasses.field(default_factory=time.monotonic)

    def until_the_end(self) -> None:
        """Step after step until all are done, patience has ended, or a signal came."""
        options, state = self.options, self.state
        while state.ended is None:
            self.hear()
            if self.interruption.received is not None:
                self.log.write({"event": "stop", "step": state.step, "signal": self.interruption.received})
                self.save()
                self.interruption.act()
            epoch = state.place["epoch"]
            norm, rate = self.step()
            last = state.step >= self.total
            if last or state.step % options.log_every == 0:
                self.say(norm, rate)
            improved = False
            if last or (state.step % options.evaluate_every == 0 if options.evaluate_every else state.place["epoch"] > epoch):
                improved = self.look()
            if last:
                state.ended = "steps"
            elif options.patience is not None and state.misses >= options.patience:
                state.ended = "patience"
            if state.ended is not None:
                self.log.write({"event": "end", "step": state.step, "reason": state.ended, "best": state.best, "seconds": state.seconds})
            late = options.save_seconds is not None and time.monotonic() - self.saved_at >= options.save_seconds
            late = bool(self.team.most(late))
            if improved or late or state.ended or (options.save_every and state.step % options.save_every == 0):
                self.save()
            if improved:
                self.keep_best()                                   # after `save`: best/ is never ahead of the checkpoint

    def step(self) -> tuple[float, float]:
        """One update. Returns the gradient's norm before clipping and the learning rate."""
        began, before = time.perf_counter(), Randomness.take(self.device)
        picked = self.order.take(self.options.accumulate)
        shares = [self.team.share(rows) for rows in picked]
        self.team.stir(self.options.seed, self.state.step)
        batches: list[Any] = []
        losses: list[Tensor] = []
        counts: list[Tensor] = []
        read: list[NDArray[numpy.int64]] = []
        self.optimizer.zero_grad(set_to_none=True)
        for number, (own, rows) in enumerate(zip(shares, picked, strict=True), 1):
            given = own if len(own) else rows[:1]                  # others may wait for this process, which has nothing to add
            batch = move(self.collate([self.example(i) for i in given.tolist()]), self.device)
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
                answer = self.forward(batch, number == len(picked))
            if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[0], Tensor):
                raise ConfigError(f"The loss returned a {type(answer).__name__}.", fix="Return (sum of losses, what it counts).")
            total, count = answer
            if total.ndim or not total.requires_grad:
                what = "does not depend on a parameter that learns" if not total.ndim else f"has the shape {list(total.shape)}"
                raise ConfigError(f"The loss {what}.", fix="Return (sum of losses, weight), the sum a tensor without dimensions.")
            if not len(own):
                total, count = total * 0, 0
            total.backward()
            batches.append(batch)
            read.append(numpy.asarray(batch.lengths) if isinstance(batch, Counted) and len(own) else self.order.lengths[own])
            losses.append(total.detach() if len(own) else torch.zeros_like(total))
            counts.append(torch.as_tensor(count, device=self.device))
        self.team.settle(p for group in self.optimizer.param_groups for p in group["params"])
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = self.team.whole(nn.utils.get_total_norm(gradients))
        dtype = torch.promote_types(norm.dtype, torch.float32)
        *numbers, length = torch.stack([value.to(dtype) for value in (*losses, *counts, norm)]).tolist()     # the only wait for a GPU
        length *= self.team.size                                   # gradients are means over processes
        work = 0.0 if self.meter is None else self.meter.heads() + sum(map(self.meter.stack, read))
        tokens = float(sum(int(lengths.sum()) for lengths in read))
        summed, weight, work, tokens = self.team.sum([sum(numbers[: len(losses)]), sum(numbers[len(losses) :]), work, tokens])
        if not (math.isfinite(summed) and math.isfinite(length) and math.isfinite(weight)):
            self.fail(numbers[: len(losses)], length, shares, batches, before)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.factor(self.state.step)
        if weight > 0:                                             # without a target nothing is learned: momentum and decay wait, too
            clip = self.options.clip
            scale = 1 / weight if clip is None else min(1.0, clip / (length / weight + 1e-6)) / weight
            torch._foreach_mul_(gradients, scale * self.team.size)
            self.optimizer.step()
        self.state.step += 1
        self.state.place = self.order.state()
        seconds = time.perf_counter() - began
        self.state.seconds += seconds
        self.state.window = [a + b for a, b in zip(self.state.window, (summed, weight, tokens, seconds), strict=True)]
        self.state.stretch = [a + b for a, b in zip(self.state.stretch, (summed, weight), strict=True)]
        self.state.operations += work
        self.bar.advance()
        return length / weight if weight else 0.0, self.optimizer.param_groups[0]["lr"]

    def hear(self) -> None:
        """A signal that any process received is every process' own."""
        self.interruption.received = self.team.most(self.interruption.received or 0) or None

    def example(self, index: int) -> Any:
        """As the epoch of the step that is being made sees it; a step never goes over the end of an epoch."""
        examples = self.examples
        return examples.visit(index, self.state.place["epoch"]) if isinstance(examples, Visited) else examples[index]

    def say(self, norm: float, rate: float) -> None:
        """A line of the log, over the steps since the one before."""
        summed, weight, tokens, seconds = self.state.window
        operations, self.state.operations, self.state.window = self.state.operations, 0.0, [0.0, 0.0, 0.0, 0.0]
        loss, seconds = _mean(summed, weight), max(seconds, 1e-9)
        peaks = self.team.sum([peak(self.device, self.dtype or self.parameter_type())])[0] if self.meter else math.inf
        self.log.write({
            "event": "step", "step": self.state.step, "epoch": self.epoch(), "loss": loss, "rate": rate, "norm": norm,
            "tokens_per_second": tokens / seconds, **({"utilisation": operations / seconds / peaks} if self.meter else {}),
            "seconds": self.state.seconds,
        })  # fmt: skip
        best = self.state.best
        self.bar.tell({"loss": loss, **({f"best {best['metric']}": best["value"]} if best else {})})

    def look(self) -> bool:
        """Evaluate; True if this is the best so far."""
        state, values, began = self.state, {}, time.perf_counter()
        if self.evaluate is not None:
            modes = [(module, module.training) for module in self.model.modules()]
            self.model.eval()
            with isolated(self.device), torch.no_grad(), self.team.reading():      # how often one looks must not change what is learned
                values = {name: float(value) for name, value in self.evaluate(self.model).items()}
            values = self.team.told(values)
            for module, mode in modes:
                module.training = mode
        state.seconds += time.perf_counter() - began
        record = {"step": state.step, "epoch": self.epoch(), "train_loss": _mean(*state.stretch), **values}
        state.stretch = [0.0, 0.0]
        state.history.append(record)
        self.log.write({"event": "evaluate", **record, "seconds": state.seconds})
        if self.evaluate is None:
            return False
        metric = self.monitor.removeprefix("-")
        if metric not in values:
            what = f"monitor is {metric!r}, but the evaluation gave {', '.join(values) or 'nothing'}."
            raise ConfigError(what, fix="Choose one of these.")
        sign = -1 if self.monitor.startswith("-") else 1
        if math.isnan(values[metric]) or (state.best is not None and sign * values[metric] <= sign * state.best["value"]):
            state.misses += 1
            return False
        state.best, state.misses = {"step": state.step, "metric": metric, "value": values[metric]}, 0
        return True

    def epoch(self) -> float:
        """Epochs done, with the part of this one."""
        place = self.state.place
        return place["epoch"] + (place["batch"] / self.order.count(place["epoch"]) if place["batch"] else 0.0)

    def save(self) -> None:
        """Write the checkpoint."""
        if self.out is not None:
            self.state.log = self.log.sync()
            here = {"processes": self.team.size, **environment(self.device)}
            record = {"identity": self.identity, "environment": here, "run": dataclasses.asdict(self.state)}
            checkpoint.save(self.out / "checkpoint", self.model, self.optimizer, Randomness.take(self.device), record, self.team)
            self.team.most(0)                                      # nobody leaves before it is written
        self.saved_at = time.monotonic()

    def keep_best(self) -> None:
        """Keep these weights as the best: in a folder, or in memory where there is none."""
        if self.out is not None and self.state.best is not None:
            checkpoint.save_weights(self.out / "best", self.model, self.state.best, self.team)
        else:
            self.best_weights = {name: tensor.clone() for name, tensor in checkpoint.weights(self.model).items()}

    def restore(self, out: Path, record: dict[str, Any]) -> int:
        """Become the run that wrote `record`; return its step."""
        randomness = checkpoint.load(out / "checkpoint", self.model, self.optimizer, record, self.team)
        self.state = State(**record["run"])
        self.order.restore(self.state.place)
        best = self.state.best
        stored = self.team.told(checkpoint.read_facts(out / "best") if self.team.leader else None)
        if best and best["step"] == self.state.step and stored != best:
            self.keep_best()                                       # the kill came between the two writes
        here, before = {"processes": self.team.size, **environment(self.device)}, {"processes": 1, **record["environment"]}
        for name in here:
            if before.get(name) != here[name] and self.team.leader:
                what = f"This run began with {name} {before.get(name)}, goes on with {here[name]}: sums may differ in their last bits"
                warnings.warn(what + (", and what is drawn at random." if name == "processes" else "."), stacklevel=4)
        randomness.put(self.device)
        return self.state.step

    def finish(self) -> None:
        """Leave the best weights in the model, in eval mode."""
        state = self.state
        if state.best is not None and state.best["step"] != state.step:
            if self.out is not None:
                checkpoint.load_weights(self.out / "best", self.model, self.team)
            elif self.best_weights is not None:
                checkpoint.put_weights(self.model, self.best_weights, where=Path("best"))
        self.optimizer.zero_grad(set_to_none=True)
        self.team.release()
        self.model.eval()

    def fail(self, losses: list[float], norm: float, shares: Sequence[Any], batches: list[Any], before: Randomness) -> None:
        """Keep the state before this step and the batches that spoiled it, then say so."""
        every = self.team.every([[str(value) for value in losses], [part.tolist() for part in shares]])
        spoiled = [rank for rank, (values, _) in enumerate(every) if not all(math.isfinite(float(value)) for value in values)]
        what, where = ("loss", spoiled[0]) if spoiled else ("gradient", 0)                         # which rows spoiled it isn't known
        values, parts = every[where]
        bad = [i for i, value in enumerate(values) if not math.isfinite(float(value))] or list(range(len(values)))
        rows = [parts[i] if spoiled else [row for _, others in every for row in others[i]] for i in bad]
        step = self.state.step + 1
        self.log.write({"event": "fail", "step": step, "losses": [float(value) for value in values], "norm": norm, "examples": rows})
        self.order.restore(self.state.place)
        self.optimizer.zero_grad(set_to_none=True)
        kept = ""
        if self.out is not None:
            before.put(self.device)
            self.save()
            if self.team.rank == where:                            # it has the batches
                facts = {"step": step, "losses": values, "norm": str(norm), "rows": rows}
                dump(self.out / "bad_batch", facts, [batches[i] for i in bad], [[self.example(r) for r in part] for part in rows])
            kept = f" The batch is in {self.out / 'bad_batch'}, the state before it in {self.out / 'checkpoint'}."
        named = ", ".join(map(str, rows[0][:8])) + (" …" if len(rows[0]) > 8 else "")
        self.team.fail(FishpawError(
            f"Step {step}: the {what} is {float(values[bad[0]]) if spoiled else norm} (examples {named}).{kept}",
            fix="Look at these examples, lower the learning rate, or warm up for longer, and start anew.",
        ))  # fmt: skip

    def parameter_type(self) -> torch.dtype:
        """What the weights are, and products are computed in without autocast."""
        return next(self.model.parameters()).dtype


def environment(device: torch.device) -> dict[str, Any]:
    """What the last bits of a sum depend on."""
    return {"device": device.type, "threads": torch.get_num_threads(), "linear": path("dense") if device.type == "cpu" else "plain"}


def _mean(total: float, weight: float) -> float:
    return total / weight if weight else 0.0
