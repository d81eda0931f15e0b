"""A record: what an analysis found, with all that is needed to find it again, as a JSON file that is whole or absent."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fishpaw import __version__
from fishpaw.errors import DataError
from fishpaw.files import write_atomic
from fishpaw.lab.findings import Found, Row, Words

__all__ = ["Record", "kept", "make", "place", "read", "row_fields", "write"]

CPUINFO = Path("/proc/cpuinfo")
_RELATIONS = ("=", "<=", ">=")
_NUMBERS = re.compile(r"(?<=\[)\n\s*(?:-?\d[\d.eE+-]*,\n\s*)*-?\d[\d.eE+-]*\n\s*(?=\])")       # no string holds a line's end


@dataclass(frozen=True)
class Record:
    """size: the numbers that decide what a full form costs, {} of a quick form. versions: of fishpaw, python, torch and numpy. date: of
    the day, YYYY-MM-DD, UTC. seconds: what it took; of a run that was stopped and went on, all its parts together."""

    name: str
    seed: int
    size: Mapping[str, Any]
    versions: Mapping[str, str]
    processor: str
    date: str
    seconds: float
    rows: tuple[Row, ...]
    series: Mapping[str, Any] = field(default_factory=dict)


def make(name: str, found: Found, *, seed: int, size: Mapping[str, Any], seconds: float) -> Record:
    """What was found on this machine, today. ValueError for series that JSON doesn't carry."""
    try:
        series = json.loads(json.dumps(dict(found.series), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: the series can't be written as JSON ({error})") from error
    versions = {"fishpaw": __version__, "python": platform.python_version(), "torch": version("torch"), "numpy": version("numpy")}
    today = datetime.now(UTC).date().isoformat()
    return Record(name, seed, dict(size), versions, _processor(), today, round(seconds, 3), tuple(found.rows), series)


def write(path: Path, record: Record) -> None:
    """Write a record, whole or not at all, a list of numbers on one line. Its verdicts aren't written: they follow from the numbers."""
    value = {**vars(record), "size": dict(record.size), "versions": dict(record.versions), "series": dict(record.series),
             "rows": [row_fields(row) for row in record.rows]}  # fmt: skip
    text = json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False)
    write_atomic(path, _NUMBERS.sub(lambda found: " ".join(found[0].split()), text) + "\n")


def row_fields(row: Row) -> dict[str, Any]:
    """A row as JSON carries it."""
    return {**vars(row), "claim": vars(row.claim), "interval": None if row.interval is None else list(row.interval)}


def read(path: Path) -> Record:
    """The record in a file. DataError that names file and field: unreadable, no JSON, a field missing, unknown or of a wrong kind."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}).", fix=_AGAIN) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no JSON ({error}).", fix=_AGAIN) from error
    fields = _fields(path, "the record", value, _KINDS)
    try:
        date.fromisoformat(fields["date"])
    except ValueError:
        raise DataError(f"{path}: date is {fields['date']!r}, not YYYY-MM-DD.", fix=_AGAIN) from None
    if not all(isinstance(one, str) for one in fields["versions"].values()):
        raise DataError(f"{path}: versions holds what is no text.", fix=_AGAIN)
    rows = tuple(_row(path, f"rows[{at}]", one) for at, one in enumerate(fields["rows"]))
    return Record(**{**fields, "rows": rows, "seconds": float(fields["seconds"])})


def kept(name: str) -> Record | None:
    """The record of an analysis's full form that comes with fishpaw, None where there is none. DataError for a damaged one."""
    if (path := place(name)) is None:
        return None
    record = read(path)
    if record.name != name:
        raise DataError(f"{path}: name is {record.name!r}, not {name!r}.", fix=_AGAIN)
    return record


def place(name: str) -> Path | None:
    """The file of the record that comes with fishpaw: in the package, or in a checkout's docs/lab."""
    here = Path(__file__).resolve().parent
    files = (folder / f"{name}.json" for folder in (here / "recorded", here.parents[2] / "docs" / "lab"))
    return next((file for file in files if file.is_file()), None)


_AGAIN = "Take the file from fishpaw's repository again, or make it anew with `fishpaw lab NAME --full`."
_KINDS: dict[str, type | tuple[type, ...]] = {"name": str, "seed": int, "size": dict, "versions": dict, "processor": str, "date": str,
                                              "seconds": (int, float), "rows": list, "series": dict}  # fmt: skip
_ROW: dict[str, type | tuple[type, ...]] = {"claim": dict, "claimed": (int, float), "measured": (int, float), "relation": str,
                                            "within": (int, float), "interval": (list, type(None))}  # fmt: skip


def _fields(path: Path, where: str, value: Any, kinds: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """The fields of an object, after making sure that it has these, no others, and each of its kind."""
    if not isinstance(value, dict):
        raise DataError(f"{path}: {where} is no object.", fix=_AGAIN)
    for name in (*kinds, *value):
        if name not in value or name not in kinds:
            raise DataError(f"{path}: {where} has {'no' if name in kinds else 'an unknown'} field {name}.", fix=_AGAIN)
        if not isinstance(value[name], kinds[name]) or isinstance(value[name], bool):
            raise DataError(f"{path}: {where}: {name} is {str(value[name])[:40]!r}, of a wrong kind.", fix=_AGAIN)
    return value


def _row(path: Path, where: str, value: Any) -> Row:
    fields = _fields(path, where, value, _ROW)
    claim = _fields(path, f"{where}.claim", fields["claim"], {"en": str, "zh": str})
    bounds = fields["interval"]
    if bounds is not None and not (len(bounds) == 2 and all(type(one) in (int, float) for one in bounds) and bounds[0] <= bounds[1]):
        raise DataError(f"{path}: {where}: interval is {bounds!r}, not two numbers, the lower one first.", fix=_AGAIN)
    if fields["relation"] not in _RELATIONS:
        raise DataError(f"{path}: {where}: relation is {fields['relation']!r}, none of {', '.join(_RELATIONS)}.", fix=_AGAIN)
    try:
        return Row(Words(**claim), float(fields["claimed"]), float(fields["measured"]), fields["relation"], float(fields["within"]),
                   None if bounds is None else (float(bounds[0]), float(bounds[1])))  # fmt: skip
    except (ValueError, OverflowError) as error:                      # 1e999 is infinite, 10**400 no float
        raise DataError(f"{path}: {where}: {error}.", fix=_AGAIN) from error


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _processor() -> str:
    """The processor's name, as the kernel or Python tells it."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:                                                  # not Linux
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine() or "unknown"
