"""Top-k softmax against sorting by hand; ties, few keys, padding, gradients. fp64, 1e-10: rounding."""

from __future__ import annotations

import pytest
import torch

from fishpaw.attention.softmax import Softmax
from fishpaw.attention.sparse import Sparse, build, top
from fishpaw.config import ModelConfig
from fishpaw.errors import ConfigError
from fishpaw.masks import Mask

torch.set_num_threads(1)
SIZE = 5


@pytest.mark.parametrize("k", [1, 3])
def test_it_is_the_softmax_over_the_k_best_with_its_gradients(any_mask, biased, padding, k, naive):
    def shares(scores):
        kept = sorted(range(len(scores)), key=lambda j: -float(scores.detach()[j]))[:k]
        out = torch.zeros_like(scores)
        return out.index_put((torch.tensor(kept),), naive.softmax(scores[kept]))

    weights, seen = naive.assert_is_its_loop(Sparse(SIZE, k=k), shares, any_mask, biased=biased, padding=padding)
    assert torch.equal((weights > 0).sum(-1), seen.sum(-1).clamp_max(k))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_query_that_sees_nothing_gets_zero_and_finite_gradients(biased, dtype, weights, naive):
    naive.assert_sees_nothing(Sparse(SIZE, k=2), dtype, biased=biased, weights=weights)


@pytest.mark.parametrize("mask", ["full", "causal", "unilm"])
def test_it_is_the_same_however_it_is_laid_and_cached(mask, naive):
    naive.assert_same_laid_and_cached({"name": "sparse", "k": 3}, mask)


def test_scores_of_keys_that_are_not_seen_change_no_bit(any_mask, naive):
    naive.assert_ignores_unseen_scores(Sparse(SIZE, k=2), any_mask)


@pytest.mark.parametrize("k", [7, 16])
def test_where_few_keys_are_seen_it_is_the_softmax_to_the_bit(any_mask, k, naive):
    view, scores = naive.views(any_mask, padding=True), torch.randn(3, 2, 7, 7, dtype=torch.float64)
    assert torch.equal(Sparse(SIZE, k=k).shares(scores, view), Softmax(SIZE).shares(scores, view))


def test_all_that_tie_with_the_last_are_kept_wherever_they_are_stored(naive):
    view = naive.views(Mask("full"))
    scores = torch.tensor([3.0, 1.0, 2.0, 1.0, 0.0, 1.0, -5.0], dtype=torch.float64)
    expected = torch.where(scores >= 1, scores, float("-inf")).softmax(-1)                          # k = 3: 3, 2 and every 1
    for _ in range(5):
        order = torch.randperm(7)
        found = Sparse(SIZE, k=3).shares(scores[order].expand(3, 2, 7, 7), view)
        assert float((found - expected[order]).abs().max()) < 1e-15
    assert bool((top(torch.zeros(2, 9), None, 4)).all())             # all alike: all kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_that_differ_by_rounding_tie_and_others_do_not(dtype):
    eps = torch.finfo(dtype).eps
    scores = torch.tensor([4.0, 1.0, 1.0 - 4 * eps, 1.0 - 1000 * eps, -8.0], dtype=dtype)
    assert top(scores, None, 2).tolist() == [True, True, True, False, False]


def test_a_seen_key_of_the_lowest_score_beats_any_that_is_not_seen():
    scores = torch.tensor([9.0, -1e30, 8.0, -1e30, 7.0])
    seen = torch.tensor([False, True, False, True, True])
    assert top(scores, seen, 1).tolist() == [False, False, False, False, True]
    assert top(scores, seen, 4).tolist() == seen.tolist()


def test_gradients_are_zero_outside_and_those_of_a_softmax_inside(naive):
    view = naive.views(Mask("full"))
    scores = torch.randn(3, 2, 7, 7, dtype=torch.float64).requires_grad_()
    share, direction = Sparse(SIZE, k=3).shares(scores, view), torch.randn(3, 2, 7, 7, dtype=torch.float64)
    gradient = torch.autograd.grad((share * direction).sum(), scores)[0]
    expected = share * (direction - (share * direction).sum(-1, keepdim=True))
    assert float((gradient - expected).detach().abs().max()) < 1e-12 and int((gradient != 0).sum()) == 3 * 2 * 7 * 3


def test_k_as_large_as_the_row_takes_all_and_one_key_gets_all(naive):
    q, k, v = (x.detach() for x in naive.inputs(2, 2))
    view = naive.views(Mask("full"))
    assert float((Sparse(SIZE, k=7)(q, k, v, view).out - Softmax(SIZE)(q, k, v, view).out).abs().max()) < 1e-12
    best = (q @ k.mT).argmax(-1)
    assert torch.equal(Sparse(SIZE, k=1)(q, k, v, view).out, v.gather(2, best[..., None].expand(-1, -1, -1, SIZE)))


@pytest.mark.parametrize("k", [0, -1, 2.0, True, None, "3"])
def test_a_k_that_is_none_is_refused(k):
    config = ModelConfig(vocab_size=3, hidden_size=8, layers=1, attention_heads=2, intermediate_size=3, attention_dropout=0.3,
                         residual_scores=True)
    with pytest.raises(ConfigError, match="k is"):
        build(config, k=k)
    kernel = build(config, scale=0.7)
    assert (kernel.k, kernel.scale, kernel.dropout, kernel.residual) == (16, 0.7, 0.3, True) and build(config).scale == 0.5


class Kept(torch.nn.Module):
    def forward(self, scores):
        return scores.masked_fill(~top(scores, torch.ones_like(scores, dtype=torch.bool), 4), 0)


def test_a_graph_for_any_length_serves_texts_of_fewer_keys_than_k():
    traced = torch.export.export(
        Kept(), (torch.randn(2, 7, 11),), dynamic_shapes=({1: torch.export.Dim("q"), 2: torch.export.Dim("n")},), strict=False
    ).module()
    for length in (2, 4, 5, 13):
        scores = torch.randn(2, 3, length)
        assert torch.equal(traced(scores), Kept()(scores))
