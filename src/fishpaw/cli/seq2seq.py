"""The verbs of the task seq2seq: train, evaluate, predict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fishpaw.cli.answers import answered, in_chunks
from fishpaw.cli.arguments import (
    Changes,
    Data,
    Device,
    Json,
    Limit,
    Lines,
    Model,
    Seed,
    SkipBad,
    check_task,
    device_of,
    parts_of,
    source_of,
)
from fishpaw.cli.training import (
    Accumulate,
    Epochs,
    EvaluateEvery,
    LearningRate,
    Out,
    Patience,
    Precision,
    Restart,
    Start,
    Steps,
    Warmup,
    WeightDecay,
    origin,
    prepared,
    run,
    usual,
)
from fishpaw.errors import ConfigError, DataError
from fishpaw.hub import SMALL
from fishpaw.terminal import decoded, tell, write, write_figures, write_json

if TYPE_CHECKING:
    from fishpaw.data.labelled import LabelledText
    from fishpaw.data.pairs import Fields, Pair
    from fishpaw.tasks.seq2seq import Answer, Monitor, Seq2Seq

__all__ = ["evaluate_seq2seq", "predict_seq2seq", "train_seq2seq"]

Names = Annotated[str | None, typer.Option("--fields", metavar="SOURCE,TARGET", help="Names in jsonl, or in a table's first row; default: "
                  "source (or text, content, question) and target (title, summary, answer).")]  # fmt: skip
Beams = Annotated[int, typer.Option(help="Width of the beam search; 1: greedy.")]
Penalty = Annotated[float | None, typer.Option(help="Of the beam search; above 0 favours long answers.")]
New = Annotated[int | None, typer.Option(help="Tokens of an answer at most; default: the task's own.")]
Texts = Annotated[int, typer.Option(min=1, help="Texts at once.")]


def train_seq2seq(
    data: Data,
    out: Out,
    dev: Annotated[str | None, typer.Option(help="Pairs to choose the best weights by.")] = None,
    model: Start = SMALL,
    fields: Names = None,
    monitor: Annotated[str, typer.Option(help="What of --dev is to be best: loss, or of answers, which takes longer: rouge, bleu, "
                                         "exact.")] = "loss",
    epochs: Epochs = 3.0,
    steps: Steps = None,
    batch_size: Annotated[int, typer.Option(help="Rows a batch.")] = 32,
    accumulate: Accumulate = 1,
    learning_rate: LearningRate = None,
    warmup: Warmup = 0.1,
    weight_decay: WeightDecay = 0.01,
    max_length: Annotated[int | None, typer.Option(help="Tokens a source; longer ones are cut on the right. Default: 256, of a trained "
                                                   "task its own; both together never beyond the model's positions.")] = None,
    max_new: Annotated[int | None, typer.Option(help="Tokens a target, its end included; longer ones are cut, too. Default: 64, of a "
                                                "trained task its own.")] = None,
    family: Annotated[str | None, typer.Option(help="bert, t5 or another, where the checkpoint doesn't tell.")] = None,
    change: Changes = None,
    precision: Precision = "fp32",
    evaluate_every: EvaluateEvery = None,
    patience: Patience = None,
    restart: Restart = False,
    skip_bad: SkipBad = 0,
    seed: Seed = 0,
    device: Device = "auto",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Train on source<TAB>target lines: titles, summaries, answers; an encoder becomes a UniLM. The same command again goes on where a
    stopped run was."""
    from fishpaw.tasks.classify import small
    from fishpaw.tasks.seq2seq import Seq2Seq
    from fishpaw.train.options import Options

    monitors: dict[str, Monitor] = {"loss": "-loss", "rouge": "rouge", "bleu": "bleu", "exact": "exact"}
    if monitor not in monitors:
        raise ConfigError(f"--monitor {monitor} is no figure.", fix="Choose loss, rouge, bleu or exact.")
    if monitor != "loss" and dev is None:
        raise ConfigError(f"--monitor {monitor} is given without --dev.", fix="Add --dev, or leave it out.")
    start = origin(model)
    options = Options(
        epochs=epochs, steps=steps, batch_size=batch_size, accumulate=accumulate, warmup=warmup, weight_decay=weight_decay,
        learning_rate=usual(learning_rate, start),
        precision=precision,  # type: ignore[arg-type]  # Options refuses other words by name
        evaluate_every=evaluate_every, patience=patience, seed=seed,
    )  # fmt: skip
    names = _fields(fields)
    changes, place = prepared(data, dev, out, start, family, change, device,
                              of_its_own=("heads", "mask", "vocab_size") if start is None else ())  # fmt: skip
    pairs = _pairs(data, names, limit=limit, skip_bad=skip_bad)
    held_out = _pairs(dev, names, skip_bad=skip_bad) if dev else None
    if start is None:
        lengths = {name: value for name, value in (("max_length", max_length), ("max_new", max_new)) if value is not None}
        task = Seq2Seq.new(pairs, config=small(1).change(changes), seed=seed, **lengths)
    else:
        task = Seq2Seq.load(start, max_length=max_length, max_new=max_new, family=family, changes=changes)
    task.model.to(place)
    tell(f"fishpaw: {len(pairs)} examples, on {place}; log: {out / 'log.jsonl'}")
    fit = partial(task.fit, pairs, held_out, options=options, out=out, monitor=monitors[monitor], resume=not restart)
    run(fit, _curve, out, as_json)


def evaluate_seq2seq(
    model: Model, data: Data, fields: Names = None, beams: Beams = 1, length_penalty: Penalty = None, max_new: New = None,
    batch_size: Texts = 32, skip_bad: SkipBad = 0, device: Device = "auto", limit: Limit = None, as_json: Json = False,
) -> None:
    """Loss, and of what is written ROUGE, BLEU (of characters in lower case, without blanks) and the share that is right throughout.
    --max-new cuts the targets of the loss, too."""
    _check_penalty(beams, length_penalty)
    pairs, task = _pairs(data, _fields(fields), limit=limit, skip_bad=skip_bad), _task(model, device, max_new)
    write_figures(task.evaluate(pairs, beams=beams, length_penalty=length_penalty or 0.0, max_new=max_new, batch_size=batch_size), as_json)


def predict_seq2seq(
    model: Model,
    text: Annotated[str | None, typer.Argument(help="A text; default: the lines of --data.")] = None,
    data: Lines = None,
    fields: Names = None,
    beams: Beams = 1,
    length_penalty: Penalty = None,
    max_new: New = None,
    batch_size: Texts = 32,
    device: Device = "auto",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Write an answer for each line (source, or source<TAB>target, whose target isn't read), in their order. An answer may hold line
    ends; --json keeps each on one line, and says by "ended" whether it came to its end before --max-new."""
    from fishpaw.data.labelled import LabelledText
    from fishpaw.data.pairs import read_sources

    _check_penalty(beams, length_penalty)
    source = source_of(text, data)
    names, task = _fields(fields), _task(model, device, max_new)

    def lines() -> Iterator[LabelledText]:
        if not source:
            yield LabelledText(decoded(text or ""))
            return
        for one in islice(read_sources(source, fields=names), limit):
            yield LabelledText(one.source, file=one.file, line=one.line)

    def predict(some: list[LabelledText]) -> Iterator[Answer]:
        return task.stream([one.text for one in some], beams=beams, length_penalty=length_penalty or 0.0, max_new=max_new,
                           batch_size=batch_size)  # fmt: skip

    def tell_answer(line: LabelledText, found: Answer | None) -> None:
        if as_json:
            figures = dict.fromkeys(("text", "score", "ended")) if found is None else asdict(found)
            write_json({"source": line.text, **figures})
        else:
            write("" if found is None else found.text)

    answered(lines(), partial(in_chunks, size=16 * batch_size, predict=predict, source=source), tell_answer, source=source)


def _fields(given: str | None) -> Fields | None:
    if given is None:
        return None
    names = parts_of(given)
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        raise ConfigError(f"--fields {given}: two names are wanted.", fix="Write --fields abstract,title, for example.")
    return names[0], names[1]


def _pairs(path: str, fields: Fields | None, *, limit: int | None = None, skip_bad: int = 0) -> list[Pair]:
    """The pairs of a file or of standard input, at least one."""
    from fishpaw.data.pairs import read_pairs

    source_of(None, path)
    if not (pairs := list(islice(read_pairs(path, fields=fields, skip_bad=skip_bad), limit))):
        raise DataError(f"{'standard input' if path == '-' else path}: no pair.", fix="Write source<TAB>target on each line.")
    return pairs


def _check_penalty(beams: int, length_penalty: float | None) -> None:
    if length_penalty is not None and beams == 1:
        raise ConfigError("--length-penalty is for the beam search.", fix="Add --beams 4, for example.")


def _task(model: str, device: str, max_new: int | None) -> Seq2Seq:
    """max_new counts here, too: a model with few positions has room for fewer tokens than a task has by default."""
    from fishpaw.tasks.seq2seq import Seq2Seq

    place = device_of(device)
    check_task(model, "seq2seq")
    task = Seq2Seq.load(model, max_new=None if max_new is None else max(2, max_new))
    task.model.to(place)
    return task


def _curve(record: dict[str, Any]) -> str | None:
    from fishpaw.demo import curve

    line = curve(record)
    return line and line + "".join(f"  dev {name} {record[name]:.3f}" for name in ("loss", "rouge", "bleu", "exact") if name in record)
