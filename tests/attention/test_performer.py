"""Performer's features against e^(q·k), its linear forms against its own matrix. Statistics at fixed seeds."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from fishpaw import switch
from fishpaw.attention.performer import build, draw_directions
from fishpaw.attention.recurrence import PLAIN, dense, divide
from fishpaw.config import ModelConfig
from fishpaw.contracts import Grid, Position, Rows, View
from fishpaw.errors import ConfigError
from fishpaw.masks import Mask
from fishpaw.model.transformer import Transformer

torch.set_num_threads(1)
D = 16
KINDS = [(kind, draw) for kind in ("positive", "hyperbolic") for draw in ("iid", "orthogonal")]


def kernel(size=D, seed=0, **options):
    return build(SimpleNamespace(width=size), seed=seed, **options).double().eval()


def view(mask, b, t, keep=None, segments=None):
    keep = torch.ones(b, t, dtype=torch.bool) if keep is None else keep
    order = (keep.cumsum(1) - 1).clamp_min(0)
    rows = Rows(order, order, mask.times(order, segments), keep)
    return View(grid=Grid(b, t), source=Grid(b, t), q=rows, k=rows, position=Position(), clock=mask.clock, rules=mask.rules,
                mask=mask.allowed(rows, rows)[:, None])


def unit(*shape, norm=1.0):
    return functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1) * norm


def pair(norm, total):
    """q, k [d] of this length with |q+k|² = total."""
    cosine = total / (2 * norm**2) - 1
    q, k = torch.zeros(2, D, dtype=torch.float64)
    q[0], k[0], k[1] = norm, norm * cosine, norm * math.sqrt(1 - cosine**2)
    turn = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(5))).Q
    return q @ turn, k @ turn


def estimates(q, k, kind, draw, draws, count):
    """Of e^(q·k), [draws]: the mean of phi(q) phi(k) over `count` vectors, written out from the paper's lemma 1."""
    blocks = count // D
    w = draw_directions(draws * count, D, draw=draw, seed=1).view(draws, blocks * D, D)
    exponents = w @ (q + k)
    exponents = exponents if kind == "positive" else torch.cat((exponents, -exponents), dim=1)
    return (exponents - (q @ q + k @ k) / 2).exp().mean(1)


# The estimate: unbiased, of a known variance

@pytest.mark.parametrize(("kind", "draw"), KINDS)
@pytest.mark.parametrize(("norm", "total"), [(0.6, 0.895), (1.0, 1.6)])
def test_the_estimate_is_unbiased(norm, total, kind, draw):
    q, k = pair(norm, total)
    ratio = estimates(q, k, kind, draw, 20_000, D) / (q @ k).exp()
    assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / math.sqrt(20_000)
    assert float(ratio.std()) / math.sqrt(20_000) < 0.005             # sharp enough to see a bias of 2 %


def test_a_block_whose_signs_are_left_to_the_factorisation_is_caught():
    gauss = torch.randn(4_000, D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    right = draw_directions(4_000 * D, D, draw="orthogonal", seed=0).view(4_000, D, D)
    wrong = torch.linalg.qr(gauss).Q.mT                              # the planted fault: the first vector's first number is never positive
    assert float(wrong[:, 0, 0].max()) <= 0
    for place in range(D):
        assert float(right[:, place].mean(0).abs().max()) < 5 / math.sqrt(4_000)


def test_the_variance_of_independent_draws_is_exact():
    """m var / e^(2q·k) = e^(|q+k|²) - 1: at |q| = |k| = 0.6, |q+k|² = 0.895 it is 1.447; measured 1.45 +- 0.05 (4 s.e. of the variance)."""
    q, k = pair(0.6, 0.895)
    ratio = estimates(q, k, "positive", "iid", 20_000, D) / (q @ k).exp()
    theory = math.expm1(0.895)
    assert abs(D * float(ratio.var()) / theory - 1) < 0.05


# With 2m features for the antithetic. Independent draws: e^(|q+k|²) - 1, 1.447 and 5.21; the tails of the longer are heavy.
@pytest.mark.parametrize(
    ("norm", "total", "expected", "tolerance"),
    [(0.6, 0.895, (1.46, 1.14, 0.42, 0.127), 0.08), (1.0, math.log(6.21), (5.21, 4.4, 2.2, 1.12), 0.12)],
)
def test_the_variance_falls_by_right_angles_and_by_opposite_pairs(norm, total, expected, tolerance):
    q, k = pair(norm, total)
    found = [D * float((estimates(q, k, kind, draw, 20_000, D) / (q @ k).exp()).var()) for kind, draw in KINDS]
    assert found == pytest.approx(list(expected), rel=tolerance)
    assert found == sorted(found, reverse=True)                      # independent, at right angles, in opposite pairs, both


@pytest.mark.parametrize("count", [5, 16, 37])
def test_vectors_of_a_block_stand_at_right_angles_with_lengths_of_their_own(count):
    w = draw_directions(count, D, draw="orthogonal", seed=3)
    assert w.shape == (count, D)
    for block in w.split(D):
        products = block @ block.T
        assert float((products - products.diagonal().diag()).abs().max()) < 1e-12
    assert float(w.norm(dim=1).std()) > 0.1
    squares = draw_directions(20_000, D, draw="orthogonal", seed=3).square().sum(1)                # chi² with d degrees of freedom
    assert float(squares.mean()) == pytest.approx(D, rel=0.02) and float(squares.var()) == pytest.approx(2 * D, rel=0.06)


# The kernel's shares and outputs

def shares(kernel, q, k):
    scores = kernel.queries(q) @ kernel.keys(k).mT
    return scores / scores.sum(-1, keepdim=True)


@pytest.mark.parametrize(("kind", "draw"), KINDS)
def test_the_features_are_the_papers_up_to_factors_that_cancel(kind, draw):
    part = kernel(kind=kind, draw=draw, features=37)
    q, k = torch.randn(2, 7, D, dtype=torch.float64), torch.randn(2, 5, D, dtype=torch.float64)
    w = part.projection if kind == "positive" else torch.cat((part.projection, -part.projection))
    naive = [((x / D**0.25) @ w.T - (x / D**0.25).square().sum(-1, keepdim=True) / 2).exp() for x in (q, k)]
    expected = naive[0] @ naive[1].mT
    expected = expected / expected.sum(-1, keepdim=True)
    assert float((shares(part, q, k) - expected).abs().max()) < 1e-12


def output_error(norm, features):
    """Mean relative error of the output against softmax, 12 draws; |q|, |k| after the division by d^(1/4)."""
    torch.manual_seed(2)
    q, k = (unit(4, 53, D, norm=norm * D**0.25) for _ in range(2))
    v = torch.randn(4, 53, 11, dtype=torch.float64)
    exact = (q @ k.mT / math.sqrt(D)).softmax(-1) @ v
    found = torch.stack([shares(kernel(seed=seed, features=features), q, k) @ v for seed in range(12)])
    return float((found - exact).norm() / exact.norm() / math.sqrt(12))


@pytest.mark.parametrize("norm", [0.5, 1.0])
def test_the_error_of_the_output_halves_with_four_times_the_features(norm):
    errors = [output_error(norm, count) for count in (64, 256, 1024, 4096)]
    for more, less in zip(errors, errors[1:], strict=False):
        assert 1.6 < more / less < 2.5


def test_the_error_grows_fast_with_the_length_of_queries_and_keys():
    """The regime: where |q||k| passes 4, features no longer stand for softmax. Only the order is asserted, the tails are too heavy. At a
    length of 2 the error of the output is 1.04, 0.92, 0.75, 0.55 with 64 … 4096 features: four times as many don't halve it yet."""
    short, one, two = (output_error(norm, 1024) for norm in (0.5, 1.0, 2.0))
    assert short < one < two and two > 5 * one
    many = output_error(2.0, 4096)
    assert 0.3 < many < two < 1.6 * many


@pytest.mark.parametrize("norm", [0.1, 5.0, 30.0, 40.0, 50.0, 60.0, 300.0])
@pytest.mark.parametrize("size", [D, 64, 192])
@pytest.mark.parametrize("clock", ["full", "causal"])
def test_no_length_of_a_key_makes_an_output_or_a_gradient_overflow(clock, size, norm):
    part = kernel(size).float()
    torch.manual_seed(0)
    q, k, v = (unit(1, 2, 67, size, norm=norm).float().requires_grad_() for _ in range(3))
    out = part(q, k, v, view(Mask(clock), 1, 67)).out
    gradients = torch.autograd.grad((out * torch.randn_like(out)).sum(), [q, k, v])
    assert all(bool(one.isfinite().all()) for one in (out, *gradients))
    peaks = torch.cat((k[:, :, :60], part.projection[:7].expand(1, 2, 7, size) * size**0.25), dim=2)         # keys that are drawn vectors
    assert bool(part(q, peaks, v, view(Mask(clock), 1, 67)).out.isfinite().all())


@pytest.mark.parametrize(("size", "norm"), [(D, 30), (64, 40), (64, 1000), (192, 30), (192, 300)])
def test_keys_of_any_length_share_out_all_weight_in_fp32(size, norm):
    part = kernel(size).float()
    torch.manual_seed(0)
    q, k = (unit(1, 2, 67, size, norm=norm).float() for _ in range(2))
    found = part(q, k, torch.ones(1, 2, 67, 3), view(Mask("full"), 1, 67)).out
    assert float((found - 1).abs().max()) < 1e-5                     # convex: fp32


def test_a_query_that_sees_only_keys_too_far_away_takes_their_mean():
    part = kernel(64).float()
    k = unit(1, 1, 5, 64, norm=1000.0).float().requires_grad_()
    v = torch.randn(1, 1, 5, 64)
    out = part(torch.randn(1, 1, 5, 64), k, v, view(Mask("causal"), 1, 5)).out
    out.sum().backward()
    assert float((out - v.cumsum(2) / torch.arange(1, 6)[:, None]).detach().abs().max()) < 1e-5
    assert bool(k.grad.isfinite().all())


# The forms

@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("kind", "draw"), [KINDS[1], KINDS[3]])
@pytest.mark.parametrize("chunk", [1, 4, 7, 64])
def test_in_chunks_step_by_step_and_dense_are_one(chunk, kind, draw, dtype):
    part = kernel(kind=kind, draw=draw, features=23).to(dtype)
    part.chunk = chunk
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    torch.manual_seed(3)
    q, k, v = (torch.randn(2, 3, 19, D, dtype=dtype, requires_grad=True) for _ in range(3))
    direction = torch.randn(2, 3, 19, D, dtype=dtype)
    seen = torch.ones(19, 19, dtype=torch.bool).tril()
    scores = (part.queries(q) @ part.keys(k).mT).masked_fill(~seen, 0)
    expected = (scores / scores.sum(-1, keepdim=True)) @ v
    out = part(q, k, v, view(Mask("causal"), 2, 19)).out
    assert float((out - expected).detach().abs().max()) < tolerance
    gradients = [torch.autograd.grad((one * direction).sum(), [q, k, v], retain_graph=True) for one in (out, expected)]
    assert max(float((a - b).abs().max()) for a, b in zip(*gradients, strict=True)) < 10 * tolerance
    memory, steps, order = part.memory(), [], torch.arange(19).expand(2, 19)
    for start, end in ((0, 5), *((i, i + 1) for i in range(5, 19))):                                # a prompt, then token by token
        facts = [Rows(one, one, one, torch.ones_like(one, dtype=torch.bool)) for one in (order[:, start:end], order[:, :end])]
        grid, new = Grid(2, end - start), (slice(None), slice(None), slice(start, end))
        step = View(grid=grid, source=grid, q=facts[0], k=facts[1], position=Position(), clock="causal")
        steps.append(part(q[new], k[new], v[new], step, memory=memory).out)
    assert float((torch.cat(steps, dim=2) - expected).detach().abs().max()) < tolerance


FUTURE = [("last key four times longer", lambda k: torch.cat((k[:, :, :-1], 4 * k[:, :, -1:]), dim=2)),
          ("all from the 12th on are others", lambda k: torch.cat((k[:, :, :12], 3 * k[:, :, 12:].roll(1, 2)), dim=2))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("change", [change for _, change in FUTURE], ids=[name for name, _ in FUTURE])
@pytest.mark.parametrize("form", ["chunks of 5", "one chunk", "dense", "unilm"])
def test_the_past_changes_by_no_bit_with_the_future(form, change, dtype):
    """Ports of the original subtract the maximum over all keys, later ones too, and add an eps, which the maximum then doesn't scale:
    a last key four times as long moved earlier outputs by 0.66."""
    part = kernel().to(dtype)
    part.chunk = {"chunks of 5": 5, "one chunk": 64}.get(form, 7)
    torch.manual_seed(4)
    q, k, v = (torch.randn(2, 3, 17, D, dtype=dtype) for _ in range(3))
    segments = (torch.arange(17) > 5).long().expand(2, 17)

    def outputs(k, v):
        if form == "dense":
            seen = torch.ones(17, 17, dtype=torch.bool).tril()
            return divide(dense(part.queries(q), part.keys(k), functional.pad(v, (0, 1), value=1), PLAIN, allowed=seen))
        return part(q, k, v, view(Mask("unilm" if form == "unilm" else "causal"), 2, 17, segments=segments)).out

    before, after = outputs(k, v), outputs(change(k), change(v))
    assert torch.equal(before[:, :, :12], after[:, :, :12]) and not torch.equal(before[:, :, -1], after[:, :, -1])


def test_a_maximum_over_all_keys_with_an_eps_is_caught():
    """The planted fault, as widely used: phi(k) = e^(w·k - |k|²/2 - the largest w·k of all keys) + 1e-4."""
    part = kernel()
    torch.manual_seed(4)
    q, k, v = (torch.randn(1, 1, 17, D, dtype=torch.float64) for _ in range(3))

    def outputs(k):
        exponents = (k / 2) @ part.projection.T
        features = (exponents - (k / 2).square().sum(-1, keepdim=True) / 2 - exponents.amax()).exp() + 1e-4
        asked = (q / 2) @ part.projection.T
        scores = (((asked - asked.amax(-1, keepdim=True)).exp() + 1e-4) @ features.mT).tril()
        return scores / scores.sum(-1, keepdim=True) @ v

    assert float((outputs(k) - outputs(FUTURE[0][1](k)))[:, :, :-1].abs().max()) > 0.1


def test_keys_in_another_order_and_queries_in_another_order():
    part = kernel()
    q, k, v = (torch.randn(2, 3, 13, D, dtype=torch.float64) for _ in range(3))
    order, seen = torch.randperm(13), view(Mask("full"), 2, 13)
    out = part(q, k, v, seen).out
    assert float((part(q, k[:, :, order], v[:, :, order], seen).out - out).abs().max()) < 1e-12
    assert float((part(q[:, :, order], k, v, seen).out - out[:, :, order]).abs().max()) < 1e-12


def test_padding_is_not_seen_and_grouped_keys_are_repeated():
    part = kernel()
    q, k, v = torch.randn(2, 4, 7, D).double(), torch.randn(2, 2, 7, D).double(), torch.randn(2, 2, 7, D).double()
    keep = torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 0, 0]]).bool()
    for clock in ("full", "causal"):
        out = part(q, k, v, view(Mask(clock), 2, 7, keep)).out
        lone = part(q[1:, :, 2:5], k[1:, :, 2:5], v[1:, :, 2:5], view(Mask(clock), 1, 3)).out
        assert float((out[1:, :, 2:5] - lone).abs().max()) < 1e-12


def test_memory_is_linear_in_the_length():
    """The features of all keys at once would be 4 x as many numbers as the longest tensor that is made: none is longer than the output."""
    part, sizes = kernel(features=64).float(), []

    class Sizes(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), keywords=None):
            made = function(*arguments, **(keywords or {}))
            sizes.append(made.numel() if isinstance(made, torch.Tensor) else 0)
            return made

    q, k, v = (torch.randn(1, 1, 1021, D) for _ in range(3))
    seen = View(**{**vars(view(Mask("causal"), 1, 1021)), "mask": None})
    with torch.no_grad(), Sizes():
        part(q, k, v, seen)
    assert max(sizes) <= 1021 * (D + 1)


# Draws

def test_layers_draw_differently_and_a_seed_draws_the_same():
    torch.manual_seed(0)
    one, two = build(SimpleNamespace(width=8)), build(SimpleNamespace(width=8))
    assert not torch.equal(one.projection, two.projection) and one.projection.shape == (16, 8)      # 8 ln 8 = 16.6
    torch.manual_seed(0)
    assert torch.equal(build(SimpleNamespace(width=8)).projection, one.projection)
    assert torch.equal(*(build(SimpleNamespace(width=8), seed=3).projection for _ in range(2)))
    assert list(one.state_dict()) == ["projection"]


def trained(part, calls, x):
    return [part(x, x, x, view(Mask("causal"), 1, 5)).out for _ in range(calls)]


def test_draws_anew_come_on_time_and_resume_bit_for_bit():
    x = torch.randn(1, 1, 5, D, dtype=torch.float64)
    part = kernel(redraw=3).train()
    outs = trained(part, 10, x)
    changed = [not torch.equal(one, two) for one, two in zip(outs, outs[1:], strict=False)]
    assert changed == [False, False, True] * 3
    for done in range(10):
        first = kernel(redraw=3).train()
        trained(first, done, x)
        second = kernel(redraw=3, seed=77).train()
        second.load_state_dict(first.state_dict())
        assert all(torch.equal(one, two) for one, two in zip(trained(second, 10 - done, x), outs[done:], strict=True))
    before = copy.deepcopy(part.state_dict())
    trained(part.eval(), 5, x)
    assert all(torch.equal(value, part.state_dict()[name]) for name, value in before.items())
    assert len({float(kernel(redraw=1, seed=seed).projection[0, 0]) for seed in range(7)}) == 7


def test_a_recomputation_repeats_the_features_of_its_forward():
    x = torch.randn(1, 1, 5, D, dtype=torch.float64)
    gradients = []
    for again in (False, True):
        part, total = kernel(redraw=1).train(), 0.0
        for _ in range(3):
            leaf = x.clone().requires_grad_()
            given = (part, leaf, leaf, leaf, view(Mask("causal"), 1, 5))
            attended = checkpoint(*given, use_reentrant=False) if again else part(*given[1:])
            attended.out.square().sum().backward()
            total = total + leaf.grad
        gradients.append(total)
        assert int(part.calls) == 3
    assert torch.equal(*gradients)


# The model

def tiny(**changes):
    torch.manual_seed(0)
    shape = {"vocab_size": 37, "hidden_size": 23, "layers": 2, "attention_heads": 3, "head_size": 10, "intermediate_size": 29,
             "max_positions": 43, "dropout": 0.0, "attention_dropout": 0.0, "init_std": 0.6, "heads": ("lm",), "attention": "performer"}
    return Transformer(ModelConfig(**{**shape, **changes})).double().eval()


def test_a_model_built_without_memory_draws_nothing_and_takes_another_ones_state():
    with torch.device("meta"):
        empty = tiny(attention={"name": "performer", "redraw": 5})
        before = torch.get_rng_state()
        build(SimpleNamespace(width=8))
    assert torch.equal(torch.get_rng_state(), before) and empty.layers[0].attention.kernel.projection.is_meta
    model = tiny(attention={"name": "performer", "redraw": 5})
    names = [name for name in model.state_dict() if ".kernel." in name]
    assert names == [f"layers.{i}.attention.kernel.{leaf}" for i in (0, 1) for leaf in ("projection", "seed", "calls")]
    empty.load_state_dict(model.state_dict(), assign=True)
    ids = torch.arange(7)[None]
    assert torch.equal(empty(ids).logits, model(ids).logits)


class Swapped(Position):
    """Turns vectors by putting their halves the other way round."""

    def rotate(self, q, k, at):
        return q.roll(D // 2, -1), k.roll(D // 2, -1)


def test_positions_turn_queries_and_keys_before_the_map():
    part, seen = kernel(), view(Mask("causal"), 2, 7)
    q, k, v = torch.randn(3, 2, 3, 7, D, dtype=torch.float64)
    turned = part(q, k, v, View(**{**vars(seen), "position": Swapped()})).out
    assert torch.equal(turned, part(q.roll(D // 2, -1), k.roll(D // 2, -1), v, seen).out)
    assert float((turned - part(q, k, v, seen).out).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("options", "said"),
    [({"features": 0}, "features is 0"), ({"features": 2.5}, "features is 2.5"), ({"redraw": -1}, "redraw is -1"),
     ({"seed": "x"}, "seed is 'x'"), ({"kind": "trig"}, "kind is 'trig'.*positive, hyperbolic"),
     ({"draw": "qmc"}, "draw is 'qmc'.*orthogonal, iid")],
)
def test_an_option_that_can_not_be_is_refused_by_name(options, said):
    with pytest.raises(ConfigError, match=said):
        switch.build("attention", {"name": "performer", **options}, SimpleNamespace(width=8))


def test_new_draws_are_refused_where_torch_tells_no_recomputation(monkeypatch):
    monkeypatch.setattr("fishpaw.attention.performer._BACKWARD", "_nowhere")
    build(SimpleNamespace(width=8))
    with pytest.raises(ConfigError, match="redraw can't tell a recomputed layer"):
        build(SimpleNamespace(width=8), redraw=3)


def test_heads_too_wide_for_fp32_are_refused():
    with pytest.raises(ConfigError, match="heads of 193"):
        build(SimpleNamespace(width=193))


# Lengths

@pytest.mark.parametrize("draw", ["iid", "orthogonal"])
@pytest.mark.parametrize(("size", "biased"), [(16, (0.838, 0.920, 0.964)), (64, (0.951, 0.979, 0.992))])
def test_lengths_are_not_biased_as_those_at_fixed_quantiles_are(size, biased, draw):
    """The article's own idea (kexue.fm/archives/7921), lengths R_i with P(|w| <= R_i) = i/(m+1), leaves out the long tail that e^(w·x)
    lives on: E over directions of e^(R u·x) at |x| = 2.5 is below its exact mean e^(|x|²/2), by the less the larger m. Ours are drawn."""
    cosine = torch.linspace(-1, 1, 2_001, dtype=torch.float64)
    weight = (1 - cosine.square()).clamp_min(0) ** ((size - 3) / 2)
    radii = torch.linspace(1e-4, math.sqrt(size) + 9, 3_001, dtype=torch.float64)
    means = ((radii[:, None] * 2.5 * cosine).exp() * weight).sum(1) / weight.sum() / math.exp(2.5**2 / 2)         # by the length
    found = torch.from_numpy(np.interp(draw_directions(60_000, size, draw=draw, seed=7).norm(dim=1).numpy(), radii.numpy(), means.numpy()))
    error = float(found.std()) / math.sqrt(60_000)
    assert abs(float(found.mean()) - 1) < 4 * error and 3 * error < 1 - biased[-1]          # sharp enough for the smallest of the biases
    density = (size - 1) * radii.log() - radii.square() / 2
    spread = torch.cumulative_trapezoid((density - density.max()).exp(), radii)
    for count, ratio in zip((16, 64, 256), biased, strict=True):                              # the planted fault
        quantiles = torch.arange(1, count + 1, dtype=torch.float64) / (count + 1)
        chosen = np.interp(quantiles.numpy(), (spread / spread[-1]).numpy(), radii[1:].numpy())
        assert float(np.interp(chosen, radii.numpy(), means.numpy()).mean()) == pytest.approx(ratio, abs=0.002)
