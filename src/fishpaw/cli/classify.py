"""The verbs of the task classify: train, evaluate, predict."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Annotated

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
    Rows,
    Seed,
    SkipBad,
    check_task,
    device_of,
    labelled,
    parts_of,
    refuse_beside,
    source_of,
    with_parts,
)
from fishpaw.cli.influence import train_with_path
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
from fishpaw.errors import DataError
from fishpaw.hub import SMALL
from fishpaw.terminal import decoded, tell, write, write_figures, write_json

if TYPE_CHECKING:
    from fishpaw.data.labelled import LabelledText
    from fishpaw.tasks.classify import Classify, Prediction

__all__ = ["evaluate_classify", "predict_classify", "train_classify"]


def train_classify(
    data: Data,
    out: Out,
    dev: Annotated[str | None, typer.Option(help="Examples to choose the best weights by.")] = None,
    model: Start = SMALL,
    labels: Annotated[str | None, typer.Option(help="The labels, by commas; default: those in the data, sorted.")] = None,
    multi_label: Annotated[bool, typer.Option("--multi-label", help="Any number of labels may hold at once: jsonl with "
                                              '"labels": ["a", "b"] (or []), or a,b in the label\'s column.')] = False,
    epochs: Epochs = 3.0,
    steps: Steps = None,
    batch_size: Annotated[int, typer.Option(help="Rows a batch.")] = 32,
    accumulate: Accumulate = 1,
    learning_rate: LearningRate = None,
    warmup: Warmup = 0.1,
    weight_decay: WeightDecay = 0.01,
    max_length: Annotated[int | None, typer.Option(help="Tokens a text; longer ones are cut on the right. Default: 128, of a trained task "
                                                   "its own; never beyond the model's positions.")] = None,
    family: Annotated[str | None, typer.Option(help="bert, t5_encoder or another, where the checkpoint doesn't tell.")] = None,
    change: Changes = None,
    precision: Precision = "fp32",
    evaluate_every: EvaluateEvery = None,
    patience: Patience = None,
    restart: Restart = False,
    keep_path: Annotated[int | None, typer.Option(min=1, metavar="N", help="Keep N checkpoints in OUT/path, for `explain --by-examples`: "
                                                  "a plain training to the last step, without momentum, decay and dropout.")] = None,
    skip_bad: SkipBad = 0,
    seed: Seed = 0,
    device: Device = "auto",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Train a classifier on text<TAB>label (or a<TAB>b<TAB>label) lines. The same command again goes on where a stopped run was."""
    from fishpaw.demo import curve
    from fishpaw.tasks.classify import Classify, small
    from fishpaw.train.options import Options

    start = origin(model)
    if keep_path is not None:
        refuse_beside("--keep-path", {
            "--dev": dev is not None, "--accumulate": accumulate != 1, "--weight-decay": weight_decay != 0.01,
            "--precision": precision != "fp32", "--evaluate-every": evaluate_every is not None, "--patience": patience is not None,
            "--restart": restart,
        })  # fmt: skip
    options = Options(
        epochs=epochs, steps=steps, batch_size=batch_size, accumulate=accumulate, warmup=warmup, weight_decay=weight_decay,
        learning_rate=usual(learning_rate, start),
        precision=precision,  # type: ignore[arg-type]  # Options refuses other words by name
        evaluate_every=evaluate_every, patience=patience, seed=seed,
    )  # fmt: skip
    changes, place = prepared(data, dev, out, start, family, change, device, of_its_own=("heads", "vocab_size"))
    examples = labelled(data, limit=limit, skip_bad=skip_bad, multi_label=multi_label)
    held_out = labelled(dev, skip_bad=skip_bad, multi_label=multi_label) if dev else None
    names = parts_of(labels) if labels else sorted({label for one in examples for label in one.labels})
    if not labels and len(examples) >= 20 and 2 * len(names) > len(examples):
        what = f"{data}: {len(names)} labels for {len(examples)} examples: is the label column the last one?"
        raise DataError(what, fix="Name the columns in the first row (text, label), or give --labels if they are right.")
    if start is None:
        texts = [text for one in examples for text in (one.text, one.pair) if text]
        length, shape = 128 if max_length is None else max_length, small(1).change(changes)
        task = Classify.new(texts, names, config=shape, multi_label=multi_label, max_length=length, seed=seed)
    else:
        task = Classify.load(start, labels=names, multi_label=multi_label, max_length=max_length, seed=seed, family=family, changes=changes)
    task.model.to(place)
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    what = f"log: {out / 'log.jsonl'}" if keep_path is None else f"path: {out / 'path'}"
    tell(f"fishpaw: {len(examples)} examples, {len(names)} labels ({shown}), on {place}; {what}")
    if keep_path is not None:
        train_with_path(task, examples, out, checkpoints=keep_path, steps=steps, epochs=epochs, batch_size=batch_size, warmup=warmup,
                        learning_rate=options.learning_rate, seed=seed, as_json=as_json)  # fmt: skip
        return
    fit = partial(task.fit, examples, held_out, options=options, out=out, resume=not restart)
    run(fit, curve, out, as_json)


def evaluate_classify(
    model: Model, data: Data, batch_size: Rows = 64, skip_bad: SkipBad = 0, device: Device = "auto", limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Accuracy, F1 and loss on labelled examples, beside what the most frequent label scores."""
    examples = labelled(data, limit=limit, skip_bad=skip_bad)
    task = _classifier(model, device)
    if task.multi_label:
        examples = [with_parts(one) for one in examples]
    write_figures(task.evaluate(examples, batch_size=batch_size), as_json)


def predict_classify(
    model: Model,
    text: Annotated[str | None, typer.Argument(help="A text; default: the lines of --data.")] = None,
    data: Lines = None,
    batch_size: Rows = 64,
    device: Device = "auto",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Label each line (text, or a<TAB>b): label, probability and text by tabs, in their order."""
    from fishpaw.data.labelled import LabelledText, read_texts
    from fishpaw.tasks.classify import pairs_of

    source = source_of(text, data)
    task = _classifier(model, device)
    examples = islice(read_texts(source), limit) if source else iter([LabelledText(decoded(text or ""))])

    def predict(some: list[LabelledText]) -> Iterator[Prediction]:
        return task.stream([one.text for one in some], pairs_of(some), batch_size=batch_size)

    answered(examples, partial(in_chunks, size=16 * batch_size, predict=predict, source=source),
             partial(_write_prediction, as_json=as_json), source=source)  # fmt: skip


def _classifier(model: str, device: str) -> Classify:
    from fishpaw.tasks.classify import Classify

    place = device_of(device)
    check_task(model, "classify")
    task = Classify.load(model)
    task.model.to(place)
    return task


def _write_prediction(example: LabelledText, prediction: Prediction | None, as_json: bool) -> None:
    if as_json:
        labels, probabilities = (None, None) if prediction is None else (prediction.labels, prediction.probabilities)
        write_json({"text": example.text, "pair": example.pair, "labels": labels, "probabilities": probabilities})
        return
    if prediction is None:
        write("")
        return
    shares = ",".join(f"{prediction.probabilities[label]:.4f}" for label in prediction.labels)
    texts = example.text if example.pair is None else f"{example.text}\t{example.pair}"
    write(f"{','.join(prediction.labels)}\t{shares}\t{texts}")
