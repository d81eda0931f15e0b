"""500 truncated and mutated files of each format: each loads or raises FishpawError; no other exception, no hang, little memory.

The work is done in a child process with a limit on its memory, so that a crash or a hang is a failed test and not the end of all.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

BUNDLES = Path(__file__).resolve().parent / "bundles"
KINDS = ["safetensors", "archive", "legacy", "index", "data", "shards"]
CASES, MEMORY, SECONDS, SEED = 500, 300, 100, 20201120            # MEMORY: growth in MiB that a child may show


@pytest.fixture(scope="module", params=["fishpaw", "bare"])
def results(request) -> tuple[str, dict[str, dict[str, object]]]:
    """One child a reader: importing torch is most of the time."""
    import fishpaw.errors

    source = Path(fishpaw.errors.__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    kinds = KINDS if request.param == "fishpaw" else ["legacy", "safetensors"]
    command = [sys.executable, __file__, request.param, str(SEED), *kinds]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-2000:]}"
    return request.param, {kind: json.loads(line) for kind, line in zip(kinds, done.stdout.splitlines(), strict=True)}


def test_damaged_files_load_or_raise_our_errors(results):
    reader, found = results
    for kind, counts in found.items():
        if reader == "bare":                                       # the planted fault: torch and safetensors raise others, and it is seen
            assert counts["others"], kind
        else:
            assert counts["others"] == {}, kind
            assert counts["loaded"] + counts["refused"] == CASES and counts["refused"] > CASES // 4, (kind, counts)
            assert counts["grown"] < MEMORY, (kind, counts)


def damaged(content: bytes, choose: random.Random) -> bytes:
    """Cut the end off, or change, insert, remove or blow up a few bytes, more often near the start, where the structure is."""
    if choose.random() < 0.4:
        return content[: choose.randrange(len(content))]
    data = bytearray(content)
    for _ in range(choose.choice((1, 1, 1, 2, 5))):
        at = choose.randrange(len(data)) if choose.random() < 0.5 else choose.randrange(min(len(data), 400))
        action = choose.randrange(6)
        if action == 0:
            data[at] ^= 1 << choose.randrange(8)
        elif action == 1:
            data[at] = choose.randrange(256)
        elif action == 2:
            data[at : at + 8] = choose.choice((b"\xff" * 8, b"\0" * 8, b"\xff" * 7 + b"\x7f", b"9" * 8, b"\0\0\0\0\0\1\0\0"))
        elif action == 3:
            data[at:at] = choose.randbytes(choose.randrange(1, 9))
        elif action == 4:
            del data[at : at + choose.randrange(1, 9)]
        else:
            other = choose.randrange(len(data))
            data[at : at + 16] = data[other : other + 16]
        if not data:
            return b""
    return bytes(data)


def prepare(kind: str, folder: Path) -> tuple[Path, Path]:
    """(what to load, what to damage)"""
    import torch

    from fishpaw.weights.formats import write_safetensors

    noise = torch.Generator().manual_seed(3)
    types = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool)
    tensors = {f"layer_{i}.weight": torch.randn(i + 2, 7, generator=noise).to(dtype) for i, dtype in enumerate(types)}
    if kind in ("index", "data"):
        for file in BUNDLES.glob("partitioned.*"):
            (folder / file.name).write_bytes(file.read_bytes())
        return folder / "partitioned", folder / ("partitioned.index" if kind == "index" else "partitioned.data-00000-of-00001")
    if kind == "shards":
        write_safetensors(tensors, folder / "model-00001-of-00001.safetensors")
        index = folder / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}), encoding="utf-8")
        return folder, index
    path = folder / ("x.safetensors" if kind == "safetensors" else "x.bin")
    if kind == "safetensors":
        write_safetensors(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "archive")
    return path, path


def bare(path: Path) -> dict[str, object]:
    import torch
    from safetensors.torch import load_file

    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True, map_location="cpu")


def main(reader: str, seed: int, *kinds: str) -> None:
    import faulthandler
    import warnings

    faulthandler.enable()
    warnings.simplefilter("ignore" if reader == "bare" else "error")
    for kind in kinds:
        print(json.dumps(count(kind, seed, reader)), flush=True)


def count(kind: str, seed: int, reader: str) -> dict[str, object]:
    from fishpaw.errors import FishpawError
    from fishpaw.weights.formats import read_tensors

    choose, counts, others = random.Random(seed), Counter(), Counter()
    with tempfile.TemporaryDirectory() as name:
        target, victim = prepare(kind, Path(name))
        whole = victim.read_bytes()
        dict(read_tensors(target))
        concerned = list(Path(name).iterdir()) if kind == "index" else [victim]         # it points to places in the other, wrong ones too
        before = peak()
        limit_memory(2**31)
        for _ in range(CASES):
            victim.write_bytes(damaged(whole, choose))
            try:
                for tensor in (dict(read_tensors(target)) if reader == "fishpaw" else bare(target)).values():
                    tensor.sum()
                counts["loaded"] += 1
            except FishpawError as error:
                counts["refused"] += 1
                said = str(error)
                assert len(said) < 1_000 and any(file.name in said.replace(name, "") for file in concerned), said
            except Exception as error:                             # counting these is the purpose
                others[f"{type(error).__name__}: {str(error)[:100]}"] += 1
        return {"loaded": counts["loaded"], "refused": counts["refused"], "others": others, "grown": peak() - before}


def peak() -> int:
    """Most memory ever resident, in MiB."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (2**20 if sys.platform == "darwin" else 2**10)


def limit_memory(extra: int) -> None:
    if sys.platform == "linux":
        import resource

        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + extra, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
