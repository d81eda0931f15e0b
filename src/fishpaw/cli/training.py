"""What the verbs `train` share: their options; how a run goes on stderr, what came of it on stdout; Ctrl-C leaves one that can go on."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fishpaw.cli.arguments import changes_of, check_out, device_of
from fishpaw.errors import ConfigError
from fishpaw.hub import SMALL
from fishpaw.terminal import beside_a_bar, leave, tell, write_figures

if TYPE_CHECKING:
    import torch

    from fishpaw.train.loop import Result

__all__ = [
    "Accumulate", "Epochs", "EvaluateEvery", "LearningRate", "Out", "Patience", "Precision", "Restart", "Start", "Steps", "Warmup",
    "WeightDecay", "origin", "prepared", "run", "usual",
]  # fmt: skip

Out = Annotated[Path, typer.Option("--out", "-o", help="A folder for log, checkpoints and the trained model (OUT/model).")]
Start = Annotated[str, typer.Option("--model", "-m", help="What to start from: a folder, a file, a hub id, or new: a small RoFormer from "
                                    "random values.")]  # fmt: skip
Epochs = Annotated[float, typer.Option(help="Passes over the data.")]
Steps = Annotated[int | None, typer.Option(help="Updates in all, instead of epochs.")]
Accumulate = Annotated[int, typer.Option(help="Batches an update.")]
LearningRate = Annotated[float | None, typer.Option(help=f"Its peak; default 5e-5, from {SMALL} 2e-4, of a new model 1e-3.")]
Warmup = Annotated[float, typer.Option(help="Share of the steps that lead up to it.")]
WeightDecay = Annotated[float, typer.Option(help="Of matrices.")]
Precision = Annotated[str, typer.Option(help="fp32 or bf16.")]
EvaluateEvery = Annotated[int | None, typer.Option(help="Steps between evaluations; default: an epoch.")]
Patience = Annotated[int | None, typer.Option(help="Stop after that many evaluations without a new best.")]
Restart = Annotated[bool, typer.Option("--restart", help="Begin anew, even if OUT holds a run that could go on.")]


def prepared(
    data: str, dev: str | None, out: Path, model: str | None, family: str | None, change: list[str] | None, device: str, *,
    of_its_own: Collection[str],
) -> tuple[dict[str, Any], torch.device]:  # fmt: skip
    """Before minutes of reading: the changes and the device, and ConfigError for options that exclude each other, for changes of fields
    that are the task's own and for a folder that can't be written."""
    if data == dev == "-":
        raise ConfigError("--data and --dev both read standard input.", fix="Give a file for one of them.")
    changes = changes_of(change)
    for field in of_its_own:
        if field in changes:
            raise ConfigError(f"--change {field}: the task sets it.", fix="Leave it out.")
    if model is None and family is not None:
        raise ConfigError("--family is given for a new model.", fix="Name a checkpoint with --model, or leave it out.")
    place = device_of(device)
    check_out(out)
    return changes, place


def origin(model: str) -> str | None:
    """What --model names; None for a new one."""
    return None if model == "new" and not os.path.exists(model) else model


def usual(learning_rate: float | None, model: str | None) -> float:
    """The one given, or what is usual for going on from a model, a small one, and from random values."""
    return learning_rate if learning_rate is not None else {None: 1e-3, SMALL: 2e-4}.get(model, 5e-5)


def run(
    fit: Callable[..., Result], curve: Callable[[dict[str, Any]], str | None], out: Path, as_json: bool,
    more: Callable[[], dict[str, Any]] = dict,
) -> None:  # fmt: skip
    """fit: a task's, with all but `report`. curve: a record of the log as a line, None for one that isn't shown. more: figures of one's
    own, asked for at the end."""
    say = beside_a_bar(tell)
    stopped_at: list[int] = []

    def report(record: dict[str, Any]) -> None:
        if record["event"] == "stop":
            stopped_at.append(record["step"])
        elif line := f"fishpaw: going on from step {record['step']}" if record["event"] == "resume" else curve(record):
            say(line)

    try:
        result = fit(report=report)
    except (KeyboardInterrupt, SystemExit) as error:                 # Ctrl-C; SIGTERM, or another process' fault, which that one tells
        if stopped_at or isinstance(error, KeyboardInterrupt):
            tell(f"fishpaw: stopped at step {stopped_at[0]}; the same command goes on." if stopped_at else "fishpaw: stopped.")
        if isinstance(error, SystemExit):
            raise
        leave(130)
    if result.resumed_from == result.step:
        tell("fishpaw: this run had ended; nothing was trained (--restart begins anew)")
    figures = {"step": result.step, "stopped": result.stopped, "loss": result.loss, "best": result.best, "best_step": result.best_step,
               "seconds": result.seconds, **more(), "model": str(out / "model")}
    write_figures(figures, as_json)
