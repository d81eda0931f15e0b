"""Integrated gradients of one text on a classifier of BERT-base's size: ours and captum's, seconds and the peak of memory.

    python benchmarks/integrated_gradients.py [--runs N] [--threads N] [--json [FILE]] [--smoke] [--layers 12] [--tokens 128] [--points 50]
                                              [--rows 4,8] [--skip-bf16] [--skip-memory] [--std 0.04]

Claim: at equal accuracy twice as fast as captum, with no more memory. Gauss-Legendre is captum's default, too: at equal points both compute
the same (which is compared before anything is timed), and differ by how products are made. complete_gradients takes as many points as it
needs to be as near to completeness as captum's 50 are, but no nearer than 1e-4 of the change. How many these are depends on how far the
path bends: --std makes it harder. captum is given the same frozen model, and both the fastest number of points at once of --rows.
bf16: a copy of the weights, left out where the error is above 1e-2 of the change, and, where the processor lacks it and it is slow, by
--skip-bf16. Memory: a process each, above what the model takes.
"""

from __future__ import annotations

import os
import sys

sys.path.pop(0)                                                  # this folder: its tokenize.py must not stand for Python's
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import argparse
import copy
from argparse import ArgumentParser
from collections.abc import Callable
from functools import partial

import torch
from benchmarks import harness
from torch import Tensor

from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch
from fishpaw.interpret.complete_gradients import complete_gradients
from fishpaw.interpret.integrated_gradients import Attribution, Scores, integrated_gradients
from fishpaw.model.transformer import Transformer

LEAST = 1e-4
"""Share of the change: fp32 on a path of 12 layers is hardly nearer."""

Call = Callable[[], Tensor]


def main() -> None:
    given = harness.arguments(__doc__ or "", runs=5, more=_options)
    harness.start(given)
    if given.child:
        _measure(given)
        return
    report = harness.Report("integrated_gradients", "one text, integrated gradients on the embedded tokens", given)
    model, ids = _model(given)
    f, x = scores(model, ids), model.table[ids[0]].detach()
    ours, theirs = _tuned(f, x, given, "fishpaw"), 0
    whole = partial(integrated_gradients, f, x, points=given.points, rows=ours)
    plain = whole()
    _tell(report, "fishpaw, fp32", plain)
    calls: dict[str, Call] = {f"fishpaw, fp32, {given.points} points": lambda: whole().values}
    if not given.skip_bf16:
        half = partial(integrated_gradients, scores(copy.deepcopy(model).bfloat16(), ids), x, points=given.points, rows=ours)
        rough = half()
        _tell(report, "fishpaw, bf16", rough)
        if rough.relative <= 1e-2:
            calls[f"fishpaw, bf16, {given.points} points"] = lambda: half().values
    error = plain.relative
    if report.needs("captum"):
        theirs = _tuned(f, x, given, "captum")
        calls[f"captum, fp32, {given.points} points"] = lambda: captum(f, x, given.points, theirs)
        values = captum(f, x, given.points, theirs)
        report.note(harness.same("ours and captum's", plain.values, values, most=1e-4 * max(1.0, float(values.abs().max()))))
        peer = Attribution(values, plain.at_input, plain.at_baseline, given.points)
        _tell(report, "captum, fp32", peer)
        error = peer.relative
    within = min(0.5, max(LEAST, error))
    complete = partial(complete_gradients, f, x, within=within, rows=ours)
    _tell(report, f"fishpaw, complete within {within:.1e}", complete())
    report.note(f"rows at once: ours {ours}" + (f", captum's {theirs}" if theirs else ""))
    timed = {"fishpaw, fp32, as many points as needed": lambda: complete().values, **calls}
    seconds = harness.interleave(timed, runs=given.runs, warm_up=1)
    title = f"{given.layers} layers of {model.config.hidden_size}, {given.tokens} tokens"
    report.timed(f"{title}: equal accuracy", {name: seconds[name] for name in seconds if "bf16" not in name})
    report.timed(f"{title}: equal points", {name: seconds[name] for name in calls})
    if not given.skip_memory:
        _memory(report, given, ours, theirs)
    report.finish()


def scores(model: Transformer, ids: Tensor) -> Scores:
    """Embedded tokens [b t e] -> the probability of the first label, [b] in fp32."""
    batches: dict[int, Batch] = {}

    def f(embedded: Tensor) -> Tensor:
        b = len(embedded)
        if b not in batches:
            batches[b] = Batch.padded(ids.expand(b, -1))
        shares = model(batches[b], embedded=embedded.to(model.table.dtype).flatten(0, 1)).classes
        return shares.float().softmax(-1)[:, 0]

    return f


def captum(f: Scores, x: Tensor, points: int, rows: int) -> Tensor:
    """captum's values, like x: Gauss-Legendre, zeros for a baseline, `rows` points at once."""
    from captum.attr import IntegratedGradients

    found: Tensor = IntegratedGradients(f).attribute(x[None], n_steps=points, internal_batch_size=rows)
    return found[0].detach()


def _model(given: argparse.Namespace) -> tuple[Transformer, Tensor]:
    """Random weights, norms and biases included, frozen; a text of random tokens, [1 t]."""
    size = {"hidden_size": 32, "attention_heads": 4, "intermediate_size": 64} if given.smoke else {
        "hidden_size": 768, "attention_heads": 12, "intermediate_size": 3072}
    vocab = 101 if given.smoke else 21128
    head = {"name": "classifier", "labels": ["neg", "pos"]}
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab_size=vocab, layers=given.layers, heads=("pooler", head), **size)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.normal_(mean=1.0 if name.endswith("norm.weight") else 0.0, std=given.std)
    return model, torch.randint(5, vocab, (1, given.tokens))


def _tuned(f: Scores, x: Tensor, given: argparse.Namespace, who: str) -> int:
    """The fastest of --rows, by the better of two short runs each, in turns."""
    def call(rows: int) -> object:
        return captum(f, x, rows, rows) if who == "captum" else integrated_gradients(f, x, points=rows, rows=rows)

    if len(given.rows) == 1:
        return int(given.rows[0])
    seconds = harness.interleave({str(rows): partial(call, rows) for rows in given.rows}, runs=2, warm_up=1)
    return int(min(given.rows, key=lambda rows: min(seconds[str(rows)]) / rows))


def _tell(report: harness.Report, who: str, found: Attribution) -> None:
    report.note(f"{who}: {found.points} points, error {found.relative:.1e} of the change {found.at_input - found.at_baseline:+.4f}")


def _memory(report: harness.Report, given: argparse.Namespace, ours: int, theirs: int) -> None:
    """What each takes beside the model, at most, in a process of its own."""
    rows = {"fishpaw, as many points as needed": ("complete:1000", ours)}
    rows |= {f"fishpaw {points} points": (f"fishpaw:{points}", ours) for points in (given.points, 2 * given.points)}
    if theirs:
        rows[f"captum {given.points} points"] = (f"captum:{given.points}", theirs)
    held: dict[str, list[float]] = {}
    for name, (what, at_once) in rows.items():
        more = ("--layers", str(given.layers), "--tokens", str(given.tokens), "--rows", str(at_once), "--std", str(given.std))
        found = harness.child(__file__, what, given, *more)
        if found["peak"] is None:
            report.note("no memory is measured here")
            return
        held[name] = [max(0, found["peak"] - found["resting"]) / 1e6]
    report.table("peak of memory beside the model", held, unit="MB", better="less")


def _measure(given: argparse.Namespace) -> None:
    """In a child: one explanation, its memory above what stood before."""
    who, points = given.child.split(":")
    model, ids = _model(given)
    f, x = scores(model, ids), model.table[ids[0]].detach()
    plain: Callable[..., object] = lambda f, x, points, rows: integrated_gradients(f, x, points=points, rows=rows)  # noqa: E731
    whole: Callable[..., object] = lambda f, x, most, rows: complete_gradients(f, x, within=LEAST, most=most, rows=rows)  # noqa: E731
    call = {"captum": captum, "fishpaw": plain, "complete": whole}[who]
    (plain if who == "complete" else call)(f, x, 1, 1)                                             # imports and the smallest buffers
    before = harness.resting()
    harness.reset_peak()
    call(f, x, int(points), given.rows[0])
    harness.answer({"peak": harness.peak(), "resting": before})


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--rows", type=harness.lengths, default=[4, 8], help="points at once to choose from, default 4,8")
    parser.add_argument("--std", type=float, default=0.04, help="of the random weights; larger ones bend the path more")
    parser.add_argument("--skip-bf16", action="store_true")
    parser.add_argument("--skip-memory", action="store_true")


if __name__ == "__main__":
    main()
