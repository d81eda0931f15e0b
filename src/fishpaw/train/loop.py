"""Training: from examples to weights, the same weights bit for bit however often the process was killed on the way.

Nothing depends on time, workers or an earlier life of the process: the order comes from (seed, epoch) alone; weights, optimiser,
random states and all counters are in the checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy
import torch
from torch import Tensor, nn

from fishpaw.data.fingerprint import fingerprint
from fishpaw.data.order import Order
from fishpaw.errors import CheckpointError, ConfigError
from fishpaw.files import lock, recover
from fishpaw.optim.adamw import adamw
from fishpaw.optim.derive import Derived, describe
from fishpaw.optim.schedules import Schedule, linear
from fishpaw.train import checkpoint
from fishpaw.train.interruption import Interruption
from fishpaw.train.launch import company
from fishpaw.train.log import Bar, Log
from fishpaw.train.options import WITHOUT_EFFECT, Options, autocast_dtype
from fishpaw.train.randomness import isolated, seed
from fishpaw.train.run import Run, environment
from fishpaw.train.team import Parallel, Team
from fishpaw.train.throughput import meter

__all__ = ["Result", "fit"]

Example = TypeVar("Example")


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run went. history: a record an evaluation (step, epoch, train_loss since the last one, metrics): the learning curve."""

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
    length: Callable[[Example], int] | Sequence[int] = len,  # type: ignore[assignment]  # examples have a length, or this is given
    out: str | Path | None = None,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    monitor: str = "accuracy",
    resume: bool = True,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    schedule: Callable[[int], Schedule] | None = None,
    digest: str | None = None,
    identity: Mapping[str, Any] | None = None,
    parallel: Parallel = "replicated",
    progress: bool | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> Result:
    """Train `model` in place on the device where it is, and leave the best weights in it (the last ones without `evaluate`), in eval mode.

    loss(model, batch) -> (sum of losses [], what it counts: rows, tokens): called in training mode on what `collate` made of a list of
    examples, moved to the model's device. examples with a method visit(index, epoch) are asked by it (run.Visited). length: of an example,
    in tokens, or those of all. evaluate(model) -> metrics: in eval mode, without gradients; larger `monitor` is better, smaller if it
    begins with "-" ("-loss"). optimizer: of the model (default AdamW); schedule: from all steps to a factor a step (default linear).

    out: folder of the run: log.jsonl, checkpoint/ (to go on), best/ (weights), bad_batch/ (if the loss fails); None: nothing is
    written. A run that is found there goes on to the same bits, or, if it had ended, its result is returned; `resume=False` removes
    it. digest: stands for the content of `examples`, if that can't be looked through (see data/fingerprint). identity: what else the
    run depends on (labels, what it is evaluated on, …), plain values by name; kept in the checkpoint, and one with others is refused.
    progress: show a bar; None: on a terminal. report: called with each record of the log.

    Several processes (torchrun, or an initialised torch.distributed) call it alike and make one run: the update is that of one process if
    the loss is a sum over rows. Each evaluates, the values of process 0 count; it alone writes, reads and reports, in the same files, so
    that a run goes on with another number of processes. parallel: "replicated": the model is whole in each; "sharded": weights, gradients
    and optimiser state are spread over all during the run. An error in one ends all; those that didn't cause it leave with SystemExit.

    Random states are seeded with options.seed inside and given back as they were. Ctrl-C and SIGTERM: the step is ended and saved, then
    KeyboardInterrupt or SystemExit(143); the second one acts at once.
    Raises CheckpointError for a run in `out` with other options, data, identity or torch; FishpawError when loss or gradient is nan or
    infinite (nothing was learned from that batch; checkpoint/ is the state before it), or if `out` can't be written or another process
    trains there; ConfigError for an identity that is no JSON.
    """
    if options.patience is not None and evaluate is None:
        raise ConfigError(f"patience is {options.patience}, but nothing is evaluated.", fix="Give examples to evaluate, or leave it out.")
    device, out = next(model.parameters()).device, None if out is None else Path(out)
    with ExitStack() as stack:
        team = stack.enter_context(company(parallel, device))
        if out is not None and team.leader:
            stack.enter_context(lock(out / "training", timeout=1.0))
        stack.enter_context(_threads(options.threads))
        stack.enter_context(isolated(device))
        lengths = [length(e) for e in examples] if callable(length) else length
        order = Order(lengths, batch_size=options.batch_size, token_budget=options.token_budget, seed=options.seed)
        total = _total_steps(options, order)
        seed(options.seed)
        model.train()
        forward = team.prepare(model, loss)
        made = optimizer(model) if optimizer else adamw(model, learning_rate=options.learning_rate, weight_decay=options.weight_decay)
        if isinstance(made, Derived) and made.accumulates:
            raise ConfigError("The optimizer accumulates gradients, and so does fit.", fix="Leave Accumulate out: set Options.accumulate.")
        team.check(made)
        for group in made.param_groups:
            group.setdefault("initial_lr", group["lr"])
        run = Run(
            model, examples, forward, collate, options, order, evaluate, monitor, made,
            factor=schedule(total) if schedule else linear(total, warmup=options.warmup),
            total=total, device=device, dtype=autocast_dtype(options, device), out=out, team=team, meter=meter(model),
        )  # fmt: skip
        if run.meter is not None:
            stack.callback(run.meter.close)
        found = None
        if out is not None or team.size > 1:
            run.identity = _agreed(_identity(options, order, made, monitor, digest or fingerprint(examples), identity or {}), team)
        if out is not None:
            found = team.told(_stored(out, run.identity, resume) if team.leader else None)
        resumed = run.restore(out, found) if out is not None and found is not None else None
        run.log = Log(
            out / "log.jsonl" if out and team.leader else None, offset=run.state.log, report=report if team.leader else None
        )  # fmt: skip
        stack.callback(run.log.close)
        if run.log.is_shortened:
            warnings.warn(f"{out}: log.jsonl has lost lines since the checkpoint; the run goes on without them.", stacklevel=2)
        if run.state.ended is None:
            run.log.write({"event": "start" if resumed is None else "resume", "step": run.state.step, **_facts(run)})
            run.bar = Bar(total, start=run.state.step, shown=progress if team.leader else False)
            stack.callback(run.bar.close)
            run.interruption = stack.enter_context(Interruption())
            run.until_the_end()
        run.finish()
        run.hear()
        run.interruption.act()                                     # it came during the last step, which is saved
        state, best = run.state, run.state.best or {}
        loss_now = state.history[-1]["train_loss"]
        return Result(
            state.step, state.ended or "", loss_now, best.get("value"), best.get("step"), tuple(state.history), state.seconds, resumed
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

    def count(epoch: int) -> int:
        return -(-order.count(epoch) // options.accumulate)

    # Only with a token budget do epochs differ; then Options bounds how many there are.
    done = int(whole) * count(0) if options.token_budget is None else sum(count(epoch) for epoch in range(int(whole)))
    return max(1, done + (math.ceil(part * count(int(whole))) if part else 0))


def _stored(out: Path, identity: dict[str, Any], resume: bool) -> dict[str, Any] | None:
    """The record of a run that can go on, None if a new one begins (then its remains are gone)."""
    folder = out / "checkpoint"
    if resume and checkpoint.exists(folder):
        record = checkpoint.read_record(folder)
        differing = checkpoint.differences(record["identity"], identity)
        # What was changed by hand says more than the digests that changed with it.
        differing = [phrase for phrase in differing if not re.search("digest was|starting weights was", phrase)] or differing
        if differing:
            raise CheckpointError(
                f"{out}: holds another run: {'; '.join(differing[:20])}.",
                fix="Go on with what it began with, choose another folder, or start anew (resume=False; --restart), which removes it.",
            )
        return record
    for name in ("checkpoint", "best", "bad_batch"):
        recover(out / name)
        if checkpoint.exists(out / name):
            shutil.rmtree(out / name)
    return None


def _identity(
    options: Options, order: Order, optimizer: torch.optim.Optimizer, monitor: str, digest: str, more: Mapping[str, Any]
) -> dict[str, Any]:
    own = {
        "options": {name: value for name, value in dataclasses.asdict(options).items() if name not in WITHOUT_EFFECT},
        "data": {"examples": len(order.lengths), "tokens": int(order.lengths.sum()), "digest": digest},
        "optimizer": describe(optimizer),
        "monitor": monitor,
        "torch": str(torch.__version__),
    }
    if taken := own.keys() & more.keys():
        raise ConfigError(f"identity names {', '.join(sorted(taken))}, which is known already.", fix="Choose another name.")
    try:
        return {**own, **json.loads(json.dumps(dict(more), allow_nan=False))}          # as it will be read again: tuples are lists
    except (TypeError, ValueError) as error:
        raise ConfigError(f"identity can't be written as JSON ({error}).", fix="Give strings, numbers, lists and dicts.") from None


def _agreed(identity: dict[str, Any], team: Team) -> dict[str, Any]:
    """The identity, which must be the same in all processes."""
    first, *others = team.every(identity)
    for rank, other in enumerate(others, 1):
        if differing := checkpoint.differences(first, other):
            what = f"Process {rank} has another run than process 0: {'; '.join(differing[:20])}."
            team.fail(ConfigError(what, fix="Give all processes the same data and options."))
    return identity


def _facts(run: Run) -> dict[str, Any]:
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
        **({"processes": run.team.size} if run.team.size > 1 else {}),
        **environment(run.device),
    }
