"""What a failed step leaves: every tensor and every example, whatever they are made of."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from fishpaw.files import verify_manifest
from fishpaw.train.post_mortem import dump


def test_tensors_and_examples_can_be_read_again(tmp_path: Path) -> None:
    shared = torch.arange(6).view(2, 3)
    batches = [{"ids": shared, "view": shared.mT, "names": ["a"]}, "no tensor at all"]
    for _ in range(2):                                                   # the second dump takes the place of the first
        dump(tmp_path / "bad", {"step": 3}, batches, [[("鱼", {1, 2})], [object]])
    facts = json.loads((tmp_path / "bad" / "facts.json").read_text(encoding="utf-8"))
    assert facts == {"step": 3, "examples": [[["鱼", "{1, 2}"]], ["<class 'object'>"]]}
    stored = load_file(tmp_path / "bad" / "batch-0.safetensors")
    assert stored["batch.ids"].tolist() == shared.tolist() and stored["batch.view"].tolist() == shared.mT.tolist()
    assert {path.name for path in (tmp_path / "bad").iterdir()} == {"facts.json", "batch-0.safetensors", "manifest.json"}
    verify_manifest(tmp_path / "bad")
