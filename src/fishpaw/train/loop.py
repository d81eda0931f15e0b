"""The training loop: from examples to weights, the same weights bit for bit however often it was killed on the way.

A step takes `accumulate` batches, adds up the gradients of their losses, divides once by what they count, clips, and updates. Nothing
depends on time, workers or an earlier life of the process: order from (seed, epoch), random states and all counters are in the checkpoint.
"""

from __future__ import annotations

import dataclasses
import math
import platform
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy
import torch
from torch import Tensor, nn

from fishpaw.data.collate import move
from fishpaw.data.fingerprint import fingerprint
from fishpaw.data.order import Order, Place
from fishpaw.errors import CheckpointError, ConfigError, FishpawError
from fishpaw.files import lock, recover
from fishpaw.optim.adamw import adamw
from fishpaw.optim.schedules import Schedule, linear
from fishpaw.train import checkpoint
from fishpaw.train.interruption import Interruption
from fishpaw.train.log import Bar, Log
from fishpaw.train.options import WITHOUT_EFFECT, Options, autocast_dtype
from fishpaw.train.post_mortem import dump
from fishpaw.train.randomness import Randomness, isolated, seed

__all__ = ["Result", "fit"]

Example = TypeVar("Example")


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run went. history: a record an evaluation (step, epoch, loss since the last one, metrics): the learning curve."""

    step: int
    stopped: str
    """"steps": all were done · "patience": no new best for long enough."""
    loss: float
    """Mean training loss since the evaluation before the last."""
    best: float | None
    """The best value of the monitored metric, at `best_step`; None without an evaluation. The model has these weights now."""
    best_step: int | None
    history: tuple[dict[str, Any], ...]
    seconds: float
    resumed_from: int | None
    """The step from which this call went on; None if it began anew."""


def fit(
    model: nn.Module,
    examples: Sequence[Example],
    *,
    loss: Callable[[nn.Module, Any], tuple[Tensor, Tensor | float]],
    collate: Callable[[list[Example]], Any],
    options: Options,
    length: Callable[[Example], int] = len,  # type: ignore[assignment]
    out: Path | None = None,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    monitor: str = "accuracy",
    resume: bool = True,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    schedule: Callable[[int], Schedule] | None = None,
    digest: str | None = None,
    progress: bool | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> Result:
    """Train `model` in place on the device where it is, and leave the best weights in it (the last ones without `evaluate`), in eval mode.

    loss(model, batch) -> (sum of losses [], what it counts: rows, tokens): called in training mode on what `collate` made of a list of
    examples, moved to the model's device. length: of an example, in tokens. evaluate(model) -> metrics: in eval mode, without
    gradients; larger `monitor` is better, smaller if it begins with "-" ("-loss"). optimizer: of the model (default AdamW);
    schedule: from all steps to a factor a step (default linear).

    out: folder of the run: log.jsonl, checkpoint/ (to go on), best/ (weights), bad_batch/ (if the loss fails); None: nothing is
    written. A run that is found there goes on to the same bits, or, if it had ended, its result is returned; `resume=False` removes
    it. digest: stands for the content of `examples`, if that can't be looked through (see data/fingerprint).
    progress: show a bar; None: on a terminal. report: called with each record of the log.

    Random states are seeded with options.seed inside and given back as they were. Ctrl-C and SIGTERM: the step is ended and saved, then
    KeyboardInterrupt or SystemExit(143); the second one acts at once.
    Raises CheckpointError for a run in `out` with other options, data or torch; FishpawError when loss or gradient is nan or infinite
    (nothing was learned from that batch; checkpoint/ is the state before it), or if `out` can't be written or another process trains there.
    """
    device = next(model.parameters()).device
    with ExitStack() as stack:
        if out is not None:
            stack.enter_context(lock(out / "training", timeout=1.0))
        stack.enter_context(_threads(options.threads))
        stack.enter_context(isolated(device))
        order = Order([length(e) for e in examples], batch_size=options.batch_size, token_budget=options.token_budget, seed=options.seed)
        total = _total_steps(options, order)
        seed(options.seed)
        model.train()
        made = optimizer(model) if optimizer else adamw(model, learning_rate=options.learning_rate, weight_decay=options.weight_decay)
        for group in made.param_groups:
            group.setdefault("initial_lr", group["lr"])
        run = _Run(
            model, examples, loss, collate, options, order, evaluate, monitor, made,
            factor=schedule(total) if schedule else linear(total, warmup=options.warmup),
            total=total, device=device, dtype=autocast_dtype(options, device), out=out,
        )  # fmt: skip
        found = None
        if out is not None:
            run.identity = _identity(options, order, made, monitor, digest or fingerprint(examples))
            found = _stored(out, run.identity, resume)
        resumed = run.restore(found) if found is not None else None
        run.log = Log(out / "log.jsonl" if out else None, offset=run.state.log, report=report)
        stack.callback(run.log.close)
        if run.state.ended is None:
            run.log.write({"event": "start" if resumed is None else "resume", "step": run.state.step, **_facts(run)})
            run.bar = Bar(total, start=run.state.step, shown=progress)
            stack.callback(run.bar.close)
            run.interruption = stack.enter_context(Interruption())
            run.until_the_end()
        return run.result(resumed)


@dataclasses.dataclass
class _State:
    """All that changes in a run, besides tensors. JSON."""

    step: int = 0
    place: Place = dataclasses.field(default_factory=lambda: Place(epoch=0, batch=0))
    seconds: float = 0.0
    window: list[float] = dataclasses.field(default_factory=lambda: [0.0, 0.0, 0.0, 0.0])     # since the last line: loss, weight, tokens, seconds
    stretch: list[float] = dataclasses.field(default_factory=lambda: [0.0, 0.0])               # since the last evaluation: loss, weight
    best: dict[str, Any] | None = None
    misses: int = 0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    ended: str | None = None
    log: int = 0


@dataclasses.dataclass
class _Run:
    model: nn.Module
    examples: Sequence[Any]
    loss: Callable[[nn.Module, Any], tuple[Tensor, Tensor | float]]
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
    state: _State = dataclasses.field(default_factory=_State)
    identity: dict[str, Any] = dataclasses.field(default_factory=dict)
    best_weights: dict[str, Tensor] | None = None                  # only where there is no folder for them
    log: Log = dataclasses.field(default_factory=lambda: Log(None))
    bar: Bar = dataclasses.field(default_factory=lambda: Bar(0, start=0, shown=False))
    interruption: Interruption = dataclasses.field(default_factory=Interruption)
    saved_at: float = dataclasses.field(default_factory=time.monotonic)

    def until_the_end(self) -> None:
        options, state = self.options, self.state
        while state.ended is None:
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
            if improved or late or state.ended or (options.save_every and state.step % options.save_every == 0):
                self.save()
            if improved:
                self.keep_best()                                   # after `save`: best/ is never ahead of the checkpoint

    def step(self) -> tuple[float, float]:
        """One update. Returns the gradient's norm before clipping and the learning rate."""
        began, before = time.perf_counter(), Randomness.take(self.device)
        picked = self.order.take(self.options.accumulate)
        batches: list[Any] = []
        losses: list[Tensor] = []
        counts: list[Tensor] = []
        self.optimizer.zero_grad(set_to_none=True)
        for rows in picked:
            batch = move(self.collate([self.examples[i] for i in rows.tolist()]), self.device)
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
                total, count = self.loss(self.model, batch)
            if total.ndim or not total.requires_grad:
                what = "does not depend on a parameter that learns" if not total.ndim else f"has the shape {list(total.shape)}"
                raise ConfigError(f"The loss {what}.", fix="Return (sum of losses, weight), the sum a tensor without dimensions.")
            total.backward()  # type: ignore[no-untyped-call]
            batches.append(batch)
            losses.append(total.detach())
            counts.append(torch.as_tensor(count, device=self.device))
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        dtype = torch.promote_types(norm.dtype, torch.float32)
        *numbers, length = torch.stack([value.to(dtype) for value in (*losses, *counts, norm)]).tolist()       # the step's only wait for a GPU
        summed, weight = math.fsum(numbers[: len(losses)]), math.fsum(numbers[len(losses) :])
        if not (math.isfinite(summed) and math.isfinite(length) and math.isfinite(weight)):
            self.fail(numbers[: len(losses)], length, picked, batches, before)
        rate = self.factor(self.state.step)
        if weight > 0:                                             # a batch without a target teaches nothing; decay and momentum must wait, too
            clip = self.options.clip
            scale = 1 / weight if clip is None else min(1.0, clip / (length / weight + 1e-6)) / weight
            torch._foreach_mul_(gradients, scale)
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * rate
            self.optimizer.step()
        self.state.step += 1
        self.state.place = self.order.state()
        seconds, tokens = time.perf_counter() - began, float(sum(int(self.order.lengths[rows].sum()) for rows in picked))
        self.state.seconds += seconds
        self.state.window = [a + b for a, b in zip(self.state.window, (summed, weight, tokens, seconds), strict=True)]
        self.state.stretch = [a + b for a, b in zip(self.state.stretch, (summed, weight), strict=True)]
        self.bar.advance()
        return length / weight if weight else 0.0, self.optimizer.param_groups[0]["lr"]

    def say(self, norm: float, rate: float) -> None:
        summed, weight, tokens, seconds = self.state.window
        self.state.window = [0.0, 0.0, 0.0, 0.0]
        loss = _mean(summed, weight)
        self.log.write({
            "event": "step", "step": self.state.step, "epoch": self.epoch(), "loss": loss, "rate": rate, "norm": norm,
            "tokens_per_second": tokens / max(seconds, 1e-9), "seconds": self.state.seconds,
        })  # fmt: skip
        self.bar.tell(loss=loss, **({self.state.best["metric"]: self.state.best["value"]} if self.state.best else {}))

    def look(self) -> bool:
        """Evaluate; True if this is the best so far."""
        state, values, began = self.state, {}, time.perf_counter()
        if self.evaluate is not None:
            modes = [(module, module.training) for module in self.model.modules()]
            self.model.eval()
            with isolated(self.device), torch.no_grad():           # how often one looks must not change what is learned
                values = {name: float(value) for name, value in self.evaluate(self.model).items()}
            for module, mode in modes:
                module.training = mode
        state.seconds += time.perf_counter() - began
        record = {"step": state.step, "epoch": self.epoch(), "loss": _mean(*state.stretch), **values}
        state.stretch = [0.0, 0.0]
        state.history.append(record)
        self.log.write({"event": "evaluate", **record, "seconds": state.seconds})
        if self.evaluate is None:
            return False
        metric = self.monitor.removeprefix("-")
        if metric not in values:
            raise ConfigError(f"monitor is {metric!r}, but the evaluation gave {', '.join(values) or 'nothing'}.", fix="Choose one of these.")
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
        if self.out is not None:
            self.state.log = self.log.sync()
            record = {"identity": self.identity, "environment": _environment(self.device), "run": dataclasses.asdict(self.state)}
            checkpoint.save(self.out / "checkpoint", self.model, self.optimizer, Randomness.take(self.device), record)
        self.saved_at = time.monotonic()

    def keep_best(self) -> None:
        assert self.state.best is not None
        if self.out is not None:
            checkpoint.save_weights(self.out / "best", self.model, self.state.best)
        else:
            self.best_weights = {name: tensor.clone() for name, tensor in checkpoint.weights(self.model).items()}

    def restore(self, record: dict[str, Any]) -> int:
        assert self.out is not None
        randomness = checkpoint.load(self.out / "checkpoint", self.model, self.optimizer, record)
        self.state = _State(**record["run"])
        self.order.restore(self.state.place)
        if self.state.best is not None and self.state.best["step"] == self.state.step:
            self.keep_best()                                       # the kill may have come before it was written
        here = _environment(self.device)
        for name in ("device", "threads"):
            if (before := record["environment"].get(name)) != here[name]:
                warnings.warn(f"This run began with {name} {before}, goes on with {here[name]}: sums may differ in their last bits.", stacklevel=4)
        randomness.put(self.device)
        return self.state.step

    def result(self, resumed: int | None) -> Result:
        state = self.state
        if state.best is not None and state.best["step"] != state.step:
            if self.out is not None:
                checkpoint.load_weights(self.out / "best", self.model)
            elif self.best_weights is not None:
                checkpoint.put_weights(self.model, self.best_weights, where=Path("best"))
        self.optimizer.zero_grad(set_to_none=True)
        self.model.eval()
        value, step = (state.best["value"], state.best["step"]) if state.best else (None, None)
        loss = state.history[-1]["loss"] if state.history else math.nan
        return Result(state.step, state.ended or "", loss, value, step, tuple(state.history), state.seconds, resumed)

    def fail(self, losses: list[float], norm: float, picked: Sequence[Any], batches: list[Any], before: Randomness) -> None:
        """Keep the state before this step and the batches that spoiled it, then say so."""
        bad = [i for i, value in enumerate(losses) if not math.isfinite(value)] or list(range(len(losses)))
        rows = [picked[i].tolist() for i in bad]
        what = "gradient" if len(bad) == len(losses) and math.isfinite(math.fsum(losses)) else "loss"
        step = self.state.step + 1
        self.log.write({"event": "fail", "step": step, "losses": losses, "norm": norm, "examples": rows})
        self.order.restore(self.state.place)
        self.optimizer.zero_grad(set_to_none=True)
        kept = ""
        if self.out is not None:
            before.put(self.device)
            self.save()
            facts = {"step": step, "losses": [str(value) for value in losses], "norm": str(norm), "rows": rows}
            dump(self.out / "bad_batch", facts, [batches[i] for i in bad], [[self.examples[r] for r in part] for part in rows])
            kept = f" The batch is in {self.out / 'bad_batch'}, the state before it in {self.out / 'checkpoint'}."
        named = ", ".join(map(str, rows[0][:8])) + (" …" if len(rows[0]) > 8 else "")
        raise FishpawError(
            f"Step {step}: the {what} is {losses[bad[0]] if what == 'loss' else norm} (examples {named}).{kept}",
            fix="Look at these examples, lower the learning rate, or warm up for longer, and start anew.",
        )


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _total_steps(options: Options, order: Order) -> int:
    if options.steps is not None:
        return options.steps
    whole, part = divmod(options.epochs, 1)
    each = [-(-order.count(epoch) // options.accumulate) for epoch in range(math.ceil(options.epochs))]
    return max(1, sum(each[: int(whole)]) + (math.ceil(part * each[-1]) if part else 0))


def _stored(out: Path, identity: dict[str, Any], resume: bool) -> dict[str, Any] | None:
    """The record of a run that can go on, None if a new one begins (then its remains are gone)."""
    folder = out / "checkpoint"
    if resume and checkpoint.exists(folder):
        record = checkpoint.read_record(folder)
        differing = checkpoint.differences(record["identity"], identity)
        if differing:
            raise CheckpointError(
                f"{out}: holds another run: {'; '.join(differing[:20])}.",
                fix="Go on with what it began with, choose another folder, or start anew (resume=False removes it).",
            )
        return record
    for name in ("checkpoint", "best", "bad_batch"):
        recover(out / name)
        if checkpoint.exists(out / name):
            shutil.rmtree(out / name)
    return None


def _identity(options: Options, order: Order, optimizer: torch.optim.Optimizer, monitor: str, digest: str) -> dict[str, Any]:
    return {
        "options": {name: value for name, value in dataclasses.asdict(options).items() if name not in WITHOUT_EFFECT},
        "data": {"examples": len(order.lengths), "tokens": int(order.lengths.sum()), "digest": digest},
        "optimizer": type(optimizer).__name__,
        "monitor": monitor,
        "torch": str(torch.__version__),
    }


def _environment(device: torch.device) -> dict[str, Any]:
    return {"device": device.type, "threads": torch.get_num_threads()}


def _facts(run: _Run) -> dict[str, Any]:
    try:
        version = metadata.version("fishpaw")
    except metadata.PackageNotFoundError:                          # run from a source folder
        version = "unknown"
    return {
        "options": dataclasses.asdict(run.options),
        "steps": run.total,
        "examples": len(run.order.lengths),
        "tokens": int(run.order.lengths.sum()),
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "versions": {"fishpaw": version, "python": platform.python_version(), "torch": str(torch.__version__), "numpy": numpy.__version__},
        **_environment(run.device),
    }


def _mean(total: float, weight: float) -> float:
    return total / weight if weight else 0.0
