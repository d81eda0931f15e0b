"""The verb parse: trees of phrases and dependencies, from a masked language model that was never told of syntax."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fishpaw.cli.answers import answered, bar_beside
from fishpaw.cli.arguments import Changes, Device, Json, Limit, Lines, Model, changes_of, check_file, check_task, device_of, located
from fishpaw.cli.segment import Layer, MetricName, MetricOption, Texts, given_texts, tell_reads
from fishpaw.errors import ConfigError, DataError
from fishpaw.files import write_atomic
from fishpaw.hub import SMALL
from fishpaw.terminal import write, write_json

if TYPE_CHECKING:
    from fishpaw.data.labelled import LabelledText
    from fishpaw.tasks.parse import Parse, Parsed

__all__ = ["AlgorithmName", "Kind", "ObjectiveName", "parse"]

_LONG = 100
"""A text of more words is read 5,000 times and more, which takes minutes, and a line says so."""


class Kind(StrEnum):
    """What a tree is made of."""

    CONSTITUENCY = "constituency"
    DEPENDENCY = "dependency"


class ObjectiveName(StrEnum):
    """Where phrases are cut: the formula of the article, or that of the program published with the paper."""

    ARTICLE = "article"
    CODE = "code"


class AlgorithmName(StrEnum):
    """The best projective tree, or the best of all."""

    EISNER = "eisner"
    CHU_LIU_EDMONDS = "chu-liu-edmonds"


def parse(
    model: Model = SMALL,
    texts: Texts = None,
    data: Lines = None,
    tree: Annotated[Kind, typer.Option(help="Phrases in brackets, or dependencies in the columns of CoNLL-U.")] = Kind.CONSTITUENCY,
    objective: Annotated[ObjectiveName | None, typer.Option(help="Where phrases are cut: the article's formula, or that of the program "
                                                                 "published with the paper. Default: article.")] = None,
    algorithm: Annotated[AlgorithmName | None, typer.Option(help="Dependencies that don't cross, or any. Default: eisner.")] = None,
    root: Annotated[int | None, typer.Option(min=1, help="The word, from 1, that hangs on none; default: that of the best tree.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Draw the tree of the one text into this file.")] = None,
    heat: Annotated[Path | None, typer.Option(help="Draw the impacts of the one text into this file.")] = None,
    layer: Layer = -1,
    metric: MetricOption = MetricName.L2,
    change: Changes = None,
    device: Device = "auto",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Draw trees of texts by a masked language model alone, from how much masking one word changes the others.

    A text with blanks in it is read as words, one without as characters; `fishpaw segment … | fishpaw parse …` finds words first. A text
    of n words is read n (n + 1) / 2 times.
    """
    from fishpaw.interpret.constituency import OBJECTIVES
    from fishpaw.interpret.dependency import ALGORITHMS
    from fishpaw.interpret.perturbed_masking import METRICS
    from fishpaw.interpret.tree_svg import constituency_svg, dependency_svg, heat_map
    from fishpaw.tasks.parse import Parse

    phrases = tree is Kind.CONSTITUENCY
    for name, given, wanted in (("objective", objective, True), ("algorithm", algorithm, False), ("root", root, False)):
        if given is not None and phrases is not wanted:
            kind = Kind.CONSTITUENCY if wanted else Kind.DEPENDENCY
            fix = f"Leave one out, or write --tree {kind}." if wanted else f"Add --tree {kind}, or leave --{name} out."
            raise ConfigError(f"--{name} is for --tree {kind}.", fix=fix)
    for name, file in (("svg", svg), ("heat", heat)):
        if file is not None:
            check_file(name, file)
    if svg is not None and svg == heat:
        raise ConfigError(f"--svg and --heat are both {svg}.", fix="Give a file for each.")
    drawn = svg or heat
    if drawn and len(texts or []) > 1:
        raise ConfigError(f"{'--svg' if svg else '--heat'} is for one text.", fix="Give one.")
    lines, source = given_texts(texts, data, limit)
    if drawn:
        lines = [*lines]                                               # a second text is refused before the first is drawn
        if sum(bool(line.text.strip()) for line in lines) > 1:
            raise ConfigError(f"{'--svg' if svg else '--heat'} is for one text.", fix="Add --limit 1.")
    if not (changes := changes_of(change)):
        check_task(model)
    task = Parse.load(model, changes=changes, layer=layer, metric=METRICS[metric])
    task.model.to(place := device_of(device))
    if place.type == "cpu":
        task.model.prepare()

    def parsed(some: Iterator[LabelledText]) -> Iterator[Parsed]:
        with bar_beside(some) as done:
            for line in some:
                with located(line):
                    tell_reads(n := _units(task, line.text), n * (n + 1) // 2, above=_LONG)
                    impact = task.impact(line.text)
                    if root is not None and root > len(impact.words):
                        raise DataError(f"The root is word {root}, but the text has {len(impact.words)}.", fix="Name one of them.")
                if phrases:
                    yield task.constituency(impact, objective=OBJECTIVES[objective or ObjectiveName.ARTICLE])
                else:
                    chosen = ALGORITHMS[algorithm or AlgorithmName.EISNER]
                    yield task.dependency(impact, algorithm=chosen, root=None if root is None else root - 1)
                done(1)

    def tell_tree(line: LabelledText, found: Parsed | None) -> None:
        if as_json:
            empty = dict.fromkeys(("words", "tree", "heads", "impact"))
            write_json({"text": line.text, **(empty if found is None else found.figures)})
        else:
            write("" if found is None else found.shown)
        if found is not None and svg:
            words = found.impact.words
            write_atomic(svg, dependency_svg(found.heads or (), words) if found.tree is None else constituency_svg(found.tree, words))
        if found is not None and heat:
            write_atomic(heat, heat_map(found.impact.matrix, found.impact.words))

    answered(lines, parsed, tell_tree, source=source)


def _units(task: Parse, text: str) -> int:
    """How many words or units there are of a text; 0 where it is refused."""
    from fishpaw.interpret.constituency import MOST
    from fishpaw.tasks.segment import units

    words = text.split()
    encodings = [task.tokenizer.encode(word, special=False) for word in words]
    tokens = sum(map(len, encodings))
    count = len(words) if len(words) > 1 else len(units(words[0], encodings[0], most=max(1, tokens)))
    return count if count <= MOST and (task.layout.room is None or tokens <= task.layout.room) else 0
