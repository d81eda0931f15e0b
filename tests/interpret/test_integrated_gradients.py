"""Integrated gradients: exact cases, the axioms, the order of the rules' errors, completeness on a BERT, and the article's wrong demo."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch
from fishpaw.errors import ConfigError, FishpawError
from fishpaw.interpret.integrated_gradients import Attribution, gauss_legendre, gradients, integrated_gradients, normed, summed
from fishpaw.model.transformer import Transformer

torch.set_num_threads(1)


def trapezoid(points: int) -> tuple[Tensor, Tensor]:
    """The rule with both ends, error O(n^-2)."""
    weights = torch.full((points,), 1 / (points - 1), dtype=torch.float64)
    weights[[0, -1]] /= 2
    return torch.linspace(0, 1, points, dtype=torch.float64), weights


def riemann(points: int) -> tuple[Tensor, Tensor]:
    """The left ends, error O(n^-1)."""
    return torch.arange(points, dtype=torch.float64) / points, torch.full((points,), 1 / points, dtype=torch.float64)


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def squares(x: Tensor) -> Tensor:
    return x.square().flatten(1).sum(1)


def network(x: Tensor) -> Tensor:
    """Smooth, with products of its inputs."""
    return (x @ draw(5, 7)).tanh().prod(1).mul(50) + x[:, 0] * x[:, 1].exp()


def bert(std: float, seed: int = 0, **changes: object) -> Transformer:
    """Random weights of that standard deviation, norms included."""
    torch.manual_seed(seed)
    shape = {"vocab_size": 53, "hidden_size": 24, "layers": 2, "attention_heads": 3, "intermediate_size": 40, "max_positions": 31}
    model = Transformer(ModelConfig(heads=("pooler", {"name": "classifier", "labels": ["a", "b", "c"]}), **shape, **changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(mean=1.0 if name.endswith("norm.weight") else 0.0, std=0.1 if parameter.dim() == 1 else std)
    return model


def probability(model: Transformer, ids: Tensor, label: int):
    """Embedded tokens [b t e] -> the probability of a label, [b]."""
    def f(embedded: Tensor) -> Tensor:
        batch = Batch.padded(ids.expand(len(embedded), -1))
        return model(batch, embedded=embedded.flatten(0, 1)).classes.softmax(-1)[:, label]

    return f


# Exact cases

def test_a_linear_function_needs_one_point():
    weight, x, start = draw(3, 5), draw(3, 5, seed=2), draw(3, 5, seed=3)
    found = integrated_gradients(lambda rows: (rows * weight).sum((1, 2)) + 7, x, baseline=start, points=1)
    torch.testing.assert_close(found.values, weight * (x - start), atol=1e-12, rtol=0)
    assert abs(found.error) < 1e-12 and found.at_baseline != 7 != found.at_input


@pytest.mark.parametrize("points", [1, 2, 50])
def test_a_sum_of_squares_gives_each_square(points):
    x = draw(11)
    found = integrated_gradients(squares, x, points=points)
    torch.testing.assert_close(found.values, x.square(), atol=1e-12, rtol=0)
    assert found.at_input == pytest.approx(float(x.square().sum())) and found.at_baseline == 0


def test_n_points_are_exact_up_to_degree_2n_minus_1():
    x = torch.tensor([1.3], dtype=torch.float64)
    for points in (1, 2, 3, 5):
        assert integrated_gradients(lambda rows, n=points: rows[:, 0] ** (2 * n), x, points=points).relative < 1e-13
        assert integrated_gradients(lambda rows, n=points: rows[:, 0] ** (2 * n + 1), x, points=points).relative > 1e-6
    nodes, weights = gauss_legendre(50)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-14) and 0 < float(nodes.min()) < float(nodes.max()) < 1


def test_a_known_integral_of_two_numbers_that_are_multiplied():
    """F = x^2 y: dF/dx = 2xy, on the line 2 a^2 xy, whose integral is 2/3; dF/dy: 1/3."""
    x, y = 1.7, -2.3
    found = integrated_gradients(lambda rows: rows[:, 0] ** 2 * rows[:, 1], torch.tensor([x, y], dtype=torch.float64))
    assert found.values.tolist() == pytest.approx([2 / 3 * x * x * y, 1 / 3 * x * x * y], abs=1e-13)


def test_the_demo_of_the_article_loses_a_third():
    """Its gradients are multiplied by a x, 20 points with both ends, equal weights: 0.684 of sum x^2. Completeness finds it."""
    x = draw(11)
    at = torch.linspace(0, 1, 20, dtype=torch.float64)[:, None]
    planted = Attribution((at * x * gradients(squares, at * x)).mean(0), float(x.square().sum()), 0.0, 20)
    torch.testing.assert_close(planted.values / x.square(), torch.full_like(x, 0.684), atol=5e-4, rtol=0)
    assert planted.relative > 0.3 > 1e-12 > integrated_gradients(squares, x, points=20).relative


# The axioms

def test_values_add_up_to_the_change_of_the_score():
    x, start = draw(5, seed=2), draw(5, seed=3)
    found = integrated_gradients(network, x, baseline=start)
    assert found.relative < 1e-12 and abs(found.at_input - found.at_baseline) > 0.1
    assert float(found.values.sum()) == pytest.approx(float(network(x[None]) - network(start[None])))
    planted = Attribution(found.values * 1.01, found.at_input, found.at_baseline, 50)
    assert planted.relative == pytest.approx(0.01)


def test_swapping_input_and_baseline_turns_the_sign():
    x, start = draw(5, seed=2), draw(5, seed=3)
    there, back = integrated_gradients(network, x, baseline=start), integrated_gradients(network, start, baseline=x)
    torch.testing.assert_close(there.values, -back.values, atol=1e-12, rtol=0)
    assert (there.at_input, there.at_baseline) == (back.at_baseline, back.at_input)


def test_a_number_that_is_not_read_gets_nothing():
    x = draw(5)
    values = integrated_gradients(lambda rows: network(torch.cat([rows[:, :3], torch.ones(len(rows), 2).double()], 1)), x).values
    assert values[3:].abs().max() == 0 and values[:3].abs().min() > 1e-3


def test_a_number_that_alone_differs_from_the_baseline_gets_everything():
    """Where a plain gradient says 0: min(x, 1) at x = 2."""
    x = torch.tensor([2.0, 0.5], dtype=torch.float64)

    def f(rows: Tensor) -> Tensor:
        return rows[:, 0].clamp_max(1) + rows[:, 1] * 0

    assert float(gradients(f, x[None])[0, 0]) == 0
    assert float(integrated_gradients(f, x, points=500, rows=500).values[0]) == pytest.approx(1, abs=3e-3)           # a kink


def test_two_networks_that_compute_the_same_are_explained_alike():
    """|x| as relu(x) + relu(-x), as sqrt(x^2), and through 3 more layers; plain gradients of parts would differ."""
    x, start = torch.tensor([0.7, -1.9, 0.4]).double(), torch.tensor([0.3, -0.2, 2.0]).double()
    ways = [lambda r: (r.relu() + (-r).relu()).prod(1), lambda r: r.square().sqrt().prod(1),
            lambda r: ((r + 5).log().exp() - 5).abs().prod(1)]
    first, *others = (integrated_gradients(f, x, baseline=start).values for f in ways)
    for other in others:
        torch.testing.assert_close(other, first, atol=1e-10, rtol=0)


def test_numbers_that_can_be_exchanged_get_the_same():
    def f(rows: Tensor) -> Tensor:
        return (rows[:, 0] * rows[:, 1]).sin() + (rows[:, 0] + rows[:, 1]).exp() * rows[:, 2]

    even = integrated_gradients(f, torch.tensor([0.9, 0.9, -0.4]).double()).values
    assert float(even[0]) == pytest.approx(float(even[1]), abs=1e-13) and abs(float(even[0] - even[2])) > 0.1


def test_values_of_a_sum_of_functions_are_the_sum_of_values():
    x = draw(5)
    both = integrated_gradients(lambda rows: 2 * network(rows) - 3 * squares(rows), x).values
    torch.testing.assert_close(both, 2 * integrated_gradients(network, x).values - 3 * integrated_gradients(squares, x).values,
                               atol=1e-11, rtol=0)


# The rules

def test_the_error_of_the_trapezoid_falls_with_the_square_of_n():
    x = draw(5, seed=2)
    errors = [abs(integrated_gradients(network, x, points=n + 1, rule=trapezoid).error) for n in (16, 32, 64, 128)]
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert coarse / fine == pytest.approx(4, rel=0.1)
    coarse, fine = (abs(integrated_gradients(network, x, points=n, rule=riemann).error) for n in (64, 128))
    assert coarse / fine == pytest.approx(2, rel=0.1)
    assert abs(integrated_gradients(network, x, points=16).error) < 1e-3 * errors[-1]


def test_it_is_the_limit_of_any_rule():
    x, start = draw(5, seed=2), draw(5, seed=3)
    fine = integrated_gradients(network, x, baseline=start, points=4001, rows=512, rule=trapezoid)
    torch.testing.assert_close(integrated_gradients(network, x, baseline=start).values, fine.values, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rows", [1, 3, 50, 64])
def test_batches_of_points_change_nothing(rows):
    sizes = []

    def f(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return network(x)

    x = draw(5)
    found = integrated_gradients(f, x, rows=rows)
    torch.testing.assert_close(found.values, integrated_gradients(network, x, rows=7).values, atol=1e-12, rtol=0)
    assert max(sizes) <= rows and sum(sizes) == 52


# On a Transformer

@pytest.mark.parametrize("std", [0.05, 0.3])
@pytest.mark.parametrize("start", ["zero", "pad", "mask"])
def test_completeness_on_a_small_bert_at_50_points(std, start):
    """fp32: |error| <= 1e-3 of the change."""
    model = bert(std)
    ids = torch.randint(5, 53, (1, 13), generator=torch.Generator().manual_seed(4))
    x = model.table[ids[0]].detach()
    baseline = {"zero": torch.zeros_like(x), "pad": model.table[0].expand_as(x), "mask": model.table[4].expand_as(x)}[start]
    label = int(model(ids).classes.argmax())
    found = integrated_gradients(probability(model, ids, label), x, baseline=baseline)
    assert found.values.shape == (13, 24) and found.relative < 1e-3, found.relative
    assert found.at_input == pytest.approx(float(model(ids).classes.softmax(-1)[0, label].detach()), abs=1e-6)
    assert float(summed(found.values).sum()) == pytest.approx(found.at_input - found.at_baseline, abs=1e-3)
    assert all(parameter.grad is None for parameter in model.parameters())
    planted = integrated_gradients(probability(model, ids, label), x, baseline=baseline, points=2, rule=trapezoid)
    assert planted.relative > 1e-3 or std < 0.1


def test_memory_of_a_transformer_grows_with_rows_and_not_with_points():
    """Counted in what autograd saves at a time, which is nearly all."""
    model, ids = bert(0.1), torch.arange(5, 18)[None]
    f, x = probability(model.requires_grad_(False), ids, 0), model.table[ids[0]].detach()

    def held(points: int, rows: int) -> int:
        most = now = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal now, most
            now += tensor.numel()
            most = max(most, now)
            return tensor

        def counted(part: Tensor) -> Tensor:
            nonlocal now
            now = 0
            return f(part)

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            integrated_gradients(counted, x, points=points, rows=rows)
        return most

    assert held(10, 5) == held(40, 5) < 0.6 * held(40, 10)


def test_dtypes_devices_modes_and_learning_weights():
    x = draw(5).float().requires_grad_()
    layer = nn.Linear(5, 1)
    with torch.inference_mode():
        found = integrated_gradients(lambda rows: layer(rows).squeeze(1).tanh(), x)
    assert found.values.dtype == torch.float32 and not found.values.requires_grad and layer.weight.grad is None and x.grad is None
    half = integrated_gradients(lambda rows: rows.square().sum(1), x.detach().bfloat16(), points=50)
    assert half.values.dtype == torch.float32
    torch.testing.assert_close(half.values, x.detach().bfloat16().float().square(), atol=0.02, rtol=0.02)  # 8 bits


def test_values_of_tokens():
    values = draw(3, 5)
    assert summed(values).tolist() == pytest.approx([float(row.sum()) for row in values])
    assert normed(values).tolist() == pytest.approx([math.sqrt(float((row**2).sum())) for row in values])


def test_no_change_is_complete_and_no_division():
    assert integrated_gradients(squares, draw(5), baseline=draw(5)).relative == 0
    assert Attribution(torch.ones(2), 1.0, 1.0, 1).relative == math.inf


@pytest.mark.parametrize(("call", "says"), [
    (lambda: integrated_gradients(squares, torch.arange(3)), "their ids"),
    (lambda: integrated_gradients(squares, torch.empty(0)), "shape"),
    (lambda: integrated_gradients(squares, draw(3), baseline=draw(4)), r"shape \[4\], x \[3\]"),
    (lambda: integrated_gradients(squares, draw(3), points=0), "points is 0"),
    (lambda: integrated_gradients(squares, draw(3), rows=0), "rows is 0"),
    (lambda: integrated_gradients(lambda x: x, draw(3)), r"shape \[8, 3\] for 8 rows"),
    (lambda: integrated_gradients(lambda x: x.detach().sum(1), draw(3)), "no gradient"),
    (lambda: integrated_gradients(lambda x: (x * torch.nan).sum(1), draw(3)), "not finite"),
    (lambda: integrated_gradients(lambda x: (x * 0).sqrt().sum(1), draw(3)), "gradients are not finite"),        # 0 everywhere
    (lambda: integrated_gradients(squares, draw(3), points=2001), "points is 2001"),
])  # fmt: skip
def test_what_cannot_be_is_refused(call, says):
    with pytest.raises(FishpawError, match=says) as refusal:
        call()
    assert isinstance(refusal.value, ConfigError) or "finite" in says


# Against captum

@pytest.mark.parity
def test_it_is_captums_on_a_toy_and_on_a_small_bert():
    captum = pytest.importorskip("captum.attr")
    x, start = draw(5, seed=2), draw(5, seed=3)
    theirs = captum.IntegratedGradients(network).attribute(x[None], start[None], n_steps=50, internal_batch_size=7)
    torch.testing.assert_close(integrated_gradients(network, x, baseline=start).values, theirs[0], atol=1e-5, rtol=0)
    model = bert(0.3)
    ids = torch.randint(5, 53, (1, 13), generator=torch.Generator().manual_seed(4))
    x = model.table[ids[0]].detach()
    for label in range(3):
        f = probability(model, ids, label)
        theirs = captum.IntegratedGradients(f).attribute(x[None], n_steps=50, internal_batch_size=10)
        ours = integrated_gradients(f, x)
        torch.testing.assert_close(ours.values, theirs[0].float(), atol=1e-5, rtol=0)
        planted = integrated_gradients(f, x, points=3)
        assert (planted.values - theirs[0]).abs().max() > 1e-4
