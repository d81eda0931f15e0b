"""The matrix product of a layer, and what it starts from."""

from __future__ import annotations

import pytest
import torch

from fishpaw.errors import ConfigError
from fishpaw.model import linear
from fishpaw.model.linear import Linear, Packed, product

torch.set_num_threads(1)


def test_it_is_x_times_the_transposed_weight_plus_bias():
    layer = Linear(5, 7, std=0.3).double()
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(3, 5, dtype=torch.float64)
    expected = torch.tensor([[sum(a * b for a, b in zip(row, weight, strict=True)) + bias for weight, bias in
                              zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)] for row in x.tolist()], dtype=torch.float64)
    assert float((layer(x) - expected).detach().abs().max()) < 1e-12


@pytest.mark.parametrize("std", [0.02, 0.6])
def test_it_starts_normal_with_no_bias(std):
    layer = Linear(101, 103, std=std)
    assert float(layer.weight.detach().std()) == pytest.approx(std, rel=0.05) and not layer.bias.detach().any()
    layer.weight.data.zero_()
    layer.reset_parameters()
    assert float(layer.weight.detach().std()) == pytest.approx(std, rel=0.05)
    assert Linear(3, 5, std=std, bias=False).bias is None


ONEDNN = pytest.mark.skipif(not linear._is_there(), reason="this build of torch has no oneDNN operators")


@pytest.fixture
def way(monkeypatch, tmp_path):
    """Choose the path of products for one test; no choice is remembered outside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def choose(name):
        monkeypatch.setenv("FISHPAW_LINEAR", name)
        linear.path.cache_clear()

    yield choose
    linear.path.cache_clear()


@ONEDNN
@pytest.mark.parametrize(("rows", "bias"), [(67, True), (127, False), (3, True)])
def test_both_ways_give_the_same_product_and_gradients(rows, bias, way):
    x, weight, ends = torch.randn(rows, 19), torch.randn(23, 19), torch.randn(23)
    found = {}
    for name in ("plain", "onednn"):
        way(name)
        leaves = [one.clone().requires_grad_() for one in (x, weight, ends)]
        out = product(leaves[0], leaves[1], leaves[2] if bias else None)
        out.pow(3).sum().backward()
        found[name] = [out.detach(), *(one.grad for one in leaves if one.grad is not None)]
    for plain, other in zip(found["plain"], found["onednn"], strict=True):
        assert float((plain - other).abs().max()) <= 1e-5 * float(plain.abs().max())               # fp32 sums in another order
    assert len(found["plain"]) == 3 + bias


@ONEDNN
def test_gradients_of_gradients_go_through_both_ways(way):
    x, weight = torch.randn(71, 5), torch.randn(7, 5)
    found = []
    for name in ("plain", "onednn"):
        way(name)
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        (slope,) = torch.autograd.grad(product(leaves[0], leaves[1], None).tanh().sum(), leaves[:1], create_graph=True)
        found.append(torch.autograd.grad(slope.pow(2).sum(), leaves))
    assert all(float((a - b).abs().max()) < 1e-4 for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", ["plain", pytest.param("onednn", marks=ONEDNN)])
@pytest.mark.parametrize("activation", [None, *linear._FUSED, torch.sigmoid], ids=lambda one: getattr(one, "__name__", "none"))
def test_a_packed_weight_gives_the_product_through_its_activation(name, activation, way):
    way(name)
    x, weight, bias = torch.randn(11, 19), torch.randn(23, 19), torch.randn(23)
    expected = torch.nn.functional.linear(x, weight, bias)
    expected = expected if activation is None else activation(expected)
    assert float((Packed(weight, bias, torch.float32)(x, activation) - expected).abs().max()) < 1e-5
    half = Packed(weight, bias, torch.bfloat16)(x, activation)
    assert half.dtype == torch.bfloat16 and float((half.float() - expected).abs().mean()) < 0.02 * float(expected.abs().max())


def test_an_unknown_way_is_refused_and_hidden_operators_leave_the_plain_one(way, monkeypatch):
    way("fast")
    with pytest.raises(ConfigError, match="FISHPAW_LINEAR is 'fast'.*plain, onednn or auto"):
        linear.path()
    monkeypatch.setattr(linear, "_is_there", lambda: False)
    way("auto")
    assert linear.path() == linear.path("dense") == "plain"
    way("onednn")
    with pytest.raises(ConfigError, match="which this build of torch lacks"):
        linear.path()


@ONEDNN
def test_a_choice_is_measured_once_and_kept_for_the_machine(way, monkeypatch, tmp_path):
    way("auto")
    measured = []
    monkeypatch.setattr(linear, "_faster", lambda kind: measured.append(kind) or "onednn")
    assert linear.path("packed") == linear.path("packed") == "onednn" and measured == ["packed"]
    linear.path.cache_clear()                                        # another process
    assert linear.path("packed") == "onednn" and measured == ["packed"]
    assert linear.path("dense") == "onednn" and measured == ["packed", "dense"]
    (tmp_path / "fishpaw" / "linear.json").write_text("{damaged", encoding="utf-8")
    linear.path.cache_clear()
    assert linear.path("packed") == "onednn" and measured == ["packed", "dense", "packed"]
    monkeypatch.undo()


@ONEDNN
@pytest.mark.parametrize("kind", ["packed", "dense"])
def test_the_measurement_answers_with_one_of_the_two(kind):
    assert linear._faster(kind) in ("plain", "onednn")
