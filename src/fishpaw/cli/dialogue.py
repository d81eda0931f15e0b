"""The verbs of the task dialogue: train, evaluate. To talk: chat."""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fishpaw.cli.arguments import Changes, Data, Device, Json, Limit, Model, Seed, SkipBad, check_task, device_of, source_of
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
from fishpaw.terminal import tell, write_figures

if TYPE_CHECKING:
    from fishpaw.data.conversations import Conversation

__all__ = ["evaluate_dialogue", "train_dialogue"]


def train_dialogue(
    data: Data,
    out: Out,
    dev: Annotated[str | None, typer.Option(help="Conversations to choose the best weights by.")] = None,
    model: Start = SMALL,
    speaker: Annotated[int | None, typer.Option(min=0, max=1, help="Learn only what this one says: 0 began, 1 answered.")] = None,
    alone: Annotated[float, typer.Option(help="Share of the replies that are learned without their history, too: chat --rerank asks for "
                                         "the probability of a reply to anything.")] = 0.1,
    backward: Annotated[bool, typer.Option("--backward", help="Last turn first: a model that guesses the question, for chat "
                                           "--rerank N --backward MODEL.")] = False,
    epochs: Epochs = 3.0,
    steps: Steps = None,
    batch_size: Annotated[int, typer.Option(help="Conversations a batch.")] = 16,
    accumulate: Accumulate = 1,
    learning_rate: LearningRate = None,
    warmup: Warmup = 0.1,
    weight_decay: WeightDecay = 0.01,
    max_length: Annotated[int | None, typer.Option(help="Tokens of a conversation; longer ones are read in pieces of whole turns. Default: "
                                                   "512, from nothing 256, of a trained task its own.")] = None,
    family: Annotated[str | None, typer.Option(help="bert, gpt2 or another, where the checkpoint doesn't tell.")] = None,
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
    """Train a model to talk: lines {"turns": ["…", "…"]} or question<TAB>answer. The same command again goes on where a stopped run was."""
    from fishpaw.decoding.limits import check_real
    from fishpaw.tasks.dialogue import Dialogue, small
    from fishpaw.train.options import Options

    check_real("--alone", alone, "0 to 1", lambda value: 0 <= value <= 1)
    start = origin(model)
    options = Options(
        epochs=epochs, steps=steps, batch_size=batch_size, accumulate=accumulate, warmup=warmup, weight_decay=weight_decay,
        learning_rate=usual(learning_rate, start),
        precision=precision,  # type: ignore[arg-type]  # Options refuses other words by name
        evaluate_every=evaluate_every, patience=patience, seed=seed,
    )  # fmt: skip
    changes, place = prepared(data, dev, out, start, family, change, device, of_its_own=("heads", "vocab_size"))
    train = _conversations(data, limit=limit, skip_bad=skip_bad)
    held_out = _conversations(dev, skip_bad=skip_bad) if dev else None
    if backward:
        train, held_out = [one.backwards for one in train], None if held_out is None else [one.backwards for one in held_out]
    if start is None:
        task = Dialogue.new(train, config=small(1).change(changes), max_length=256 if max_length is None else max_length, seed=seed)
    else:
        task = Dialogue.load(start, max_length=max_length, family=family, changes=changes)
    task.model.to(place)
    turns = sum(len(one.turns) for one in train)
    tell(f"fishpaw: {len(train)} conversations of {turns} turns, on {place}; log: {out / 'log.jsonl'}")
    fit = partial(task.fit, train, held_out, options=options, out=out, speaker=speaker, alone=alone, resume=not restart)
    run(fit, _curve, out, as_json)


def evaluate_dialogue(
    model: Model,
    data: Data,
    samples: Annotated[int, typer.Option(help="Histories to reply to, and to compare the true next turn with another one.")] = 200,
    max_new: Annotated[int, typer.Option(help="Tokens a reply at most.")] = 32,
    skip_bad: SkipBad = 0,
    seed: Seed = 0,
    device: Device = "auto",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Perplexity; relevance: true next turns against replies of other conversations (0.5: chance); Distinct-1 and -2 of drawn replies."""
    from fishpaw.tasks.dialogue import Dialogue

    place = device_of(device)
    conversations = _conversations(data, limit=limit, skip_bad=skip_bad)
    check_task(model, "dialogue")
    task = Dialogue.load(model)
    task.model.to(place)
    write_figures(task.evaluate(conversations, samples=samples, max_new=max_new, seed=seed), as_json)


def _conversations(path: str, *, limit: int | None = None, skip_bad: int = 0) -> list[Conversation]:
    """The conversations of a file or of standard input, at least one."""
    from fishpaw.data.conversations import read_conversations

    source_of(None, path)
    if not (found := list(islice(read_conversations(path, skip_bad=skip_bad), limit))):
        raise DataError(f"{'standard input' if path == '-' else path}: no conversation.", fix='Write {"turns": ["…", "…"]} on each line.')
    return found


def _curve(record: dict[str, Any]) -> str | None:
    if record["event"] != "evaluate":
        return None
    line = f"  step {record['step']:>5}  loss {record['train_loss']:.3f}"
    return line if record.get("perplexity") is None else f"{line}  perplexity {record['perplexity']:.1f}"
