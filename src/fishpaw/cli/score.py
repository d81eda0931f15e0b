"""The verb score: how probable texts are, token by token, and what looks misspelt in them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from fishpaw.cli.arguments import Changes, Device, Json, Limit, Lines, Model, changes_of, device_of, located, source_of, texts_of
from fishpaw.errors import ConfigError, DataError
from fishpaw.terminal import tell, write, write_json

if TYPE_CHECKING:
    from fishpaw.data.labelled import LabelledText
    from fishpaw.tasks.score import Question, Scored

__all__ = ["marked", "score"]


def score(
    model: Model,
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]…", help="Texts; default: the lines of --data.")] = None,
    data: Lines = None,
    top: Annotated[int, typer.Option(min=1, help="Alternatives a token, in --json.")] = 5,
    margin: Annotated[float, typer.Option(min=0, help="Marked is what is less probable than the best token by so many nats, and …")] = 8.0,
    rank: Annotated[int, typer.Option(min=1, help="… that is not among so many most probable ones.")] = 10,
    max_length: Annotated[int | None, typer.Option(help="Tokens read together; longer texts in windows that overlap by half. Default: "
                                                        "what the model reads.")] = None,
    change: Changes = None,
    device: Device = "auto",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Say how probable texts are and what looks misspelt: log-probability, mean a token, perplexity and the text, by tabs.

    A masked language model is asked once a token (pseudo-log-likelihood), T-TA and causal models once a text. What looks misspelt is marked
    with what the model would rather expect: 今天天[汽→气]很好, on a terminal by colours. Each token's figures: --json.
    """
    from fishpaw.tasks.encode import bar
    from fishpaw.tasks.score import Score

    given = texts or []
    if len(given) > 1 and data is not None:
        raise ConfigError("Texts and --data are given.", fix="Leave one out.")
    source = "" if len(given) > 1 else source_of(given[0] if given else None, data)
    task = Score.load(model, changes=changes_of(change), top=top, margin=margin, rank=rank, max_length=max_length)
    task.model.to(place := device_of(device))
    if place.type == "cpu":
        task.model.prepare()

    def lines() -> Iterator[LabelledText]:
        for text in given if len(given) > 1 else [given[0] if given else None]:
            yield from texts_of(text, source, limit)

    def questions() -> Iterator[Question]:
        for line in islice(lines(), limit):
            with located(line):
                question = task.encode(line.text)
            yield question

    shown = not as_json and sys.stdout is not None and sys.stdout.isatty()
    typed = source == "-" and sys.stdin.isatty()                       # who types wants to see each answer
    count = unknown = partly = 0
    with bar((), False if sys.stdout is None or sys.stdout.isatty() else None) as done:
        found = (one for each in questions() for one in task.stream([each])) if typed else task.stream(questions())
        for one in found:
            if as_json:
                write_json(one.figures)
            else:
                write(_line(one, colours=shown and not os.environ.get("NO_COLOR")))
            count, unknown, partly = count + 1, unknown + one.unknown, partly + bool(one.unknown)
            done(1)
    if not count:
        raise DataError(f"{'standard input' if source == '-' else source}: no text.", fix="Write a text on each line.")
    if unknown:
        tell(f"fishpaw: {unknown} tokens in {partly} texts have no probability: the vocabulary doesn't know them, or they are special")


def marked(one: Scored, *, colours: bool) -> str:
    """The text, with each suspect and the best alternative beside it: [汽→气], or in red and green."""
    parts, end = [], 0
    for token in one.suspects:
        if end <= token.start < token.end:                             # of several tokens of one character the first
            wrong, right = one.text[token.start : token.end], token.alternatives[0].token.strip()
            shown = f"\x1b[1;31m{wrong}\x1b[0m\x1b[32m({right})\x1b[0m" if colours else f"[{wrong}→{right}]"
            parts += [one.text[end : token.start], shown]
            end = token.end
    return "".join([*parts, one.text[end:]])


def _line(one: Scored, *, colours: bool) -> str:
    mean, perplexity = ("-" if value is None else f"{value:.3f}" for value in (one.mean, one.perplexity))
    return f"{one.total:.2f}\t{mean}\t{perplexity}\t{marked(one, colours=colours)}"
