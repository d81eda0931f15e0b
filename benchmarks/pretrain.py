"""Pretraining with masked tokens, whole: examples read and masked anew, batches, steps, optimiser. Ours against transformers' Trainer.

    python benchmarks/pretrain.py [--runs N] [--threads N] [--json [FILE]] [--smoke] [--data DIR] [--sizes 4x256,6x384] [--parts fp32,bf16]

Claim: at least 1.5 times the tokens a second of transformers' Trainer with the same BERT, rows, batch size and type, on a CPU. Rows are
[CLS], 126 tokens and [SEP], no padding, as transformers' own run_mlm.py cuts them: 64 a step, 15 % masked, fused AdamW, dropout 0.1. A
run is a call of Pretrain.fit or Trainer.train of some steps, all that it does included. --ragged: lines of a corpus as they are, cut
at 126 tokens; the Trainer then sorts them by length and pads. Share of the peak: what the steps must compute (arXiv:2204.02311; logits
of masked tokens only) by the fastest of a few large products, measured just before. Losses are compared first.
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
from typing import Any, Literal

import torch
from benchmarks import harness, models, texts
from torch.nn import functional

from fishpaw.config import ModelConfig
from fishpaw.data.shards import Document, Pieces, Shards, write
from fishpaw.tasks.objectives import Masked
from fishpaw.tasks.pretrain import Pretrain
from fishpaw.text.wordpiece import WordPiece
from fishpaw.train import throughput
from fishpaw.train.options import Options
from fishpaw.weights.load import load_model

LENGTH = 128
RATE = 1e-5


def main() -> None:
    given = harness.arguments(__doc__ or "", runs=5, more=_options)
    harness.start(given)
    report = harness.Report("pretrain", "masked-language-model pretraining, whole", given)
    rows, steps = (4, 2) if given.smoke else (64, given.steps)
    with tempfile.TemporaryDirectory() as name:
        tokenizer = WordPiece(texts.vocabulary(given.data))
        shards = _shards(Path(name) / "shards", tokenizer, rows * steps, given, report)
        report.note(f"{rows} rows a step, {steps} steps a run, vocabulary of {tokenizer.size}")
        there = report.needs("transformers", "accelerate")
        for size in given.sizes.split(","):
            folder = models.make(Path(name) / size, _shape(size, tokenizer.size), tokenizer)
            for part in given.parts.split(","):
                _compete(f"{size}, {part}", folder, tokenizer, shards, rows, steps, part, there, given, report)
    report.finish()


def _compete(
    title: str, folder: Path, tokenizer: WordPiece, shards: Shards, rows: int, steps: int, part: Any, there: bool, given: Namespace,
    report: harness.Report,
) -> None:
    ours = Pretrain(load_model(folder), tokenizer, {Masked(): 1.0}, length=LENGTH)
    pieces = ours.pieces(shards)
    tokens = int((pieces.lengths[: rows * steps] + 2).sum())         # each run sees each row once
    contenders: dict[str, Callable[[], object]] = {"fishpaw": _fit(ours, shards, rows, steps, part)}
    if there:
        theirs = models.transformers_model(folder, head="mlm")
        _compare(ours, theirs, pieces)
        contenders["transformers Trainer"] = _trainer(theirs, folder, pieces, ours, rows, steps, part, given)
    harness.say(title)
    operations = _operations(ours, pieces, rows * steps)
    peak = throughput.peak(torch.device("cpu"), torch.bfloat16 if part == "bf16" else torch.float32)
    seconds = harness.interleave(contenders, runs=given.runs, warm_up=1)
    report.timed(title, seconds, unit="tokens/s", work=tokens)
    shares = {name: [100 * operations / peak / one for one in found] for name, found in seconds.items()}
    report.table(f"{title}: share of the peak of {peak / 1e9:,.0f} billion operations a second", shares, unit="%", better="more")


def _fit(task: Pretrain, shards: Shards, rows: int, steps: int, part: Literal["fp32", "bf16"]) -> Callable[[], object]:
    options = Options(steps=steps, batch_size=rows, learning_rate=RATE, precision=part, log_every=steps)
    return lambda: task.fit(shards, options=options, progress=False)


def _trainer(
    theirs: Any, folder: Path, pieces: Pieces, ours: Pretrain, rows: int, steps: int, part: str, given: Namespace
) -> Callable[[], object]:
    """A new Trainer a run, over the same rows; what it must know of them beforehand is made here."""
    import transformers

    special, count = ours.special, rows * steps
    read = [[special.cls, *piece.ids.tolist(), special.sep] for piece in (pieces[index] for index in range(count))]
    dataset = [{"input_ids": ids, "special_tokens_mask": [1, *[0] * (len(ids) - 2), 1]} for ids in read]
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    more: dict[str, Any] = {"train_sampling_strategy": "group_by_length"} if given.ragged else {}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder.parent / "theirs"), use_cpu=True, per_device_train_batch_size=rows, max_steps=steps, bf16=part == "bf16",
        learning_rate=RATE, weight_decay=0.01, optim="adamw_torch_fused", report_to=[], save_strategy="no", logging_strategy="no",
        disable_tqdm=True, **more,
    )  # fmt: skip

    def run() -> object:
        return transformers.Trainer(model=theirs, args=arguments, train_dataset=dataset, data_collator=collate).train()

    return run


def _shape(size: str, vocab_size: int) -> ModelConfig:
    layers, width = map(int, size.split("x"))
    return ModelConfig(vocab_size=vocab_size, hidden_size=width, layers=layers, attention_heads=max(1, width // 64), max_positions=LENGTH,
                       intermediate_size=4 * width, heads=("mlm",))


def _shards(folder: Path, tokenizer: WordPiece, count: int, given: Namespace, report: harness.Report) -> Shards:
    """`count` pieces: of lines as they are, or of all of them one after another."""
    lines, source = texts.corpus(given.data, count * LENGTH * 4)
    report.note(source)
    ids = [one[: LENGTH - 2] for one in (encoding.ids for encoding in tokenizer.encode_batch(lines, special=False)) if len(one) >= 8]
    if not given.ragged:
        ids = [[id for one in ids for id in one]]
        ids = [ids[0][at : at + LENGTH - 2] for at in range(0, len(ids[0]) - LENGTH + 3, LENGTH - 2)]
    if len(ids) < count:
        raise SystemExit(f"{source}: {len(ids)} rows, {count} are wanted")
    return write(map(Document, ids[:count]), folder, vocab_size=tokenizer.size)


def _compare(ours: Pretrain, theirs: Any, pieces: Pieces) -> None:
    """The loss of the same masked row, without dropout."""
    asked = ours.collate([pieces[0]])
    labels = torch.full_like(asked.batch.ids, -100).index_copy(0, asked.at, asked.targets)
    with torch.no_grad(), ours.model.evaluating():
        total, count = ours.loss(ours.model, asked)
        logits = theirs.eval()(asked.batch.ids[None]).logits[0]
    harness.same("loss", (total / count).view(1, 1), functional.cross_entropy(logits, labels).view(1, 1), most=1e-3)


def _operations(ours: Pretrain, pieces: Pieces, count: int) -> float:
    """Of one run."""
    meter = throughput.meter(ours.model.train())
    assert meter is not None
    with torch.no_grad():
        for start in range(0, count, 64):
            ours.loss(ours.model, ours.collate([pieces[index] for index in range(start, min(start + 64, count))]))
    found = meter.stack(pieces.lengths[:count] + 2) + meter.heads()
    meter.close()
    return found


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--sizes", default="4x256,6x384", help="layers x width, default 4x256,6x384")
    parser.add_argument("--parts", default="fp32,bf16", help="fp32, bf16 (autocast), default both")
    parser.add_argument("--steps", type=int, default=4, help="of a run, default 4")
    parser.add_argument("--ragged", action="store_true", help="lines of any length instead of full rows")


if __name__ == "__main__":
    main()
