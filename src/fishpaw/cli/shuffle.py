"""The verb shuffle: lines of files larger than memory, in an order where every permutation is equally probable."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fishpaw.cli.arguments import Json, Seed, check_out
from fishpaw.errors import ConfigError, DataError
from fishpaw.terminal import leave, tell, write_figures, write_json

if TYPE_CHECKING:
    from fishpaw.data.shuffle import Progress

__all__ = ["Engine", "shuffle", "size_of"]


class Engine(StrEnum):
    """Where it is done."""

    LOCAL = "local"
    RAY = "ray"


def shuffle(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT…", help="Files of lines, also .gz and .zst; - reads standard input.")],
    out: Annotated[str, typer.Option("--out", "-o", help="A new or empty folder; - writes standard output.")],
    memory: Annotated[str, typer.Option(help="Of the whole process, with Ray of each: 256M, 1G …")] = "1G",
    seed: Seed = 0,
    header: Annotated[bool, typer.Option("--header", help="Each input's first line stays on top, of each file written.")] = False,
    aligned: Annotated[bool, typer.Option("--aligned", help="Line n of each input belongs together: all get the same order.")] = False,
    lines_per_file: Annotated[int | None, typer.Option(min=1, help="Cut the output after so many lines.")] = None,
    bytes_per_file: Annotated[str | None, typer.Option(help="Cut it before it exceeds so many bytes, unpacked: 100M …")] = None,
    ending: Annotated[str | None, typer.Option(help="Of the files: .txt, .jsonl.gz, .txt.zst … Default: that of the first input.")] = None,
    temp: Annotated[Path | None, typer.Option(help="For what is in between, as large as the input; default: in the folder.")] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Forget what the folder holds of a shuffle, finished or not.")] = False,
    engine: Annotated[Engine, typer.Option(help="ray: on a Ray cluster whose machines see the same files.")] = Engine.LOCAL,
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster, auto: the one of this machine.")] = None,
    as_json: Json = False,
) -> None:
    """Shuffle the lines of files larger than memory. The same command goes on where a run was stopped."""
    limit, cut = size_of("--memory", memory), None if bytes_per_file is None else size_of("--bytes-per-file", bytes_per_file)
    if out == "-" and as_json:
        raise ConfigError("--json and --out - both want standard output.", fix="Leave one out.")
    if out != "-":
        check_out(Path(out))
    if "-" in inputs and sys.stdin is None:
        raise DataError("There is no standard input.", fix="Name a file.")
    if "-" in inputs and sys.stdin.isatty():
        tell("fishpaw: reading standard input; end it with Ctrl-D")
    began = time.monotonic()
    if engine is Engine.RAY:
        if cut is not None or temp is not None:
            raise ConfigError("--engine ray knows no --bytes-per-file and no --temp.", fix="Cut by lines (--lines-per-file).")
        from fishpaw.data.shuffle_ray import shuffle_on_ray

        done = shuffle_on_ray(inputs, out, memory=limit, seed=seed, header=header, aligned=aligned, ending=ending,
                              lines_per_file=lines_per_file, restart=restart, address=address)  # fmt: skip
    else:
        from fishpaw.data.shuffle import shuffle as run

        try:
            with _bar() as progress:
                done = run(inputs, out, memory=limit, seed=seed, header=header, aligned=aligned, ending=ending, restart=restart,
                           lines_per_file=lines_per_file, bytes_per_file=cut, temporary=temp, progress=progress)  # fmt: skip
        except BrokenPipeError:                                      # the reader, `head` for example, has seen enough
            leave(0)
    figures = {"out": out, "lines": done.lines, "bytes": done.bytes, "digest": done.digest, "seconds": round(time.monotonic() - began, 3)}
    if as_json:
        write_json({**figures, "files": [asdict(part) for part in done.files]})
    elif out != "-":
        write_figures({**figures, "files": len(done.files)}, False)


def size_of(option: str, text: str) -> int:
    """"512M" -> bytes: K, M, G and T are powers of 1024, with or without a B behind."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)([KMGT]?)(?:I?B)?", text.strip().upper(), re.ASCII)
    value = int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " ")) if found else 0
    if not value:
        raise ConfigError(f"{option} {text} is no size.", fix="Write 512M or 2G, for example.")
    return value


@contextmanager
def _bar() -> Iterator[Progress]:
    """A progress bar on a terminal, one for reading and one for writing."""
    from tqdm.auto import tqdm

    bars: dict[str, tqdm[None]] = {}

    def say(stage: str, done: int, total: int) -> None:
        if stage not in bars:
            for bar in bars.values():
                bar.close()
            bars[stage] = tqdm(desc=stage, total=total or None, unit="B", unit_scale=True, disable=None)
        bars[stage].update(done - bars[stage].n)

    try:
        yield say
    finally:
        for bar in bars.values():
            bar.close()
