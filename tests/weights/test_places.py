"""Weights in places where none should be: behind links that lead out of the folder, at the other end of a pipe."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from fishpaw.config import ModelConfig
from fishpaw.errors import CheckpointError
from fishpaw.model.transformer import Transformer
from fishpaw.weights.formats import read_tensors
from fishpaw.weights.load import load_model
from fishpaw.weights.save import save

BUNDLES = Path(__file__).resolve().parent / "bundles"


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
@pytest.mark.parametrize("linked", ["bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001"])
@pytest.mark.parametrize("named", ["", "bert_model.ckpt", "bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001"])
def test_links_of_a_bundle_that_lead_out_are_refused(tmp_path, linked, named):
    shutil.copytree(BUNDLES / "bert", tmp_path / "m")
    load_model(tmp_path / "m" / named)
    shutil.move(tmp_path / "m" / linked, tmp_path / linked)
    (tmp_path / "m" / linked).symlink_to(tmp_path / linked)
    with pytest.raises(CheckpointError, match=f"the name '{linked}' leaves the folder"):
        load_model(tmp_path / "m" / named)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
def test_a_bundle_in_a_hub_snapshot_is_links(tmp_path):
    snapshot = tmp_path / "snapshots" / "0f3a"
    snapshot.mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    for number, path in enumerate((BUNDLES / "bert").iterdir()):
        shutil.copy(path, tmp_path / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    load_model(snapshot)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", [
    "config.json", "manifest.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json", "a-00001-of-00001.safetensors", "bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001",
])  # fmt: skip
def test_a_pipe_is_no_file(tmp_path, name):
    """To open one is to wait for its writer, for ever."""
    folder = tmp_path / "m"
    if name.startswith("bert_model"):
        shutil.copytree(BUNDLES / "bert", folder)
    else:
        save(Transformer(ModelConfig(23, 12, 2, 3, 17)), folder)
        (folder / "manifest.json").unlink()
    if name.startswith("a-"):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}), encoding="utf-8")
    elif name.startswith(("pytorch", "model")):
        (folder / "model.safetensors").unlink()
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(CheckpointError, match=r"no regular file|holds no config\.json|missing"):
        load_model(folder)
    for suffix in ("safetensors", "bin", "index.json", "index"):
        os.mkfifo(folder / f"x.{suffix}")
        with pytest.raises(CheckpointError, match="no regular file"):
            read_tensors(folder / f"x.{suffix}")
