"""The feature maps of attention/linear.py: what their products are, and the hard checks of linear attention with each (arXiv:2006.16236;
rotary positions: RoFormer, arXiv:2104.09864, eq. 19)."""

from __future__ import annotations

import math

import pytest
import torch

from fishpaw import switch
from fishpaw.attention.linear import KINDS, build, cosine, elu, taylor
from fishpaw.config import ModelConfig
from fishpaw.contracts import Grid, Position, Rows, View
from fishpaw.errors import ConfigError
from fishpaw.model.transformer import Transformer
from fishpaw.positions.rotary import build as rotary

torch.set_num_threads(1)
CONFIG = ModelConfig(vocab_size=37, hidden_size=20, layers=2, attention_heads=2, head_size=10, intermediate_size=29, max_positions=43,
                     dropout=0.0, attention_dropout=0.0, init_std=0.6, heads=("lm",))
D = CONFIG.width
SIMILAR = {
    "elu": lambda q, k: sum((x + 1 if x > 0 else math.exp(x)) * (y + 1 if y > 0 else math.exp(y)) for x, y in zip(q, k, strict=True)),
    "cosine": lambda q, k: 1 + sum(x * y for x, y in zip(q, k, strict=True)) / (math.hypot(*q) * math.hypot(*k)),
    "taylor": lambda q, k: 1 + (s := sum(x * y for x, y in zip(q, k, strict=True)) / math.sqrt(len(q))) + s * s / 2,
}


def around(n, clock="full", position=None, b=1):
    rows, grid = Rows(*(torch.arange(n).expand(b, n),) * 3, torch.ones(b, n, dtype=torch.bool)), Grid(b, n)
    position = position or Position()
    return View(grid, grid, rows, rows, position, position.at(rows.position, rows.position, rows.position, torch.float64), clock)


def drawn(n, count=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(n)
    return [torch.randn(1, 3, n, D, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def test_features_are_named_and_an_unknown_name_gets_the_list():
    assert isinstance(switch.build("attention", {"name": "linear", "features": "taylor"}, CONFIG), type(build(CONFIG, features="taylor")))
    with pytest.raises(ConfigError, match="cosine"):
        build(CONFIG, features="cosin")


@pytest.mark.parametrize("name", KINDS)
def test_the_product_of_features_is_the_formula(name):
    kind = build(CONFIG, features=name)
    q, k = (one[0, 0] for one in drawn(7, 2))
    products = kind.queries(q) @ kind.keys(k).mT
    expected = torch.tensor([[SIMILAR[name](one.tolist(), other.tolist()) for other in k] for one in q], dtype=torch.float64)
    assert float((products - expected).abs().max()) < 1e-12
    if kind.similarity is not None:
        assert float((kind.similarity(q, k) - expected).abs().max()) < 1e-12


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("clock", ["full", "causal"])
def test_rows_are_convex_combinations(name, clock):
    shares = build(CONFIG, features=name)(*drawn(29), around(29, clock), weights=True).weights
    assert float(shares.min()) >= -1e-15 and float((shares.sum(-1) - 1).abs().max()) < 1e-12
    assert clock == "full" or float(shares.triu(1).abs().max()) == 0


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("clock", ["full", "causal"])
def test_a_lone_token_gets_its_own_value(name, clock):
    q, k, v = drawn(1)
    for position in (None, rotary(CONFIG)):
        out = build(CONFIG, features=name)(q, k, v, around(1, clock, position)).out
        assert float((out - v).abs().max()) < 1e-12


def test_cosines_weights_lie_between_0_and_2_and_vectors_of_zeros_are_safe():
    x = torch.cat((drawn(19, 1)[0][0, 0], torch.zeros(2, D), torch.full((1, D), 1e-30), torch.full((1, D), 1e30))).requires_grad_()
    weights = cosine(x) @ cosine(-x).mT
    assert float(weights.detach().min()) == pytest.approx(0, abs=1e-12)
    assert float((cosine(x) @ cosine(x).mT).detach().max()) == pytest.approx(2, abs=1e-12)
    assert torch.equal(cosine(torch.zeros(D)), torch.eye(D + 1)[0])
    weights.sum().backward()
    assert bool(x.grad.isfinite().all())


def test_taylor_is_above_a_half_and_exact_to_the_second_order():
    q, k = (one[0, 0] for one in drawn(23, 2))
    products, s = taylor(3 * q) @ taylor(3 * k).mT, 9 * q @ k.mT / math.sqrt(D)
    assert float(products.min()) >= 0.5 and float((products - (1 + s + s * s / 2)).abs().max()) < 1e-10
    assert taylor(q).shape[-1] == 1 + D + D * (D + 1) // 2
    small = 1e-4 * s
    assert bool(((taylor(0.03 * q) @ taylor(0.03 * k).mT - small.exp()).abs() < 0.2 * small.abs() ** 3 + 1e-15).all())             # s³/6 …


def test_elu_keeps_its_small_values_in_bf16():
    """elu(x) + 1 cancels to 0 at x = -8, where it is 3.35e-4."""
    x = torch.arange(-20, 20, 0.5, dtype=torch.bfloat16)
    exact = torch.where(x > 0, x.double() + 1, x.double().exp())
    assert float(((elu(x).double() - exact) / exact).abs().max()) < 2**-8
    naive = torch.nn.functional.elu(x) + 1
    assert float(naive[x == -8]) == 0 < float(elu(x)[x == -8])       # the planted fault


def test_elu_has_the_slope_of_its_formula_everywhere():
    x = torch.tensor([-1e4, -3.0, -0.0, 0.0, 2.0, 1e4], dtype=torch.float64, requires_grad=True)
    elu(x).sum().backward()
    assert torch.allclose(x.grad, torch.tensor([0, math.exp(-3), 1, 1, 1, 1], dtype=torch.float64), atol=1e-15)


# Rotary positions

@pytest.mark.parametrize("clock", ["full", "causal"])
def test_turned_elu_is_roformers_sum(clock):
    """The numerator turned, the denominator not, by loops; the linear form to 1e-10 (RoFormer's check: 1e-5 in fp32)."""
    q, k, v = (one[0, 0] for one in drawn(11))
    theta = 10_000.0 ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)

    def turn(x, place):
        turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(theta), place * theta)
        return torch.view_as_real(turned).flatten()

    found = build(CONFIG)(*(one[None, None] for one in (q, k, v)), around(11, clock, rotary(CONFIG))).out[0, 0]
    for i in range(11):
        seen = range(11 if clock == "full" else i + 1)
        above = sum((turn(elu(q[i]), i) @ turn(elu(k[j]), j)) * v[j] for j in seen)
        below = sum(elu(q[i]) @ elu(k[j]) for j in seen)
        assert float((found[i] - above / below).abs().max()) < 1e-10


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("clock", ["full", "causal"])
def test_a_common_shift_of_positions_changes_nothing(name, clock):
    here = around(13, clock, rotary(CONFIG))
    moved = here.q.position + 29
    there = View(here.grid, here.grid, here.q, here.k, here.position, here.position.at(moved, moved, moved, torch.float64), clock)
    one, other = (build(CONFIG, features=name)(*drawn(13), view).out for view in (here, there))
    assert float((one - other).abs().max()) < 1e-10
    still = build(CONFIG, features=name)(*drawn(13), around(13, clock)).out
    assert float((one - still).abs().max()) > 1e-3                   # positions do matter


@pytest.mark.parametrize("name", ["cosine", "taylor"])
def test_turned_before_the_map_shares_stay_shares(name):
    shares = build(CONFIG, features=name)(*drawn(29), around(29, "causal", rotary(CONFIG)), weights=True).weights
    assert float(shares.min()) >= -1e-15 and float((shares.sum(-1) - 1).abs().max()) < 1e-12


# In a model

@pytest.mark.parametrize("changes", [{"position": "rotary", "attention_heads": 6, "key_value_heads": 2, "head_size": 4}, {}], ids=str)
@pytest.mark.parametrize("mask", ["causal", "unilm"])
@pytest.mark.parametrize("name", KINDS)
def test_a_model_decodes_step_by_step_what_it_reads_at_once(name, mask, changes):
    torch.manual_seed(0)
    spec = {"name": "linear", "features": name}
    model = Transformer(CONFIG.change({"attention": spec, "mask": mask, **changes})).double().eval().requires_grad_(False)
    ids, segments = torch.randint(37, (2, 17)), (torch.arange(17) > 6).long().expand(2, 17)
    whole = model(ids, segments=segments).logits
    cache = model.new_cache()
    found = [model(ids[:, :9], segments=segments[:, :9], cache=cache).logits]
    found += [model(ids[:, i], segments=segments[:, i], cache=cache).logits for i in range(9, 17)]
    assert float((torch.cat([one if one.dim() == 3 else one[:, None] for one in found], 1) - whole).abs().max()) < 1e-10


@pytest.mark.parametrize("name", KINDS)
def test_a_window_and_residual_scores_are_refused_by_name(name):
    for changes, told in (({"mask": {"name": "causal", "window": 3}}, "window"), ({"residual_scores": True}, "residual_scores")):
        with pytest.raises(ConfigError, match="linear") as caught:
            Transformer(CONFIG.change({"attention": {"name": "linear", "features": name}, "position": "none", "mask": "causal", **changes}))
        assert told in str(caught.value)
