"""fp.encode against sentence-transformers' encode on the same saved model: short sentences, passages, and memory as texts grow in number.

    python benchmarks/encode.py [--data DIR] [--runs N] [--threads N] [--json [FILE]] [--smoke] [--count 192] [--batch 32]

Claim: at least twice the texts a second in fp32 and 1.5 times in bf16 (sentence-transformers under autocast), with the same vectors in the
order given; four times the texts need no more memory than their vectors. BERT-base with random weights, the mean over a text's tokens.
Memory: the highest resident size during encode over what was held before, each in a process of its own.
"""

from __future__ import annotations

import os
import sys

sys.path.pop(0)                                                  # this folder: its tokenize.py must not stand for Python's
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from benchmarks import harness, models, texts
from torch import Tensor

from fishpaw.tasks.encode import encode
from fishpaw.text.wordpiece import WordPiece
from fishpaw.weights.load import load

Call = Callable[[Sequence[str]], Tensor]
PEER = "sentence-transformers"
KINDS = {"short sentences (8-60 characters)": (8, 60, 1), "passages (150-400 characters)": (150, 400, 6)}    # the last: fewer by
LIMITS: dict[str, dict[str, float]] = {"fp32": {"most": 1e-3}, "bf16": {"cosine": 0.995}}


def main() -> None:
    given = harness.arguments(__doc__ or "", runs=5, more=_options)
    harness.start(given)
    if given.child:
        return _measure_memory(given)
    report = harness.Report("encode", "Vectors of texts with BERT-base, texts a second", given)
    count = 12 if given.smoke else given.count
    there = ["fishpaw", *([PEER] if report.needs("transformers", PEER) else [])]
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder = models.make(Path(name) / "bert", models.shape(smoke=given.smoke), WordPiece(texts.vocabulary(given.data)))
        for format in LIMITS:
            calls = {who: contender(who, format, folder, given) for who in there}
            for kind, (least, most, fewer) in KINDS.items():
                some, source = _texts(given, max(4, count // fewer), least, most)
                harness.say(f"{format}, {len(some)} {kind}: {source}")
                expected = calls["fishpaw"](some)
                for who, call in calls.items():
                    harness.same(who, call(some), expected, **LIMITS[format])
                timed = {who: (lambda call=call, some=some: call(some)) for who, call in calls.items()}
                seconds = harness.interleave(timed, runs=given.runs, warm_up=1)
                report.timed(f"{format}, {len(some)} {kind}", seconds, unit="texts/s", work=len(some))
        if not given.skip_memory:
            _report_memory(there, folder, count, given, report)
    report.finish()


def contender(who: str, format: str, folder: Path, given: Namespace) -> Call:
    """Texts to vectors [n d] in the order given; bf16 is ours with bf16 weights, theirs under autocast."""
    if who == "fishpaw":
        model, tokenizer = load(folder)
        model.prepare(dtype=torch.bfloat16 if format == "bf16" else torch.float32)
        return lambda some: encode(some, (model, tokenizer), progress=False)
    peer = models.sentence_transformer(folder, longest=128 if given.smoke else 512)

    def call(some: Sequence[str]) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=format == "bf16"):
            found: Tensor = peer.encode(list(some), batch_size=given.batch, convert_to_tensor=True, show_progress_bar=False)
        return found

    return call


def _texts(given: Namespace, count: int, least: int, most: int) -> tuple[list[str], str]:
    """Sentences, or passages put together from them; a smoke model reads 128 tokens at most."""
    if least < 100:
        return texts.sentences(given.data, count, least=least, most=most)
    least, most = (60, 120) if given.smoke else (least, most)
    sentences, source = texts.sentences(given.data, count * 40)
    passages: list[str] = []
    held = ""
    wanted = [least + (most - least) * number // count for number in range(count)]
    for sentence in sentences:
        held += sentence
        if len(passages) < count and len(held) >= wanted[len(passages)]:
            passages.append(held[: wanted[len(passages)]])
            held = ""
    return passages, source


def _measure_memory(given: Namespace) -> None:
    """In a process of its own: a few texts to warm up, then all of them."""
    call = contender(given.child, "fp32", given.folder, given)
    some, _ = texts.sentences(given.data, given.count)
    with torch.inference_mode():
        call(some[: given.batch])
        call(some[: given.batch])
        harness.reset_peak()
        before = harness.resting()
        call(some)
    held = harness.peak()
    harness.answer({"memory": None if held is None or before is None else held - before})


def _report_memory(there: list[str], folder: Path, count: int, given: Namespace, report: harness.Report) -> None:
    for times in (1, 4):
        values = {}
        for who in there:
            harness.say(f"  memory: {who}, {count * times} texts")
            found = harness.child(__file__, who, given, "--folder", str(folder), "--count", str(count * times), "--batch", str(given.batch))
            if found["memory"] is None:
                report.note("left out: memory (unknown on this system)")
                return
            values[who] = [found["memory"] / 1e6]
        report.table(f"memory that encode adds, fp32, {count * times} short sentences", values, unit="MB", better="less")


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=192, help="short sentences a run, default 192; a sixth of passages")
    parser.add_argument("--batch", type=int, default=32, help="texts in a peer's batch, default 32; ours counts tokens")
    parser.add_argument("--skip-memory", action="store_true", help="speed only")
    parser.add_argument("--folder", type=Path, help="of the model that a child process opens")


if __name__ == "__main__":
    main()
