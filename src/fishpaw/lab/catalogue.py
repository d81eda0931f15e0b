"""Which analyses there are: each file beside this one that has a function `measure`. Listing them reads the files and runs none."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fishpaw.errors import ConfigError
from fishpaw.lab.findings import Found, Words
from fishpaw.switch import nearest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Analysis", "Entry", "entries", "load", "with_full"]


@dataclass(frozen=True)
class Entry:
    """What the catalogue says of an analysis. full: whether it has a large form, too."""

    name: str
    title: Words
    source: str
    full: bool


@dataclass(frozen=True)
class Analysis:
    """An analysis that can be run. measure(seed=…) and draw(figure, series) are its quick form; full(keep, seed=…, data=…, tell=…, size=…)
    the large one, and size its usual size, a frozen dataclass; both None where there is none."""

    entry: Entry
    measure: Callable[..., Found]
    draw: Callable[[Figure, Mapping[str, Any]], None]
    full: Callable[..., Found] | None
    size: Any


def entries() -> list[Entry]:
    """All analyses, by name. ConfigError for a file whose TITLE or SOURCE can't be read without running it."""
    return [entry for path in _files() if (entry := _entry(path, path.stat().st_mtime_ns)) is not None]


def load(name: str) -> Analysis:
    """Import an analysis. ConfigError for a name that is none, with the nearest one."""
    known = {entry.name: entry for entry in entries()}
    if name not in known:
        raise ConfigError(f"There is no analysis {name!r}.", fix=nearest(name, sorted(known)))
    module = importlib.import_module(f"fishpaw.lab.{name}")
    full = module.full if known[name].full else None
    size = None if full is None else inspect.signature(full).parameters["size"].default
    return Analysis(known[name], module.measure, module.draw, full, size)


def with_full() -> list[str]:
    """The names of the analyses that have a full form."""
    return [entry.name for entry in entries() if entry.full]


def _files() -> list[Path]:
    folders = [Path(folder) for folder in sys.modules["fishpaw.lab"].__path__]
    return sorted((path for folder in folders for path in folder.glob("*.py")), key=lambda path: path.stem)


@functools.cache
def _entry(path: Path, changed: int) -> Entry | None:
    """None for a file that is no analysis. Read once, as long as the file doesn't change."""
    body = ast.parse(path.read_text(encoding="utf-8"), str(path)).body
    functions = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    if "measure" not in functions:
        return None
    assigned = [(target, node.value) for node in body if isinstance(node, ast.Assign) for target in node.targets]
    values = {target.id: value for target, value in assigned if isinstance(target, ast.Name)}
    try:
        title = values["TITLE"]
        if not isinstance(title, ast.Call):
            raise ValueError("TITLE is no Words(…)")
        words = Words(*map(ast.literal_eval, title.args), **{str(one.arg): ast.literal_eval(one.value) for one in title.keywords})
        source = ast.literal_eval(values["SOURCE"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: TITLE and SOURCE can't be read ({error}).",
                          fix='Write TITLE = Words("…", "…") and SOURCE = "https://…", both as plain texts.') from error  # fmt: skip
    return Entry(path.stem, words, str(source), "full" in functions)
