"""Parts of a long analysis, each computed once: its result is a JSON file in a folder, read again when the analysis is begun again.

A part belongs to the settings that it was computed with: a file with others is computed anew, not mixed in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fishpaw.files import write_atomic

__all__ = ["part"]


def part(keep: Path, name: str, settings: Mapping[str, Any], compute: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], bool]:
    """What compute() gives (JSON-able), and whether it was read from keep/name.json, where it is written when it is finished.

    settings: all that decides the result (sizes, seed); JSON-able. A file that is damaged or has other settings is written again. What is
    returned has been through JSON both times, so a resumed analysis is the same as one in a single run. ValueError: a number is NaN.
    """
    path = keep / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    wanted = json.loads(json.dumps(settings))
    if path.is_file():
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:                                            # damaged: not by us, our files are whole or absent
            held = None
        if isinstance(held, dict) and held.get("settings") == wanted and isinstance(held.get("result"), dict):
            return held["result"], True
    text = json.dumps({"settings": wanted, "result": compute()}, allow_nan=False, ensure_ascii=False)
    write_atomic(path, text + "\n")
    result: dict[str, Any] = json.loads(text)["result"]
    return result, False
