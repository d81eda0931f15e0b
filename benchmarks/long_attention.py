"""Attention on long texts, one layer of 12 heads of 64 at batch 1: our linear kinds against torch's fused softmax attention.

    python benchmarks/long_attention.py [--lengths 512,1024,…] [--runs N] [--threads N] [--json [FILE]] [--smoke] [--train] [--skip-memory]

Claim: linear attention (elu) is at least as fast as fused softmax attention from 512 tokens on and 5 times as fast at 4,096 where it is
causal; time and memory grow with a slope of at most 1.1 in log-log; what it remembers between steps of decoding doesn't grow at all.
(Below 1,024 tokens "taylor" takes the polynomial of the scores, several times as fast there; its slope is that of "taylor by features".)
Peers: scaled_dot_product_attention; performer-pytorch, whose causal form is left out above 4,096. All in fp32, random inputs. Each kernel
that is a formula is compared with it at the shortest length before it is timed. Memory is what a call holds at most beyond its inputs, in
a process of its own.
"""

from __future__ import annotations

import os
import sys

sys.path.pop(0)                                                  # this folder: its tokenize.py must not stand for Python's
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import contextlib
import io
import math
import statistics
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import Any

import torch
from benchmarks import harness
from torch import Tensor
from torch.nn import functional

from fishpaw import switch
from fishpaw.attention.memory import KeyValue
from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch, Position, View

Call = Callable[[Tensor, Tensor, Tensor], Tensor]
CLOCKS = ("full", "causal")
SPECS: dict[str, switch.Spec] = {
    "fishpaw, elu": "linear",
    "fishpaw, cosine": {"name": "linear", "features": "cosine"},
    "fishpaw, taylor": {"name": "linear", "features": "taylor"},
    "fishpaw, taylor by features": {"name": "linear", "features": "taylor"},
    "fishpaw, efficient": "efficient",
    "fishpaw, performer": "performer",
}
SDPA, PEER = "torch, fused softmax", "performer-pytorch"
LONGEST_PEER = 4096                                              # its causal form: seconds there, and more than linear in memory


def main() -> None:
    given = harness.arguments(__doc__ or "", runs=5, threads=None, more=_options)
    harness.start(given)
    given.sizes = given.lengths or ([32, 64] if given.smoke else [512, 1024, 2048, 4096, 8192, 16384])
    shape = (2, 8) if given.smoke else (12, 64)
    if given.child:
        return _measure(given, shape)
    report = harness.Report("long_attention", f"Attention of {shape[0]} heads of {shape[1]} in linear time", given)
    report.needs(PEER)
    for clock in CLOCKS:
        names = _names(clock)
        times: dict[str, dict[int, float]] = {name: {} for name in names}
        for n in given.sizes:
            inputs, calls = _inputs(n, shape), {name: _call(name, clock, shape, n) for name in names if _reaches(name, clock, n)}
            if n == given.sizes[0]:
                _compare(calls, clock, inputs)
            with torch.inference_mode():
                found = harness.interleave(_bound(calls, inputs), runs=given.runs, warm_up=1)
            report.timed(f"{clock}, {n:,} tokens", found)
            for name, seconds in found.items():
                times[name][n] = statistics.median(seconds)
        _slopes(report, f"{clock}, time", times)
        for name in names:
            if name.startswith("fishpaw"):
                ahead = [n for n in given.sizes if all(times[name][m] <= times[SDPA][m] for m in given.sizes if m >= n)]
                report.note(f"{clock}: {name} is ahead of {SDPA} from {ahead[0]:,} tokens on" if ahead else
                            f"{clock}: {name} is not ahead of {SDPA} at {given.sizes[-1]:,} tokens")
        if given.train:
            n = given.sizes[len(given.sizes) // 2]
            calls = {name: _call(name, clock, shape, n) for name in names if _reaches(name, clock, n)}
            steps = {name: _trained(call, _inputs(n, shape)) for name, call in calls.items()}
            found = harness.interleave(steps, runs=given.runs, warm_up=1)
            report.timed(f"{clock}, forward and backward, {n:,} tokens", found)
        if not given.skip_memory:
            _memory(report, clock, names, given)
    _remembered(report, given, shape)
    report.finish()


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--lengths", type=harness.lengths, help="tokens, with commas between (default 512 to 16,384)")
    parser.add_argument("--train", action="store_true", help="forward and backward, too, at the middle length")
    parser.add_argument("--skip-memory", action="store_true", help="times only")


def _names(clock: str) -> list[str]:
    known = switch.names("attention")
    ours = [name for name, spec in SPECS.items() if switch.spec_name(spec) in known and (clock == "full" or spec != "efficient")]
    return [*ours, SDPA, *([PEER] if harness.installed(PEER) else [])]


def _reaches(name: str, clock: str, n: int) -> bool:
    return name != PEER or clock == "full" or n <= LONGEST_PEER


def _config(shape: tuple[int, int], clock: str) -> ModelConfig:
    heads, width = shape
    return ModelConfig(vocab_size=7, hidden_size=heads * width, layers=1, attention_heads=heads, intermediate_size=8, max_positions=8,
                       mask=clock, position="none", attention_dropout=0.0)


def _inputs(n: int, shape: tuple[int, int]) -> list[Tensor]:
    """q, k and v [1 h n d], as a model has them: one product, cut in three, heads beside each other."""
    heads, width = shape
    made = torch.randn(1, n, 3 * heads, width, generator=torch.Generator().manual_seed(n))
    return list(made.transpose(1, 2).split(heads, dim=1))


def _view(n: int, clock: str) -> View:
    batch = Batch.padded(torch.zeros(1, n, dtype=torch.long))
    return View(batch.grids[0], batch.grids[0], batch.rows[0], batch.rows[0], Position(), clock=clock)


def _kernel(name: str, clock: str, shape: tuple[int, int]) -> Any:
    torch.manual_seed(0)
    return switch.build("attention", SPECS.get(name, "softmax"), _config(shape, clock)).eval()


def _call(name: str, clock: str, shape: tuple[int, int], n: int) -> Call:
    if name == SDPA:
        return lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, is_causal=clock == "causal")
    if name == PEER:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):               # it tells that it has no CUDA
            warnings.simplefilter("ignore")
            from performer_pytorch import FastAttention

            peer: Call = FastAttention(shape[1], causal=clock == "causal").eval()
        return peer
    kernel, view = _kernel(name, clock, shape), _view(n, clock)
    if name.endswith("by features"):
        kernel.few = 0
    return lambda q, k, v: kernel(q, k, v, view).out


def _bound(calls: dict[str, Call], inputs: list[Tensor]) -> dict[str, Callable[[], Tensor]]:
    return {name: (lambda call=call: call(*inputs)) for name, call in calls.items()}


def _trained(call: Call, inputs: list[Tensor]) -> Callable[[], None]:
    leaves = [one.requires_grad_() for one in inputs]

    def run() -> None:
        torch.autograd.grad(call(*leaves).sum(), leaves)

    return run


def _compare(calls: dict[str, Call], clock: str, inputs: list[Tensor]) -> None:
    """The kernels that are a formula, in fp64 and without any trick."""
    q, k, v = (one.double() for one in inputs)
    width, n = q.shape[-1], q.shape[-2]
    scores = q @ k.mT / math.sqrt(width)
    similar = {
        "fishpaw, elu": (functional.elu(q) + 1) @ (functional.elu(k) + 1).mT,
        "fishpaw, cosine": 1 + functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).mT,
        "fishpaw, taylor": 1 + scores + scores**2 / 2,
        "fishpaw, taylor by features": 1 + scores + scores**2 / 2,
        "fishpaw, efficient": q.softmax(-1) @ k.softmax(-2).mT,
        SDPA: scores.exp(),
    }
    for name, shares in similar.items():
        if name in calls:
            shares = shares.tril() if clock == "causal" else shares
            harness.same(f"{clock}, {n} tokens, {name}", calls[name](*inputs), shares / shares.sum(-1, keepdim=True) @ v, most=1e-4)


def _slopes(report: harness.Report, what: str, found: dict[str, dict[int, float]]) -> None:
    """Least squares of log value on log length."""
    slopes = {}
    for name, values in found.items():
        points = [(math.log(n), math.log(value)) for n, value in values.items() if value > 0]            # tiny sizes may hold nothing
        slopes[name] = [max(0.0, statistics.linear_regression(*zip(*points, strict=True)).slope) if len(points) > 1 else 0.0]
    report.table(f"{what}: slope in log-log", slopes, unit="1 is linear", better="less")


def _memory(report: harness.Report, clock: str, names: list[str], given: Namespace) -> None:
    if harness.resting() is None:
        return report.note("left out: memory (unknown on this system)")
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"               # for the children: what is freed goes back and doesn't count again
    told = {name: harness.child(__file__, f"{name}|{clock}", given, "--lengths", ",".join(map(str, given.sizes))) for name in names}
    for n in given.sizes:
        report.table(f"{clock}, {n:,} tokens: memory", {name: [one[str(n)] / 2**20] for name, one in told.items() if str(n) in one},
                     unit="MiB", better="less")
    _slopes(report, f"{clock}, memory", {name: {int(n): value for n, value in one.items()} for name, one in told.items()})


def _measure(given: Namespace, shape: tuple[int, int]) -> None:
    name, clock = given.child.split("|")
    found = {}
    with torch.inference_mode():
        _call(name, clock, shape, 16)(*_inputs(16, shape))       # threads and libraries are there
        for n in given.sizes:
            if _reaches(name, clock, n):
                inputs, call = _inputs(n, shape), _call(name, clock, shape, n)
                harness.reset_peak()
                before = harness.resting() or 0
                out = call(*inputs)
                found[str(n)] = max(0, (harness.peak() or 0) - before)
                del out
    harness.answer(found)


def _remembered(report: harness.Report, given: Namespace, shape: tuple[int, int]) -> None:
    """Bytes a layer keeps from step to step of decoding, and by how much a token makes them grow."""
    held: dict[str, list[int]] = {}
    ends = given.sizes[0], min(given.sizes[-1], 2048)
    for name in [name for name in _names("causal") if name != PEER]:
        kernel, held[name] = _kernel(name, "causal", shape), []
        for n in ends:
            memory = kernel.memory(n)
            with torch.inference_mode():
                kernel(*_inputs(n, shape), _view(n, "causal"), memory=memory)
            kept = memory.read() if isinstance(memory, KeyValue) else memory.sums
            held[name].append(sum(one.numel() * one.element_size() for one in kept))
    held = {"our softmax, keys and values" if name == SDPA else name: sizes for name, sizes in held.items()}
    report.table(f"decoding, one layer: memory after {ends[1]:,} tokens", {name: [sizes[1] / 1024] for name, sizes in held.items()},
                 unit="KiB", better="less")
    if ends[1] > ends[0]:
        grown = {name: [(sizes[1] - sizes[0]) / (ends[1] - ends[0])] for name, sizes in held.items()}
        report.table("decoding, one layer: memory a token adds", grown, unit="bytes", better="less")


if __name__ == "__main__":
    main()
