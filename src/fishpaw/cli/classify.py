"""The verbs of the task classify: train, evaluate, predict."""

from __future__ import annotations

import sys
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

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
    changes_of,
    check_out,
    device_of,
    labelled,
    source_of,
    with_parts,
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
    Steps,
    Warmup,
    WeightDecay,
    run,
)
from fishpaw.errors import ConfigError, DataError
from fishpaw.terminal import decoded, tell, write, write_figures, write_json

if TYPE_CHECKING:
    from fishpaw.data.labelled import LabelledText
    from fishpaw.tasks.classify import Classify, Prediction

__all__ = ["evaluate_classify", "predict_classify", "train_classify"]


def train_classify(
    data: Data,
    out: Out,
    dev: Annotated[str | None, typer.Option(help="Examples to choose the best weights by.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="What to start from; default: a small RoFormer from nothing.")] = None,
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
    skip_bad: Annotated[int, typer.Option(min=0, help="Leave out at most that many bad lines.")] = 0,
    seed: Seed = 0,
    device: Device = "auto",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Train a classifier on text<TAB>label (or a<TAB>b<TAB>label) lines. The same command again goes on where a stopped run was."""
    from fishpaw.demo import curve
    from fishpaw.tasks.classify import Classify, small
    from fishpaw.train.options import Options

    if data == dev == "-":
        raise ConfigError("--data and --dev both read standard input.", fix="Give a file for one of them.")
    options = Options(
        epochs=epochs, steps=steps, batch_size=batch_size, accumulate=accumulate, warmup=warmup, weight_decay=weight_decay,
        learning_rate=learning_rate if learning_rate is not None else 5e-5 if model else 1e-3,
        precision=precision,  # type: ignore[arg-type]  # Options refuses other words by name
        evaluate_every=evaluate_every, patience=patience, seed=seed,
    )  # fmt: skip
    changes = changes_of(change)
    for field in ("heads", "vocab_size"):
        if field in changes:
            raise ConfigError(f"--change {field}: the task sets it by the data.", fix="Leave it out.")
    if model is None and family is not None:
        raise ConfigError("--family is given without --model.", fix="Add --model, or leave it out.")
    place = device_of(device)
    check_out(out)
    examples = labelled(data, limit=limit, skip_bad=skip_bad, multi_label=multi_label)
    held_out = labelled(dev, skip_bad=skip_bad, multi_label=multi_label) if dev else None
    names = [label.strip() for label in labels.split(",")] if labels else sorted({label for one in examples for label in one.labels})
    if not labels and len(examples) >= 20 and 2 * len(names) > len(examples):
        what = f"{data}: {len(names)} labels for {len(examples)} examples: is the label column the last one?"
        raise DataError(what, fix="Name the columns in the first row (text, label), or give --labels if they are right.")
    if model is None:
        texts = [text for one in examples for text in (one.text, one.pair) if text]
        length, shape = 128 if max_length is None else max_length, small(1).change(changes)
        task = Classify.new(texts, names, config=shape, multi_label=multi_label, max_length=length, seed=seed)
    else:
        task = Classify.load(model, labels=names, multi_label=multi_label, max_length=max_length, seed=seed, family=family, changes=changes)
    task.model.to(place)
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    tell(f"fishpaw: {len(examples)} examples, {len(names)} labels ({shown}), on {place}; log: {out / 'log.jsonl'}")
    fit = partial(task.fit, examples, held_out, options=options, out=out, resume=not restart)
    run(fit, curve, out, as_json)


def evaluate_classify(
    model: Model, data: Data, batch_size: Rows = 64, device: Device = "auto", limit: Limit = None, as_json: Json = False,
) -> None:
    """Accuracy, F1 and loss on labelled examples, beside what the most frequent label scores."""
    examples = labelled(data, limit=limit)
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
    from fishpaw.tasks.encode import bar

    source = source_of(text, data)
    task = _classifier(model, device)
    examples = iter([LabelledText(decoded(text))]) if text is not None and not source else islice(read_texts(source), limit)
    size = 1 if source == "-" and sys.stdin.isatty() else 16 * batch_size          # who types wants to see each answer
    with bar(examples, False if sys.stdout is None or sys.stdout.isatty() else None) as done:
        while chunk := list(islice(examples, size)):
            found = task.stream([one.text for one in chunk], pairs_of(chunk), batch_size=batch_size)
            for one, prediction in zip(chunk, found, strict=True):
                _write_prediction(one, prediction, as_json)
            done(len(chunk))


def _classifier(model: str, device: str) -> Classify:
    from fishpaw.tasks.classify import Classify

    place = device_of(device)
    task = Classify.load(model)
    task.model.to(place)
    return task


def _write_prediction(example: LabelledText, prediction: Prediction, as_json: bool) -> None:
    if as_json:
        write_json({"text": example.text, "pair": example.pair, "labels": prediction.labels, "probabilities": prediction.probabilities})
        return
    shares = ",".join(f"{prediction.probabilities[label]:.4f}" for label in prediction.labels)
    texts = example.text if example.pair is None else f"{example.text}\t{example.pair}"
    write(f"{','.join(prediction.labels)}\t{shares}\t{texts}")
