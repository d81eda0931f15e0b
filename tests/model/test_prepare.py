"""Weights packed for inference: the same answers, the same files, and gone as soon as the weights may change."""

from __future__ import annotations

import copy

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.errors import ConfigError
from fishpaw.model import linear
from fishpaw.model.transformer import Transformer
from fishpaw.weights.save import save

torch.set_num_threads(1)
IDS = torch.randint(0, 97, (3, 29), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["plain", pytest.param("onednn", marks=pytest.mark.skipif(not linear._is_there(), reason="no oneDNN operators"))])
def model(request, monkeypatch):
    monkeypatch.setenv("FISHPAW_LINEAR", request.param)
    linear.path.cache_clear()
    torch.manual_seed(0)
    shape = {"vocab_size": 97, "hidden_size": 44, "layers": 2, "attention_heads": 4, "intermediate_size": 61, "init_std": 0.3}
    yield Transformer(ModelConfig(**shape, heads=("pooler", "nsp", "mlm"), dropout=0.0, attention_dropout=0.0)).eval()
    linear.path.cache_clear()


@torch.no_grad()
def answers(model):
    out = model(IDS)
    return [out.hidden.float(), out.logits.float(), out.pooled.float(), out.nsp.float()]


def far(one, other):
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def test_fp32_answers_are_equal_and_bf16_near(model):
    before = answers(model)
    assert far(before, answers(model.prepare())) < 1e-4
    half = model.prepare(dtype=torch.bfloat16)
    assert half is model and model(IDS).hidden.dtype == torch.bfloat16
    spread = [float(one.std()) for one in before]
    assert all(float((a - b).abs().mean()) < 0.03 * size for a, b, size in zip(before, answers(model), spread, strict=True))


def test_what_is_saved_does_not_change(model, tmp_path):
    save(model, tmp_path / "before")
    save(model.prepare(dtype=torch.bfloat16), tmp_path / "after")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()


def test_training_other_weights_and_other_types_undo_it(model):
    with torch.no_grad():
        def changed(undo):
            model.prepare()
            undo()
            return model.compute is None and all(getattr(one, "packed", None) is None for one in model.modules())

        assert changed(model.train) and changed(lambda: model.double().float())
        assert changed(lambda: model.load_state_dict(model.state_dict()))
        model.prepare(dtype=torch.bfloat16)
        stale = answers(model)
        model.layers[0].feed_forward.up.weight.mul_(2)               # the planted fault: packed weights know nothing of it
        assert far(stale, answers(model)) == 0
        model.train().eval()
        assert far(stale, answers(model)) > 1e-2


def test_a_copy_answers_the_same_and_other_types_are_refused(model):
    model.prepare()
    assert far(answers(model), answers(copy.deepcopy(model))) == 0
    with pytest.raises(ConfigError, match="fp32 or bf16, not torch.float16"):
        model.prepare(dtype=torch.float16)
