"""Taylor softmax: the polynomial, its minima, its limit, and the kernel against loops (https://kexue.fm/archives/7919). fp64."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from fishpaw.attention.softmax import Softmax
from fishpaw.attention.taylor import Taylor, build, lowest, polynomial
from fishpaw.config import ModelConfig
from fishpaw.errors import ConfigError
from fishpaw.masks import Mask

torch.set_num_threads(1)
SIZE = 5
TABLE = {2: ("-1", "0.5"), 4: ("-1.59607", "0.270395"), 6: ("-2.18061", "0.149325"), 8: ("-2.759", "0.0832715"),
         10: ("-3.33355", "0.0466991")}
EVEN = [2, 4, 6, 8, 10, 20, 30, 40]


def exact(x, order):
    """f_n(x) in rational numbers."""
    x = Fraction(x)
    return sum(x**k / math.factorial(k) for k in range(order + 1))


@pytest.mark.parametrize("order", TABLE)
def test_the_table_of_minima_to_all_printed_digits(order):
    place, value = TABLE[order]
    found = lowest(order)
    assert f"{found:.{_decimals(place)}f}".rstrip("0").rstrip(".") == place
    assert f"{float(exact(found, order)):.{_decimals(value)}f}" == value
    assert math.isclose(float(exact(found, order)), found**order / math.factorial(order), rel_tol=1e-12)


@pytest.mark.parametrize("order", EVEN)
def test_the_minimum_is_the_least_there_is(order):
    x = lowest(order)
    least = exact(x, order)
    assert all(exact(x + step, order) > least for step in (-3.0, -1e-3, 1e-3, 1.0))
    assert least > 0 and abs(exact(x, order - 1)) < 1e-10 * exact(-x, order - 1)


@pytest.mark.parametrize("order", [0, 1, 2, 3, 4, 9])
@pytest.mark.parametrize("x", [-5.5, -1.0, -0.25, 0.0, 0.5, 3.75, 12.0])
def test_the_polynomial_is_the_series(order, x):
    found = polynomial(torch.tensor(x, dtype=torch.float64), order)
    scaled = polynomial(torch.tensor(x, dtype=torch.float64), order, torch.tensor(16.0, dtype=torch.float64))
    size = float(exact(abs(x), order))                               # what rounding is measured by
    assert abs(float(found) - float(exact(x, order))) < 1e-15 * size
    assert abs(float(scaled) * 16.0**order - float(exact(x, order))) < 1e-15 * size


@pytest.mark.parametrize("order", [1, 2, 5, 8, 10])
@pytest.mark.parametrize("x", [-4.0, -1.5, 0.5, 3.0, 7.0])
def test_the_remainder_is_an_integral(order, x):
    """f_n(x) e^-x = 1 - the integral from 0 to x of e^-t t^n / n!, by Gauss and Legendre's rule with 60 points."""
    import numpy

    points, parts = numpy.polynomial.legendre.leggauss(60)
    t = (points + 1) * x / 2
    integral = float((parts * numpy.exp(-t) * t**order / math.factorial(order)).sum() * x / 2)
    found = float(polynomial(torch.tensor(x, dtype=torch.float64), order)) * math.exp(-x)
    assert abs(found - (1 - integral)) < 1e-11 * max(1, abs(integral))


@pytest.mark.parametrize("order", EVEN)
def test_even_orders_are_positive_on_a_dense_grid(order):
    grid = torch.cat((torch.linspace(-1e3, 1e3, 200_003, dtype=torch.float64), torch.linspace(-20, 5, 50_021, dtype=torch.float64)))
    found = polynomial(grid, order)
    least = lowest(order) ** order / math.factorial(order)
    slack = 1e-15 * float(exact(-lowest(order), order))              # the terms cancel: about 60 times the minimum at order 10
    assert float(found.min()) > 0 and abs(float(found.min()) - least) < slack + 1e-3 * least
    scaled = polynomial(grid, order, grid.abs().clamp_min(1))
    assert bool((scaled > 0).all())


def test_half_precision_loses_what_fp64_keeps():
    """The planted fault: the sum in fp16, term by term."""
    x = torch.linspace(-12, -1, 1009, dtype=torch.float16)
    naive = sum((x**k / math.factorial(k) for k in range(9)), torch.zeros_like(x))
    assert not bool((naive > 0).all()) and bool((polynomial(x.double(), 8) > 0).all())


@pytest.mark.parametrize("order", [2, 4, 8, 10])
def test_the_gradient_of_the_logarithm_is_the_order_below_over_the_order(order):
    x = torch.linspace(-9, 9, 181, dtype=torch.float64).requires_grad_()
    found = torch.autograd.grad(polynomial(x, order).log().sum(), x)[0]
    expected = polynomial(x.detach(), order - 1) / polynomial(x.detach(), order)
    assert float((found - expected).abs().max()) < 1e-9


@pytest.mark.parametrize("order", [1, 3, 5, 7])
def test_an_odd_order_has_a_root_and_is_refused(order):
    assert exact(-50, order) < 0 < exact(0, order)
    with pytest.raises(ConfigError, match="order"):
        Taylor(SIZE, order=order)
    with pytest.raises(ConfigError, match="order"):
        lowest(order)


@pytest.mark.parametrize("order", [0, -2, 42, 2.0, True, None, "2"])
def test_other_orders_are_refused(order):
    with pytest.raises(ConfigError, match="Give an even number, 2 to 40"):
        Taylor(SIZE, order=order)


# The kernel

@pytest.mark.parametrize(("order", "tail"), [(2, "polynomial"), (10, "flat")])
def test_it_is_its_formula_with_its_gradients(any_mask, biased, padding, order, tail, naive):
    def shares(scores):
        scores = scores if tail == "polynomial" else torch.where(scores < lowest(order), lowest(order), scores)
        parts = sum(scores**k / math.factorial(k) for k in range(order + 1))
        return parts / parts.sum()

    weights, seen = naive.assert_is_its_loop(Taylor(SIZE, order=order, tail=tail), shares, any_mask, biased=biased, padding=padding)
    assert float((weights.sum(-1) - seen.any(-1).double()).abs().max()) < 1e-12
    assert bool(((weights > 0) == seen).all())                       # positive wherever it sees


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", [2, 10])
def test_a_query_that_sees_nothing_gets_zero_and_finite_gradients(biased, dtype, weights, order, naive):
    naive.assert_sees_nothing(Taylor(SIZE, order=order), dtype, biased=biased, weights=weights)


@pytest.mark.parametrize("mask", ["full", "causal", "unilm"])
def test_it_is_the_same_however_it_is_laid_and_cached(mask, naive):
    naive.assert_same_laid_and_cached({"name": "taylor", "order": 4, "tail": "flat"}, mask)


@pytest.mark.parametrize("tail", ["polynomial", "flat"])
def test_scores_of_keys_that_are_not_seen_change_no_bit(any_mask, tail, naive):
    naive.assert_ignores_unseen_scores(Taylor(SIZE, tail=tail), any_mask)


def test_of_a_high_order_it_is_the_softmax(naive):
    view = naive.views(Mask("causal"), padding=True)
    scores = 10 * torch.rand(3, 2, 7, 7, dtype=torch.float64) - 5
    gap = float((Taylor(SIZE, order=30).shares(scores, view) - Softmax(SIZE).shares(scores, view)).abs().max())
    assert gap < 1e-6 < float((Taylor(SIZE, order=4).shares(scores, view) - Softmax(SIZE).shares(scores, view)).abs().max())


def test_a_constant_added_to_all_scores_changes_the_shares_unlike_the_softmaxs(naive):
    view, scores = naive.views(Mask("full")), torch.randn(3, 2, 7, 7, dtype=torch.float64)
    moved = {kernel: float((kernel.shares(scores + 3, view) - kernel.shares(scores, view)).abs().max())
             for kernel in (Softmax(SIZE), Taylor(SIZE))}
    assert [gap > 1e-2 for gap in moved.values()] == [False, True]


def test_the_polynomial_rises_again_for_very_bad_keys_and_the_flat_tail_does_not(naive):
    view = naive.views(Mask("full"))
    scores = torch.tensor([-9.0, -4.0, -1.0, 0.0, 1.0, 2.0, 3.0], dtype=torch.float64).expand(3, 2, 7, 7)
    risen, flat = (Taylor(SIZE, tail=tail).shares(scores, view)[0, 0, 0] for tail in ("polynomial", "flat"))
    assert float(risen[0]) > float(risen[-1]) and bool((risen > 0).all())
    assert float(flat[0]) == float(flat[1]) == float(flat[2]) == float(flat.min()) and bool((flat.diff() >= 0).all())


@pytest.mark.parametrize("order", [2, 8, 10, 30])
def test_no_score_overflows_and_fp32_is_close(order, naive):
    view, kernel = naive.views(Mask("full")), Taylor(SIZE, order=order)
    large = torch.tensor([1e30, -1e30, 1e29, 1.0, 0.0, -1.0, -1e-30]).expand(3, 2, 7, 7)
    share = kernel.shares(large, view)
    assert share.dtype == torch.float32 and bool(share.isfinite().all()) and float((share.sum(-1) - 1).abs().max()) < 1e-6
    assert abs(float(share[0, 0, 0, 0]) - 1 / (2 + 0.1**order)) < 1e-6  # only the leading terms are left
    scores = 12 * torch.rand(3, 2, 7, 7, dtype=torch.float64) - 8
    single = kernel.shares(scores.float(), view).double()
    assert float((single / kernel.shares(scores, view) - 1).abs().max()) < 1e-4   # 60-fold cancellation around the minimum of order 8


def test_an_unknown_tail_is_refused_and_build_reads_the_configuration():
    with pytest.raises(ConfigError, match="Did you mean 'flat'"):
        Taylor(SIZE, tail="flatt")
    config = ModelConfig(vocab_size=3, hidden_size=8, layers=1, attention_heads=2, intermediate_size=3, attention_dropout=0.3,
                         residual_scores=True)
    kernel = build(config, order=4, tail="flat", scale=0.7)
    assert (kernel.order, kernel.scale, kernel.dropout, kernel.residual) == (4, 0.7, 0.3, True) and build(config).scale == 0.5


def _decimals(printed):
    return len(printed.partition(".")[2])
