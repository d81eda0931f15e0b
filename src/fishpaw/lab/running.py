"""Runs an analysis: the quick form at once, the full form in a folder where a stopped run goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fishpaw import __version__
from fishpaw.errors import ConfigError, DataError
from fishpaw.files import lock, write_atomic
from fishpaw.lab.catalogue import load, with_full
from fishpaw.lab.records import Record, make, read, write

__all__ = ["at_once", "in_full"]

_SETTINGS = ("name", "seed", "size", "fishpaw")


def at_once(name: str, *, seed: int = 0) -> Record:
    """The quick form of an analysis. ConfigError for an unknown name."""
    analysis = load(name)
    began = time.monotonic()
    found = analysis.measure(seed=seed)
    return make(name, found, seed=seed, size={}, seconds=time.monotonic() - began)


def in_full(
    name: str, out: Path, *, tell: Callable[[str], None], seed: int = 0, data: Path | None = None, size: Any = None
) -> Record:  # fmt: skip
    """The full form of an analysis; out/record.json at its end. The same call again goes on where a stopped one was;
    of a finished one it gives the record.

    out: holds settings.json and the finished parts, in `parts`. tell: is given a line now and then. size: default: the analysis's own.
    Errors: ConfigError for a name without a full form and for a folder of another seed, size or version; DataError for what the analysis
    misses in `data`, and for damaged settings; FishpawError for a folder that another process is writing.
    """
    analysis = load(name)
    if analysis.full is None:
        raise ConfigError(f"{name} has no full form.", fix=f"Leave --full out; these have one: {', '.join(with_full()) or 'none'}.")
    chosen = analysis.size if size is None else size
    settings = {"name": name, "seed": seed, "size": json.loads(json.dumps(asdict(chosen))), "fishpaw": __version__}
    with lock(out, timeout=1):
        before = _seconds_before(out / "settings.json", settings)
        began = time.monotonic()
        if (out / "record.json").exists():
            record = read(out / "record.json")
            held = {"name": record.name, "seed": record.seed, "size": dict(record.size), "fishpaw": record.versions.get("fishpaw")}
            if held != settings:
                raise DataError(f"{out / 'record.json'}: of another run than the settings beside it.", fix="Choose a new --out.")
            tell(f"finished before: {out / 'record.json'}")
            return record
        (out / "parts").mkdir(parents=True, exist_ok=True)
        try:
            found = analysis.full(out / "parts", seed=seed, data=data, tell=tell, size=chosen)
        except BaseException:
            if not any((out / "parts").iterdir()):                   # refused, or stopped before anything was found: the folder is free
                (out / "parts").rmdir()
                (out / "settings.json").unlink()
            raise
        finally:                                                     # of a stopped run, too
            spent = before + time.monotonic() - began
            if (out / "settings.json").exists():
                write_atomic(out / "settings.json", json.dumps({**settings, "seconds": round(spent, 3)}, ensure_ascii=False) + "\n")
        record = make(name, found, seed=seed, size=settings["size"], seconds=spent)
        write(out / "record.json", record)
    return record


def _seconds_before(path: Path, settings: dict[str, Any]) -> float:
    """What stopped runs took, 0 for a new folder, where the settings are written first: parts of two runs never mix."""
    if not path.exists():
        if (path.parent / "parts").exists():
            raise DataError(f"{path}: is missing beside finished parts, so that nobody can tell of what.", fix="Choose a new --out.")
        write_atomic(path, json.dumps({**settings, "seconds": 0.0}, ensure_ascii=False) + "\n")
        return 0.0
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        seconds, there = float(held["seconds"]), {name: held[name] for name in _SETTINGS}
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise DataError(f"{path}: can't be read as settings ({error!r}).", fix="Choose a new --out.") from error
    if differing := [name for name in _SETTINGS if there[name] != settings[name]]:
        name = differing[0]
        raise ConfigError(f"{path.parent} holds a run of {name} {_short(there[name])}, not {_short(settings[name])}.",
                          fix="Choose another --out, or go on with what it was begun with.")  # fmt: skip
    return seconds


def _short(value: Any) -> str:
    return ", ".join(f"{name} {one}" for name, one in value.items()) if isinstance(value, dict) else str(value)
