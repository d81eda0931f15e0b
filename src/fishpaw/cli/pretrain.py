"""The verb pretrain: files of text to shards, shards to a model."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fishpaw import checks
from fishpaw.cli.arguments import Changes, Device, Json, Limit, Seed, SkipBad, changes_of, check_out, device_of, source_of
from fishpaw.cli.training import (
    Accumulate,
    Epochs,
    EvaluateEvery,
    Out,
    Patience,
    Precision,
    Restart,
    Steps,
    Warmup,
    WeightDecay,
    run,
)
from fishpaw.errors import ConfigError
from fishpaw.terminal import decoded, tell

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fishpaw.config import ModelConfig
    from fishpaw.tasks.corpora import Corpus

__all__ = ["pretrain"]

Files = Annotated[list[str], typer.Option("--data", "-d", help="Texts: .txt, .jsonl, .tsv or .csv, also .gz; - reads standard input; may "
                  "be given several times.")]  # fmt: skip


def pretrain(
    data: Files,
    out: Out,
    files: Annotated[list[str] | None, typer.Argument(help="More files, as a shell writes them for --data *.txt.")] = None,
    objective: Annotated[list[str] | None, typer.Option(metavar="NAME=SHARE", help="What is asked of the pieces, and of which share: mlm, "
                         "nsp, gpt, unilm, spans (T5), tta, contrastive; may be given several times. Default: mlm.")] = None,
    whole_words: Annotated[bool, typer.Option("--whole-words", help="mlm and nsp hide whole words (jieba's).")] = False,
    model: Annotated[str | None, typer.Option("--model", "-m", help="What to go on from; default: a new RoFormer.")] = None,
    size: Annotated[str, typer.Option(metavar="LAYERSxWIDTH", help="Of a new model.")] = "4x256",
    change: Changes = None,
    vocab: Annotated[Path | None, typer.Option(help="A vocab.txt for a new model; default: the characters of the texts.")] = None,
    unit: Annotated[str, typer.Option(help="What a document is in .txt: a line, or a block of lines up to an empty one.")] = "line",
    field: Annotated[str | None, typer.Option(help="Where the text is: a name in .jsonl (default text), a column of a table whose first "
                                              "row has names (default: the first column).")] = None,
    dev: Annotated[str | None, typer.Option(help="Unseen texts to evaluate on, a file as --data; default: --apart.")] = None,
    apart: Annotated[float, typer.Option(help="Share of the documents to keep apart for it; 0: none.")] = 0.01,
    length: Annotated[int, typer.Option(help="Tokens a row at most.")] = 128,
    token_budget: Annotated[int, typer.Option(help="Tokens a batch at most.")] = 8192,
    accumulate: Accumulate = 1,
    epochs: Epochs = 1.0,
    steps: Steps = None,
    tokens: Annotated[float | None, typer.Option(help="Read that many in all, instead of epochs: 40e6.")] = None,
    optimizer: Annotated[str, typer.Option(help="adamw, or lamb, for large batches.")] = "adamw",
    learning_rate: Annotated[float | None, typer.Option(help="Its peak; default 1e-3, going on from a model 1e-4; lamb: 2e-3.")] = None,
    warmup: Warmup = 0.02,
    weight_decay: WeightDecay = 0.01,
    precision: Precision = "fp32",
    evaluate_every: EvaluateEvery = None,
    patience: Patience = None,
    log_every: Annotated[int, typer.Option(help="Steps a line of the log.")] = 50,
    restart: Restart = False,
    skip_bad: SkipBad = 0,
    parallel: Annotated[str, typer.Option(help="Under torchrun: replicated, or sharded for a model too large for one.")] = "replicated",
    seed: Seed = 0,
    device: Device = "auto",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Pretrain a model on texts: shards of tokens are written to OUT/shards, then read. The same command again goes on where a stopped run
    was."""
    from fishpaw.tasks.corpora import gather
    from fishpaw.tasks.objectives import parse
    from fishpaw.tasks.pretrain import Pretrain, fitting
    from fishpaw.text.vocab import Vocab
    from fishpaw.text.wordpiece import WordPiece
    from fishpaw.train.launch import leads
    from fishpaw.train.options import Options

    asked = parse(list(map(decoded, objective or ["mlm"])), words=whole_words)
    if model is not None and vocab is not None:
        raise ConfigError("--vocab is given beside --model, which has its own.", fix="Leave one out.")
    if tokens is not None and steps is not None:
        raise ConfigError("--tokens and --steps are given.", fix="Leave one out.")
    checks.number("--tokens", tokens, least=1, optional=True)
    checks.whole("--token-budget", token_budget, least=1)
    checks.whole("--accumulate", accumulate, least=1)
    checks.one_of("--parallel", parallel, ("replicated", "sharded"))
    if restart and "-" in data and "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError("--restart and standard input under torchrun: its processes can't tell old shards from new ones.",
                          fix="Give files, or another --out.")
    if dev == "-" and "-" in data:
        raise ConfigError("--data and --dev both read standard input.", fix="Give a file for one of them.")
    usual = 2e-3 if optimizer == "lamb" else 1e-3 if model is None else 1e-4
    options = Options(
        epochs=epochs, steps=steps if tokens is None else max(1, round(tokens / token_budget / accumulate)), token_budget=token_budget,
        accumulate=accumulate, learning_rate=usual if learning_rate is None else learning_rate, warmup=warmup, weight_decay=weight_decay,
        precision=precision,  # type: ignore[arg-type]  # Options refuses other words by name
        evaluate_every=evaluate_every, patience=patience, log_every=log_every, seed=seed,
    )  # fmt: skip
    made, changes, place = _optimizer(optimizer, options.learning_rate, weight_decay), changes_of(change), _device(device)
    shape = _shape(size, changes) if model is None else None
    checks.whole("--length", length, least=8)
    if shape is not None:                                            # refused before minutes of reading
        needed = fitting(shape, asked)
        for field in sorted(needed.keys() & changes.keys()):
            raise ConfigError(f"--change {field}: the objectives need {needed[field]!r}.", fix="Leave it out, or choose other objectives.")
    check_out(out)
    if "-" in data and (out / "shards").exists() and leads():
        tell(f"fishpaw: {out / 'shards'} is there: standard input isn't read")
    corpus = _corpus([*data, *(files or [])], unit, field, skip_bad, limit)
    unseen = None if dev is None else _corpus([dev], unit, field, skip_bad, None)
    prepared = partial(gather, corpus, out, words=whole_words, apart=apart, dev=unseen, anew=restart)
    if model is not None:
        task = Pretrain.load(model, asked, changes=changes, length=length, seed=seed)
        _, shards, held_out = prepared(task.tokenizer)
    else:
        tokenizer, shards, held_out = prepared(None if vocab is None else WordPiece(Vocab.load(vocab)))
        task = Pretrain.new(tokenizer, asked, config=shape, length=length, seed=seed)
    task.model.to(place)
    fit = partial(
        task.fit, shards, held_out, options=options, out=out, resume=not restart, optimizer=made,
        parallel=parallel,  # type: ignore[arg-type]  # one of these words
    )  # fmt: skip
    if not leads():
        fit()
        return
    beside = "nothing to evaluate on" if held_out is None else f"{len(held_out)} kept apart"
    tell(f"fishpaw: {len(shards)} documents, {shards.tokens} tokens; {beside}; on {place}; log: {out / 'log.jsonl'}")
    run(fit, _curve, out, as_json, partial(_speed, out / "log.jsonl"))


def _device(name: str) -> torch.device:
    """Under torchrun each process has a GPU of its own."""
    if name != "auto" or "LOCAL_RANK" not in os.environ:
        return device_of(name)
    from fishpaw.train.distributed import own_device

    return own_device()


def _corpus(files: list[str], unit: str, field: str | None, skip_bad: int, limit: int | None) -> Corpus:
    from fishpaw.tasks.corpora import Corpus

    for one in files:
        source_of(None, one)
    return Corpus(files, unit, None if field is None else decoded(field), skip_bad, limit)  # type: ignore[arg-type]  # reading refuses others


def _shape(size: str, changes: dict[str, Any]) -> ModelConfig:
    from fishpaw.tasks.pretrain import sized

    layers, _, width = size.partition("x")
    if not (layers.isdecimal() and width.isdecimal()):
        raise ConfigError(f"--size {size} is no size.", fix="Write layers x width: --size 4x256.")
    for name in ("heads", "vocab_size"):
        if name in changes:
            raise ConfigError(f"--change {name}: the objectives and the vocabulary set it.", fix="Leave it out.")
    return sized(int(layers), int(width)).change(changes)


def _optimizer(name: str, learning_rate: float, weight_decay: float) -> Any:
    """A function of the model; None for fit's own, AdamW."""
    if name not in ("adamw", "lamb"):
        raise ConfigError(f"--optimizer {name} is unknown.", fix="Choose adamw or lamb.")

    def made(model: nn.Module) -> torch.optim.Optimizer:
        from fishpaw.optim.lamb import lamb

        return lamb(model, learning_rate=learning_rate, weight_decay=weight_decay)

    return made if name == "lamb" else None


def _speed(log: Path) -> dict[str, Any]:
    """The median of the log's lines, of all processes together."""
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    names = ("tokens_per_second", "utilisation")
    found = {name: [one[name] for one in records if one["event"] == "step" and name in one] for name in names}
    return {name: median(values) if values else None for name, values in found.items()}


def _curve(record: dict[str, Any]) -> str | None:
    if record["event"] == "step":
        share = f"  {record['utilisation']:.0%} of the peak" if record.get("utilisation") else ""
        return f"  step {record['step']:>6}  loss {record['loss']:.3f}  {record['tokens_per_second']:,.0f} tokens/s{share}"
    if record["event"] != "evaluate":
        return None
    names = [name for name in record if (name == "loss" or name.endswith("_accuracy")) and isinstance(record[name], float)]
    if not names:
        return None
    return f"  step {record['step']:>6}  unseen:" + "".join(f" {name.replace('_', ' ')} {record[name]:.3f}" for name in names)
