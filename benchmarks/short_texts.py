"""Sentences of 8 to 60 characters to vectors: ours, packed without padding, against what transformers and sentence-transformers offer.

    python benchmarks/short_texts.py [--data DIR] [--runs N] [--threads N] [--json [FILE]] [--smoke] [--count 256] [--batch 32]

Claim: from texts to vectors (the mean over a text's tokens) ours makes at least 2.2 times the sentences a second of the best peer in fp32,
and 1.5 times in bf16. Peers: transformers with batches padded as they come, and sorted by length; torch's TransformerEncoder with the
same weights and nested tensors, which skips padding; sentence-transformers' encode. Random weights; vectors are compared first.
"""

from __future__ import annotations

import os
import sys

sys.path.pop(0)                                                  # this folder: its tokenize.py must not stand for Python's
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import tempfile
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks import harness, models, texts
from torch import Tensor, nn

from fishpaw.tasks.encode import encode
from fishpaw.text.wordpiece import WordPiece
from fishpaw.weights.load import load

Call = Callable[[Sequence[str]], Tensor]
Reader = Callable[[Any], Tensor]                                 # a padded batch of transformers' tokenizer -> hidden [b t d]
LIMITS: dict[str, dict[str, float]] = {"fp32": {"most": 1e-3}, "bf16": {"cosine": 0.995}}


def main() -> None:
    given = harness.arguments(__doc__ or "", runs=5, more=_options)
    harness.start(given)
    report = harness.Report("short_texts", "Vectors of short sentences with BERT-base, sentences a second", given)
    count = 24 if given.smoke else given.count
    some, source = texts.sentences(given.data, count)
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder = models.make(Path(name) / "bert", models.shape(smoke=given.smoke), WordPiece(texts.vocabulary(given.data)))
        report.note(f"{count} sentences of 8-60 characters: {source}; batches of {given.batch}; {_padding(folder, some, given.batch)}")
        model, tokenizer = load(folder)
        expected = encode(some, load(folder), progress=False)
        for format, makers in {"fp32": fp32, "bf16": bf16}.items():
            harness.say(format)
            calls = makers(folder, given, report)
            for who, call in calls.items():
                harness.same(who, call(some), expected, **LIMITS[format])
            timed = {who: (lambda call=call: call(some)) for who, call in calls.items()}
            report.timed(format, harness.interleave(timed, runs=given.runs, warm_up=1), unit="sentences/s", work=count)
    report.finish()


def fp32(folder: Path, given: Namespace, report: harness.Report) -> dict[str, Call]:
    """Contenders in fp32, ours first."""
    calls = {"fishpaw": _ours(folder, torch.float32)}
    if report.needs("transformers"):
        theirs = models.transformers_model(folder)
        calls["transformers, padded"] = _pooled(folder, lambda batch: theirs(**batch).last_hidden_state, given.batch, in_order=True)
        calls["transformers, sorted"] = _pooled(folder, lambda batch: theirs(**batch).last_hidden_state, given.batch)
        calls["torch nested tensors, sorted"] = _pooled(folder, _nested(theirs), given.batch)
    if report.needs("sentence-transformers"):
        peer = models.sentence_transformer(folder)
        calls["sentence-transformers"] = lambda some: _encoded(peer, some, given.batch)
    return calls


def bf16(folder: Path, given: Namespace, report: harness.Report) -> dict[str, Call]:
    """Contenders in bf16, ours first."""
    calls = {"fishpaw": _ours(folder, torch.bfloat16)}
    if report.needs("transformers"):
        full, half = models.transformers_model(folder), models.transformers_model(folder, dtype=torch.bfloat16)
        calls["transformers, autocast, padded"] = _autocast(
            _pooled(folder, lambda batch: full(**batch).last_hidden_state, given.batch, in_order=True))
        calls["transformers, autocast, sorted"] = _autocast(_pooled(folder, lambda batch: full(**batch).last_hidden_state, given.batch))
        calls["transformers, bf16 weights, sorted"] = _pooled(folder, lambda batch: half(**batch).last_hidden_state, given.batch)
    if report.needs("sentence-transformers"):
        peer = models.sentence_transformer(folder)
        calls["sentence-transformers, autocast"] = _autocast(lambda some: _encoded(peer, some, given.batch))
    return calls


def _ours(folder: Path, dtype: torch.dtype) -> Call:
    model, tokenizer = load(folder)
    model.prepare(dtype=dtype)
    return lambda some: encode(some, (model, tokenizer), progress=False)


def _encoded(peer: Any, some: Sequence[str], batch: int) -> Tensor:
    found: Tensor = peer.encode(list(some), batch_size=batch, convert_to_tensor=True, show_progress_bar=False)
    return found


def _autocast(call: Call) -> Call:
    def run(some: Sequence[str]) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return call(some)

    return run


def _pooled(folder: Path, read: Reader, batch: int, *, in_order: bool = False) -> Call:
    """Texts in batches, as they come or by length, to the mean over each text's tokens, in the order given."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))

    def call(some: Sequence[str]) -> Tensor:
        order = list(range(len(some))) if in_order else sorted(range(len(some)), key=lambda index: len(some[index]))
        found = [torch.empty(0)] * len(some)
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            rows = tokenizer([some[index] for index in chosen], padding=True, return_tensors="pt")
            keep = rows["attention_mask"][..., None].float()
            means = (read(rows).float() * keep).sum(1) / keep.sum(1)
            for index, vector in zip(chosen, means, strict=True):
                found[index] = vector
        return torch.stack(found)

    return call


def _nested(model: Any) -> Reader:
    """torch's encoder with the weights of transformers' BERT: its fast path drops the padding by nested tensors."""
    config = model.config
    layer = nn.TransformerEncoderLayer(config.hidden_size, config.num_attention_heads, config.intermediate_size, activation="gelu",
                                       batch_first=True, layer_norm_eps=config.layer_norm_eps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = nn.TransformerEncoder(layer, config.num_hidden_layers, enable_nested_tensor=True).eval()
    for mine, theirs in zip(encoder.layers, model.encoder.layer, strict=True):
        three = [theirs.attention.self.query, theirs.attention.self.key, theirs.attention.self.value]
        mine.load_state_dict({
            "self_attn.in_proj_weight": torch.cat([one.weight for one in three]),
            "self_attn.in_proj_bias": torch.cat([one.bias for one in three]),
            **_named("self_attn.out_proj", theirs.attention.output.dense), **_named("norm1", theirs.attention.output.LayerNorm),
            **_named("linear1", theirs.intermediate.dense), **_named("linear2", theirs.output.dense),
            **_named("norm2", theirs.output.LayerNorm),
        })

    def read(batch: Any) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                      # nested tensors are called a prototype at every use
            embedded = model.embeddings(batch["input_ids"])
            hidden: Tensor = encoder(embedded, src_key_padding_mask=batch["attention_mask"] == 0)
        width = batch["input_ids"].shape[1]
        return nn.functional.pad(hidden, (0, 0, 0, width - hidden.shape[1]))

    return read


def _named(name: str, module: Any) -> dict[str, Tensor]:
    return {f"{name}.weight": module.weight, f"{name}.bias": module.bias}


def _padding(folder: Path, some: Sequence[str], batch: int) -> str:
    lengths = [len(text) + 2 for text in some]
    cells = sum(max(group) * len(group) for start in range(0, len(lengths), batch) if (group := lengths[start : start + batch]))
    return f"about {1 - sum(lengths) / cells:.0%} of the cells are padding where texts come as they are"


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=256, help="sentences a run, default 256")
    parser.add_argument("--batch", type=int, default=32, help="sentences in a peer's batch, default 32; ours counts tokens")


if __name__ == "__main__":
    main()
