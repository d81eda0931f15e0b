"""WEISSI: what rescaling layers changes and what it doesn't, the article's error with biases, and the bound on a network's slope."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fishpaw.config import ModelConfig
from fishpaw.errors import ConfigError
from fishpaw.losses.penalties import with_term
from fishpaw.losses.weissi import balanced, matrices, rescaled, weissi
from fishpaw.model.transformer import Transformer

torch.set_num_threads(1)
FACTORS = (3.0, 0.25, 4 / 3)                                          # their product is 1


def layers(bias: bool = True) -> tuple[list[Tensor], list[Tensor | None]]:
    draw = torch.Generator().manual_seed(7)
    shapes = [(11, 5), (7, 11), (3, 7)]
    weights = [torch.randn(shape, dtype=torch.float64, generator=draw) for shape in shapes]
    return weights, [torch.randn(len(one), dtype=torch.float64, generator=draw) if bias else None for one in weights]


def network(weights: list[Tensor], biases: list[Tensor | None], x: Tensor) -> Tensor:
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = nn.functional.linear(x if index == 0 else x.relu(), weight, bias)
    return x


def inputs() -> Tensor:
    return torch.randn(13, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_it_is_its_formula() -> None:
    weights, _ = layers()
    expected = sum(0.7 * math.log(one.norm().item()) + 0.2 * (one / one.norm()).abs().sum().item() for one in weights)
    assert weissi(weights, scale=0.7, direction=0.2).item() == pytest.approx(expected, abs=1e-12)


def test_a_factor_adds_its_logarithm_to_the_first_term_and_nothing_to_the_second() -> None:
    weights, _ = layers()
    larger = [5.0 * weights[0], *weights[1:]]
    assert (weissi(larger, scale=0.7, direction=0.0) - weissi(weights, scale=0.7, direction=0.0)).item() == \
        pytest.approx(0.7 * math.log(5), abs=1e-10)  # fmt: skip
    torch.testing.assert_close(weissi(larger, scale=0.0), weissi(weights, scale=0.0), atol=1e-10, rtol=0)
    planted = (sum((one**2).sum() for one in larger) - sum((one**2).sum() for one in weights)).item()      # L2
    assert abs(planted - 0.7 * math.log(5)) > 1


def test_each_layer_pulls_its_own_scale_with_the_same_force() -> None:
    weights = [one.requires_grad_() for one in layers()[0]]
    for gradient, weight in zip(torch.autograd.grad(weissi(weights, scale=1.0, direction=0.0), weights), weights, strict=True):
        torch.testing.assert_close(gradient, weight / weight.norm() ** 2, atol=1e-12, rtol=0)
        assert (gradient * weight).sum().item() == pytest.approx(1.0, abs=1e-12)
    for gradient, weight in zip(torch.autograd.grad(weissi(weights, scale=0.0), weights), weights, strict=True):
        assert (gradient * weight).sum().item() == pytest.approx(0.0, abs=1e-10)     # the second term turns a layer, it doesn't scale it


def test_gradients_are_finite_differences() -> None:
    weights = [one.requires_grad_() for one in layers()[0]]
    assert torch.autograd.gradcheck(lambda *given: weissi(given, scale=0.7, direction=0.3), weights)


@pytest.mark.parametrize("bias", [False, True])
def test_factors_whose_product_is_one_leave_the_function_alone_and_not_l2(bias: bool) -> None:
    weights, biases = layers(bias)
    other, moved = rescaled(weights, biases, FACTORS)
    torch.testing.assert_close(network(other, moved, inputs()), network(weights, biases, inputs()), atol=1e-10, rtol=0)
    torch.testing.assert_close(weissi(other), weissi(weights), atol=1e-10, rtol=0)
    assert abs(sum(float((one**2).sum()) for one in other) - sum(float((one**2).sum()) for one in weights)) > 100


def test_biases_need_the_product_of_the_factors_so_far() -> None:
    """The article scales the bias of layer l by its own factor: another function."""
    weights, biases = layers()
    planted = [None if bias is None else factor * bias for bias, factor in zip(biases, FACTORS, strict=True)]
    wrong = network(rescaled(weights, biases, FACTORS)[0], planted, inputs()) - network(weights, biases, inputs())
    assert wrong.abs().max() > 0.5
    _, moved = rescaled(weights, biases, FACTORS)
    for bias, own, factor in zip(moved, biases, (3.0, 0.75, 1.0), strict=True):
        assert bias is not None and own is not None
        torch.testing.assert_close(bias, factor * own, atol=1e-12, rtol=0)


def test_any_factors_multiply_the_function_by_their_product() -> None:
    weights, biases = layers()
    other = network(*rescaled(weights, biases, (2.0, 3.0, 5.0)), inputs())
    torch.testing.assert_close(other, 30 * network(weights, biases, inputs()), atol=1e-9, rtol=0)


def test_balanced_layers_are_the_same_function_of_least_l2() -> None:
    weights, biases = layers()
    even, moved = balanced(weights, biases)
    torch.testing.assert_close(network(even, moved, inputs()), network(weights, biases, inputs()), atol=1e-10, rtol=0)
    norms = [one.norm().item() for one in even]
    assert norms == pytest.approx([math.prod(one.norm().item() for one in weights) ** (1 / 3)] * 3, abs=1e-10)
    least = sum(norm**2 for norm in norms)
    for factors in (FACTORS, (1.01, 1 / 1.01, 1.0), (1.0, 0.5, 2.0)):
        assert sum(float((one**2).sum()) for one in rescaled(even, moved, factors)[0]) > least


def test_the_product_of_the_norms_bounds_the_slope_of_the_network() -> None:
    weights, biases = layers()
    bound = math.prod(one.norm().item() for one in weights)
    slopes = torch.stack([torch.autograd.functional.jacobian(lambda x: network(weights, biases, x), one) for one in inputs()])
    steepest = torch.linalg.matrix_norm(slopes, ord=2).max().item()
    assert 0 < steepest <= bound


def test_a_layer_of_zeros_ends_the_pull_instead_of_the_training() -> None:
    zeros = torch.zeros(3, 5, requires_grad=True)
    total = weissi([zeros])
    total.backward()
    assert total.item() == pytest.approx(math.log(1e-12)) and zeros.grad is not None and not zeros.grad.isnan().any()
    half = torch.randn(3, 5).bfloat16()
    assert weissi([half]).dtype == torch.float32


def test_the_layers_of_a_transformer_are_found_without_its_tables() -> None:
    model = Transformer(ModelConfig(101, 32, 2, 2, 64, heads=["mlm"]))
    found = matrices(model)
    assert all(one.ndim == 2 for one in found) and not any(one is model.table for one in found)
    names = {id(one): name for name, one in model.named_parameters()}
    assert len(found) == 2 * 4 + 1 and not any("embedding" in names[id(one)] for one in found)
    assert len(matrices(model, exempt=["heads"])) == 2 * 4
    with pytest.raises(ConfigError, match="exempt names 'nothing'"):
        matrices(model, exempt=["nothing"])


def test_as_a_term_of_a_loss_it_weighs_the_same_however_batches_are_cut() -> None:
    model = nn.Linear(5, 3).double()

    def plain(network: nn.Module, x: Tensor) -> tuple[Tensor, float]:
        return network(x).square().sum(), float(len(x))

    loss = with_term(plain, lambda network: weissi(matrices(network), scale=1.0, direction=0.5), weight=0.1)
    total, count = loss(model, inputs())
    parts = [loss(model, part) for part in inputs().split(4)]
    expected = plain(model, inputs())[0] / 13 + 0.1 * weissi([model.weight], scale=1.0, direction=0.5)
    for whole in (total / count, sum(one for one, _ in parts) / sum(one for _, one in parts)):
        torch.testing.assert_close(whole, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("call", [
    lambda: weissi([]), lambda: weissi([torch.ones(2, 2)], scale=-1.0), lambda: rescaled(*layers(), (1.0, 1.0)),
    lambda: rescaled(*layers(), (1.0, -1.0, -1.0)), lambda: balanced([torch.zeros(2, 2)], [None]),
])  # fmt: skip
def test_what_cannot_be_is_refused(call) -> None:
    with pytest.raises(ConfigError):
        call()
