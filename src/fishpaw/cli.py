"""The program: one function a verb, each handing over to the library. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fishpaw import __version__
from fishpaw.errors import ConfigError, DataError, FishpawError

if TYPE_CHECKING:
    import torch

    from fishpaw.data.labelled import LabelledText
    from fishpaw.tasks.classify import Classify, Prediction

__all__ = ["app", "main"]

app = typer.Typer(name="fishpaw", no_args_is_help=True, pretty_exceptions_enable=False, add_completion=True,
                  help="One Transformer that becomes BERT, RoFormer, GPT, UniLM … by switches; training, decoding and tasks on it.")
train_app = typer.Typer(no_args_is_help=True, help="Train a task.")
evaluate_app = typer.Typer(no_args_is_help=True, help="Measure a trained task on labelled examples.")
predict_app = typer.Typer(no_args_is_help=True, help="Apply a trained task to texts.")
app.add_typer(train_app, name="train")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(predict_app, name="predict")

Model = Annotated[str, typer.Option("--model", "-m", help="A folder, a file, a TensorFlow checkpoint or a hub id (owner/name@revision).")]
Data = Annotated[str, typer.Option("--data", "-d", help="A .tsv, .csv, .jsonl or .txt file, also .gz; - reads standard input.")]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto: the fastest there is.")]
Json = Annotated[bool, typer.Option("--json", help="JSON, an object a line.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Read this many examples at most.")]


def main() -> None:
    """Run the program. A user's mistake is one sentence on stderr and exit code 2 (3: the hub can't be reached), never a traceback."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="surrogateescape" if stream is sys.stdin else "replace")
    try:
        app()
    except FishpawError as error:
        typer.echo(f"fishpaw: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:                                          # the reader, `head` for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)


@app.callback(invoke_without_command=True)
def program(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """One Transformer that becomes BERT, RoFormer, GPT, UniLM … by switches; training, decoding and tasks on it."""
    if version:
        typer.echo(__version__)
        raise typer.Exit()


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the run and the model are written.")] = Path("runs/demo"),
    data: Annotated[Path | None, typer.Option(help="A data folder; default: FISHPAW_DATA, else the bundled reviews.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of training; default: what fits in a minute.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train a small RoFormer on reviews, evaluate it, predict three sentences, save it: the whole way in a minute."""
    from fishpaw import demo as stage

    figures = stage.demo(lambda line: typer.echo(line, err=as_json), out=out, data=data or stage.data_folder(), seed=seed, steps=steps)
    if as_json:
        _write_json(figures)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine offers and what is missing."""
    from fishpaw.doctor import examine

    for one in examine():
        if as_json:
            _write_json({"subject": one.subject, "found": one.found, "advice": one.advice})
        else:
            typer.echo(f"{one.subject:16} {one.found}" + (f"  ->  {one.advice}" if one.advice else ""))


@train_app.command("classify")
def train_classify(
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder for log, checkpoints and the trained model (OUT/model).")],
    dev: Annotated[str | None, typer.Option(help="Examples to choose the best weights by.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="What to start from; default: a small RoFormer from nothing.")] = None,
    labels: Annotated[str | None, typer.Option(help="The labels, by commas; default: those in the data, sorted.")] = None,
    multi_label: Annotated[bool, typer.Option(help="Any number of labels may hold at once.")] = False,
    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = 3.0,
    steps: Annotated[int | None, typer.Option(help="Updates in all, instead of epochs.")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows a batch.")] = 32,
    accumulate: Annotated[int, typer.Option(help="Batches an update.")] = 1,
    learning_rate: Annotated[float | None, typer.Option(help="Its peak; default 5e-5, from nothing 5e-4.")] = None,
    warmup: Annotated[float, typer.Option(help="Share of the steps that lead up to it.")] = 0.1,
    weight_decay: Annotated[float, typer.Option(help="Of matrices.")] = 0.01,
    max_length: Annotated[int, typer.Option(help="Tokens a text; longer ones are cut on the right.")] = 128,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    evaluate_every: Annotated[int | None, typer.Option(help="Steps between evaluations; default: an epoch.")] = None,
    patience: Annotated[int | None, typer.Option(help="Stop after that many evaluations without a new best.")] = None,
    restart: Annotated[bool, typer.Option(help="Begin anew, even if OUT holds a run that could go on.")] = False,
    skip_bad: Annotated[int, typer.Option(min=0, help="Leave out at most that many bad lines.")] = 0,
    seed: Seed = 0,
    device: Device = "auto",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Train a classifier on text<TAB>label (or a<TAB>b<TAB>label) lines. A run that was stopped goes on where it was."""
    from fishpaw.tasks.classify import Classify
    from fishpaw.train.options import Options

    examples = _labelled(data, limit, skip_bad)
    held_out = _labelled(dev, None, skip_bad) if dev else None
    names = [label.strip() for label in labels.split(",")] if labels else sorted({label for one in examples for label in one.labels})
    options = Options(
        epochs=epochs, steps=steps, batch_size=batch_size, accumulate=accumulate, warmup=warmup, weight_decay=weight_decay,
        learning_rate=learning_rate if learning_rate is not None else 5e-5 if model else 5e-4,
        precision=precision,  # type: ignore[arg-type]  # Options refuses other words by name
        evaluate_every=evaluate_every, patience=patience, seed=seed,
    )  # fmt: skip
    if model is None:
        texts = [text for one in examples for text in (one.text, one.pair) if text]
        task = Classify.new(texts, names, multi_label=multi_label, max_length=max_length, seed=seed)
    else:
        task = Classify.load(model, labels=names, multi_label=multi_label, max_length=max_length, seed=seed)
    task.model.to(_device(device))
    result = task.fit(examples, held_out, options=options, out=out, resume=not restart)
    figures = {"step": result.step, "stopped": result.stopped, "loss": result.loss, "best": result.best, "best_step": result.best_step,
               "seconds": result.seconds, "model": str(out / "model")}
    _tell(figures, as_json)


@evaluate_app.command("classify")
def evaluate_classify(
    model: Model, data: Data, batch_size: Annotated[int, typer.Option(min=1)] = 64, device: Device = "auto", limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Accuracy, F1 and loss on labelled examples, beside what the most frequent label scores."""
    examples = _labelled(data, limit, 0)
    _tell(_classifier(model, device).evaluate(examples, batch_size=batch_size), as_json)


@predict_app.command("classify")
def predict_classify(
    model: Model, data: Data = "-", batch_size: Annotated[int, typer.Option(min=1)] = 64, device: Device = "auto", limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Label each line (text, or a<TAB>b): label, probability and text by tabs, as they come."""
    from fishpaw.data.labelled import read_texts

    task = _classifier(model, device)
    examples = islice(read_texts(data), limit)
    for chunk in _chunks(examples, 16 * batch_size):
        pairs = [one.pair or "" for one in chunk] if any(one.pair is not None for one in chunk) else None
        predictions = task.predict([one.text for one in chunk], pairs, batch_size=batch_size)
        for one, prediction in zip(chunk, predictions, strict=True):
            _write_prediction(one, prediction, as_json)
        sys.stdout.flush()


@app.command()
def fill(
    model: Model,
    text: Annotated[str | None, typer.Argument(help="A text with [MASK] in it; default: the lines of --data.")] = None,
    data: Data = "-",
    top: Annotated[int, typer.Option(min=1, help="Candidates a blank.")] = 5,
    device: Device = "auto",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Say what a masked language model expects at each [MASK]."""
    from fishpaw.tasks.fill import fill as guess
    from fishpaw.text.wordpiece import WordPiece
    from fishpaw.weights.load import load

    filler, tokenizer = load(model)
    if not isinstance(tokenizer, WordPiece):
        raise ConfigError(f"{model} has no [MASK]: its tokenizer is byte-level BPE.", fix="Use a BERT or RoFormer.")
    filler.to(_device(device))
    for line in _texts(text, data, limit):
        for blank in guess(filler, tokenizer, line, top=top):
            if as_json:
                candidates = [{"token": token, "probability": share} for token, share in blank.candidates]
                _write_json({"text": line, "start": blank.start, "candidates": candidates})
            else:
                typer.echo(f"{blank.start}\t" + "\t".join(f"{token} {share:.3f}" for token, share in blank.candidates))


@app.command()
def generate(
    model: Model,
    text: Annotated[str | None, typer.Argument(help="The prompt; default: the lines of --data.")] = None,
    data: Data = "-",
    mask: Annotated[str | None, typer.Option(help="causal or unilm, for a model that was saved with another mask.")] = None,
    max_new: Annotated[int, typer.Option(help="Tokens at most.")] = 64,
    min_new: Annotated[int, typer.Option(help="Tokens at least.")] = 0,
    beams: Annotated[int, typer.Option(help="Width of the beam search; 1: greedy.")] = 1,
    length_penalty: Annotated[float, typer.Option(help="Of the beam search; above 0 favours long answers.")] = 0.0,
    sample: Annotated[bool, typer.Option(help="Draw at random.")] = False,
    temperature: Annotated[float, typer.Option(help="Of sampling; below 1 sharper.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Sample from the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample from the likeliest tokens of this probability in all.")] = None,
    n: Annotated[int, typer.Option(help="Answers a prompt.")] = 1,
    stream: Annotated[bool, typer.Option(help="Print each piece as it comes (one answer a prompt, no beams).")] = False,
    seed: Seed = 0,
    device: Device = "auto",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Continue a text, or answer it: greedy, beam search or sampling."""
    from fishpaw.decoding.processors import Temperature, TopK, TopP
    from fishpaw.decoding.sample import sample as draw
    from fishpaw.decoding.sample import stream_sample
    from fishpaw.decoding.search import beam, stream_greedy
    from fishpaw.tasks.generate import Generate, generator
    from fishpaw.weights.load import load

    if sample and beams > 1:
        raise ConfigError("--sample and --beams exclude each other.", fix="Leave one out.")
    if stream and (beams > 1 or n > 1 or as_json):
        raise ConfigError("--stream prints one answer as it comes: no --beams, --n or --json.", fix="Leave them out.")
    if not sample and n > max(1, beams):
        raise ConfigError(f"--n {n} answers need --sample or at least as many --beams.", fix="Add one of them.")
    filters: list[Any] = [Temperature(temperature)] if sample and temperature != 1.0 else []
    filters += [TopK(top_k)] if top_k is not None else []
    filters += [TopP(top_p)] if top_p is not None else []
    if filters and not sample:
        raise ConfigError("--top-k and --top-p are for sampling.", fix="Add --sample.")
    writer = Generate(*load(model, mask=mask))
    writer.model.to(_device(device))
    limits = writer.limits(max_new, min_new)
    source = generator(seed)
    for line in _texts(text, data, limit):
        prompt = writer.encode([line], max_new=max_new)
        if stream:
            tokens = stream_sample(writer.stepper, prompt, limits=limits, processors=filters, generator=source) if sample else \
                stream_greedy(writer.stepper, prompt, limits=limits)  # fmt: skip
            for piece in writer.pieces(tokens):
                typer.echo(piece, nl=False)
                sys.stdout.flush()
            typer.echo()
            continue
        if sample:
            (answers,) = draw(writer.stepper, prompt, limits=limits, n=n, processors=filters, generator=source)
        else:
            (answers,) = beam(writer.stepper, prompt, beams=beams, n=n, limits=limits, length_penalty=length_penalty)
        for answer in answers:
            said = writer.decode(answer)
            if as_json:
                _write_json({"prompt": line, "text": said, "score": answer.score, "ended": answer.ended, "tokens": len(answer.tokens)})
            else:
                typer.echo(said)


@app.command()
def convert(
    model: Annotated[str, typer.Argument(help="A folder, a file, a TensorFlow checkpoint or a hub id.")],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    family: Annotated[str | None, typer.Option(help="bert, roformer or gpt2, where the checkpoint doesn't tell.")] = None,
    as_json: Json = False,
) -> None:
    """Write any checkpoint that can be read as a folder with safetensors and a manifest, which transformers opens, too."""
    from fishpaw import hub
    from fishpaw.errors import CheckpointError
    from fishpaw.text.load import load_tokenizer
    from fishpaw.weights.load import inspect
    from fishpaw.weights.save import save

    loaded, report = inspect(model, family=family)
    try:
        tokenizer = load_tokenizer(hub.find(model).folder)
    except CheckpointError as error:
        tokenizer = None
        typer.echo(f"fishpaw: without a tokenizer: {error}", err=True)
    save(loaded, out, tokenizer)
    _tell({"family": report.family, "reason": report.reason, "unused": len(report.unused), "model": str(out)}, as_json)


def _classifier(model: str, device: str) -> Classify:
    from fishpaw.tasks.classify import Classify

    task = Classify.load(model)
    task.model.to(_device(device))
    return task


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device {name} is no device.", fix="Give cpu, cuda, cuda:1, mps or auto.") from None
    there = {"cpu": True, "cuda": torch.cuda.device_count() > (device.index or 0), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False):
        raise ConfigError(f"--device {name} is not on this machine.", fix="Give cpu or auto; `fishpaw doctor` tells what there is.")
    return device


def _labelled(path: str, limit: int | None, skip_bad: int) -> list[LabelledText]:
    from fishpaw.data.labelled import read_labelled

    examples = list(islice(read_labelled(path, skip_bad=skip_bad), limit))
    if not examples:
        raise DataError(f"{path}: no example.", fix="Write text<TAB>label on each line.")
    return examples


def _texts(text: str | None, data: str, limit: int | None) -> Iterator[str]:
    from fishpaw.data.records import read_lines

    if text is not None:
        yield text
        return
    for line in islice(read_lines(data), limit):
        yield line.text


def _chunks(examples: Iterable[LabelledText], size: int) -> Iterator[list[LabelledText]]:
    source = iter(examples)
    while chunk := list(islice(source, size)):
        yield chunk


def _write_prediction(example: LabelledText, prediction: Prediction, as_json: bool) -> None:
    if as_json:
        _write_json({"text": example.text, "pair": example.pair, "labels": prediction.labels, "probabilities": prediction.probabilities})
        return
    shares = ",".join(f"{prediction.probabilities[label]:.4f}" for label in prediction.labels)
    texts = example.text if example.pair is None else f"{example.text}\t{example.pair}"
    typer.echo(f"{','.join(prediction.labels)}\t{shares}\t{texts}")


def _write_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))


def _tell(figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _write_json(figures)
        return
    for name, value in figures.items():
        typer.echo(f"{name:12} {value:.4f}" if isinstance(value, float) else f"{name:12} {value}")
