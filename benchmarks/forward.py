"""Forward pass of BERT-base in evaluation mode: ours against transformers (sdpa, compiled), bert4torch and ONNX Runtime.

    python benchmarks/forward.py [--runs N] [--threads N] [--json [FILE]] [--smoke] [--device cuda] [--sizes 8x128,8x32,1x32]

Claim: at equal weights and outputs, fp32 takes at most half of transformers' time and no longer than ONNX Runtime; bf16 is ahead of
transformers under autocast and with bf16 weights; int8 is not behind ONNX Runtime's own int8. Random weights, 21,128 tokens, no padding.
Each number format is a round of its own: ours first, then each peer in turn. Outputs are compared before anything is timed.
"""

from __future__ import annotations

import os
import sys

sys.path.pop(0)                                                  # this folder: its tokenize.py must not stand for Python's
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks import harness, models, served
from torch import Tensor

from fishpaw.errors import FishpawError
from fishpaw.weights.load import load_model

Call = Callable[[Tensor], Any]
SIZES = "8x128,8x32,1x32"
LIMITS: dict[str, dict[str, float]] = {"fp32": {"most": 1e-3}, "bf16": {"cosine": 0.995}, "int8": {"cosine": 0.98}}


def main() -> None:
    given = harness.arguments(__doc__ or "", runs=9, more=_options)
    harness.start(given)
    report = harness.Report("forward", "BERT-base forward pass, milliseconds", given)
    sizes = [tuple(map(int, size.split("x"))) for size in (given.sizes or ("2x16,1x8" if given.smoke else SIZES)).split(",")]
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder = models.make(Path(name) / "bert", models.shape(smoke=given.smoke))
        batches = [torch.randint(5, 21128, size) for size in sizes]
        reference = load_model(folder).to(given.device)
        for format, makers in {"fp32": fp32, "bf16": bf16, "int8": int8}.items():
            if given.device != "cpu" and format == "int8":
                continue
            calls = makers(folder, given, report)
            for rows in batches:
                harness.say(f"{format} {tuple(rows.shape)}")
                ids = rows.to(given.device)
                expected = reference(ids).hidden
                for peer, call in calls.items():
                    harness.same(peer, call(ids), expected, **LIMITS[format])
                timed = {peer: _waiting(call, ids, given.device) for peer, call in calls.items()}
                report.timed(f"{format} {rows.shape[0]}x{rows.shape[1]}", harness.interleave(timed, runs=given.runs))
                _note_speed(report, reference, rows)
            del calls
        if not given.smoke:
            _note_peak(report, given.device)
    report.finish()


def fp32(folder: Path, given: Namespace, report: harness.Report) -> dict[str, Call]:
    """Contenders in fp32, ours first."""
    ours = _ours(folder, given, torch.float32)
    calls: dict[str, Call] = {"fishpaw": lambda ids: ours(ids).hidden}
    if report.needs("transformers"):
        theirs = models.transformers_model(folder).to(given.device)
        calls["transformers"] = lambda ids: theirs(ids).last_hidden_state
        if given.smoke:
            report.note("left out: transformers compiled (a smoke run compiles nothing)")
        else:
            compiled: Any = torch.compile(theirs, dynamic=False)
            frozen: Any = torch.compile(theirs, dynamic=False, options={"freezing": True})
            calls["transformers, compiled"] = lambda ids: compiled(ids).last_hidden_state
            if given.device == "cpu":
                calls["transformers, compiled, frozen"] = lambda ids: frozen(ids).last_hidden_state
    if report.needs("bert4torch"):
        other = models.bert4torch(folder).to(given.device)
        calls["bert4torch"] = lambda ids: _first(other([ids, torch.zeros_like(ids)]))
    if given.device == "cpu" and report.needs("transformers", "onnxruntime", "onnx", "onnxscript"):
        calls["fishpaw, exported"] = served.session(served.ours(folder, int8=False), given.threads)
        calls["ONNX Runtime"] = served.session(served.exported(folder), given.threads)
    return calls


def bf16(folder: Path, given: Namespace, report: harness.Report) -> dict[str, Call]:
    """Contenders in bf16: ours with bf16 weights, transformers both ways."""
    ours = _ours(folder, given, torch.bfloat16)
    calls: dict[str, Call] = {"fishpaw": lambda ids: ours(ids).hidden}
    if report.needs("transformers"):
        full = models.transformers_model(folder).to(given.device)
        half = models.transformers_model(folder, dtype=torch.bfloat16).to(given.device)

        def autocast(ids: Tensor) -> Tensor:
            with torch.autocast(given.device, dtype=torch.bfloat16):
                found: Tensor = full(ids).last_hidden_state
                return found

        calls["transformers, autocast"] = autocast
        calls["transformers, bf16 weights"] = lambda ids: half(ids).last_hidden_state
    return calls


def int8(folder: Path, given: Namespace, report: harness.Report) -> dict[str, Call]:
    """Contenders with int8 weights: our export in ONNX Runtime, transformers' export quantised by ONNX Runtime."""
    if not report.needs("transformers", "onnxruntime", "onnx", "onnxscript"):
        return {}
    calls: dict[str, Call] = {}
    try:
        calls["fishpaw, exported"] = served.session(served.ours(folder, int8=True), given.threads)
    except FishpawError as error:
        report.note(f"left out: fishpaw int8: {error}")
    calls["ONNX Runtime, dynamic, per channel"] = served.session(served.quantised(served.exported(folder)), given.threads)
    return calls


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda, where ONNX Runtime and the packed weights stay out")
    parser.add_argument("--sizes", help=f"rows x tokens, default {SIZES}")


def _ours(folder: Path, given: Namespace, dtype: torch.dtype) -> Any:
    model = load_model(folder)
    return model.prepare(dtype=dtype) if given.device == "cpu" else model.to(given.device, dtype)


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, list | tuple) else output


def _waiting(call: Call, ids: Tensor, device: str) -> Callable[[], object]:
    """A call that ends when the device has."""
    def run() -> None:
        call(ids)
        if device != "cpu":
            torch.cuda.synchronize()

    return run


def _operations(model: Any, rows: Tensor) -> float:
    """Multiplications and additions of a forward pass, the products with weights and of attention."""
    config = model.config
    tokens, width = rows.numel(), config.hidden_size
    layer = 2 * tokens * (4 * width * width + 2 * width * config.intermediate_size) + 4 * tokens * rows.shape[1] * width
    return float(config.layers * layer)


def _note_speed(report: harness.Report, model: Any, rows: Tensor) -> None:
    table = report.tables[-1]
    speeds = ", ".join(f"{row.name} {_operations(model, rows) / row.median / 1e6:,.0f}" for row in table.rows)
    report.note(f"GFLOP/s in {table.title}: {speeds}")


def _note_peak(report: harness.Report, device: str) -> None:
    """What the machine's largest product reaches: the share of it is a figure that travels."""
    size = 2048 if device == "cpu" else 8192
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(size, size, device=device, dtype=dtype)
        seconds = harness.interleave({"product": _waiting(a.matmul, a, device)}, runs=5)["product"]
        report.note(f"torch's product {size}x{size}x{size}, {dtype}: {2 * size**3 / min(seconds) / 1e9:,.0f} GFLOP/s")


if __name__ == "__main__":
    main()
