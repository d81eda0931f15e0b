"""What a run says: one JSON object a line in a file that can be cut back to any earlier moment, and a progress bar on a terminal."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fishpaw.errors import FishpawError

__all__ = ["Bar", "Log"]


class Log:
    """Append records to `path` (None: only tell `report`). Opened at byte `offset`: what a killed run wrote after it is cut off.

    So that a run which goes on from a checkpoint leaves the lines of one that was never stopped. Numbers that JSON lacks (nan, inf)
    are written as strings. `is_shortened`: the file was shorter than `offset`; then nothing is cut.
    """

    def __init__(self, path: Path | None, *, offset: int = 0, report: Callable[[dict[str, Any]], None] | None = None) -> None:
        self._report = report
        self._file = None
        self.is_shortened = False
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(path, "r+b" if path.exists() else "x+b", buffering=0)      # nothing waits: a full disk is told once
                size = self._file.seek(0, os.SEEK_END)
                self.is_shortened = size < offset
                if size > offset:
                    self._file.truncate(offset)
                    self._file.seek(offset)
            except OSError as error:
                raise FishpawError(f"{path}: can't be written ({error.strerror}).", fix="Choose a folder that you may write to.") from error

    def write(self, record: Mapping[str, Any]) -> None:
        """One line, in the file at once."""
        plain = {name: _plain(value) for name, value in record.items()}
        if self._file is not None:
            try:
                line = json.dumps(plain, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
                while line:
                    line = line[self._file.write(line) :]
            except OSError as error:
                what = f"{self._file.name}: can't be written ({error.strerror})."
                raise FishpawError(what, fix="Free some space, then start again: the run goes on.") from error
        if self._report is not None:
            self._report(plain)

    def sync(self) -> int:
        """Make all lines safe from a power cut; return the offset after them."""
        if self._file is None:
            return 0
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class Bar:
    """tqdm's bar over `total` steps, on stderr. shown: None: on a terminal or in a notebook; where it is not, every call does nothing."""

    def __init__(self, total: int, *, start: int, shown: bool | None) -> None:
        self._bar: Any = None
        if shown or (shown is None and (sys.stderr.isatty() or "ipykernel" in sys.modules)):
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True)

    def advance(self) -> None:
        if self._bar is not None:
            self._bar.update(1)

    def tell(self, values: Mapping[str, float]) -> None:
        """Show values behind the bar."""
        if self._bar is not None:
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()}, refresh=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
