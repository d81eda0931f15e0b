"""Operations by hand-made counts, a peak that no product exceeds by much, and nothing of it in the weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch
from fishpaw.losses.generation import masked_cross_entropy
from fishpaw.model.transformer import Transformer
from fishpaw.train.loop import fit
from fishpaw.train.options import Options
from fishpaw.train.throughput import meter, peak

torch.set_num_threads(1)
SHAPE: dict[str, Any] = {"vocab_size": 31, "hidden_size": 14, "layers": 3, "attention_heads": 2, "intermediate_size": 22}
LAYER = 4 * 14 * 14 + 2 * 14 * 22


def test_each_token_passes_the_layers_matrices_and_sees_its_row() -> None:
    found = meter(Transformer(ModelConfig(**SHAPE)))
    assert found is not None and (found.weights, found.width) == (3 * LAYER, 3 * 14)
    lengths = numpy.array([5, 2, 11])
    assert found.stack(lengths) == 6 * 3 * LAYER * 18 + 12 * 3 * 14 * (25 + 4 + 121)


def test_a_shared_layer_counts_as_often_as_it_is_used_and_linear_attention_compares_no_pairs() -> None:
    shape = {**SHAPE, "attention_heads": 1, "distinct_layers": 1, "embedding_size": 7}
    found = meter(Transformer(ModelConfig(**shape, attention="linear", position="rotary")))
    assert found is not None and (found.weights, found.width) == (3 * LAYER + 7 * 14, 0)


def test_heads_count_for_the_rows_they_are_asked_for() -> None:
    model = Transformer(ModelConfig(**SHAPE, heads=("mlm", "pooler")))
    found = meter(model)
    assert found is not None
    batch = Batch.packed([torch.arange(1, 6), torch.arange(1, 12)])
    model.train()(batch, logits_at=torch.tensor([0, 3, 4]))
    assert found.heads() == 6 * (3 * (14 * 14 + 31 * 14) + 2 * 14 * 14) and found.heads() == 0
    model.eval()(batch)
    assert found.heads() == 0                                        # an evaluation is no training
    found.close()
    model.train()(batch)
    assert found.heads() == 0


def test_what_can_not_be_counted_is_not() -> None:
    assert meter(nn.Linear(3, 2)) is None
    encoder = ModelConfig(**SHAPE)
    assert meter(Transformer(ModelConfig(**SHAPE, mask="causal", encoder=encoder, heads=("lm",)))) is None


def test_the_peak_is_measured_once_and_draws_nothing() -> None:
    state = torch.get_rng_state()
    cpu = torch.device("cpu")
    first = peak(cpu, torch.float32)
    assert peak(cpu, torch.float32) == first > 1e8 and math.isfinite(first)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_log_tells_the_share_and_it_adds_up_over_a_resumption(tmp_path: Path) -> None:
    examples = [list(range(1, 2 + i % 9)) for i in range(23)]

    def loss(model: Any, batch: Batch) -> Any:
        return masked_cross_entropy(model(batch).logits, batch.ids)

    def collate(rows: list[list[int]]) -> Batch:
        return Batch.packed([torch.tensor(row) for row in rows])

    said: list[dict[str, Any]] = []
    model = Transformer(ModelConfig(**SHAPE, heads=("mlm",)))
    options = Options(epochs=1, batch_size=5, log_every=2)
    fit(model, examples, loss=loss, collate=collate, options=options, out=tmp_path, report=said.append)
    steps = [line for line in said if line["event"] == "step"]
    assert len(steps) == 3 and all(0 < line["utilisation"] for line in steps)
    stored = json.loads((tmp_path / "checkpoint" / "state.json").read_text(encoding="utf-8"))
    assert stored["run"]["operations"] == 0                          # said, and begun anew
    assert not model.heads["mlm"]._forward_hooks
    found = meter(model)
    assert found is not None
    tokens = sum(map(len, examples))
    whole = found.stack(numpy.array([len(row) for row in examples])) + 6 * tokens * (14 * 14 + 31 * 14)
    spent = [line["seconds"] - before for line, before in zip(steps, [0.0, *(line["seconds"] for line in steps)], strict=False)]
    share = sum(line["utilisation"] * seconds for line, seconds in zip(steps, spent, strict=True))
    assert share * peak(torch.device("cpu"), torch.float32) == pytest.approx(whole, rel=1e-6)
