"""Opening a BERT-base folder: ours against transformers, time and memory, each run in a process of its own.

    python benchmarks/load.py [--runs N] [--json [FILE]] [--smoke]

Claim: model and tokenizer are there in at most half of transformers' time, and loading holds at most 1.1 times the bytes of the weights.
"imports" is the time from the start of a program to the libraries imported; "load" from there to model and tokenizer; "answer" to the
first output, for whatever was put off until then. Memory is the highest resident size up to the answer, over what the imports held.
The folder is in the system's cache; transformers doesn't verify it, so ours is measured without its manifest and with it.
"""

from __future__ import annotations

import os
import sys

sys.path.pop(0)                                                  # this folder: its tokenize.py must not stand for Python's
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import tempfile
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from benchmarks import harness

NAMES = {"fishpaw": "fishpaw", "verified": "fishpaw, manifest verified", "transformers": "transformers"}

TITLES = {"load": "load", "ready": "load and first answer", "all": "imports, load and first answer", "imports": "imports"}


def main() -> None:
    given = harness.arguments(__doc__ or "", runs=7, more=_options)
    harness.start(given, torch=False)
    if given.child:
        return _measure(given)
    report = harness.Report("load", "Opening a BERT-base folder with its tokenizer", given)
    with tempfile.TemporaryDirectory() as name:
        folders = _folders(Path(name), given)
        there = [who for who in NAMES if who != "transformers" or report.needs("transformers")]
        size = (folders["fishpaw"] / "model.safetensors").stat().st_size
        found: dict[str, list[dict[str, float]]] = {who: [] for who in there}
        for number in range(given.runs + 1):                     # the first round fills the system's cache
            harness.say(f"  round {number} of {given.runs}")
            for who in there:
                one = harness.child(__file__, who, given, "--folder", str(folders[who]), "--began", repr(time.time()))
                if number:
                    found[who].append(one)
    for key, title in TITLES.items():
        report.timed(title, {NAMES[who]: [one[key] for one in runs] for who, runs in found.items()})
    if all(one["memory"] is not None for runs in found.values() for one in runs):
        report.table("memory of loading and the first answer, over the size of the weights",
                     {NAMES[who]: [one["memory"] / size for one in runs] for who, runs in found.items()}, unit="x", better="less")
    else:
        report.note("left out: memory (unknown on this system)")
    report.note(f"weights of {size / 1e6:,.0f} MB")
    report.finish()


def _folders(base: Path, given: Namespace) -> dict[str, Path]:
    """One model, with our manifest and, as a download has it, without."""
    import shutil

    from benchmarks import models, texts

    from fishpaw.files import MANIFEST
    from fishpaw.text.wordpiece import WordPiece

    whole = models.make(base / "verified", models.shape(smoke=given.smoke, head="mlm"), WordPiece(texts.vocabulary(given.data)))
    plain = base / "plain"
    shutil.copytree(whole, plain, ignore=shutil.ignore_patterns(MANIFEST))
    return {"verified": whole, "fishpaw": plain, "transformers": plain}


def _measure(given: Namespace) -> None:
    import torch

    torch.set_num_threads(given.threads)
    if given.child == "transformers":
        from transformers import AutoTokenizer, BertForMaskedLM
    else:
        from fishpaw.weights.load import load
    ids = torch.randint(5, 100, (1, 8))
    imports = time.time() - given.began
    harness.reset_peak()
    before = harness.resting()
    with torch.inference_mode():
        begin = time.perf_counter()
        if given.child == "transformers":
            model: Any = BertForMaskedLM.from_pretrained(str(given.folder), attn_implementation="sdpa")
            model.eval()
            _ = AutoTokenizer.from_pretrained(str(given.folder))
        else:
            model, _ = load(given.folder)
        loaded = time.perf_counter()
        model(ids)
        sum(float(one.sum()) for one in model.parameters())      # every page of the file has been read
        ready = time.perf_counter()
    held = harness.peak()
    memory = None if held is None or before is None else held - before
    harness.answer({"imports": imports, "load": loaded - begin, "ready": ready - begin,
                    "all": imports + ready - begin, "memory": memory})


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, help="of the model that a child process opens")
    parser.add_argument("--began", type=float, help="when the parent started it, in seconds of the clock")


if __name__ == "__main__":
    main()
