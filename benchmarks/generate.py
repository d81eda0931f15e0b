"""Decoding: GPT-2 by greedy search, sampling and beams, UniLM by beams: ours against transformers and bert4torch.

    python benchmarks/generate.py [--runs N] [--threads N] [--json [FILE]] [--smoke] [--device cuda] [--parts greedy,sample,beam,…]
                                  [--sizes 12x768,6x384] [--formats fp32,bf16] [--batches 1,8] [--prompt 32] [--new 64] [--seconds 60]

Claim: with 12 layers of 768, greedy search makes at least 1.8 times the tokens a second of transformers' at batch 1 and 3 times at batch 8
in fp32 (1.7 and 2 in bf16), beam search of width 4 three times and twice as many; UniLM at least 20 times bert4torch's.
Random weights, 21,128 tokens, no end token, so that every text has its full length; prompts are read in the time, but not counted. Greedy
search in fp32 must find the same tokens, but where two candidates are within 1e-3 of one another; for the rest, a line says how many texts
are equal. Sampling: top-k 50 at temperature 1. Part "limit": greedy at batch 1 beside the time in which this machine reads as many bytes
as our weights have, in the same rounds: the faster of a sum and of a product with a vector. Part "outside": time a token outside matrix
products, namely that of runs without a profiler less what the products take on their own under torch.profiler (CPU time, the least of
three runs); PRODUCTS lists them: of matrices, with what is fused into them (bias, activation), and of attention.
"""

from __future__ import annotations

import os
import sys

sys.path.pop(0)                                                  # this folder: its tokenize.py must not stand for Python's
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import statistics
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks import harness, models
from torch import Tensor

from fishpaw.contracts import Batch
from fishpaw.decoding.limits import Limits
from fishpaw.decoding.processors import TopK
from fishpaw.decoding.sample import sample
from fishpaw.decoding.search import beam, greedy
from fishpaw.decoding.stepper import TransformerStepper
from fishpaw.weights.load import load_model

Call = Callable[[], Tensor]
"""-> the new tokens of each prompt, [p u]"""

PARTS = ("greedy", "sample", "beam", "limit", "outside", "unilm")
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}
BEAMS, KEPT = 4, 50
FEWEST = 2                       # rounds, however slow
NEAR = 1e-3                      # of two candidates' scores: rounding may choose either
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear", "aten::mv", "aten::addmv", "aten::dot",
            "aten::mkldnn_linear", "mkldnn::_linear_pointwise", "mkl::_mkl_linear", "aten::_scaled_dot_product_flash_attention_for_cpu",
            "aten::scaled_dot_product_attention", "aten::_scaled_dot_product_attention_math")


def main() -> None:
    given = harness.arguments(__doc__ or "", runs=9, more=_options)
    harness.start(given)
    if given.smoke:
        given.prompt, given.new, given.sizes, given.batches = 5, 6, "2x32", "1,2"
    parts, formats = (_chosen(name, value, known) for name, value, known in
                      (("parts", given.parts, PARTS), ("formats", given.formats, tuple(FORMATS))))
    report = harness.Report("generate", "tokens a second of decoding", given)
    report.note(f"prompts of {given.prompt} tokens, {given.new} new ones")
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        for size in given.sizes.split(","):
            layers, width = map(int, size.split("x"))
            folder = models.make(Path(name) / f"gpt-{size}", models.gpt(layers, width, longest=max(512, given.prompt + given.new)))
            for format in formats:
                _gpt(size, folder, format, parts, given, report)
        if "unilm" in parts:
            _unilm(models.make(Path(name) / "bert", models.shape(smoke=given.smoke, head="mlm")), given, report)
    report.finish()


def _gpt(size: str, folder: Path, format: str, parts: Sequence[str], given: Namespace, report: harness.Report) -> None:
    """All parts for one model in one number format."""
    ours = _opened(folder, format, given)
    theirs = models.transformers_model(folder, head="lm", dtype=FORMATS[format]).to(given.device) if report.needs("transformers") else None
    other = None
    if format == "fp32" and report.needs("bert4torch"):
        other = models.bert4torch(folder, model="gpt2").to(given.device)
    for rows in harness.lengths(given.batches):
        prompts = _prompts(rows, given.prompt, given.device)
        for way in ("greedy", "sample", "beam"):
            if way not in parts:
                continue
            calls = {"fishpaw": _ours(ours, prompts, way, given)}
            if theirs is not None:
                calls["transformers"] = _transformers(theirs, prompts, way, given)
            if other is not None:
                calls["bert4torch"] = _bert4torch(other, prompts, way, given)
            title = f"GPT-2 {size} {format}, {_named(way)}, batch {rows}"
            exact, random = format == "fp32" and way == "greedy", way == "sample"
            _timed(title, calls, ours, prompts, exact=exact, random=random, given=given, report=report)
    prompt = _prompts(1, given.prompt, given.device)
    if "limit" in parts and given.device == "cpu":
        _limit(f"GPT-2 {size} {format}, greedy, batch 1, and the limit", ours, _ours(ours, prompt, "greedy", given), given, report)
    if "outside" in parts and given.device == "cpu":
        calls = {"fishpaw": _ours(ours, prompt, "greedy", given)}
        if theirs is not None:
            calls["transformers"] = _transformers(theirs, prompt, "greedy", given)
        _outside(f"GPT-2 {size} {format}, greedy, batch 1, outside matrix products", calls, given, report)


def _unilm(folder: Path, given: Namespace, report: harness.Report) -> None:
    """A seq2seq in one stack: bert4torch keeps nothing between the steps of a UniLM, transformers has none."""
    given = Namespace(**{**vars(given), "prompt": 9 if given.smoke else 128, "new": 5 if given.smoke else 32})
    ours = load_model(folder, mask="unilm")
    ours = ours.prepare() if given.device == "cpu" else ours.to(given.device)
    prompts = _prompts(1, given.prompt, given.device)
    calls = {"fishpaw": _ours(ours, prompts, "beam", given)}
    if report.needs("bert4torch"):
        other = models.bert4torch(folder, head="mlm", application="unilm").to(given.device)
        calls["bert4torch"] = _bert4torch_unilm(other, prompts, given)
    title = f"UniLM {given.prompt} + {given.new}, fp32, beam {BEAMS}, batch 1"
    _timed(title, calls, ours, prompts, exact=False, random=False, given=given, report=report)


def _ours(model: Any, prompts: Tensor, way: str, given: Namespace) -> Call:
    stepper, limits = TransformerStepper(model), Limits(given.new)
    segments = torch.zeros_like(prompts) if model.mask.clock == "unilm" else None
    generator = torch.Generator(given.device).manual_seed(0)

    def run() -> Tensor:
        batch = Batch.padded(prompts, segments=segments)
        if way == "greedy":
            found = greedy(stepper, batch, limits=limits)
        elif way == "sample":
            found = [group[0] for group in sample(stepper, batch, limits=limits, processors=[TopK(KEPT)], generator=generator)]
        else:
            found = [group[0] for group in beam(stepper, batch, beams=BEAMS, limits=limits)]
        return torch.tensor([one.tokens for one in found])

    return run


def _transformers(model: Any, prompts: Tensor, way: str, given: Namespace) -> Call:
    from transformers import GenerationConfig

    settings: dict[str, Any] = {"greedy": {"do_sample": False}, "sample": {"do_sample": True, "top_k": KEPT, "top_p": 1.0},
                                "beam": {"do_sample": False, "num_beams": BEAMS}}[way]
    config = GenerationConfig(max_new_tokens=given.new, eos_token_id=None, pad_token_id=0, use_cache=True, **settings)
    model.generation_config = config
    keep = torch.ones_like(prompts)

    def run() -> Tensor:
        found: Tensor = model.generate(prompts, attention_mask=keep, generation_config=config)
        return found[:, prompts.shape[1] :].cpu()

    return run


def _bert4torch(model: Any, prompts: Tensor, way: str, given: Namespace) -> Call:
    from bert4torch.generation import SeqGeneration

    settings: dict[str, Any] = {"greedy": {"mode": "random_sample", "do_sample": False}, "sample": {"mode": "random_sample", "top_k": KEPT},
                                "beam": {"mode": "beam_search", "top_k": BEAMS, "do_sample": False}}[way]
    settings |= {"max_new_tokens": given.new, "eos_token_id": -1, "pad_token_id": 0, "device": given.device}
    decoder = SeqGeneration(model, use_states=True, **settings)
    decoder.use_batch = len(prompts) > 1 or way == "beam"        # 0.6.2 can't search a single prompt with a cache
    search = decoder.beam_search if way == "beam" else decoder.random_sample
    rows = prompts.tolist() if decoder.use_batch else prompts[0].tolist()

    def run() -> Tensor:
        again = {"top_k": BEAMS} if way == "beam" else {}        # a batch overwrites it
        return torch.stack([one.cpu() for one in search([rows], states={}, **again)])

    return run


def _bert4torch_unilm(model: Any, prompts: Tensor, given: Namespace) -> Call:
    """Its beam search around a prediction that reads everything anew, as its examples of seq2seq with BERT do."""
    from bert4torch.generation import AutoRegressiveDecoder

    class Decoder(AutoRegressiveDecoder):
        @AutoRegressiveDecoder.wraps(default_rtype="logits")
        def predict(self, inputs: Any, output_ids: Tensor, states: Any) -> Tensor:
            ids, segments = inputs
            read = [torch.cat([ids, output_ids], 1), torch.cat([segments, torch.ones_like(output_ids)], 1)]
            logits: Tensor = model(read)[-1][:, -1]
            return logits

    decoder = Decoder(bos_token_id=None, eos_token_id=-1, max_new_tokens=given.new, device=given.device, do_sample=False)
    text = [prompts[0].tolist(), [0] * prompts.shape[1]]

    def run() -> Tensor:
        return torch.stack([one.cpu() for one in decoder.beam_search(text, top_k=BEAMS)])

    return run


def _timed(title: str, calls: Mapping[str, Call], ours: Any, prompts: Tensor, *, exact: bool, random: bool, given: Namespace,
           report: harness.Report) -> None:
    """A round that compares and tells how many more fit, then the turns."""
    harness.say(title)
    begin = time.perf_counter()
    found = {name: call() for name, call in calls.items()}
    spent = time.perf_counter() - begin
    for name, tokens in found.items():
        if tokens.shape != (len(prompts), given.new):
            raise harness.Different(f"{title}: {name} made {tuple(tokens.shape)} tokens, wanted {(len(prompts), given.new)}")
        if name != "fishpaw" and not random:
            _compare(f"{title}, {name}", ours, prompts, found["fishpaw"], tokens, exact=exact, report=report)
    runs = max(FEWEST, min(given.runs, int(given.seconds / spent)))
    report.timed(title, harness.interleave(calls, runs=runs, warm_up=1), unit="tokens/s", work=len(prompts) * given.new)


def _compare(title: str, ours: Any, prompts: Tensor, found: Tensor, expected: Tensor, *, exact: bool, report: harness.Report) -> None:
    """Say how many texts are equal. exact: Different, unless the scores of the two first tokens that differ are nearly equal."""
    equal = (found == expected).all(1)
    report.note(f"{title}: {int(equal.sum())} of {len(equal)} texts equal to ours")
    harness.say(f"  {report.notes[-1]}")
    for row in (~equal).nonzero()[:, 0].tolist() if exact else ():
        place = int((found[row] != expected[row]).int().argmax())
        read = torch.cat([prompts[row], found[row, :place].to(prompts.device)])[None]
        logits = ours(read).logits[0, -1].float()
        gap = float(logits[found[row, place]] - logits[expected[row, place]])
        if abs(gap) > NEAR:
            raise harness.Different(f"{title}: text {row} differs at token {place}, by {gap:.1e}")


def _limit(title: str, model: Any, call: Call, given: Namespace, report: harness.Report) -> None:
    """Weights are read once a token: how long does this machine read that many bytes, in the same rounds, the best of two ways?"""
    config, element = model.config, 2 if model.compute == torch.bfloat16 else 4
    inside = sum(one.numel() for name, one in model.named_parameters() if name.startswith("layers."))
    size = (inside + config.vocab_size * config.hidden_size) * element
    buffer = torch.ones(size // 4 // config.hidden_size, config.hidden_size)
    vector = torch.ones(config.hidden_size)

    def swept() -> None:
        for _ in range(given.new):
            buffer.sum()

    def multiplied() -> None:
        for _ in range(given.new):
            torch.mv(buffer, vector)

    harness.say(title)
    seconds = harness.interleave({"fishpaw": call, "sum": swept, "matrix times vector": multiplied}, runs=given.runs)
    read = [min(pair) for pair in zip(seconds["sum"], seconds["matrix times vector"], strict=True)]
    report.timed(title, {"fishpaw": seconds["fishpaw"], "reading the weights only": read}, unit="tokens/s", work=given.new)
    share = statistics.median(read) / statistics.median(seconds["fishpaw"])
    speed = size * given.new / statistics.median(read) / 1e9
    report.note(f"{title}: {share:.0%} of the limit; {size / 1e6:.0f} MB a token at {speed:.0f} GB/s")


def _outside(title: str, calls: Mapping[str, Call], given: Namespace, report: harness.Report) -> None:
    """What a run takes, less what its products take on their own: other operations and Python."""
    harness.say(title)
    seconds = harness.interleave(calls, runs=given.runs)
    values: dict[str, list[float]] = {}
    for name, call in calls.items():
        products, others, called = min(_profiled(call, given.new) for _ in range(3))
        values[name] = [max(0.0, one * 1e3 / given.new - products) for one in seconds[name]]
        report.note(f"{title}, {name}: {products:.2f} ms a token in products, {others:.2f} in others; {called:.0f} calls")
    report.table(title, values, unit="ms a token", better="less")


def _profiled(call: Call, new: int) -> tuple[float, float, float]:
    """Milliseconds a token in products and in other operations, each operation's own CPU time, and how many are called."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    events = [(one.key in PRODUCTS, one.self_cpu_time_total / 1e3 / new, one.count / new) for one in profile.key_averages()]
    times = [sum(time for product, time, _ in events if product is kind) for kind in (True, False)]
    return times[0], times[1], sum(count for _, _, count in events)


def _opened(folder: Path, format: str, given: Namespace) -> Any:
    model = load_model(folder)
    return model.prepare(dtype=FORMATS[format]) if given.device == "cpu" else model.to(given.device, FORMATS[format])


def _prompts(rows: int, length: int, device: str) -> Tensor:
    return torch.randint(5, 21128, (rows, length), generator=torch.Generator().manual_seed(rows)).to(device)


def _named(way: str) -> str:
    return {"greedy": "greedy", "sample": f"sampling top-k {KEPT}", "beam": f"beam {BEAMS}"}[way]


def _chosen(name: str, value: str, known: Sequence[str]) -> list[str]:
    chosen = value.split(",")
    if unknown := set(chosen) - set(known):
        raise SystemExit(f"--{name}: {', '.join(sorted(unknown))}: choose of {', '.join(known)}")
    return chosen


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda, without the parts limit and outside")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"which to run, default {','.join(PARTS)}")
    parser.add_argument("--sizes", default="12x768,6x384", help="layers x width of GPT-2")
    parser.add_argument("--formats", default=",".join(FORMATS), help="of the weights, default fp32,bf16")
    parser.add_argument("--batches", default="1,8", help="prompts at a time")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens to make")
    parser.add_argument("--seconds", type=float, default=60, help="of rounds that count, a table: fewer rounds where they take longer")


if __name__ == "__main__":
    main()
