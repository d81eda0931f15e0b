"""What a shuffle is to make, of what memory, and where: checks of what was asked for, folders claimed and parts put in their place."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from fishpaw.data.shuffle_files import Part, compression, ending_of
from fishpaw.data.shuffle_spool import PER_LINE
from fishpaw.errors import ConfigError, DataError, FishpawError
from fishpaw.files import write_atomic

__all__ = [
    "STATE", "WORK", "Plan", "Room", "Shuffled", "claim", "digest_of", "lost", "parted", "plan", "publish", "read_json", "told", "unequal",
]  # fmt: skip

WORK = ".shuffle"
"""The folder in the output's that holds what is not finished."""

STATE = "state.json"
"""The file in that folder that says how far an unfinished run has come."""


@dataclass(frozen=True)
class Shuffled:
    """What was written: its files in their order, lines and bytes without headers, and the digest that input and output share."""

    files: tuple[Part, ...]
    lines: int
    bytes: int
    digest: str


@dataclass(frozen=True)
class Plan:
    """What makes the output what it is; an unfinished run is gone on with by the same plan only."""

    inputs: list[list[Any]]                                          # path, size, time of change in ns; both None where it is no file
    seed: int
    header: bool
    aligned: bool
    endings: list[str]                                               # a set of output files each: one, or with `aligned` one an input
    lines_per_file: int | None
    bytes_per_file: int | None

    @property
    def sets(self) -> list[list[str]]:
        """The inputs of each set of output files."""
        paths = [one[0] for one in self.inputs]
        return [[path] for path in paths] if self.aligned else [paths]

    def name(self, number: int) -> Callable[[int], str]:
        """Names of the files of a set: part-00000.txt …, or for aligned inputs their own."""
        ending, (path, *_) = self.endings[number], self.sets[number]
        if not self.aligned:
            return lambda part: f"part-{part:05}{ending}"
        stem = "stdin" if path == "-" else Path(path).name.removesuffix(ending_of(path))
        return lambda part: f"{stem}-{part:05}{ending}" if self.lines_per_file else stem + ending


@dataclass(frozen=True)
class Room:
    """How memory is parted: bytes and lines of a batch (two are held), and what a bucket may take (two are held)."""

    batch: int
    lines: int
    bucket: int

    @staticmethod
    def within(memory: int) -> Room:
        """Of what the process doesn't hold already. ConfigError where less than 32 MB is left."""
        left = int(0.95 * memory) - _held() - _FIXED
        if left < 2**25:
            raise ConfigError(f"memory is {memory / 2**20:.0f}M, too little: Python alone takes {_held() / 2**20:.0f}M.",
                              fix=f"Give {(_held() + _FIXED + 2**25) / 0.95 / 2**20 + 1:.0f}M or more.")
        return Room(left // 3, left // 6 // PER_LINE, left // 2)


def plan(
    inputs: Sequence[str | Path], *, seed: int = 0, header: bool = False, aligned: bool = False, ending: str | None = None,
    lines_per_file: int | None = None, bytes_per_file: int | None = None,
) -> Plan:  # fmt: skip
    """Check what was asked for. Raises ConfigError for options that don't fit, DataError for an input that can't be read."""
    paths = [str(path) if str(path) == "-" else os.path.abspath(path) for path in inputs]
    if not paths:
        raise ConfigError("There is no input.", fix="Name a file, or - for standard input.")
    if paths.count("-") > 1:
        raise ConfigError("Standard input is named twice.", fix="Name it once.")
    for name, value in (("lines_per_file", lines_per_file), ("bytes_per_file", bytes_per_file)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}.", fix="It must be 1 or more.")
    if lines_per_file is not None and bytes_per_file is not None:
        raise ConfigError("A cut by lines and one by bytes are given.", fix="Leave one out.")
    if aligned and bytes_per_file is not None:
        raise ConfigError("Aligned files can't be cut by bytes.", fix="Cut them by lines.")
    if ending is not None and (not ending.startswith(".") or "/" in ending or "\\" in ending or "\0" in ending):
        raise ConfigError(f"ending is {ending!r}.", fix='Give one like ".txt" or ".jsonl.zst".')
    found = [_identity(path) for path in paths]
    endings = [ending or ending_of(path) or ".txt" if path != "-" else ending or ".txt" for path in (paths if aligned else paths[:1])]
    for name in (*paths, *endings):
        compression(name)
    made = Plan(found, seed, header, aligned, endings, lines_per_file, bytes_per_file)
    names = [made.name(number)(0) for number in range(len(made.sets))]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"Two aligned inputs would both become {name}.", fix="Rename one.")
    return made


def digest_of(digests: Sequence[str]) -> str:
    """One digest for all sets: that of the only one, or a hash of several."""
    return digests[0] if len(digests) == 1 else hashlib.blake2b("".join(digests).encode(), digest_size=16).hexdigest()


def parted(memory: int, room: Room) -> int:
    """How many buckets lines become that take so much memory together."""
    return min(_MOST, max(1, -(-memory // int(0.7 * room.bucket))))


def unequal(path: str, lines: int, other: str, others: int) -> DataError:
    """Two aligned files don't agree."""
    return DataError(f"{path} has {lines:,} lines, but {other} has {others:,}.", fix="Aligned files need equally many.")


def lost(out: Path) -> FishpawError:
    """The fingerprints of input and output differ."""
    return FishpawError(f"{out}: the lines written are not those that were read.",
                        fix="Check the disk and the memory of this machine, then begin again (--restart).")  # fmt: skip


def claim(target: Path, wanted: Plan, restart: bool) -> Shuffled | None:
    """Make sure that the folder is free, or holds this plan, finished (what it gave is returned) or not; restart: forget what it holds."""
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target}: is a file, not a folder.", fix="Choose another name.")
    work = target / WORK
    listing, state = read_json(work / _LISTED) or read_json(target / _LISTED), read_json(work / STATE)
    if restart:
        for part in (listing or {"files": []})["files"]:
            (target / part[0]).unlink(missing_ok=True)
        for path in (work, *([Path(state["spool"])] if state else [])):
            shutil.rmtree(path, ignore_errors=True)
        (target / _LISTED).unlink(missing_ok=True)
        listing = state = None
    for found, what in ((listing, "the output of another shuffle"), (state, "an unfinished shuffle of other inputs or options")):
        if found is not None and found["plan"] != asdict(wanted):
            raise ConfigError(f"{target}: holds {what}.", fix="Choose another folder, or forget it (--restart).")
    if listing is not None:
        before = Shuffled(tuple(Part(*part) for part in listing["files"]), listing["lines"], listing["bytes"], listing["digest"])
        if (work / _LISTED).exists():                                # killed while its parts were moved
            publish(target, wanted, before, Path(state["spool"]) if state else work)
        if missing := next((part.name for part in before.files if not (target / part.name).exists()), None):
            raise ConfigError(f"{target}: {missing} is missing.", fix="Shuffle again (--restart).")
        return before
    if target.is_dir() and (there := sorted(path.name for path in target.iterdir() if not path.name.startswith("."))):
        raise ConfigError(f"{target}: holds {there[0]} already.", fix="Choose a new or an empty folder.")
    return None


def publish(target: Path, wanted: Plan, found: Shuffled, spool: Path) -> None:
    """Move all parts to their place. Killed in between, it is done to its end by the next call."""
    work = target / WORK
    listing = {"plan": asdict(wanted), "files": [list(astuple(part)) for part in found.files], "lines": found.lines, "bytes": found.bytes,
               "digest": found.digest}  # fmt: skip
    write_atomic(work / _LISTED, json.dumps(listing, ensure_ascii=False, indent=1) + "\n")
    for part in found.files:
        if (work / "parts" / part.name).exists():
            os.replace(work / "parts" / part.name, target / part.name)
    os.replace(work / _LISTED, target / _LISTED)
    for path in (spool, work):
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def told(path: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:                                          # whoever read standard output has seen enough
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise FishpawError(f"{error.filename or path}: can't be written ({error.strerror or error}).",
                           fix="Free some space, then give the same command again: it goes on where it was." if full else
                               "Check the path and its permissions.") from error  # fmt: skip


def read_json(path: Path) -> dict[str, Any] | None:
    """None where there is none, or a crash of the machine has damaged it."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value


_LISTED = ".shuffle.json"
_FIXED = 24 * 2**20                                                  # blocks, pieces of numpy's work, compression
_MOST = 256                                                          # buckets at once: runs that are written stay long


def _identity(path: str) -> list[Any]:
    if path == "-":
        return [path, None, None]
    try:
        about = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}).", fix="Check the name.") from error
    if stat.S_ISDIR(about.st_mode):
        raise DataError(f"{path}: is a folder.", fix="Name its files.")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path}: can't be read (permission denied).", fix="Check its permissions.")
    return [path, about.st_size, about.st_mtime_ns] if stat.S_ISREG(about.st_mode) else [path, None, None]


def _held() -> int:
    """Bytes that this process holds now; elsewhere than on Linux a guess."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 48 * 2**20
