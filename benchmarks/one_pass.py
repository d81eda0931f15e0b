"""Score every token of a text from its two-sided context: T-TA in one pass against BERT in n passes, one masked token each.

    python benchmarks/one_pass.py [--runs N] [--threads N] [--json [FILE]] [--smoke] [--lengths 32,128]

Claim: at 32 tokens one pass is at least 5 times as fast as 32 passes, though these run as one batch and compute logits at one token each.
Both models have T-TA's published size (3 layers of 512, 8 heads, 2,048; arXiv:2004.08097) and random weights, vocabulary 21,128, fp32,
prepared for inference. Before anything is timed: one pass of T-TA says the same as n passes of it, each without the token it scores.
"""

from __future__ import annotations

import os
import sys

sys.path.pop(0)                                                  # this folder: its tokenize.py must not stand for Python's
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import tempfile
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

import torch
from benchmarks import harness, models
from torch import Tensor

from fishpaw.config import ModelConfig
from fishpaw.model.transformer import Transformer
from fishpaw.weights.load import load_model

MASK = 103
UNSEEN = {"name": "full", "exclude_self": True}


def main() -> None:
    given = harness.arguments(__doc__ or "", runs=15, more=_options)
    harness.start(given)
    report = harness.Report("one_pass", "pseudo-log-likelihood of one text, milliseconds", given)
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        shape = _shape(smoke=given.smoke)
        folder = models.make(Path(name) / "bert", shape.change({"heads": ("mlm",)}))
        calls = contenders(folder, shape, report)
        for length in given.lengths or ([8] if given.smoke else [32, 128]):
            ids = torch.randperm(shape.vocab_size - 200)[None, :length] + 200
            harness.say(f"{length} tokens")
            one, each = (calls[name](ids) for name in ("fishpaw, T-TA, one pass", "fishpaw, T-TA, n passes"))
            report.note(harness.same(f"T-TA of {length} tokens, one pass against n", one[:, None], each[:, None], most=1e-3))
            timed = {name: lambda call=call, ids=ids: call(ids) for name, call in calls.items()}
            report.timed(f"{length} tokens", harness.interleave(timed, runs=given.runs))
    report.finish()


def contenders(folder: Path, shape: ModelConfig, report: harness.Report) -> dict[str, Callable[[Tensor], Tensor]]:
    """ids [1 n] -> the log-probability of each token, [n]: T-TA in one pass, T-TA and BERT in n passes as one batch."""
    torch.manual_seed(0)
    tta = Transformer(shape.change({"stream": "positions", "mask": UNSEEN, "heads": ("lm",), "init_std": 0.05})).eval().prepare()
    bert = load_model(folder).prepare()

    def one_pass(ids: Tensor) -> Tensor:
        return _said(tta(ids).logits[0], ids)

    def passes(model: Transformer) -> Callable[[Tensor], Tensor]:
        return lambda ids: _said(model(_masked(ids), logits_at=_diagonal(ids)).logits, ids)

    calls = {"fishpaw, T-TA, one pass": one_pass, "fishpaw, T-TA, n passes": passes(tta), "fishpaw, BERT, n passes": passes(bert)}
    if report.needs("transformers"):
        theirs = models.transformers_model(folder, head="mlm")
        calls["transformers, BERT, n passes"] = lambda ids: _said(theirs(_masked(ids)).logits.flatten(0, 1)[_diagonal(ids)], ids)
    return calls


def _shape(*, smoke: bool) -> ModelConfig:
    if smoke:
        return ModelConfig(vocab_size=1009, hidden_size=32, layers=2, attention_heads=4, intermediate_size=64, max_positions=128)
    return ModelConfig(vocab_size=21128, hidden_size=512, layers=3, attention_heads=8, intermediate_size=2048)


def _masked(ids: Tensor) -> Tensor:
    """n copies of a text of n tokens, copy i without its token i, [n n]."""
    return ids.expand(ids.shape[1], -1).masked_fill(torch.eye(ids.shape[1], dtype=torch.bool), MASK)


def _diagonal(ids: Tensor) -> Tensor:
    return torch.arange(ids.shape[1]) * (ids.shape[1] + 1)


def _said(logits: Tensor, ids: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(1, ids.T)[:, 0]


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--lengths", type=harness.lengths, help="tokens of the text, default 32,128")


if __name__ == "__main__":
    main()
