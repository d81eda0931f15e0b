"""The verb segment: words of Chinese texts, from a masked language model that was never told of words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from fishpaw.cli.answers import answered, bar_beside
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
from fishpaw.errors import ConfigError
from fishpaw.hub import SMALL
from fishpaw.terminal import beside_a_bar, decoded, tell, write, write_json

if TYPE_CHECKING:
    from fishpaw.data.labelled import LabelledText
    from fishpaw.tasks.segment import Segment, Segmented

__all__ = ["LONG", "Layer", "MetricName", "MetricOption", "Texts", "given_source", "given_texts", "segment", "tell_reads"]

LONG = 500
"""A text of more units is read 1,000 times and more, which takes minutes, and a line says so."""


class MetricName(StrEnum):
    """How far two vectors are from each other."""

    L2 = "l2"
    COSINE = "cosine"


Texts = Annotated[list[str] | None, typer.Argument(metavar="[TEXT]…", help="Texts; default: the lines of --data.")]
Layer = Annotated[int, typer.Option(help="Whose vectors are compared: 0 the embeddings, 1 the first layer …, -1 the last.")]
MetricOption = Annotated[MetricName, typer.Option(help="The length of the difference, or 1 less the cosine.")]


def segment(
    model: Model = SMALL,
    texts: Texts = None,
    data: Lines = None,
    threshold: Annotated[float | None, typer.Option(help="Join neighbours whose impact on each other is that or more; lower: longer "
                                                         "words. It depends on the model.")] = None,
    valley: Annotated[bool, typer.Option("--valley", help="Cut where the impact is lower than beside it; needs no threshold, and is what "
                                                          "is done without one.")] = False,
    separator: Annotated[str, typer.Option(help="Between words.")] = " ",
    layer: Layer = -1,
    metric: MetricOption = MetricName.L2,
    max_length: Annotated[int | None, typer.Option(help="Tokens read together; longer texts in windows that overlap by half. Default: "
                                                        "what the model reads.")] = None,
    change: Changes = None,
    device: Device = "auto",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Part Chinese texts into words by a masked language model alone: cut where masking a character changes its neighbour little.

    Each text is read about twice a character. White space always parts words.
    """
    from fishpaw.interpret.perturbed_masking import METRICS
    from fishpaw.tasks.segment import Segment

    if valley and threshold is not None:
        raise ConfigError("--valley and --threshold are given.", fix="Leave one out.")
    lines, source = given_texts(texts, data, limit)
    if not (changes := changes_of(change)):
        check_task(model)
    task = Segment.load(model, changes=changes, threshold=threshold, layer=layer, metric=METRICS[metric], max_length=max_length)
    task.model.to(place := device_of(device))
    if place.type == "cpu":
        task.model.prepare()
    between = decoded(separator)

    def segmented(some: Iterator[LabelledText]) -> Iterator[Segmented]:
        with bar_beside(some) as done:
            for line in some:
                with located(line):
                    tell_reads(*_reads(task, line.text), above=LONG)
                    (found,) = task.segment([line.text])
                yield found
                done(1)

    def tell_words(line: LabelledText, found: Segmented | None) -> None:
        if as_json:
            write_json(dict.fromkeys(("words", "units", "correlations", "cuts")) | {"text": line.text} if found is None else found.figures)
        else:
            write("" if found is None else between.join(found.words))

    answered(lines, segmented, tell_words, source=source)


def given_source(texts: list[str] | None, data: str | None) -> tuple[list[str], str]:
    """The texts of the command line, and the source, as of source_of. ConfigError for both, and a blank text."""
    given = texts or []
    if len(given) > 1 and data is not None:
        raise ConfigError("Texts and --data are given.", fix="Leave one out.")
    source = "" if len(given) > 1 else source_of(given[0] if given else None, data)
    if not all(map(str.strip, given)):
        raise ConfigError("A text is blank.", fix="Leave it out.")
    return given, source


def given_texts(texts: list[str] | None, data: str | None, limit: int | None) -> tuple[Iterable[LabelledText], str]:
    """The texts of the command line, or the lines of --data, whole; and the source. Errors: those of given_source."""
    given, source = given_source(texts, data)

    def lines() -> Iterator[LabelledText]:
        for text in given if len(given) > 1 else [given[0] if given else None]:
            yield from texts_of(text, source, limit)

    return islice(lines(), limit), source


def tell_reads(units: int, reads: int, *, above: int) -> None:
    """Before a text of more than so many units is read: how often it will be."""
    if units > above:
        beside_a_bar(tell)(f"fishpaw: {units:,} units mean {reads:,} reads")


def _reads(task: Segment, text: str) -> tuple[int, int]:
    """The units of a text, and how often they are read: in each window each unit, and each pair of neighbours."""
    from fishpaw.tasks.segment import parts, units

    found = units(text, task.tokenizer.encode(text, special=False), most=task.room // 2)
    borders = [one.last - one.first for one in parts([one.tokens for one in found], task.room)] if found else []
    return len(found), sum(2 * count + 1 for count in borders if count)
