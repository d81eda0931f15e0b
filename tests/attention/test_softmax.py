"""Softmax attention against loops over heads, queries and keys: outputs and gradients, fused and explicit. fp64, 1e-10: rounding."""

from __future__ import annotations

import pytest
import torch

from fishpaw.attention.softmax import Softmax, build, visible, visible_count
from fishpaw.config import ModelConfig
from fishpaw.errors import ConfigError
from fishpaw.masks import Mask

torch.set_num_threads(1)
B, T, SIZE = 3, 7, 5


def test_fused_and_explicit_are_the_loop_with_their_gradients(any_mask, biased, padding, naive):
    weights, seen = naive.assert_is_its_loop(Softmax(SIZE), naive.softmax, any_mask, biased=biased, padding=padding)
    assert float((weights.sum(-1) - seen.any(-1).double()).abs().max()) < 1e-12                     # those that see nothing: 0


def test_the_loop_would_catch_a_mask_applied_after_the_softmax(naive):
    q, k, v = naive.inputs(2, 2)
    mask = Mask("causal")
    view = naive.views(mask)
    late = ((q @ k.mT / SIZE**0.5).softmax(-1) * mask.allowed(view.q, view.k)[:, None]) @ v
    assert float((late - naive.loop(q, k, v, view, mask, None, naive.softmax)).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_query_that_sees_nothing_gets_zero_and_finite_gradients(biased, dtype, weights, naive):
    naive.assert_sees_nothing(Softmax(SIZE), dtype, biased=biased, weights=weights)


def test_scores_of_keys_that_are_not_seen_change_no_bit(any_mask, naive):
    naive.assert_ignores_unseen_scores(Softmax(SIZE), any_mask)


def test_what_a_query_sees_and_how_much(any_mask, padding, naive):
    view = naive.views(any_mask, padding=padding)
    allowed = any_mask.allowed(view.q, view.k).expand(B, T, T)[:, None]
    seen = visible(view)
    assert torch.equal(torch.ones_like(allowed) if seen is None else seen.expand_as(allowed), allowed)
    assert torch.equal(visible_count(view).expand(B, 1, T, 1), allowed.sum(-1, keepdim=True))


def test_the_softmax_is_stable_and_in_fp32_for_bf16(naive):
    q, k, v = (x.detach().bfloat16() for x in naive.inputs(2, 2))
    view = naive.views(Mask("causal"))
    found = Softmax(SIZE)(q, k, v, view, weights=True)
    assert found.weights.dtype == torch.float32 and found.out.dtype == torch.bfloat16
    assert float((found.weights.sum(-1) - 1).abs().max()) < 1e-6
    assert bool(Softmax(SIZE).shares(torch.full((B, 2, T, T), 1e30), view).isfinite().all())


def test_scores_are_carried_before_mask_and_bias(naive):
    q, k, v = naive.inputs(2, 2)
    carry, bias = torch.randn(2, B, 2, T, T, dtype=torch.float64)[0], torch.randn(1, 2, T, T, dtype=torch.float64)
    view = naive.views(Mask("causal"), padding=True, bias=bias)
    kernel = Softmax(SIZE, residual=True)
    found = kernel(q, k, v, view, carry=carry, weights=True)
    assert float((found.carry - (q @ k.mT / SIZE**0.5 + carry)).detach().abs().max()) < 1e-12
    assert float((found.weights - kernel.shares(found.carry + bias, view)).detach().abs().max()) < 1e-12
    assert Softmax(SIZE)(q, k, v, view).carry is None


@pytest.mark.parametrize("scale", [1.0, 0.3, 2])
def test_the_scale_may_be_given_as_t5_does(scale, naive):
    q, k, v = (x.detach() for x in naive.inputs(2, 2))
    view = naive.views(Mask("causal"), padding=True)
    expected = Softmax(SIZE)(q * SIZE**0.5 * scale, k, v, view, weights=True)
    for weights in (False, True):
        assert float((Softmax(SIZE, scale=scale)(q, k, v, view, weights=weights).out - expected.out).abs().max()) < 1e-12


@pytest.mark.parametrize("scale", [0, -1.0, True, "1", float("nan"), float("inf")])
def test_a_scale_that_is_none_is_refused(scale):
    config = ModelConfig(vocab_size=3, hidden_size=8, layers=1, attention_heads=2, intermediate_size=3)
    with pytest.raises(ConfigError, match="scale is"):
        build(config, scale=scale)
    assert build(config).scale == 0.5


def test_dropout_acts_in_training_only_and_keeps_the_mean(naive):
    q, k, v = (x.detach() for x in naive.inputs(2, 2))
    v = torch.ones_like(v)
    kernel, view = Softmax(SIZE, dropout=0.3), naive.views(Mask("full"))
    for weights in (False, True):
        assert float((kernel.eval()(q, k, v, view, weights=weights).out - 1).abs().max()) < 1e-12
        outs = torch.stack([kernel.train()(q, k, v, view, weights=weights).out for _ in range(200)])
        assert float(outs.std(0).min()) > 0.05 and abs(float(outs.mean()) - 1) < 0.02               # 42,000 draws: 0.02 is ten deviations
        assert weights is False or float((kernel(q, k, v, view, weights=True).weights.sum(-1) - 1).abs().max()) < 1e-12


def test_keys_from_memory_are_those_appended(weights, naive):
    q, k, v = (x.detach() for x in naive.inputs(4, 2))
    view = naive.views(Mask("full"))
    kernel = Softmax(SIZE)
    memory = kernel.memory()
    whole = kernel(q, k, v, view, weights=weights).out
    kernel(q[:, :, :3], k[:, :, :3], v[:, :, :3], view, memory=memory)
    assert float((kernel(q, k[:, :, 3:], v[:, :, 3:], view, memory=memory, weights=weights).out - whole).abs().max()) < 1e-12
    assert float((kernel(q, None, None, view, memory=memory, weights=weights).out - whole).abs().max()) < 1e-12
    with pytest.raises(ValueError, match="needs a memory"):
        kernel(q, None, None, view)
