"""One step of masked-language-model training, BERT-base, 16 texts of 128 tokens, 15 % masked: ours against transformers and bert4torch.

    python benchmarks/train_step.py [--runs N] [--threads N] [--json [FILE]] [--smoke] [--device cuda] [--parts fp32,bf16,recompute,memory]

Claim: in fp32 a step makes at least twice the tokens a second of transformers with torch's fused AdamW, under bf16 autocast at least 1.2
times, and it holds at most 0.95 of the memory. A step is forward, loss, backward, AdamW, gradients dropped; dropout 0.1 as usual; ours
computes logits at masked tokens only. Loss and gradient are compared first, without dropout. Memory: the highest resident size during
steps, everything included, each contender in a process of its own.
"""

from __future__ import annotations

import os
import sys

sys.path.pop(0)                                                  # this folder: its tokenize.py must not stand for Python's
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import contextlib
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks import harness, models
from torch import Tensor, nn
from torch.nn import functional

from fishpaw.optim.adamw import adamw
from fishpaw.weights.load import load_model

NAMES = {"fishpaw": "fishpaw", "transformers": "transformers", "bert4torch": "bert4torch"}
PARTS = "fp32,bf16,recompute,memory"
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
    report = harness.Report("train_step", "BERT-base, a step of masked-language-model training", given)
    rows = _rows(given)
    report.note(f"{rows.ids.shape[0]}x{rows.ids.shape[1]} tokens, {len(rows.at)} masked")
    with tempfile.TemporaryDirectory() as name:
        folder = models.make(Path(name) / "bert", models.shape(smoke=given.smoke, head="mlm"))
        there = [who for who in NAMES if who == "fishpaw" or report.needs(who)]
        held = {who: contender(who, folder, given) for who in there}
        _compare(held, rows)
        for part in ("fp32", "bf16"):
            if part in parts:
                steps = {NAMES[who]: _step(one, rows, part, given.device) for who, one in held.items()}
                report.timed(f"{part}{' autocast' * (part == 'bf16')}", harness.interleave(steps, runs=given.runs), unit="tokens/s",
                             work=rows.ids.numel())
        if "recompute" in parts:
            recomputing = {who: one for who, one in held.items() if _recompute(who, one.model)}
            steps = {NAMES[who]: _step(one, rows, "fp32", given.device) for who, one in recomputing.items()}
            report.timed("fp32, layers recomputed", harness.interleave(steps, runs=given.runs), unit="tokens/s", work=rows.ids.numel())
        del held
        if "memory" in parts and given.device == "cpu":
            for part in ("fp32", "bf16", "recompute"):
                if part in parts and (part != "recompute" or len(there) > 1):
                    _report_memory(part, [who for who in there if part != "recompute" or who != "bert4torch"], folder, given, report)
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


def _recompute(who: str, model: Any) -> bool:
    """Keep the inputs of the layers only; False for whoever can't."""
    if who == "fishpaw":
        model.recompute = True
    elif who == "transformers":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return who in ("fishpaw", "transformers")


def _step(one: Contender, rows: Rows, part: str, device: str) -> Callable[[], object]:
    def step() -> None:
        one.model.train()
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


def _compare(held: dict[str, Contender], rows: Rows) -> None:
    """Loss and the gradient of the token table, which every layer and the head have a part in; without dropout."""
    found = {}
    for who, one in held.items():
        one.model.eval()
        loss = one.loss(rows)
        loss.backward()
        table = max((p for p in one.model.parameters() if p.grad is not None), key=lambda p: p.numel())
        assert table.grad is not None
        found[who] = loss.detach().view(1, 1), table.grad.clone()
        one.optimizer.zero_grad(set_to_none=True)
    for who, (loss, gradient) in found.items():
        harness.same(f"loss of {who}", loss, found["fishpaw"][0], most=CLOSE)
        harness.same(f"gradient of {who}", gradient, found["fishpaw"][1], most=CLOSE)


def _measure_memory(given: Namespace) -> None:
    """In a process of its own: two steps, then two that count."""
    who, part = given.child.split(":")
    rows = _rows(given)
    one = contender(who, given.folder, given)
    if part == "recompute":
        _recompute(who, one.model)
    step = _step(one, rows, part, given.device)
    for _ in range(2):
        step()
    harness.reset_peak()
    before = harness.resting()
    for _ in range(2):
        step()
    harness.answer({"peak": harness.peak(), "resting": before})


def _report_memory(part: str, there: list[str], folder: Path, given: Namespace, report: harness.Report) -> None:
    values: dict[str, list[float]] = {}
    for who in there:
        harness.say(f"  memory: {who}, {part}")
        found = harness.child(__file__, f"{who}:{part}", given, "--folder", str(folder), "--device", given.device)
        if found["peak"] is None:
            report.note("left out: memory (unknown on this system)")
            return
        values[NAMES[who]] = [found["peak"] / 1e6]
    report.table(f"memory, {part}", values, unit="MB", better="less")


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda, where memory is not measured")
    parser.add_argument("--parts", default=PARTS, help=f"which to run, default {PARTS}")
    parser.add_argument("--folder", type=Path, help="of the model that a child process opens")


if __name__ == "__main__":
    main()
