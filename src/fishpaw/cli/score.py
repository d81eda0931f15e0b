"""The verb score: how probable texts are, token by token, and what looks misspelt in them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from fishpaw.cli.answers import answered, bar_beside, typed
from fishpaw.cli.arguments import (
    Changes,
    Device,
    Json,
    Limit,
    Lines,
    Model,
    changes_of,
    check_task,
    device_of,
    located,
    source_of,
    texts_of,
)
from fishpaw.cli.segment import LONG, tell_reads
from fishpaw.errors import ConfigError
from fishpaw.hub import SMALL
from fishpaw.terminal import tell, write, write_json

if TYPE_CHECKING:
    from fishpaw.data.labelled import LabelledText
    from fishpaw.tasks.score import Question, Scored

__all__ = ["marked", "score"]

_UNASKED = dict.fromkeys(("way", "total", "mean", "perplexity", "unknown", "tokens"))                      # what a blank line gets


def score(
    model: Model = SMALL,
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
    from fishpaw.tasks.score import Score

    given = texts or []
    if len(given) > 1 and data is not None:
        raise ConfigError("Texts and --data are given.", fix="Leave one out.")
    source = "" if len(given) > 1 else source_of(given[0] if given else None, data)
    if not all(map(str.strip, given)):
        raise ConfigError("A text is blank.", fix="Leave it out.")
    if not (changes := changes_of(change)):
        check_task(model, "dialogue")
    task = Score.load(model, changes=changes, top=top, margin=margin, rank=rank, max_length=max_length)
    task.model.to(place := device_of(device))
    if place.type == "cpu":
        task.model.prepare()

    def lines() -> Iterator[LabelledText]:
        for text in given if len(given) > 1 else [given[0] if given else None]:
            yield from texts_of(text, source, limit)

    def questions(some: Iterable[LabelledText]) -> Iterator[Question]:
        for line in some:
            with located(line):
                question = task.encode(line.text)
            if task.way == "masked":
                tell_reads(n := len(question.encoding), n, above=LONG)
            yield question

    def scored(some: Iterator[LabelledText]) -> Iterator[Scored]:
        asked = questions(some)
        with bar_beside(some) as done:
            for one in (one for each in asked for one in task.stream([each])) if typed(source) else task.stream(asked):
                yield one
                done(1)

    colours = not as_json and sys.stdout is not None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    unknown = partly = 0

    def tell_score(line: LabelledText, one: Scored | None) -> None:
        nonlocal unknown, partly
        if as_json:
            write_json({"text": line.text, **_UNASKED} if one is None else one.figures)
        else:
            write("" if one is None else _line(one, colours=colours))
        if one is not None:
            unknown, partly = unknown + one.unknown, partly + bool(one.unknown)

    answered(islice(lines(), limit), scored, tell_score, source=source)
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
    figures = ((one.total, 2), (one.mean, 3), (one.perplexity, 3))
    return "\t".join(["-" if value is None else f"{value:.{places}f}" for value, places in figures] + [marked(one, colours=colours)])
