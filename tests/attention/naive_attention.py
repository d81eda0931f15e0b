"""Attention by loops over rows, heads and queries, for every kernel that makes shares of scores; and the views that it takes."""

from __future__ import annotations

import itertools

import torch
from torch.nn.utils.rnn import pad_sequence

from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch, Grid, Position, Rows, View
from fishpaw.decoding.stepper import TransformerStepper
from fishpaw.masks import Mask
from fishpaw.model.transformer import Transformer

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


def inputs(heads, groups, size=SIZE):
    """q, k, v in fp64; values may be wider than keys."""
    sizes = ((heads, SIZE), (groups, SIZE), (groups, size))
    return [torch.randn(B, count, T, width, dtype=torch.float64, requires_grad=True) for count, width in sizes]


def loop(q, k, v, view, mask, bias, shares):
    """shares: the scores of one query and the keys that it sees [n] -> [n]."""
    seen = mask.allowed(view.q, view.k).expand(B, T, T)
    groups = q.shape[1] // k.shape[1]
    out = torch.zeros(*q.shape[:3], v.shape[-1], dtype=q.dtype)
    for b, h, i in itertools.product(range(B), range(q.shape[1]), range(T)):
        keys = [j for j in range(T) if seen[b, i, j]]
        if keys:
            scores = k[b, h // groups, keys] @ q[b, h, i] / SIZE**0.5 + (0 if bias is None else bias[0, h, i, keys])
            out[b, h, i] = shares(scores) @ v[b, h // groups, keys]
    return out


def softmax(scores):
    share = (scores - scores.max()).exp()
    return share / share.sum()


def assert_is_its_loop(kernel, shares, mask, *, biased, padding):
    """Outputs and gradients of both paths, with grouped queries and values wider than keys; shares of what isn't seen are 0."""
    q, k, v = inputs(4, 2, 3 * SIZE)
    bias = torch.randn(1, 4, T, T, dtype=torch.float64) if biased else None
    view = views(mask, padding=padding, bias=bias)
    keep = view.q.keep[:, None, :, None]
    direction = torch.randn(B, 4, T, 3 * SIZE, dtype=torch.float64) * keep
    expected = loop(q, k, v, view, mask, bias, shares)
    wanted = torch.autograd.grad((expected * direction).sum(), [q, k, v])
    for weights in (False, True):
        found = kernel(q, k, v, view, weights=weights)
        assert float(((found.out - expected) * keep).detach().abs().max()) < 1e-10
        gradients = torch.autograd.grad((found.out * direction).sum(), [q, k, v])
        assert max(float((a - b).abs().max()) for a, b in zip(gradients, wanted, strict=True)) < 1e-10
    seen = mask.allowed(view.q, view.k).expand(B, T, T)[:, None].expand(B, 4, T, T)
    assert found.weights.shape == seen.shape and float(found.weights.detach().min()) >= 0
    assert float((found.weights.detach() * ~seen).abs().max()) == 0
    return found.weights.detach(), seen


def assert_sees_nothing(kernel, dtype, *, biased, weights):
    """A query that sees nothing gets zero and finite gradients."""
    q, k, v = (x.detach().to(dtype).requires_grad_() for x in inputs(2, 2))
    mask = Mask("full", window=0, exclude_self=True)                 # nobody sees anything
    found = kernel(q, k, v, views(mask, bias=torch.randn(1, 2, T, T).to(dtype) if biased else None), weights=weights)
    gradients = torch.autograd.grad(found.out.sum(), [q, k, v])
    assert torch.equal(found.out, torch.zeros_like(found.out)) and found.out.dtype == dtype
    assert all(bool((one == 0).all()) for one in gradients)


def assert_ignores_unseen_scores(kernel, mask):
    """Whatever stands in the scores of keys that aren't seen changes no bit of the shares, and gets no gradient."""
    view = views(mask, padding=True)
    scores = torch.randn(B, 2, T, T, dtype=torch.float64)
    seen = mask.allowed(view.q, view.k).expand(B, T, T)[:, None]
    wild = torch.where(seen, scores, 1e6 * torch.randn_like(scores)).requires_grad_()
    share = kernel.shares(wild, view)
    assert torch.equal(share, kernel.shares(scores, view))
    gradient = torch.autograd.grad((share * torch.randn_like(share)).sum(), wild)[0]
    assert bool(gradient.isfinite().all()) and float((gradient * ~seen).abs().max()) == 0


def assert_same_laid_and_cached(attention, mask):
    """A model with this attention: one text at a time = padded = packed = read token by token, in texts long enough to matter."""
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=37, hidden_size=14, layers=2, attention_heads=2, intermediate_size=11, max_positions=61, init_std=0.6,
                         segments=0, attention=attention, mask=mask, heads=("lm",))
    model = Transformer(config).double().eval().requires_grad_(False)
    texts = [torch.randperm(37)[:length] for length in (23, 3, 31, 17)]
    segments = [(torch.arange(len(text)) >= 2).long() for text in texts]
    alone = [model(text[None], segments=segment[None]).logits[0] for text, segment in zip(texts, segments, strict=True)]
    cells, marks, keep = (pad_sequence(ones, batch_first=True) for ones in (texts, segments, [torch.ones_like(text) for text in texts]))
    batch, packed = Batch.padded(cells, keep=keep.bool(), segments=marks), Batch.packed(texts, segments=segments)
    for found in (batch.unpack(model(batch).logits.flatten(0, 1)), packed.unpack(model(packed).logits)):
        assert max(float((a - b).abs().max()) for a, b in zip(found, alone, strict=True)) < 1e-10
    if mask != "full":
        stepper = TransformerStepper(model)
        steps = [stepper.start(Batch.padded(cells[:, :3], segments=marks[:, :3]))]
        steps += [stepper.step(cells[:, place]) for place in range(3, 31)]
        for row, one in enumerate(alone):                            # of a text that has ended the last steps read padding
            found = torch.stack([step[row] for step in steps[: len(one) - 2]])
            assert float((found - one[2:]).abs().max()) < 1e-10
