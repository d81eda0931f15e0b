"""The verb lab: claims of the field measured again, one analysis or all of them, as a table, figures and a report."""

from __future__ import annotations

import json
import shutil
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fishpaw.cli.arguments import Json, Seed, check_out, refuse_beside
from fishpaw.errors import ConfigError, FishpawError
from fishpaw.terminal import beside_a_bar, decoded, tell, write, write_figures, write_json

if TYPE_CHECKING:
    from fishpaw.lab.catalogue import Entry
    from fishpaw.lab.records import Record
    from fishpaw.lab.report import Section

__all__ = ["Language", "lab"]

_RUNS = Path("runs") / "lab"
_BREAKS = (ArithmeticError, FishpawError, ImportError, LookupError, OSError, RuntimeError, ValueError)
"""What numbers, a record or the machine may do to one analysis: the report goes on, and says so. Faults in the code end it."""


class Language(StrEnum):
    """Of tables and the report."""

    EN = "en"
    ZH = "zh"


def lab(
    name: Annotated[str | None, typer.Argument(help="An analysis, or all for a report of all of them; default: list them.")] = None,
    full: Annotated[bool, typer.Option("--full", help="The large form: up to 20 minutes; the same command goes on after Ctrl-C.")] = False,
    data: Annotated[Path | None, typer.Option("--data", "-d", help="A data folder, for --full; default: FISHPAW_DATA.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="For figures and JSON; default, of all and --full: runs/lab.")] = None,
    lang: Annotated[Language, typer.Option(help="Of tables and the report.")] = Language.EN,
    vocab: Annotated[int | None, typer.Option(min=2, help="With embedding_dimension: only say how many dimensions so many words "
                                             "need.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure claims again: what is claimed, what comes out, whether it holds. Exit code 1 if a mathematical claim doesn't hold."""
    name = None if name is None else decoded(name)
    if full and name in (None, "all"):
        from fishpaw.lab.catalogue import with_full

        raise ConfigError("--full is given without an analysis.", fix=f"Name one that has a full form: {', '.join(with_full()) or 'none'}.")
    if vocab is not None:
        from fishpaw.lab.embedding_dimension import dimension

        if name != "embedding_dimension":
            raise ConfigError("--vocab is of embedding_dimension alone.", fix="Write fishpaw lab embedding_dimension --vocab N.")
        refuse_beside("--vocab", {"--full": full, "--data": data is not None, "--out": out is not None,
                                  "--lang": lang is not Language.EN, "--seed": seed != 0})  # fmt: skip
        write_figures({"dimension": dimension(vocab)}, as_json)
        return
    if data is not None and not full:
        raise ConfigError("--data is given without --full: quick forms read no data.", fix="Leave it out, or add --full.")
    if name is None:
        if out is not None:
            raise ConfigError("--out is given without an analysis.", fix="Name one, or all.")
        _list(lang, as_json)
    elif name == "all":
        _report(out or _RUNS, lang, seed, as_json)
    elif full:
        _whole(name, out or _RUNS / name, data, lang, seed, as_json)
    else:
        _quick(name, out, lang, seed, as_json)


def _list(lang: Language, as_json: bool) -> None:
    from fishpaw.lab.catalogue import entries
    from fishpaw.lab.records import place
    from fishpaw.lab.table import say, wide

    found = entries()
    size = max((wide(entry.name) for entry in found), default=0)
    for entry in found:
        there = place(entry.name) is not None
        if as_json:
            write_json({"name": entry.name, "title": vars(entry.title), "source": entry.source, "full": entry.full, "recorded": there})
        else:
            write(f"{entry.name:{size}}  {'+' if entry.full else ' '}{'*' if there else ' '}  {say(entry.title, _language(lang))}")
    if not as_json:
        tell("\n+ has a full form (--full); * a record of it comes with fishpaw" if lang is Language.EN else
             "\n+ 有完整形式（--full）；* 附有其记录")  # fmt: skip


def _quick(name: str, out: Path | None, lang: Language, seed: int, as_json: bool) -> None:
    from fishpaw.lab import catalogue, drawing, records, running
    from fishpaw.lab.report import Section

    analysis = catalogue.load(name)
    if out is not None:
        check_out(out)
        drawing.require()
    recorded = records.kept(name)
    record = running.at_once(name, seed=seed)
    if out is not None:
        records.write(out / f"{name}.json", record)
        drawing.save(drawing.drawn(analysis.draw, record.series), out / name)
    _show(analysis.entry, record, recorded, lang, as_json)
    _conclude([Section(analysis.entry, record)])


def _whole(name: str, out: Path, data: Path | None, lang: Language, seed: int, as_json: bool) -> None:
    from fishpaw.demo import data_folder
    from fishpaw.lab import catalogue, drawing, running
    from fishpaw.lab.report import Section

    analysis = catalogue.load(name)
    if analysis.full is not None:
        drawing.require()
        check_out(out)
    try:
        record = running.in_full(name, out, seed=seed, data=data or data_folder(), tell=tell)
    except KeyboardInterrupt:
        tell("fishpaw: the same command goes on from here.")
        raise
    drawing.save(drawing.drawn(analysis.draw, record.series), out / name)
    _show(analysis.entry, record, None, lang, as_json)
    tell(f"fishpaw: {out / 'record.json'}")
    _conclude([Section(analysis.entry, record)])


def _report(out: Path, lang: Language, seed: int, as_json: bool) -> None:
    from tqdm.auto import tqdm

    from fishpaw.files import file_atomic
    from fishpaw.lab import catalogue, drawing, records
    from fishpaw.lab.report import page

    drawing.require()
    check_out(out)
    found = catalogue.entries()
    kept = {entry.name: records.kept(entry.name) for entry in found}           # a damaged one is told before anything runs
    say, sections, path = beside_a_bar(write), [], out / "report.html"
    with file_atomic(path) as file, tqdm(found, unit="analysis", disable=None) as bar:         # opened before minutes of computing
        for entry in bar:
            bar.set_postfix_str(entry.name)
            sections.append(one := _measured(entry, kept[entry.name], seed))
            if as_json:
                say(json.dumps(_object(one.entry, one.record, one.recorded, one.error), ensure_ascii=False))
        file.write(page(sections, language=_language(lang), seed=seed).encode("utf-8"))
    (tell if as_json else write)(f"{path}")
    _conclude(sections)


def _measured(entry: Entry, recorded: Record | None, seed: int) -> Section:
    """A section of the report: figures and all, or what kept it from being measured or drawn."""
    from fishpaw.lab import catalogue, drawing, running
    from fishpaw.lab.report import Section

    record = figure = other = None
    try:
        analysis = catalogue.load(entry.name)
        record = running.at_once(entry.name, seed=seed)
        figure = drawing.svg(drawing.drawn(analysis.draw, record.series))
        other = None if recorded is None else drawing.svg(drawing.drawn(analysis.draw, recorded.series))
    except _BREAKS as error:
        return Section(entry, record, f"{type(error).__name__}: {error}", figure, recorded)
    return Section(entry, record, None, figure, recorded, other)


def _show(entry: Entry, record: Record, recorded: Record | None, lang: Language, as_json: bool) -> None:
    from fishpaw.lab.table import circumstances, lines, say

    if as_json:
        write_json(_object(entry, record, recorded))
        return
    language = _language(lang)
    write(f"{say(entry.title, language)}  {entry.source}\n")
    for one in [record] if recorded is None else [record, recorded]:
        if one.size:                                                 # a full form, of now or kept
            write(circumstances(one, language))
        for line in lines(one.rows, language, width=shutil.get_terminal_size((140, 24)).columns):
            write(line)
        if one is not recorded and recorded is not None:
            write("")


def _object(entry: Entry, record: Record | None, recorded: Record | None, error: str | None = None) -> dict[str, Any]:
    measured, kept = (None if one is None else _fields(one) for one in (record, recorded))
    return {"name": entry.name, "title": vars(entry.title), "source": entry.source, "error": error, "measured": measured, "recorded": kept}


def _fields(record: Record) -> dict[str, Any]:
    """A record as JSON, but for its series, with the verdicts."""
    from fishpaw.lab.records import row_fields
    from fishpaw.lab.table import kind

    rows = [{**row_fields(row), "kind": kind(row), "verdict": row.verdict} for row in record.rows]
    return {"seed": record.seed, "size": dict(record.size), "versions": dict(record.versions), "processor": record.processor,
            "date": record.date, "seconds": record.seconds, "rows": rows}  # fmt: skip


def _language(lang: Language) -> Literal["en", "zh"]:
    return "zh" if lang is Language.ZH else "en"


def _conclude(sections: list[Section]) -> None:
    """Exit code 1, and a sentence that names them, where mathematical rows don't hold or analyses weren't measured."""
    from fishpaw.lab.report import failures

    if failed := failures(sections):
        tell(f"fishpaw: what must hold doesn't: {'; '.join(failed)}.")
        raise typer.Exit(1)
