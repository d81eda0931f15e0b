"""Softmax attention against loops over heads, queries and keys: outputs and gradients, fused and explicit. fp64, 1e-10: rounding."""

from __future__ import annotations

import itertools

import pytest
import torch

from fishpaw.attention.softmax import Softmax, normalise
from fishpaw.contracts import Grid, Position, Rows, View
from fishpaw.masks import Mask

torch.set_num_threads(1)
B, T, SIZE = 3, 7, 5
SEGMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1], [0] * 7])
PADDED = torch.tensor([[1] * 7, [1, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1]]).bool()
MASKS = [Mask(clock, window, alone) for clock, window, alone in itertools.product(("full", "causal", "unilm"), (None, 2), (False, True))]


def views(mask, *, padding=False, bias=None):
    """The View that a model would make."""
    keep = PADDED if padding else torch.ones_like(PADDED)
    order = (keep.cumsum(1) - 1).clamp_min(0)
    rows = Rows(order, order, mask.times(order, SEGMENTS), keep)
    needed = padding or mask.rules or mask.clock == "unilm" or (mask.clock == "causal" and bias is not None)
    return View(grid=Grid(B, T), source=Grid(B, T), q=rows, k=rows, position=Position(), clock=mask.clock, rules=mask.rules,
                mask=mask.allowed(rows, rows)[:, None] if needed else None, bias=bias)


def naive(q, k, v, view, mask, bias):
    seen = mask.allowed(view.q, view.k).expand(B, T, T)
    groups = q.shape[1] // k.shape[1]
    out = torch.zeros(*q.shape[:3], v.shape[-1], dtype=q.dtype)
    for b, h, i in itertools.product(range(B), range(q.shape[1]), range(T)):
        keys = [j for j in range(T) if seen[b, i, j]]
        if keys:
            scores = torch.stack([q[b, h, i] @ k[b, h // groups, j] / SIZE**0.5 + (0 if bias is None else bias[0, h, i, j]) for j in keys])
            share = (scores - scores.max()).exp()
            out[b, h, i] = sum(part * v[b, h // groups, j] for part, j in zip(share / share.sum(), keys, strict=True))
    return out


def inputs(heads, groups):
    return [torch.randn(B, count, T, SIZE, dtype=torch.float64, requires_grad=True) for count in (heads, groups, groups)]


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_fused_and_explicit_are_the_loop_with_their_gradients(mask, biased, padding):
    q, k, v = inputs(4, 2)                                           # grouped queries
    bias = torch.randn(1, 4, T, T, dtype=torch.float64) if biased else None
    view = views(mask, padding=padding, bias=bias)
    keep = view.q.keep[:, None, :, None]
    kernel, direction = Softmax(SIZE), torch.randn(B, 4, T, SIZE, dtype=torch.float64) * keep
    expected = naive(q, k, v, view, mask, bias)
    wanted = torch.autograd.grad((expected * direction).sum(), [q, k, v], allow_unused=True)
    for weights in (False, True):
        found = kernel(q, k, v, view, weights=weights)
        assert float(((found.out - expected) * keep).detach().abs().max()) < 1e-10
        gradients = torch.autograd.grad((found.out * direction).sum(), [q, k, v])
        assert max(float((a - b).abs().max()) for a, b in zip(gradients, wanted, strict=True)) < 1e-10
    assert found.weights.shape == (B, 4, T, T) and float(found.weights.detach().min()) >= 0
    sums, seen = found.weights.detach().sum(-1), mask.allowed(view.q, view.k).expand(B, T, T).any(-1)[:, None].expand(B, 4, T)
    assert float((sums - seen.double()).abs().max()) < 1e-12         # rows sum to 1, those that see nothing to 0


def test_the_loop_would_catch_a_mask_applied_after_the_softmax():
    q, k, v = inputs(2, 2)
    mask = Mask("causal")
    view = views(mask)
    late = ((q @ k.mT / SIZE**0.5).softmax(-1) * mask.allowed(view.q, view.k)[:, None]) @ v
    assert float((late - naive(q, k, v, view, mask, None)).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
def test_a_query_that_sees_nothing_gets_zero_and_finite_gradients(biased, dtype, weights):
    q, k, v = (x.detach().to(dtype).requires_grad_() for x in inputs(2, 2))
    mask = Mask("full", window=0, exclude_self=True)                 # nobody sees anything
    found = Softmax(SIZE)(q, k, v, views(mask, bias=torch.randn(1, 2, T, T).to(dtype) if biased else None), weights=weights)
    gradients = torch.autograd.grad(found.out.sum(), [q, k, v])
    assert torch.equal(found.out, torch.zeros_like(found.out)) and found.out.dtype == dtype
    assert all(bool((one == 0).all()) for one in gradients)


def test_the_softmax_is_stable_and_in_fp32_for_bf16():
    q, k, v = (x.detach().bfloat16() for x in inputs(2, 2))
    view = views(Mask("causal"))
    found = Softmax(SIZE)(q, k, v, view, weights=True)
    assert found.weights.dtype == torch.float32 and found.out.dtype == torch.bfloat16
    assert float((found.weights.sum(-1) - 1).abs().max()) < 1e-6
    assert bool(normalise(torch.full((B, 2, T, T), 1e30), view).isfinite().all())


def test_scores_are_carried_before_mask_and_bias():
    q, k, v = inputs(2, 2)
    carry, bias = torch.randn(2, B, 2, T, T, dtype=torch.float64)[0], torch.randn(1, 2, T, T, dtype=torch.float64)
    view = views(Mask("causal"), padding=True, bias=bias)
    found = Softmax(SIZE, residual=True)(q, k, v, view, carry=carry, weights=True)
    assert float((found.carry - (q @ k.mT / SIZE**0.5 + carry)).detach().abs().max()) < 1e-12
    assert float((found.weights - normalise(found.carry, view)).detach().abs().max()) < 1e-12
    assert Softmax(SIZE)(q, k, v, view).carry is None


def test_dropout_acts_in_training_only_and_keeps_the_mean():
    q, k, v = (x.detach() for x in inputs(2, 2))
    v = torch.ones_like(v)
    kernel, view = Softmax(SIZE, dropout=0.3), views(Mask("full"))
    for weights in (False, True):
        assert float((kernel.eval()(q, k, v, view, weights=weights).out - 1).abs().max()) < 1e-12
        outs = torch.stack([kernel.train()(q, k, v, view, weights=weights).out for _ in range(200)])
        assert float(outs.std(0).min()) > 0.05 and abs(float(outs.mean()) - 1) < 0.02               # 42,000 draws: 0.02 is ten deviations
        assert weights is False or float((kernel(q, k, v, view, weights=True).weights.sum(-1) - 1).abs().max()) < 1e-12


@pytest.mark.parametrize("weights", [False, True])
def test_keys_from_memory_are_those_appended(weights):
    q, k, v = (x.detach() for x in inputs(4, 2))
    view = views(Mask("full"))
    kernel = Softmax(SIZE)
    memory = kernel.memory()
    whole = kernel(q, k, v, view, weights=weights).out
    kernel(q[:, :, :3], k[:, :, :3], v[:, :, :3], view, memory=memory)
    assert float((kernel(q, k[:, :, 3:], v[:, :, 3:], view, memory=memory, weights=weights).out - whole).abs().max()) < 1e-12
    assert float((kernel(q, None, None, view, memory=memory, weights=weights).out - whole).abs().max()) < 1e-12
    with pytest.raises(ValueError, match="needs a memory"):
        kernel(q, None, None, view)
