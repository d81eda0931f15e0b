"""explain --by-examples: which training examples pushed a classifier's prediction; train classify --keep-path: the training that tells."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fishpaw.cli.answers import answered, in_chunks
from fishpaw.cli.arguments import device_of, labelled, refuse_tab
from fishpaw.errors import ConfigError
from fishpaw.terminal import decoded, tell, write, write_figures, write_json

if TYPE_CHECKING:
    from fishpaw.data.labelled import LabelledText
    from fishpaw.tasks.classify import Classify
    from fishpaw.tasks.influence import Answer

__all__ = ["explain_by_examples", "train_with_path"]

_TOGETHER = 8                                                        # texts, whose gradients are held at once
_MISSED = 0.1
"""Share of the sizes of all contributions by which their sum may miss what training did before a line says so."""
_UNASKED = dict.fromkeys(("label", "start", "end", "examples", "total", "error", "size"))


def explain_by_examples(
    lines: Iterator[LabelledText], *, model: str, train: str, path: Path | None, label: str | None, top: int, device: str, source: str,
    as_json: bool,
) -> None:  # fmt: skip
    """A text's label, its log-odds and the text, by tabs; below it the examples with what each added. An object a text with as_json.

    train: the examples that the model was trained on, in order. path: the checkpoints that tasks.influence kept, if it did.
    """
    from tqdm.auto import tqdm

    from fishpaw.tasks.classify import Classify
    from fishpaw.tasks.influence import Influence

    task = Classify.load(model)
    task.model.to(device_of(device))
    influence = Influence(task, labelled(train, multi_label=task.multi_label), checkpoints=path)

    def explained(some: list[LabelledText]) -> list[Answer]:
        for line in some:
            refuse_tab(line, task.pairs)
        pairs = None if some[0].pair is None else [one.pair or "" for one in some]
        labels = None if label is None else [decoded(label)] * len(some)
        with tqdm(total=influence.work, unit="example", dynamic_ncols=True, delay=1, leave=False, disable=None) as bar:
            return influence.of([one.text for one in some], pairs, labels=labels, top=top, tell=bar.update)

    missed = 0

    def tell_examples(line: LabelledText, one: Answer | None) -> None:
        nonlocal missed
        missed += one is not None and one.error is not None and one.start is not None and (
            abs(one.error) > min(_MISSED * one.size, abs(one.end - one.start)))
        if as_json:
            write_json({"text": line.text, "pair": line.pair, **_UNASKED} if one is None else asdict(one))
            return
        write("" if one is None else "\t".join([one.label, f"{one.end:+.3f}", *filter(None, (one.text, one.pair))]))
        for each in () if one is None else one.examples:
            write("\t".join([f"  {each.contribution:+.4f}", ",".join(each.labels), *filter(None, (each.text, each.pair))]))

    answered(lines, partial(in_chunks, size=_TOGETHER, predict=explained, source=source), tell_examples, source=source)
    if path is None:
        tell("fishpaw: without --path: what one more step on each example would do, divided by its rate; not what the training did")
    if missed:
        tell(f"fishpaw: of {missed} {'text' if missed == 1 else 'texts'} the contributions miss what the training did by more than "
             f"{_MISSED:.0%} of their size, or by more than it did: look at their order, not at their sum, or train with a smaller "
             "--learning-rate or a larger --keep-path")


def train_with_path(
    task: Classify, examples: list[LabelledText], out: Path, *, checkpoints: int, steps: int | None, epochs: float, batch_size: int,
    learning_rate: float, warmup: float, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Train by Influence.fit, which keeps OUT/path beside OUT/model, and say how the loss went. Figures: those of other trainings.
    ConfigError for more checkpoints than steps, and for an OUT that holds another kind of training."""
    from fishpaw.tasks.influence import Influence

    total = max(1, math.ceil(epochs * math.ceil(len(examples) / max(1, batch_size)))) if steps is None else steps
    if checkpoints > total:
        raise ConfigError(f"--keep-path {checkpoints}, but there are {total} steps.", fix="Lower it, or raise --steps or --epochs.")
    if (out / "log.jsonl").exists():
        raise ConfigError(f"--out {out} holds a run without a path.", fix="Choose another folder.")
    began, losses = time.perf_counter(), list[float]()

    def told(step: int, loss: float) -> None:
        losses.append(loss)
        if step * 10 // total > (step - 1) * 10 // total:
            tell(f"  step {step:>5}  loss {loss:.3f}")

    Influence.fit(task, examples, out, steps=total, batch_size=batch_size, learning_rate=learning_rate, warmup=warmup,
                  checkpoints=checkpoints, seed=seed, tell=told)  # fmt: skip
    write_figures({"step": total, "stopped": "steps", "loss": losses[-1], "best": None, "best_step": None,
                   "seconds": time.perf_counter() - began, "model": str(out / "model")}, as_json)  # fmt: skip
