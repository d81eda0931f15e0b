"""A step of a prepared layer gives what the layer gives, for every kind of layer that has one; the others are left to themselves."""

from __future__ import annotations

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch
from fishpaw.decoding.stepper import TransformerStepper
from fishpaw.model import step
from fishpaw.model.linear import path
from fishpaw.model.transformer import Transformer

pytestmark = pytest.mark.skipif(path("packed") != "onednn", reason="prepared layers multiply as before on this machine")

BOUND = {
    "post": {},
    "pre": {"norm_at": "pre"},
    "llama": {"norm_at": "pre", "norm": "rms", "activation": "swiglu", "key_value_heads": 1, "biases": (),
              "position": {"name": "rotary", "layout": "half"}},
    "T5's buckets": {"norm_at": "pre", "norm": "rms", "position": "buckets"},
    "a window in every other layer": {"mask": ["causal", {"name": "causal", "window": 3}]},
    "unilm": {"mask": "unilm", "segments": 2},
    "shared layers": {"distinct_layers": 1},
}
UNBOUND = {
    "NEZHA reads scores": {"position": "nezha"},
    "RealFormer carries them": {"residual_scores": True},
    "sparse": {"attention": "sparse"},
    "linear": {"attention": "linear"},
    "mixed": {"norm_at": "mixed"},
    "gau": {"block": "gau"},
    "qk_norm": {"qk_norm": True},
}


def make(options: dict, *, prepared: bool) -> Transformer:
    torch.manual_seed(5)
    options = {"mask": "causal", "heads": ("lm",), "segments": 0, "max_positions": 31, **options}
    model = Transformer(ModelConfig(23, 28, 2, 2, 34, **options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return model.prepare() if prepared else model


def decode(model: Transformer) -> torch.Tensor:
    """Logits of two prompts, left-padded; three beams each, then one leaves, beams move; a step of two tokens at last."""
    ids = torch.randint(1, 23, (2, 5), generator=torch.Generator().manual_seed(1))
    keep = torch.tensor([[False, False, True, True, True], [True] * 5])
    stepper = TransformerStepper(model)
    found = [stepper.start(Batch.padded(ids, keep=keep))]
    stepper.select(torch.tensor([0, 0, 0, 1, 1, 1]))
    for tokens in ([3, 4, 5, 6, 7, 8], [9, 3, 4, 5, 6, 7]):
        found.append(stepper.step(torch.tensor(tokens)))
    stepper.select(torch.tensor([2, 0, 3, 3, 5]))                    # lanes of unequal number
    found.append(stepper.step(torch.tensor([9, 8, 7, 6, 5])))
    stepper.compact()
    found.append(stepper.step(torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8], [9, 9]])).flatten(0, 1))
    return torch.cat(found)


@pytest.mark.parametrize("options", BOUND.values(), ids=BOUND)
def test_a_bound_step_gives_the_layers_numbers(options):
    prepared = make(options, prepared=True)
    assert prepared.steps and all(one is not None for one in prepared.steps)
    torch.testing.assert_close(decode(prepared), decode(make(options, prepared=False)), atol=2e-4, rtol=0)    # fp32, logits up to 50


@pytest.mark.parametrize("options", UNBOUND.values(), ids=UNBOUND)
def test_other_layers_take_their_own_way(options):
    prepared = make(options, prepared=True)
    assert prepared.steps == [None, None]
    torch.testing.assert_close(decode(prepared), decode(make(options, prepared=False)), atol=2e-4, rtol=0)


def test_a_step_with_the_norms_exchanged_is_found(monkeypatch):
    prepared = make({"norm_at": "pre"}, prepared=True)
    for one in prepared.steps:
        assert isinstance(one, step.Step)
        monkeypatch.setattr(one, "first", one.second)
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(decode(prepared), decode(make({"norm_at": "pre"}, prepared=False)), atol=2e-4, rtol=0)


def test_training_and_attention_maps_go_the_layers_way():
    model = make({}, prepared=True)
    ids = torch.tensor([[1, 2, 3]])
    cache = model.new_cache()
    model(ids, cache=cache)
    with torch.no_grad():
        maps = model(torch.tensor([4]), cache=cache, attentions=True).attentions
    assert maps is not None and maps[0].shape == (1, 2, 1, 4)
    assert model.train().steps == []


@torch.no_grad()
def test_in_bf16_a_step_is_no_farther_from_fp32_than_the_layer():
    exact, (bound, layer) = decode(make({"norm_at": "pre"}, prepared=False)), (make({"norm_at": "pre"}, prepared=False) for _ in range(2))
    bound.prepare(dtype=torch.bfloat16)
    layer.prepare(dtype=torch.bfloat16)
    layer.steps = [None, None]
    distances = [float((decode(one).float() - exact).norm() / exact.norm()) for one in (bound, layer)]
    assert bound.steps[0] is not None and distances[0] < 1.1 * distances[1] < 0.05
