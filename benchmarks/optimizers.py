"""One step of an optimizer over the parameters of BERT-base (102 M): ours with each transform against torch's fused AdamW.

    python benchmarks/optimizers.py [--runs N] [--threads N] [--json [FILE]] [--smoke] [--parts lookahead,average,lamb,…]

Claim: with Lookahead (k = 5) a step takes at most 1.2 times that of torch's fused AdamW, with an average of the weights at most 1.6 times;
a step of LAMB takes at most 80 ms on two cores where AdamW takes 35, and a third of pytorch_optimizer's. Each contender has the same
parameters and gradients, and moments of its own; what is timed is five steps (a sync of Lookahead, an update of five accumulated
batches), divided by five. LAMB, Lookahead and Lion are first compared with pytorch_optimizer's on small matrices.
"""

from __future__ import annotations

import os
import sys

sys.path.pop(0)                                                  # this folder: its tokenize.py must not stand for Python's
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence

import torch
from benchmarks import harness
from torch import nn
from torch.optim import AdamW, Optimizer

from fishpaw.optim.derive import Derived, derive
from fishpaw.optim.lion import Lion
from fishpaw.optim.transforms import (
    Accumulate,
    Average,
    Clip,
    LayerAdaptation,
    Lazy,
    Lookahead,
    PiecewiseLinear,
    Rates,
    Transform,
    WeightDecay,
    vectors,
)

STEPS = 5
RATE = 1e-4
Named = Sequence[tuple[str, nn.Parameter]]
TRANSFORMS: dict[str, list[Transform]] = {
    "none": [],
    "decay": [WeightDecay(0.01, exclude=(vectors,))],
    "clip": [Clip(1.0)],
    "rates": [Rates({"embedding": 0.1}), PiecewiseLinear({0: 1})],
    "accumulation": [Accumulate(STEPS)],
    "lookahead": [Lookahead(k=STEPS)],
    "average": [Average(0.999)],
    "lazy": [Lazy(rows=("embedding",), moments="decayed")],
    "lazy-kept": [Lazy(rows=("embedding",), moments="kept")],
    "lamb": [WeightDecay(0.01, exclude=(vectors,)), LayerAdaptation(exclude=(vectors,))],
    "lion": [WeightDecay(0.01, exclude=(vectors,))],
}


def main() -> None:
    given = harness.arguments(__doc__ or "", runs=9, more=_options)
    harness.start(given)
    parts = list(TRANSFORMS) if given.parts == "all" else given.parts.split(",")
    if unknown := set(parts) - set(TRANSFORMS):
        raise SystemExit(f"--parts: {', '.join(sorted(unknown))}: choose of {', '.join(TRANSFORMS)}")
    report = harness.Report("optimizers", "a step of an optimizer", given)
    peers = report.needs("pytorch_optimizer")
    if peers:
        _compare(report)
    named = _parameters(smoke=given.smoke)
    report.note(f"{sum(p.numel() for _, p in named) / 1e6:.1f} M parameters in {len(named)} tensors, fp32")
    for part in parts:
        harness.say(part)
        contenders = {name: _steps(optimizer) for name, optimizer in _contenders(part, named, peers=peers).items()}
        seconds = harness.interleave(contenders, runs=given.runs, warm_up=1)
        report.timed(part, {name: [one / STEPS for one in runs] for name, runs in seconds.items()})
        del contenders
    report.finish()


def _contenders(part: str, named: Named, *, peers: bool) -> dict[str, Optimizer]:
    """Ours, torch's fused AdamW, and pytorch_optimizer's where it has one."""
    parameters = [p for _, p in named]
    found: dict[str, Optimizer] = {f"fishpaw, {part}": _ours(part, named)}
    found["torch AdamW, fused"] = AdamW(parameters, lr=RATE, weight_decay=0.01 if part == "decay" else 0.0, fused=True)
    if peers and part in ("lookahead", "lamb", "lion"):
        import pytorch_optimizer

        if part == "lookahead":
            found["pytorch_optimizer"] = pytorch_optimizer.Lookahead(AdamW(parameters, lr=RATE, weight_decay=0.0, fused=True), k=STEPS)
        else:
            kind = pytorch_optimizer.Lamb if part == "lamb" else pytorch_optimizer.Lion
            more = {"weight_decouple": False} if part == "lamb" else {}
            found["pytorch_optimizer"] = kind(parameters, lr=RATE, weight_decay=0.01, **more)
    return found


def _ours(part: str, named: Named) -> Derived:
    base = Lion(named, lr=RATE) if part == "lion" else AdamW(named, lr=RATE, weight_decay=0.0, fused=True)
    return derive(base, TRANSFORMS[part])


def _steps(optimizer: Optimizer) -> Callable[[], object]:
    def steps() -> None:
        for _ in range(STEPS):
            optimizer.step()

    return steps


def _parameters(*, smoke: bool) -> Named:
    """Those of BERT-base, with gradients; of the embedding one row in twenty has one, which changes nothing for a dense optimizer."""
    v, d, f, layers = (211, 8, 32, 2) if smoke else (21128, 768, 3072, 12)
    shapes: dict[str, tuple[int, ...]] = {"embedding": (v, d), "position": (512 if not smoke else 16, d), "norm": (d,), "shift": (d,)}
    for layer in range(layers):
        for name in ("q", "k", "v", "out"):
            shapes |= {f"{layer}.{name}": (d, d), f"{layer}.{name}.bias": (d,)}
        shapes |= {f"{layer}.up": (f, d), f"{layer}.up.bias": (f,), f"{layer}.down": (d, f), f"{layer}.down.bias": (d,)}
        shapes |= {f"{layer}.norm.{number}": (d,) for number in range(4)}
    named = [(name, nn.Parameter(torch.randn(shape) * 0.02)) for name, shape in shapes.items()]
    for _, parameter in named:
        parameter.grad = torch.randn_like(parameter) * 1e-3
    table = named[0][1].grad
    assert table is not None
    table[torch.arange(v) % 20 != 0] = 0
    return named


def _compare(report: harness.Report) -> None:
    """Ours and theirs after 20 steps, where both mean the same: LAMB without decay and ε, for theirs has no bias correction."""
    import pytorch_optimizer

    pairs: Mapping[str, tuple[Callable[[Named], Optimizer], Callable[[Named], Optimizer]]] = {
        "Lookahead": (lambda named: derive(AdamW(named, lr=0.01), [Lookahead()]),
                      lambda named: pytorch_optimizer.Lookahead(AdamW([p for _, p in named], lr=0.01))),
        "LAMB": (lambda named: derive(AdamW(named, lr=0.01, eps=1e-12, weight_decay=0.0, fused=True), [LayerAdaptation()]),
                 lambda named: pytorch_optimizer.Lamb([p for _, p in named], lr=0.01, eps=1e-12, adam_debias=True)),
        "Lion": (lambda named: derive(Lion(named, lr=0.01), [WeightDecay(0.1)]),
                 lambda named: pytorch_optimizer.Lion([p for _, p in named], lr=0.01, weight_decay=0.1)),
    }  # fmt: skip
    for name, makers in pairs.items():
        ends = []
        for make in makers:
            noise = torch.Generator().manual_seed(1)
            parameter = nn.Parameter(torch.randn(31, 17, generator=noise) * 0.1)
            optimizer = make([("matrix", parameter)])
            for _ in range(20):
                parameter.grad = torch.randn(31, 17, generator=noise)
                optimizer.step()
            ends.append(parameter.detach())
        report.note(harness.same(f"{name} and pytorch_optimizer's, 20 steps", *ends, most=1e-5))


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--parts", default="all", help=f"which to run, of {', '.join(TRANSFORMS)}; default all")


if __name__ == "__main__":
    main()
