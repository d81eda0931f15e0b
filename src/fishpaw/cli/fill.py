"""The verb fill: candidates at each [MASK]."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from fishpaw.cli.answers import answered
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
from fishpaw.hub import SMALL
from fishpaw.terminal import write, write_json

if TYPE_CHECKING:
    from fishpaw.data.labelled import LabelledText
    from fishpaw.tasks.fill import Blank

__all__ = ["fill"]


def fill(
    model: Model = SMALL,
    text: Annotated[str | None, typer.Argument(help="A text with [MASK] in it; default: the lines of --data.")] = None,
    data: Lines = None,
    top: Annotated[int, typer.Option(min=1, help="Candidates a blank.")] = 5,
    change: Changes = None,
    device: Device = "auto",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Say what a masked language model expects at each [MASK]: where it stands, in characters, and the likeliest tokens.

    Of several lines the number of the line comes first.
    """
    from fishpaw.tasks.fill import fill as guess
    from fishpaw.weights.load import load

    source = source_of(text, data)
    if not (changes := changes_of(change)):
        check_task(model)
    filler, tokenizer = load(model, changes=changes)
    filler.to(device_of(device))

    def guessed(lines: Iterator[LabelledText]) -> Iterator[list[Blank]]:
        for line in lines:
            with located(line):
                found = guess(filler, tokenizer, line.text, top=top)
            yield found

    def tell_blanks(line: LabelledText, blanks: list[Blank] | None) -> None:
        for blank in blanks or ():
            if as_json:
                candidates = [{"token": token, "probability": share} for token, share in blank.candidates]
                write_json({"text": line.text, "start": blank.start, "candidates": candidates})
            else:
                named = [f"{token} {share:.3f}" for token, share in blank.candidates]
                write("\t".join([*([str(line.line)] if line.file else []), str(blank.start), *named]))

    answered(texts_of(text, source, limit), guessed, tell_blanks, source=source)
