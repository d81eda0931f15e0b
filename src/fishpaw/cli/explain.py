"""The verb explain: which tokens of a text spoke for a label, and which against it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal

import typer

from fishpaw.cli.answers import answered, bar_beside
from fishpaw.cli.arguments import (
    Changes,
    Device,
    Json,
    Limit,
    Lines,
    Model,
    Seed,
    changes_of,
    check_file,
    check_task,
    device_of,
    located,
    refuse_beside,
    refuse_tab,
)
from fishpaw.cli.influence import explain_by_examples
from fishpaw.cli.segment import Texts, given_source
from fishpaw.errors import ConfigError
from fishpaw.hub import SMALL
from fishpaw.terminal import decoded, tell, write, write_json

if TYPE_CHECKING:
    from fishpaw.data.labelled import LabelledText
    from fishpaw.tasks.explain import Baseline, Explanation, Method

__all__ = ["explain"]

_UNASKED = dict.fromkeys(("label", "value", "baseline", "error", "points", "tokens", "cut"))               # what a blank line gets
_MISSED = 0.01
"""Share of the change, and 1e-4 of a probability, by which scores may miss their sum before a line says so."""

_ALIKE = 0.01
"""A share of the larger probability: where the text's and the baseline's differ by less, nothing is left to explain, and a line says so."""

Named = Literal["integrated", "complete", "expected", "smooth", "input"]
Against = Literal["zero", "pad", "mask"]


def explain(
    model: Model = SMALL,
    texts: Texts = None,
    data: Lines = None,
    label: Annotated[str | None, typer.Option(help="What to explain: a label, or a token at the [MASK]; default: the likeliest.")] = None,
    method: Annotated[Named, typer.Option(help="integrated gradients; complete: as many points as they need; expected: mean over random "
                                               "texts; smooth: SmoothGrad; input: gradient x input.")] = "integrated",
    points: Annotated[int | None, typer.Option(min=1, help="Gradients a text, default 50; of complete at most, default 1000.")] = None,
    baseline: Annotated[Against | None, typer.Option(help="What the text is compared with; default zero.")] = None,
    by_examples: Annotated[str | None, typer.Option("--by-examples", metavar="FILE", help="Instead: which of these examples, all that the "
                                                    "model was trained on, pushed the prediction.")] = None,
    path: Annotated[Path | None, typer.Option(help="Of --by-examples: OUT/path of `train classify --keep-path`; "
                                              "without it a weaker answer: what one more step on each example would do.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Of --by-examples: so many a text, default 5.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with coloured texts, too.")] = None,
    max_length: Annotated[int | None, typer.Option(min=4, help="In tokens; default: what the model was trained with, or reads.")] = None,
    change: Changes = None,
    seed: Seed = 0,
    device: Device = "auto",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Say what each token adds to the probability of a label: label, probability, baseline and text, by tabs; texts of pairs as a<TAB>b.

    On a terminal green speaks for the label and red against it; elsewhere each token stands with its score. A masked language model is
    asked why it expects a token at the [MASK] of a text.
    """
    from fishpaw.files import file_atomic
    from fishpaw.interpret import colouring
    from fishpaw.tasks.explain import Explain

    given, source = given_source(texts, data)
    for name, there in (("--path", path is not None), ("--top", top is not None)):
        if there and by_examples is None:
            raise ConfigError(f"{name} is given without --by-examples.", fix=f"Add it, or leave {name} out.")
    if by_examples is not None:
        refuse_beside("--by-examples", {
            "--method": method != "integrated", "--points": points is not None, "--baseline": baseline is not None,
            "--html": html is not None, "--max-length": max_length is not None, "--change": bool(change),
        })  # fmt: skip
        if by_examples == source == "-":
            raise ConfigError("--by-examples and --data both read standard input.", fix="Give a file for one of them.")
        check_task(model, "classify")
        explain_by_examples(islice(_lines(given, source, limit), limit), model=model, train=by_examples, path=path, label=label,
                            top=top or 5, device=device, source=source, as_json=as_json)  # fmt: skip
        return
    if html is not None:
        check_file("html", html)
    way, against = _method(method, points, seed), _baseline(method, baseline, seed)
    if not (changes := changes_of(change)):
        check_task(model, "classify")
    task = Explain.load(model, changes=changes, max_length=max_length)
    task.model.to(device_of(device))
    wanted = None if label is None else decoded(label)

    def explained(some: Iterator[LabelledText]) -> Iterator[Explanation]:
        with bar_beside(some) as done:
            for line in some:
                refuse_tab(line, task.pairs)
                with located(line):
                    found = task.explain(line.text, line.pair, label=wanted, method=way, baseline=against)
                yield found
                done(1)

    colours = not as_json and sys.stdout is not None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    missed = alike = cut = 0

    def tell_scores(line: LabelledText, one: Explanation | None, page: BinaryIO | None) -> None:
        nonlocal missed, alike, cut
        if as_json:
            write_json({"text": line.text, "pair": line.pair, **_UNASKED} if one is None else one.figures)
        else:
            write("" if one is None else _line(one, colours=colours))
        if one is None:
            return
        missed, cut = missed + (abs(one.error) > 1e-4 and one.relative > _MISSED), cut + one.cut
        alike += abs(one.value - one.baseline) < _ALIKE * max(one.value, one.baseline)
        if page is not None:
            title = f"{one.label}: {one.value:.4f}, baseline {one.baseline:.4f}"
            note = f"error {one.error:.1e}, {method}, {one.points} points"
            note += f", cut to {task.max_length} tokens: the rest has no score" if one.cut else ""
            page.write(colouring.section(title, _pieces(one), note).encode("utf-8", "replace"))        # of bytes that were no UTF-8

    with ExitStack() as stack:
        page = None if html is None else stack.enter_context(file_atomic(html))                        # before minutes of computing
        if page is not None:
            page.write(colouring.head(f"fishpaw explain: {model}").encode("utf-8", "replace"))
        answered(islice(_lines(given, source, limit), limit), explained, partial(tell_scores, page=page), source=source)
        if page is not None:
            page.write(colouring.END.encode("utf-8"))
    if cut:
        tell(f"fishpaw: {'1 text was' if cut == 1 else f'{cut} texts were'} cut to {task.max_length} tokens: the rest has no score")
    if missed and method in ("integrated", "complete"):
        tell(f"fishpaw: the scores of {'1 text' if missed == 1 else f'{missed} texts'} miss their sum by more than {_MISSED:.0%}: "
             f"{'raise --points' if method == 'complete' else 'use --method complete, or raise --points'}")
    if alike:
        tell(f"fishpaw: {'1 text is' if alike == 1 else f'{alike} texts are'} as probable as the baseline, to {_ALIKE:.0%}: what is "
             "explained is next to nothing; try another --baseline")


def _lines(given: list[str], source: str, limit: int | None) -> Iterator[LabelledText]:
    """Texts and pairs: those of the command line, or of a file; of txt and standard input each line whole but for a tab."""
    from fishpaw.data.labelled import LabelledText, read_texts

    if source:
        yield from islice(read_texts(source), limit)
        return
    for text in given:
        first, tab, second = decoded(text).partition("\t")
        yield LabelledText(first, second if tab else None)


def _method(name: Named, points: int | None, seed: int) -> Method:
    from fishpaw.interpret.complete_gradients import LEAST, complete_gradients
    from fishpaw.interpret.gradients import expected_gradients, gradient_times_input, smooth_gradients
    from fishpaw.interpret.integrated_gradients import integrated_gradients

    if name == "input":
        if points is not None:
            raise ConfigError("--points with --method input, which takes one gradient.", fix="Leave --points out.")
        return gradient_times_input
    if name == "complete":
        if points is not None and points < LEAST:
            raise ConfigError(f"--points {points} with --method complete, which takes {LEAST} at least.", fix="Raise it, or leave it out.")
        return partial(complete_gradients, most=points or 1000)
    if name == "integrated":
        return partial(integrated_gradients, points=points or 50)
    return partial(expected_gradients if name == "expected" else smooth_gradients, points=points or 50, seed=seed)


def _baseline(method: Named, name: Against | None, seed: int) -> Baseline:
    from fishpaw.tasks.explain import masks, padding, random_texts, zeros

    if method == "expected":
        if name is not None:
            raise ConfigError("--baseline with --method expected, which averages over random texts.", fix="Leave --baseline out.")
        return partial(random_texts, seed=seed)
    known: dict[Any, Baseline] = {"pad": padding, "mask": masks}
    return known.get(name, zeros)


def _pieces(one: Explanation) -> list[Any]:
    from fishpaw.interpret.colouring import pieces

    first = pieces(one.text, one.spans())
    return [first] if one.pair is None else [first, pieces(one.pair, one.spans(second=True))]


def _line(one: Explanation, *, colours: bool) -> str:
    from fishpaw.interpret.colouring import coloured, numbered

    return "\t".join([one.label, f"{one.value:.4f}", f"{one.baseline:.4f}", *map(coloured if colours else numbered, _pieces(one))])
