"""Softmax plus against its formula (bert4keras's `attention_normalize`), fused and explicit. fp64, 1e-10: rounding."""

from __future__ import annotations

import math

import pytest
import torch

from fishpaw.attention.softmax import Softmax
from fishpaw.attention.softmax_plus import SoftmaxPlus, build
from fishpaw.config import ModelConfig
from fishpaw.contracts import Grid, Position, Rows, View
from fishpaw.masks import Mask

torch.set_num_threads(1)
SIZE = 5


def plain(length, mask=None):
    """A view of one row of that length without padding, as the model makes it: no mask tensor where the clock says it all."""
    order = torch.arange(length)[None]
    rows = Rows(order, order, order if mask == "causal" else torch.zeros_like(order), torch.ones_like(order, dtype=torch.bool))
    return View(grid=Grid(1, length), source=Grid(1, length), q=rows, k=rows, position=Position(), clock=mask or "full")


def test_it_is_its_formula_with_its_gradients(any_mask, biased, padding, naive):
    def shares(scores):
        return naive.softmax(scores * math.log(max(len(scores), 16)) / math.log(512))

    weights, seen = naive.assert_is_its_loop(SoftmaxPlus(SIZE), shares, any_mask, biased=biased, padding=padding)
    assert float((weights.sum(-1) - seen.any(-1).double()).abs().max()) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_query_that_sees_nothing_gets_zero_and_finite_gradients(biased, dtype, weights, naive):
    naive.assert_sees_nothing(SoftmaxPlus(SIZE), dtype, biased=biased, weights=weights)


@pytest.mark.parametrize("mask", ["full", "causal", "unilm"])
def test_it_is_the_same_however_it_is_laid_and_cached(mask, naive):
    naive.assert_same_laid_and_cached("softmax_plus", mask)


def test_scores_of_keys_that_are_not_seen_change_no_bit(any_mask, naive):
    naive.assert_ignores_unseen_scores(SoftmaxPlus(SIZE), any_mask)


@pytest.mark.parametrize("clock", ["full", "causal"])
@pytest.mark.parametrize("length", [1, 13, 17, 61])
def test_the_count_is_of_each_query_and_at_least_16(length, clock, weights):
    q, k, v = torch.randn(3, 1, 2, length, SIZE, dtype=torch.float64)
    found = SoftmaxPlus(SIZE)(q, k, v, plain(length, clock), weights=weights).out
    for i in range(length):
        seen = i + 1 if clock == "causal" else length
        sharp = math.log(max(seen, 16)) / math.log(512)
        expected = (q[:, :, i : i + 1] @ k[:, :, :seen].mT / SIZE**0.5 * sharp).softmax(-1) @ v[:, :, :seen]
        assert float((found[:, :, i : i + 1] - expected).abs().max()) < 1e-10


def test_the_count_of_all_rows_alike_would_be_caught(weights):
    """The planted fault: the length of the row, which a causal query doesn't see."""
    q, k, v = torch.randn(3, 1, 2, 61, SIZE, dtype=torch.float64)
    found = SoftmaxPlus(SIZE)(q, k, v, plain(61, "causal"), weights=weights).out
    other = Softmax(SIZE)(q * math.log(61) / math.log(512), k, v, plain(61, "causal")).out
    assert float((found - other)[:, :, :40].abs().max()) > 1e-2


def test_at_512_keys_it_is_the_softmax(weights):
    q, k, v = torch.randn(3, 1, 2, 512, SIZE, dtype=torch.float64)
    found = SoftmaxPlus(SIZE)(q, k, v, plain(512), weights=weights).out
    assert float((found - Softmax(SIZE)(q, k, v, plain(512)).out).abs().max()) < 1e-10


def test_the_carry_is_what_the_softmax_would_carry(naive):
    q, k, v = (x.detach() for x in naive.inputs(2, 2))
    view, carry = naive.views(Mask("causal"), padding=True), torch.randn(3, 2, 7, 7, dtype=torch.float64)
    one, other = (kind(SIZE, residual=True)(q, k, v, view, carry=carry) for kind in (Softmax, SoftmaxPlus))
    assert torch.equal(one.carry, other.carry) and not torch.allclose(one.out, other.out, atol=1e-3)


def test_build_reads_the_configuration():
    config = ModelConfig(vocab_size=3, hidden_size=8, layers=1, attention_heads=2, intermediate_size=3, attention_dropout=0.3,
                         residual_scores=True)
    kernel = build(config, scale=0.7)
    assert (kernel.scale, kernel.dropout, kernel.residual) == (0.7, 0.3, True) and build(config).scale == 0.5
