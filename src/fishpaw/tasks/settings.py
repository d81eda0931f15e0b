"""What a saved task remembers beside model and tokenizer: task.json, a small object of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fishpaw.errors import CheckpointError
from fishpaw.files import blobs, inside
from fishpaw.text.encoding import Tokenizer

__all__ = ["WithSettings", "read_settings"]

_NAME = "task.json"
_LARGEST = 2**20                 # bytes
_AGAIN = "Save the task again, or copy it again."


@dataclass(frozen=True)
class WithSettings:
    """A tokenizer that leaves the settings beside its own files."""

    tokenizer: Tokenizer
    settings: Mapping[str, Any]

    @property
    def size(self) -> int:
        """The tokenizer's number of tokens."""
        return self.tokenizer.size

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files and task.json."""
        self.tokenizer.save(folder)
        (folder / _NAME).write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings in a folder, empty where it holds none. Errors: CheckpointError for a file that is no JSON object, is too large, or
    a link that leads out of the folder."""
    path = inside(folder, _NAME, also=blobs(folder))
    if not path.is_file():
        return {}
    try:
        with open(path, "rb") as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise CheckpointError(f"{path}: more than {_LARGEST:,} bytes are no settings.", fix=_AGAIN)
        value = json.loads(content.decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: can't be read ({error}).", fix=_AGAIN) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds no JSON object.", fix=_AGAIN)
    return value
