"""The main job from end to end: train a small RoFormer on reviews, evaluate it on unseen ones, predict new ones, save it."""

from __future__ import annotations

import os
import random
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fishpaw.data.labelled import LabelledText, read_labelled
from fishpaw.errors import DataError
from fishpaw.tasks.classify import Classify
from fishpaw.train.options import Options

__all__ = ["NEW", "Reviews", "curve", "data_folder", "demo", "reviews"]

NEW = ("房间干净，前台很热情，下次还住这里。", "屏幕有坏点，客服推来推去，后悔买了。", "故事拖沓，看到一半就睡着了。")
_SHARED = Path("classification") / "sentiment_bert4keras"
_NAMES = {"0": "neg", "1": "pos"}


@dataclass(frozen=True)
class Reviews:
    """train to learn from, unseen to evaluate on, and where they are from, in words."""

    train: list[LabelledText]
    unseen: list[LabelledText]
    source: str


def reviews(data: Path | None) -> Reviews:
    """The reviews below a data folder, or, without one, those that come with fishpaw. DataError for a folder that lacks them."""
    if data is None:
        folder = _bundled()
        parts = [_read(folder / name) for name in ("reviews.tsv", "reviews.dev.tsv")]
        return Reviews(parts[0], parts[1], f"{len(parts[0])} reviews written for fishpaw: too few to learn more than the rudiments")
    folder = data / _SHARED
    train, unseen = (_read(_plain_or_packed(folder / f"sentiment.{part}.data")) for part in ("train", "valid"))
    return Reviews(train, unseen, f"{len(train)} reviews in {folder}")


def demo(say: Callable[[str], None], *, out: Path, data: Path | None = None, seed: int = 0, steps: int | None = None) -> dict[str, Any]:
    """Run it all, telling each stage to `say`; under a minute on two cores. Returns the figures."""
    found = reviews(data)
    say(f"Data: {found.source}; {len(found.unseen)} unseen ones to evaluate on.")
    mixed = list(found.train)
    random.Random(seed).shuffle(mixed)
    held = min(400, max(40, len(mixed) // 20))
    if len(mixed) > 12_000:                                            # as many as a minute reads
        mixed = mixed[: 12_000 + held]
    dev, train = mixed[:held], mixed[held:]
    task = Classify.new([one.text for one in train], ["neg", "pos"], max_length=64, seed=seed)
    size = sum(parameter.numel() for parameter in task.model.parameters())
    say(f"Model: a RoFormer of {task.model.config.layers} layers, {size / 1e6:.1f} million parameters, from random values.")
    count = steps or (150 if len(train) < 1000 else 400)
    options = Options(steps=count, batch_size=32, learning_rate=1e-3, evaluate_every=max(1, count // 6), seed=seed, log_every=1)

    def report(record: dict[str, Any]) -> None:
        if (line := curve(record)) is not None:
            say(line)

    say(f"Training: {count} steps of 32 of {len(train)} reviews; accuracy on {held} others, held out:")
    result = task.fit(train, dev, options=options, out=out, resume=False, report=report)
    figures = task.evaluate(found.unseen)
    say(f"Unseen reviews: accuracy {figures['accuracy']:.3f}; always answering with the most frequent label: {figures['majority']:.3f}.")
    say("New sentences:")
    predictions = task.predict(NEW)
    for text, prediction in zip(NEW, predictions, strict=True):
        label = prediction.labels[0]
        say(f"  {label} {prediction.probabilities[label]:.2f}  {text}")
    say(f"Saved: {out / 'model'} ({result.seconds:.0f} s of training). Use it again:")
    say(f"  {_command(sys.executable, '-m', 'fishpaw', 'predict', 'classify', '--model', str((out / 'model').resolve()), NEW[0])}")
    return {**figures, "steps": result.step, "seconds": result.seconds, "model": str(out / "model")}


def curve(record: dict[str, Any]) -> str | None:
    """A line of the learning curve from an evaluation's record of the log: step, mean training loss since the last one, accuracy."""
    if record.get("event") != "evaluate":
        return None
    line = f"  step {record['step']:>5}  loss {record['train_loss']:.3f}"
    if (share := record.get("accuracy")) is None:
        return line
    return f"{line}  accuracy {share:.3f} {'█' * round(40 * share)}"


def _command(*words: str) -> str:
    """A command to paste into this system's shell."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def _bundled() -> Path:
    here = Path(__file__).resolve().parent
    for folder in (here / "examples", here.parents[1] / "examples" / "data"):
        if (folder / "reviews.tsv").is_file():
            return folder
    raise DataError(f"The bundled reviews are missing from {here}.", fix="Install fishpaw again, or set FISHPAW_DATA.")


def _plain_or_packed(path: Path) -> Path:
    for name in (path, path.with_name(path.name + ".gz")):
        if name.is_file():
            return name
    raise DataError(f"{path}: no such file, nor {path.name}.gz.", fix="Without FISHPAW_DATA and --data the bundled reviews are used.")


def data_folder() -> Path | None:
    """The folder that FISHPAW_DATA names, if it is set."""
    named = os.environ.get("FISHPAW_DATA")
    return Path(named) if named else None


def _read(path: Path) -> list[LabelledText]:
    return [
        LabelledText(one.text, one.pair, tuple(_NAMES.get(label, label) for label in one.labels), one.file, one.line)
        for one in read_labelled(path, format="tsv")
    ]
