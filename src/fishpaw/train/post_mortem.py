"""What a step that failed leaves behind: its examples as JSON, its batches as safetensors, so that they can be looked at and run again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from fishpaw.data.collate import named_tensors
from fishpaw.files import folder_atomic, write_atomic

__all__ = ["dump"]


def dump(folder: Path, facts: Mapping[str, Any], batches: Sequence[object], examples: Sequence[Sequence[object]]) -> None:
    """Write facts.json (facts and the examples of each batch; repr of what JSON lacks) and batch-0.safetensors … in place of `folder`."""
    with folder_atomic(folder) as new:
        content = {**facts, "examples": examples}
        text = json.dumps(content, ensure_ascii=False, indent=1, default=repr)
        write_atomic(new / "facts.json", text.encode("utf-8", "replace"))
        for number, batch in enumerate(batches):
            tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in named_tensors(batch).items()}
            if tensors:
                save_file(tensors, new / f"batch-{number}.safetensors")
