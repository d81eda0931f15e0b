"""The program: one function a verb, each handing over to the library. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from fishpaw import __version__
from fishpaw.errors import ConfigError, DataError, FishpawError
from fishpaw.terminal import beside_a_bar, decoded, in_options, leave, show_warning, tell, write, write_figures, write_json

if TYPE_CHECKING:
    import torch

    from fishpaw.data.labelled import LabelledText
    from fishpaw.tasks.classify import Classify, Prediction

__all__ = ["app", "main"]


class Program(TyperGroup):
    """Ends as a program should, whatever a verb raises: a user's mistake is one sentence on stderr and its exit code, no traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FishpawError as error:
            tell(f"fishpaw: {in_options(str(error))}")
            leave(error.exit_code)
        except KeyboardInterrupt:
            tell("fishpaw: stopped.")
            leave(130)


app = typer.Typer(name="fishpaw", cls=Program, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=True,
                  help="One Transformer that becomes BERT, RoFormer, GPT, UniLM … by switches; training, decoding and tasks on it.")
train_app = typer.Typer(no_args_is_help=True, help="Train a task.")
evaluate_app = typer.Typer(no_args_is_help=True, help="Measure a trained task on labelled examples.")
predict_app = typer.Typer(no_args_is_help=True, help="Apply a trained task to texts.")
app.add_typer(train_app, name="train")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(predict_app, name="predict")
export_app = typer.Typer(no_args_is_help=True, help="Write a model for another program.")
app.add_typer(export_app, name="export")

Model = Annotated[str, typer.Option("--model", "-m", help="A folder, a file, a TensorFlow checkpoint or a hub id (owner/name@revision).")]
Data = Annotated[str, typer.Option("--data", "-d", help="A .tsv, .csv, .jsonl or .txt file, also .gz; - reads standard input.")]
Lines = Annotated[str | None, typer.Option("--data", "-d", help="A .txt, .tsv, .csv or .jsonl file, also .gz; default -: standard input.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of everything random.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto: a CUDA device if there is one, else cpu.")]
Json = Annotated[bool, typer.Option("--json", help="JSON, an object a line.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Read this many examples at most.")]
Rows = Annotated[int, typer.Option(min=1, help="Rows a batch.")]


def main() -> None:
    """Run the program. Exit code 0; 2 for a user's mistake; 3: the hub can't be reached; 130 for Ctrl-C. Output is UTF-8 in any locale."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="surrogateescape" if stream is sys.stdin else "replace")
    warnings.showwarning = show_warning
    if logging.lastResort is not None:                               # the library logs, and leaves it to programs what to do with it
        logging.lastResort.setFormatter(logging.Formatter("fishpaw: %(message)s"))
    app()


@app.callback(invoke_without_command=True)
def program(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """One Transformer that becomes BERT, RoFormer, GPT, UniLM … by switches; training, decoding and tasks on it."""
    if version:
        write(__version__)
        raise typer.Exit()


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="For the run and the model; a run there begins anew.")] = Path("runs/demo"),
    data: Annotated[Path | None, typer.Option("--data", "-d", help="A data folder; default: FISHPAW_DATA, else bundled reviews.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of training; default: what fits in a minute.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train a small RoFormer on reviews, evaluate it, predict three sentences, save it: the whole way in a minute."""
    from fishpaw import demo as stage

    say = beside_a_bar(tell if as_json else write)
    figures = stage.demo(say, out=out, data=data or stage.data_folder(), seed=seed, steps=steps)
    if as_json:
        write_json(figures)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine offers and what is missing."""
    from fishpaw.doctor import examine

    for one in examine():
        if as_json:
            write_json({"subject": one.subject, "found": one.found, "advice": one.advice})
        else:
            write(f"{one.subject:16} {one.found}" + (f"  ->  {one.advice}" if one.advice else ""))


@train_app.command("classify")
def train_classify(
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder for log, checkpoints and the trained model (OUT/model).")],
    dev: Annotated[str | None, typer.Option(help="Examples to choose the best weights by.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="What to start from; default: a small RoFormer from nothing.")] = None,
    labels: Annotated[str | None, typer.Option(help="The labels, by commas; default: those in the data, sorted.")] = None,
    multi_label: Annotated[bool, typer.Option("--multi-label", help="Any number of labels may hold at once: jsonl with "
                                              '"labels": ["a", "b"] (or []), or a,b in the label\'s column.')] = False,
    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = 3.0,
    steps: Annotated[int | None, typer.Option(help="Updates in all, instead of epochs.")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows a batch.")] = 32,
    accumulate: Annotated[int, typer.Option(help="Batches an update.")] = 1,
    learning_rate: Annotated[float | None, typer.Option(help="Its peak; default 5e-5, from nothing 1e-3.")] = None,
    warmup: Annotated[float, typer.Option(help="Share of the steps that lead up to it.")] = 0.1,
    weight_decay: Annotated[float, typer.Option(help="Of matrices.")] = 0.01,
    max_length: Annotated[int, typer.Option(help="Tokens a text; longer ones are cut on the right.")] = 128,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    evaluate_every: Annotated[int | None, typer.Option(help="Steps between evaluations; default: an epoch.")] = None,
    patience: Annotated[int | None, typer.Option(help="Stop after that many evaluations without a new best.")] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew, even if OUT holds a run that could go on.")] = False,
    skip_bad: Annotated[int, typer.Option(min=0, help="Leave out at most that many bad lines.")] = 0,
    seed: Seed = 0,
    device: Device = "auto",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Train a classifier on text<TAB>label (or a<TAB>b<TAB>label) lines. The same command again goes on where a stopped run was."""
    from fishpaw.demo import curve
    from fishpaw.tasks.classify import Classify
    from fishpaw.train.options import Options

    if data == dev == "-":
        raise ConfigError("--data and --dev both read standard input.", fix="Give a file for one of them.")
    options = Options(
        epochs=epochs, steps=steps, batch_size=batch_size, accumulate=accumulate, warmup=warmup, weight_decay=weight_decay,
        learning_rate=learning_rate if learning_rate is not None else 5e-5 if model else 1e-3,
        precision=precision,  # type: ignore[arg-type]  # Options refuses other words by name
        evaluate_every=evaluate_every, patience=patience, seed=seed,
    )  # fmt: skip
    place = _device(device)
    _check_out(out)
    examples = _labelled(data, limit, skip_bad, multi_label)
    held_out = _labelled(dev, None, skip_bad, multi_label) if dev else None
    names = [label.strip() for label in labels.split(",")] if labels else sorted({label for one in examples for label in one.labels})
    if not labels and len(examples) >= 20 and 2 * len(names) > len(examples):
        what = f"{data}: {len(names)} labels for {len(examples)} examples: is the label column the last one?"
        raise DataError(what, fix="Name the columns in the first row (text, label), or give --labels if they are right.")
    if model is None:
        texts = [text for one in examples for text in (one.text, one.pair) if text]
        task = Classify.new(texts, names, multi_label=multi_label, max_length=max_length, seed=seed)
    else:
        task = Classify.load(model, labels=names, multi_label=multi_label, max_length=max_length, seed=seed)
    task.model.to(place)
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    tell(f"fishpaw: {len(examples)} examples, {len(names)} labels ({shown}), on {place}; log: {out / 'log.jsonl'}")
    say = beside_a_bar(tell)
    stopped_at: list[int] = []

    def report(record: dict[str, Any]) -> None:
        if record["event"] == "stop":
            stopped_at.append(record["step"])
        elif line := f"fishpaw: going on from step {record['step']}" if record["event"] == "resume" else curve(record):
            say(line)

    try:
        result = task.fit(examples, held_out, options=options, out=out, resume=not restart, report=report)
    except KeyboardInterrupt:
        tell(f"fishpaw: stopped at step {stopped_at[0]}; the same command goes on." if stopped_at else "fishpaw: stopped.")
        leave(130)
    if result.resumed_from == result.step:
        tell("fishpaw: this run had ended; nothing was trained (--restart begins anew)")
    figures = {"step": result.step, "stopped": result.stopped, "loss": result.loss, "best": result.best, "best_step": result.best_step,
               "seconds": result.seconds, "model": str(out / "model")}
    write_figures(figures, as_json)


@evaluate_app.command("classify")
def evaluate_classify(
    model: Model, data: Data, batch_size: Rows = 64, device: Device = "auto", limit: Limit = None, as_json: Json = False,
) -> None:
    """Accuracy, F1 and loss on labelled examples, beside what the most frequent label scores."""
    examples = _labelled(data, limit, 0, False)
    task = _classifier(model, device)
    if task.multi_label:
        examples = [_with_parts(one) for one in examples]
    write_figures(task.evaluate(examples, batch_size=batch_size), as_json)


@predict_app.command("classify")
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

    source = _source(text, data)
    task = _classifier(model, device)
    examples: Iterable[LabelledText] = read_texts(source) if text is None else [LabelledText(decoded(text))]
    size = 1 if source == "-" and sys.stdin.isatty() else 16 * batch_size          # who types wants to see each answer
    for chunk in _chunks(islice(examples, limit), size):
        predictions = task.predict([one.text for one in chunk], pairs_of(chunk), batch_size=batch_size)
        for one, prediction in zip(chunk, predictions, strict=True):
            _write_prediction(one, prediction, as_json)


@app.command()
def fill(
    model: Model,
    text: Annotated[str | None, typer.Argument(help="A text with [MASK] in it; default: the lines of --data.")] = None,
    data: Lines = None,
    top: Annotated[int, typer.Option(min=1, help="Candidates a blank.")] = 5,
    device: Device = "auto",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Say what a masked language model expects at each [MASK]: where it stands, in characters, and the likeliest tokens.

    With --data the number of the line comes first.
    """
    from fishpaw.tasks.fill import fill as guess
    from fishpaw.weights.load import load

    source = _source(text, data)
    filler, tokenizer = load(model)
    filler.to(_device(device))
    for line in _texts(text, source, limit):
        with _named(line):
            blanks = guess(filler, tokenizer, line.text, top=top)
        for blank in blanks:
            if as_json:
                candidates = [{"token": token, "probability": share} for token, share in blank.candidates]
                write_json({"text": line.text, "start": blank.start, "candidates": candidates})
            else:
                named = [f"{token} {share:.3f}" for token, share in blank.candidates]
                write("\t".join([*([str(line.line)] if line.file else []), str(blank.start), *named]))


@app.command()
def generate(
    model: Model,
    text: Annotated[str | None, typer.Argument(help="The prompt; default: the lines of --data.")] = None,
    data: Lines = None,
    mask: Annotated[str | None, typer.Option(help="causal or unilm, for a model that was saved with another mask.")] = None,
    max_new: Annotated[int, typer.Option(help="Tokens at most.")] = 64,
    min_new: Annotated[int, typer.Option(help="Tokens at least.")] = 0,
    beams: Annotated[int, typer.Option(help="Width of the beam search; 1: greedy.")] = 1,
    length_penalty: Annotated[float | None, typer.Option(help="Of the beam search; above 0 favours long answers.")] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Draw at random.")] = False,
    temperature: Annotated[float | None, typer.Option(help="Of sampling; below 1 sharper.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample from the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample from the likeliest tokens of this probability in all.")] = None,
    n: Annotated[int, typer.Option(help="Answers a prompt.")] = 1,
    stream: Annotated[bool, typer.Option("--stream", help="Print each piece as it comes (one answer a prompt, no beams).")] = False,
    seed: Seed = 0,
    device: Device = "auto",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Continue a text, or answer it: greedy, beam search or sampling. An answer may hold line ends; --json keeps each on one line."""
    from fishpaw.decoding.processors import Temperature, TopK, TopP
    from fishpaw.decoding.sample import sample as draw
    from fishpaw.decoding.sample import stream_sample
    from fishpaw.decoding.search import beam, stream_greedy
    from fishpaw.tasks.generate import Generate, generator
    from fishpaw.weights.load import load

    if sample and beams != 1:
        raise ConfigError("--sample and --beams exclude each other.", fix="Leave one out.")
    if stream and (beams != 1 or n != 1 or as_json):
        raise ConfigError("--stream prints one answer as it comes: no --beams, --n or --json.", fix="Leave them out.")
    if not sample and n > max(1, beams):
        raise ConfigError(f"--n {n} answers need --sample or at least as many --beams.", fix="Add one of them.")
    if length_penalty is not None and beams == 1:
        raise ConfigError("--length-penalty is for the beam search.", fix="Add --beams 4, for example.")
    filters: list[Any] = [] if temperature is None else [Temperature(temperature)]
    filters += [] if top_k is None else [TopK(top_k)]
    filters += [] if top_p is None else [TopP(top_p)]
    if filters and not sample:
        raise ConfigError("--temperature, --top-k and --top-p are for sampling.", fix="Add --sample.")
    source = _source(text, data)
    writer = Generate(*load(model, mask=mask))
    writer.model.to(_device(device))
    limits = writer.limits(max_new, min_new)
    chance = generator(seed)
    for line in _texts(text, source, limit):
        with _named(line):
            prompt = writer.encode([line.text], max_new=max_new)
        if stream:
            tokens = stream_sample(writer.stepper, prompt, limits=limits, processors=filters, generator=chance) if sample else \
                stream_greedy(writer.stepper, prompt, limits=limits)  # fmt: skip
            for piece in writer.pieces(tokens):
                write(piece, end="")
            write("")
            continue
        if sample:
            (answers,) = draw(writer.stepper, prompt, limits=limits, n=n, processors=filters, generator=chance)
        else:
            (answers,) = beam(writer.stepper, prompt, beams=beams, n=n, limits=limits, length_penalty=length_penalty or 0.0)
        for answer in answers:
            said = writer.decode(answer)
            if as_json:
                write_json({"prompt": line.text, "text": said, "score": answer.score, "ended": answer.ended, "tokens": len(answer.tokens)})
            else:
                write(said)


@app.command()
def convert(
    model: Annotated[str, typer.Argument(help="A folder, a file, a TensorFlow checkpoint or a hub id.")],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    family: Annotated[str | None, typer.Option(help="bert, roformer or gpt2, where the checkpoint doesn't tell.")] = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Read a folder whose manifest no longer fits, as you changed it.")] = False,
    as_json: Json = False,
) -> None:
    """Write any checkpoint that can be read as a folder with safetensors and a manifest, which transformers opens, too."""
    from fishpaw.errors import CheckpointError
    from fishpaw.text.load import load_tokenizer
    from fishpaw.weights.load import inspect
    from fishpaw.weights.save import save

    loaded, report = inspect(model, family=family, verify=not no_verify)
    for note in report.notes:
        tell(f"fishpaw: {note}")
    try:
        tokenizer = load_tokenizer(report.folder)
    except CheckpointError as error:
        tokenizer = None
        tell(f"fishpaw: without a tokenizer: {error}")
    save(loaded, out, tokenizer)
    write_figures({"family": report.family, "reason": report.reason, "new": len(report.new), "unused": len(report.unused),
                    "nonfinite": len(report.nonfinite), "model": str(out)}, as_json)


@export_app.command("onnx")
def export_onnx(
    model: Annotated[str, typer.Argument(help="A folder, a file, a TensorFlow checkpoint or a hub id.")],
    out: Annotated[Path, typer.Argument(help="The folder to write: graph, config.json, tokenizer, manifest.")],
    int8: Annotated[bool, typer.Option("--int8", help="Products in int8: smaller and faster, nearly the same answers.")] = False,
    heads: Annotated[str | None, typer.Option(help='By commas, "" for hidden states only; default: all that the checkpoint holds.')] = None,
    as_json: Json = False,
) -> None:
    """Write an ONNX graph for serving, and say how near its outputs come to the model's; one that strays is not kept."""
    from fishpaw.errors import CheckpointError
    from fishpaw.switch import nearest, spec_name
    from fishpaw.text.load import load_tokenizer
    from fishpaw.weights.load import inspect
    from fishpaw.weights.onnx import export, export_int8, require

    require()
    loaded, report = inspect(model)
    for note in report.notes:
        tell(f"fishpaw: {note}")
    if heads is not None:
        held = {spec_name(head): head for head in loaded.config.heads}
        asked = [name for name in (part.strip() for part in heads.split(",")) if name]
        for name in asked:
            if name not in held:
                raise ConfigError(f"The model has no head {name!r}.", fix=nearest(name, sorted(held)))
        loaded.set_heads([held[name] for name in asked])
    try:
        tokenizer = load_tokenizer(report.folder)
    except CheckpointError as error:
        tokenizer = None
        tell(f"fishpaw: without a tokenizer: {error}")
    tell("fishpaw: tracing the model; half a minute for a BERT-base")
    made = (export_int8 if int8 else export)(loaded, out, tokenizer)
    figures = {"file": str(made.file), "bytes": made.size, "inputs": made.inputs, "outputs": made.outputs, "difference": made.difference,
               "cosine": made.cosine, "least_cosine": made.least_cosine}  # fmt: skip
    shown = {"inputs": ", ".join(made.inputs), "outputs": ", ".join(made.outputs), "difference": f"{made.difference:.1e}"}
    write_figures(figures if as_json else {**figures, **shown}, as_json)


# What the verbs read

def _classifier(model: str, device: str) -> Classify:
    from fishpaw.tasks.classify import Classify

    place = _device(device)
    task = Classify.load(model)
    task.model.to(place)
    return task


def _check_out(out: Path) -> None:
    """Before minutes of reading: whether a folder can be made there. Nothing is made yet."""
    there = next((part for part in (out, *out.absolute().parents) if os.path.lexists(part)), Path("/"))
    if not there.is_dir() or not os.access(there, os.W_OK):
        what = "can't be written" if there.is_dir() else "is a file, not a folder"
        raise ConfigError(f"--out {out}: {there} {what}.", fix="Choose a folder that you may write to.")


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device {name} is no device.", fix="Give cpu, cuda, cuda:1, mps or auto.") from None
    there = {"cpu": not device.index, "cuda": torch.cuda.device_count() > (device.index or 0), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False):
        raise ConfigError(f"--device {name} is not on this machine.", fix="Give cpu or auto; `fishpaw doctor` tells what there is.")
    return device


def _labelled(path: str, limit: int | None, skip_bad: int, multi_label: bool) -> list[LabelledText]:
    from fishpaw.data.labelled import read_labelled

    _await_stdin(path)
    if not (examples := list(islice(read_labelled(path, skip_bad=skip_bad), limit))):
        raise DataError(f"{'standard input' if path == '-' else path}: no example.", fix="Write text<TAB>label on each line.")
    return [_with_parts(one) for one in examples] if multi_label else examples


def _with_parts(example: LabelledText) -> LabelledText:
    """On the command line commas part labels, in the data, too: "a,b" are two."""
    parts = (part.strip() for label in example.labels for part in label.split(","))
    return replace(example, labels=tuple(dict.fromkeys(filter(None, parts))))


def _source(text: str | None, data: str | None) -> str:
    if text is not None and data is not None:
        raise ConfigError("A text and --data are given.", fix="Leave one out.")
    if text is None:
        _await_stdin(data or "-")
    return data or ("-" if text is None else "")


def _await_stdin(path: str) -> None:
    if path == "-" and sys.stdin is None:
        raise DataError("There is no standard input.", fix="Give a file: --data FILE.")
    if path == "-" and sys.stdin.isatty():
        tell(f"fishpaw: reading standard input, a text a line; end it with {'Ctrl-Z and Enter' if os.name == 'nt' else 'Ctrl-D'}")


def _texts(text: str | None, source: str, limit: int | None) -> Iterator[LabelledText]:
    """The text given, or those of a file: of txt and standard input each line whole, of tables and jsonl the texts."""
    from fishpaw.data.labelled import LabelledText, format_of, read_texts
    from fishpaw.data.records import read_lines

    if text is not None:
        yield LabelledText(decoded(text))
    elif source == "-" or format_of(source) == "txt":
        for line in islice(read_lines(source), limit):
            yield LabelledText(line.text, file=line.file, line=line.line)
    else:
        for one in islice(read_texts(source), limit):
            if one.pair is not None:
                raise DataError(f"{one.file}, line {one.line}: a pair of texts, where one is wanted.", fix="Leave the second column out.")
            yield one


def _chunks(examples: Iterable[LabelledText], size: int) -> Iterator[list[LabelledText]]:
    source = iter(examples)
    while chunk := list(islice(source, size)):
        yield chunk


@contextmanager
def _named(line: LabelledText) -> Iterator[None]:
    """Errors of a text that stood in a file say where."""
    try:
        yield
    except DataError as error:
        if not line.file:
            raise
        raise DataError(f"{line.file}, line {line.line}: {error.what}", fix=error.fix) from None


def _write_prediction(example: LabelledText, prediction: Prediction, as_json: bool) -> None:
    if as_json:
        write_json({"text": example.text, "pair": example.pair, "labels": prediction.labels, "probabilities": prediction.probabilities})
        return
    shares = ",".join(f"{prediction.probabilities[label]:.4f}" for label in prediction.labels)
    texts = example.text if example.pair is None else f"{example.text}\t{example.pair}"
    write(f"{','.join(prediction.labels)}\t{shares}\t{texts}")
