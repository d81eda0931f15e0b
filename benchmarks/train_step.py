"""One step of masked-language-model training, BERT-base, 16 texts of 128 tokens, 15 % masked: ours against transformers and bert4torch.

    python benchmarks/train_step.py [--runs N] [--threads N] [--json [FILE]] [--smoke] [--device cuda] [--parts fp32,bf16,memory,recompute]

Claim: in fp32 a step makes at least twice the tokens a second of transformers with torch's fused AdamW, under bf16 autocast at least 1.2
times, and it holds at most 0.95 of the memory. A step is forward, loss, backward, AdamW, gradients dropped; dropout 0.1 as usual; ours
computes logits at masked tokens only. Loss and gradient are compared first, without dropout. Memory: the highest resident size during
a step, everything included, each contender in a process of its own. Recompute: ours with and without recomputed layers, time and memory.
Each part can run alone, and takes few rounds where the machine is slow: see --seconds.
"""

from __future__ import annotations

import os
import sys

sys.path.pop(0)                                                  # this folder: its tokenize.py must not stand for Python's
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import contextlib
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from benchmarks import harness, models
from torch import Tensor, nn
from torch.nn import functional

from fishpaw.model import linear
from fishpaw.model.transformer import Transformer
from fishpaw.optim.adamw import adamw
from fishpaw.weights.load import load_model

NAMES = {"fishpaw": "fishpaw", "transformers": "transformers", "bert4torch": "bert4torch"}
PARTS = ("fp32", "bf16", "memory", "recompute")
FEWEST = 2                       # rounds, however slow
IGNORED = -100                   # the label of a token that isn't masked, torch's and transformers' convention
CLOSE = 1e-3                     # loss and gradient of the token table in fp32
RATE = 1e-5


@dataclass(frozen=True)
class Rows:
    """ids, labels [b t], labels -100 but where masked; at [m]: the flat indices of masked tokens."""

    ids: Tensor
    labels: Tensor
    at: Tensor


@dataclass(frozen=True)
class Contender:
    """A model, its loss of a batch, and the optimiser."""

    model: nn.Module
    loss: Callable[[Rows], Tensor]
    optimizer: torch.optim.Optimizer


def main() -> None:
    given = harness.arguments(__doc__ or "", runs=7, more=_options)
    harness.start(given)
    if given.child:
        return _measure_memory(given)
    parts = given.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        raise SystemExit(f"--parts: {', '.join(sorted(unknown))}: choose of {', '.join(PARTS)}")
    report = harness.Report("train_step", "BERT-base, a step of masked-language-model training", given)
    rows = _rows(given)
    report.note(f"{rows.ids.shape[0]}x{rows.ids.shape[1]} tokens, {len(rows.at)} masked")
    if given.device == "cpu":
        report.note(f"our fp32 products in training: {linear.path('dense')}")
    with tempfile.TemporaryDirectory() as name:
        folder = models.make(Path(name) / "bert", models.shape(smoke=given.smoke, head="mlm"))
        there = [who for who in NAMES if who == "fishpaw" or report.needs(who)]
        if {"fp32", "bf16"} & set(parts):
            held = {who: contender(who, folder, given) for who in there}
            _compare(held, _first(rows, 2))
            for part, title in {"fp32": "fp32", "bf16": "bf16 autocast"}.items():
                if part in parts:
                    steps = {NAMES[who]: _step(one, rows, part, given.device) for who, one in held.items()}
                    _report_time(title, steps, rows, given, report)
                    del steps
            del held
        if "memory" in parts and given.device == "cpu":
            for part in ("fp32", "bf16"):
                _report_memory(f"memory, {part}", {NAMES[who]: f"{who}:{part}" for who in there}, folder, given, report)
        if "recompute" in parts:
            ours = contender("fishpaw", folder, given)
            _compare_recomputed(ours, _first(rows, 2))
            steps = {"fishpaw, layers recomputed": _step(ours, rows, "recompute", given.device),
                     "fishpaw": _step(ours, rows, "fp32", given.device)}
            _report_time("fp32, layers recomputed", steps, rows, given, report)
            del ours, steps
            if given.device == "cpu":
                children = {"fishpaw, layers recomputed": "fishpaw:recompute", "fishpaw": "fishpaw:fp32"}
                _report_memory("memory, fp32, layers recomputed", children, folder, given, report)
    report.finish()


def contender(who: str, folder: Path, given: Namespace) -> Contender:
    """One of NAMES from the same folder, with AdamW in torch's fused kernel."""
    if who == "fishpaw":
        ours = load_model(folder).to(given.device)

        def loss(rows: Rows) -> Tensor:
            logits = ours(rows.ids, logits_at=rows.at).logits
            return functional.cross_entropy(logits, rows.labels.flatten()[rows.at])

        return Contender(ours, loss, adamw(ours, learning_rate=RATE))
    if who == "transformers":
        theirs = models.transformers_model(folder, head="mlm").to(given.device)
        return Contender(theirs, lambda rows: theirs(rows.ids, labels=rows.labels).loss, _fused(theirs))
    other = models.bert4torch(folder, head="mlm").to(given.device)

    def whole(rows: Rows) -> Tensor:
        logits = other([rows.ids, torch.zeros_like(rows.ids)])[-1]
        return functional.cross_entropy(logits.flatten(0, 1), rows.labels.flatten(), ignore_index=IGNORED)

    return Contender(other, whole, _fused(other))


def _fused(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, fused=True)


def _train(one: Contender, part: str) -> None:
    one.model.train()
    if isinstance(one.model, Transformer):
        one.model.recompute = part == "recompute"


def _step(one: Contender, rows: Rows, part: str, device: str) -> Callable[[], object]:
    """A step of "fp32", of "bf16", under autocast, or of "recompute": fp32, ours alone, only the inputs of its layers kept."""
    def step() -> None:
        _train(one, part)
        with torch.autocast(device, dtype=torch.bfloat16) if part == "bf16" else contextlib.nullcontext():
            loss = one.loss(rows)
        loss.backward()
        one.optimizer.step()
        one.optimizer.zero_grad(set_to_none=True)
        if device != "cpu":
            torch.cuda.synchronize()

    return step


def _rows(given: Namespace) -> Rows:
    b, t = (2, 16) if given.smoke else (16, 128)
    noise = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 21128, (b, t), generator=noise)
    masked = torch.rand(b, t, generator=noise) < 0.15
    masked[:, 1] = True
    labels = ids.masked_fill(~masked, IGNORED)
    at = masked.flatten().nonzero().squeeze(1)
    return Rows(*(one.to(given.device) for one in (ids.masked_fill(masked, 4), labels, at)))


def _first(rows: Rows, count: int) -> Rows:
    """The first rows: enough to compare by."""
    width = rows.ids.shape[1]
    return Rows(rows.ids[:count], rows.labels[:count], rows.at[rows.at < count * width])


def _compare(held: dict[str, Contender], rows: Rows) -> None:
    """Loss and the gradient of the token table, which every layer and the head have a part in; without dropout."""
    found = {}
    for who, one in held.items():
        one.model.eval()
        found[who] = _learned(one, rows)
    for who, (loss, gradient) in found.items():
        harness.same(f"loss of {who}", loss, found["fishpaw"][0], most=CLOSE)
        harness.same(f"gradient of {who}", gradient, found["fishpaw"][1], most=CLOSE)


def _compare_recomputed(ours: Contender, rows: Rows) -> None:
    """The same with and without, dropout and all."""
    found = []
    for part in ("recompute", "fp32"):
        _train(ours, part)
        torch.manual_seed(5)
        found.append(_learned(ours, rows))
    for what, again, kept in zip(("loss", "gradient"), *found, strict=True):
        harness.same(f"{what}, layers recomputed", again, kept, most=CLOSE)


def _learned(one: Contender, rows: Rows) -> tuple[Tensor, Tensor]:
    """Loss [1 1] and the gradient of the token table [v d]."""
    loss = one.loss(rows)
    loss.backward()
    table = max((p for p in one.model.parameters() if p.grad is not None), key=lambda p: p.numel())
    assert table.grad is not None
    found = loss.detach().view(1, 1), table.grad.clone()
    one.optimizer.zero_grad(set_to_none=True)
    return found


def _report_time(title: str, steps: Mapping[str, Callable[[], object]], rows: Rows, given: Namespace, report: harness.Report) -> None:
    """A round to warm up, which also tells how many fit."""
    harness.say(title)
    begin = time.perf_counter()
    for step in steps.values():
        step()
    runs = max(FEWEST, min(given.runs, int(given.seconds / (time.perf_counter() - begin))))
    report.timed(title, harness.interleave(steps, runs=runs, warm_up=0), unit="tokens/s", work=rows.ids.numel())


def _measure_memory(given: Namespace) -> None:
    """In a process of its own: a step, after which the optimiser has its state, then one that counts."""
    who, part = given.child.split(":")
    step = _step(contender(who, given.folder, given), _rows(given), part, given.device)
    step()
    harness.reset_peak()
    before = harness.resting()
    step()
    harness.answer({"peak": harness.peak(), "resting": before})


def _report_memory(title: str, children: Mapping[str, str], folder: Path, given: Namespace, report: harness.Report) -> None:
    values: dict[str, list[float]] = {}
    for name, what in children.items():
        harness.say(f"  {title}: {name}")
        found = harness.child(__file__, what, given, "--folder", str(folder), "--device", given.device)
        if found["peak"] is None:
            report.note("left out: memory (unknown on this system)")
            return
        values[name] = [found["peak"] / 1e6]
    report.table(title, values, unit="MB", better="less")


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda, where memory is not measured")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"which to run, default {','.join(PARTS)}")
    parser.add_argument("--seconds", type=float, default=100, help="of rounds that count, a table: fewer rounds where they take longer")
    parser.add_argument("--folder", type=Path, help="of the model that a child process opens")


if __name__ == "__main__":
    main()
