"""Squared-relu attention against its formula (bert4keras's `attention_normalize`). fp64, 1e-10: rounding."""

from __future__ import annotations

import pytest
import torch

from fishpaw.attention.squared_relu import SquaredRelu, build
from fishpaw.config import ModelConfig
from fishpaw.masks import Mask

torch.set_num_threads(1)
SIZE = 5


def test_it_is_its_formula_with_its_gradients(any_mask, biased, padding, naive):
    naive.assert_is_its_loop(SquaredRelu(SIZE), lambda scores: scores.clamp_min(0) ** 2 / len(scores), any_mask,
                             biased=biased, padding=padding)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_query_that_sees_nothing_gets_zero_and_finite_gradients(biased, dtype, weights, naive):
    naive.assert_sees_nothing(SquaredRelu(SIZE), dtype, biased=biased, weights=weights)


@pytest.mark.parametrize("mask", ["full", "causal", "unilm"])
def test_it_is_the_same_however_it_is_laid_and_cached(mask, naive):
    naive.assert_same_laid_and_cached("squared_relu", mask)


def test_scores_of_keys_that_are_not_seen_change_no_bit(any_mask, naive):
    naive.assert_ignores_unseen_scores(SquaredRelu(SIZE), any_mask)


def test_a_count_of_all_keys_would_be_caught(naive):
    """The planted fault: l as the width of the batch, padding included."""
    view = naive.views(Mask("full"), padding=True)
    scores = torch.randn(3, 2, 7, 7, dtype=torch.float64)
    seen = view.k.keep[:, None, None]
    share = SquaredRelu(SIZE).shares(scores, view)
    wrong = scores.clamp_min(0) ** 2 * seen / 7
    assert float((share[0] - wrong[0]).abs().max()) < 1e-12 and float((share[1:] - wrong[1:]).abs().max()) > 1e-2


def test_scores_below_zero_get_neither_share_nor_gradient(naive):
    scores = (-torch.rand(3, 2, 7, 7, dtype=torch.float64) - 0.1).requires_grad_()
    share = SquaredRelu(SIZE).shares(scores, naive.views(Mask("full")))
    assert float(share.detach().abs().max()) == 0 and float(torch.autograd.grad(share.sum(), scores)[0].abs().max()) == 0


def test_build_reads_the_configuration():
    config = ModelConfig(vocab_size=3, hidden_size=8, layers=1, attention_heads=2, intermediate_size=3, attention_dropout=0.3,
                         residual_scores=True)
    kernel = build(config, scale=0.7)
    assert (kernel.scale, kernel.dropout, kernel.residual) == (0.7, 0.3, True) and build(config).scale == 0.5
