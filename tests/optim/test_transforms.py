"""The laws of each transform: accumulation is the big batch, decay is AdamW's, LAMB is the paper's, lookahead, laziness, schedules."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fishpaw.errors import ConfigError
from fishpaw.optim import adapted
from fishpaw.optim.adamw import adamw
from fishpaw.optim.derive import Derived, derive
from fishpaw.optim.lamb import lamb
from fishpaw.optim.schedules import piecewise
from fishpaw.optim.transforms import (
    Accumulate,
    Average,
    Clip,
    LayerAdaptation,
    Lazy,
    Lookahead,
    PiecewiseLinear,
    Rates,
    Transform,
    WeightDecay,
    vectors,
)

torch.set_num_threads(1)
SMALL = run_path(str(Path(__file__).with_name("small.py")))
net, fill, train, weights, gap, adam, decayless = (SMALL[name] for name in ("net", "fill", "train", "weights", "gap", "adam", "decayless"))


# (a) Accumulation

def examples(*counts: int) -> list[tuple[Tensor, Tensor]]:
    noise = torch.Generator().manual_seed(5)
    return [(torch.randint(7, (n,), generator=noise), torch.randint(3, (n,), generator=noise)) for n in counts]


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")


BASES: dict[str, Callable[[nn.Module], tuple[torch.optim.Optimizer, list[Transform]]]] = {
    "sgd": lambda model: (torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9), []),
    "adam": lambda model: (adam(model), []),
    "lamb": lambda model: (decayless(model), [WeightDecay(0.1), LayerAdaptation()]),
}


@pytest.mark.parametrize("clip", [[], [Clip(0.05)]], ids=["free", "clipped"])
@pytest.mark.parametrize("weighted", [False, True], ids=["mean", "tokens"])
@pytest.mark.parametrize("base", BASES)
def test_accumulation_is_the_big_batch(base: str, weighted: bool, clip: list[Transform]) -> None:
    def run(n: int, *, by_count: bool = weighted) -> dict[str, Tensor]:
        model = net()
        made, inner = BASES[base](model)
        optimizer = derive(made, [*inner, *clip, *([Accumulate(n)] if n > 1 else [])])
        for _ in range(6):
            small = examples(2, 11, 1, 5) if weighted else examples(3, 3, 3, 3)
            parts = small if n > 1 else [tuple(map(torch.cat, zip(*small, strict=True)))]
            for part in parts:
                optimizer.zero_grad()
                total, count = loss(model, part), len(part[1])
                if by_count:
                    total.backward()
                    optimizer.step(count=count)
                else:
                    (total / count).backward()
                    optimizer.step()
        return weights(model)

    big = run(1)
    assert gap(run(4), big) < 1e-12
    if weighted:
        assert gap(run(4, by_count=False), big) > 1e-3               # planted: a mean of means


@pytest.mark.parametrize(("n", "faulty"), [(2, 0.639), (4, 0.545), (16, 0.493)])
def test_error_5_the_first_update_of_accumulated_adam_is_whole(n: int, faulty: float) -> None:
    """bert4keras fires an empty update at call 0 and counts calls in the bias correction: this factor of the right one."""
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = derive(torch.optim.Adam([parameter], lr=0.1, eps=0), [Accumulate(n)])
    for call in range(n):
        assert call == 0 or not parameter.any()
        parameter.grad = torch.full_like(parameter, 7.0)
        optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, -0.1), atol=1e-12, rtol=0)
    counted = (0.1 / (1 - 0.9 ** (n + 1))) / math.sqrt(0.001 / (1 - 0.999 ** (n + 1)))
    assert counted == pytest.approx(faulty, abs=1e-3)


def test_accumulation_with_parameters_that_are_not_in_every_batch() -> None:
    def run(*transforms: Transform, whole: bool) -> dict[str, Tensor]:
        model = net()
        optimizer = derive(adam(model), transforms)
        parameters = dict(model.named_parameters())
        for _ in range(3):
            optimizer.zero_grad()
            for name in ("inner.weight", "norm.bias") if whole else ():
                parameters[name].grad = torch.ones_like(parameters[name])
            if not whole:
                parameters["inner.weight"].grad = torch.full_like(parameters["inner.weight"], 2)
                optimizer.step()
                optimizer.zero_grad()
                parameters["norm.bias"].grad = torch.full_like(parameters["norm.bias"], 2)
            optimizer.step()
        return weights(model)

    assert gap(run(Accumulate(2), whole=False), run(whole=True)) < 1e-12


def test_a_count_of_nothing_changes_nothing_and_a_wrong_one_is_refused() -> None:
    model = net()
    optimizer = derive(decayless(model), [WeightDecay(0.1), Average()])
    fill(model, 0)
    before = weights(model)
    optimizer.step(count=0)
    assert gap(weights(model), before) == 0 and optimizer.updates == 0
    for wrong in (-1, math.nan):
        with pytest.raises(ConfigError, match="count is"):
            optimizer.step(count=wrong)


# (b), (c) Decay

def test_decay_is_l2_for_sgd_and_not_for_adam() -> None:
    for kind, same in ((torch.optim.SGD, True), (torch.optim.Adam, False)):
        ends = []
        for decay in (0.0, 0.3):
            model = net()
            base = kind(model.named_parameters(), lr=0.1, weight_decay=decay)
            train(base if decay else derive(base, [WeightDecay(0.3)]), model, range(9))
            ends.append(weights(model))
        assert (gap(*ends) < 1e-7) == same


@pytest.mark.parametrize("make", [adam, decayless, lambda model: adam(model, fused=True)])
def test_adam_with_decay_is_torchs_adamw_over_100_steps(make: Callable[..., Any]) -> None:
    one, two = net(), net()
    train(torch.optim.AdamW(one.parameters(), lr=0.1, weight_decay=0.03), one, range(100))
    optimizer = derive(make(two), [WeightDecay(0.03)])
    train(optimizer, two, range(100))
    assert gap(weights(one), weights(two)) < 1e-12


def test_adamw_decays_in_its_own_kernel_and_excluded_parameters_do_not() -> None:
    model = net()
    optimizer = derive(decayless(model), [WeightDecay(0.1, exclude=("norm", "bias")), Rates({"embedding": 2})])
    assert {(g["lr"], g["weight_decay"]): g["param_names"] for g in optimizer.param_groups} == {
        (0.2, 0.1): ["embedding.weight"], (0.1, 0.1): ["inner.weight"], (0.1, 0.0): ["norm.weight", "norm.bias", "inner.bias"],
    }  # fmt: skip
    one, two = net(), net()
    train(derive(adamw(one, learning_rate=0.1, weight_decay=0), [WeightDecay(0.2, exclude=(vectors,))]), one, range(9))
    train(adamw(two, learning_rate=0.1, weight_decay=0.2), two, range(9))
    assert gap(weights(one), weights(two)) == 0


# (d) LAMB

def plain_lamb(model: nn.Module, steps: int, *, gamma: float, decay: float) -> dict[str, Tensor]:
    theta = weights(model)
    first, second = ({name: torch.zeros_like(value) for name, value in theta.items()} for _ in range(2))
    for step in range(steps):
        fill(model, step)
        for name, p in model.named_parameters():
            assert p.grad is not None
            first[name] = 0.9 * first[name] + 0.1 * p.grad
            second[name] = 0.999 * second[name] + 0.001 * p.grad**2
            h = (first[name] / (1 - 0.9 ** (step + 1))) / ((second[name] / (1 - 0.999 ** (step + 1))).sqrt() + 1e-6) + decay * theta[name]
            theta[name] = theta[name] - gamma * h * theta[name].norm() / h.norm()
    return theta


@pytest.mark.parametrize("fused", [True, False], ids=["blocks", "passes"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lamb_is_the_papers_over_100_steps(decay: float, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapted, "_BLOCK", 7)                        # several blocks a tensor, the last one short
    calls = []
    real = adapted.adapted_step
    monkeypatch.setattr(adapted, "adapted_step", lambda *given, **options: calls.append(1) or real(*given, **options))
    model = net()
    if fused:
        optimizer = lamb(model, learning_rate=0.01, weight_decay=decay, exclude=())
    else:
        base = torch.optim.AdamW(model.named_parameters(), lr=0.01, eps=1e-6, weight_decay=0)
        optimizer = derive(base, [WeightDecay(decay), LayerAdaptation()])
    for step in range(100):
        fill(model, step)
        optimizer.step()
    assert gap(weights(model), plain_lamb(net(), 100, gamma=0.01, decay=decay)) < 1e-12
    assert len(calls) == (99 * 5 if fused else 0)                    # the first step makes the moments


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_decay_a_step_of_lamb_is_the_rate_times_the_norm(dtype: torch.dtype) -> None:
    model = net().to(dtype)
    optimizer = lamb(model, learning_rate=0.01, weight_decay=0)
    for step in range(4):
        before = weights(model)
        fill(model, step)
        optimizer.step()
        for name in ("embedding.weight", "inner.weight"):
            moved = (dict(model.named_parameters())[name].detach() - before[name]).norm() / before[name].norm()
            assert float(moved) == pytest.approx(0.01, rel=1e-5 if dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize("fused", [True, None])
def test_a_norm_of_0_and_a_rate_of_0_leave_the_base_as_it_is(fused: bool | None) -> None:
    model = net()
    nn.init.zeros_(model.get_parameter("inner.weight"))
    base = torch.optim.Adam(model.named_parameters(), lr=0.1, fused=fused)
    optimizer = derive(base, [LayerAdaptation(), PiecewiseLinear({0: 1, 2: 0, 3: 1})])
    other = net()
    nn.init.zeros_(other.get_parameter("inner.weight"))
    train(optimizer, model, range(1))
    train(adam(other), other, range(1))
    assert gap({"": model.get_parameter("inner.weight").detach()}, {"": other.get_parameter("inner.weight").detach()}) < 1e-12
    train(optimizer, model, range(1, 2))
    before = weights(model)
    train(optimizer, model, range(2, 3))                             # the rate is 0 here
    assert gap(weights(model), before) == 0
    assert optimizer.state[model.get_parameter("inner.bias")]["step"] == 3


# (e) Lookahead

def test_lookahead_at_its_ends() -> None:
    one, two = net(), net()
    train(adam(one), one, range(9))
    train(derive(adam(two), [Lookahead(k=1, alpha=1.0)]), two, range(9))
    assert gap(weights(one), weights(two)) == 0
    model = net()
    start = weights(model)
    optimizer = derive(adam(model), [Lookahead(k=4, alpha=0.0)])
    for step in range(12):
        train(optimizer, model, [step])
        assert (gap(weights(model), start) == 0) == (step % 4 == 3)


def quadratic(optimizer_of: Callable[[nn.Parameter], Derived], steps: int, a: float) -> float:
    theta = nn.Parameter(torch.tensor([3.0], dtype=torch.float64))
    optimizer = optimizer_of(theta)
    for _ in range(steps):
        theta.grad = a * theta.detach()
        optimizer.step()
    return float(theta.detach())


def test_error_4_slow_weights_begin_at_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def optimizer_of(theta: nn.Parameter) -> Derived:
        return derive(torch.optim.SGD([theta], lr=0.1), [Lookahead(k=5, alpha=0.5)])

    a, wanted = 0.7, (1 - 0.5 + 0.5 * (1 - 0.1 * 0.7) ** 5) * 3
    assert quadratic(optimizer_of, 5, a) == pytest.approx(wanted, abs=1e-12)
    monkeypatch.setattr(Lookahead, "begin", lambda self, parameter, updates: torch.zeros_like(parameter))
    assert quadratic(optimizer_of, 5, a) == pytest.approx(0.5 * (1 - 0.07) ** 5 * 3)                # the whole network times α


# (f) Lazy

@pytest.mark.parametrize("moments", ["kept", "decayed"])
def test_idle_rows_do_not_move_by_a_bit_and_with_all_active_it_is_the_base(moments: Any) -> None:
    model = net()
    optimizer = derive(adam(model), [WeightDecay(0.1), Lazy(moments=moments)])
    train(optimizer, model, range(9))
    for step in range(4):
        before = model.get_parameter("embedding.weight").detach().clone()
        fill(model, step, rows=(1, 4))
        optimizer.step()
        same = (model.get_parameter("embedding.weight").detach() == before).all(1).tolist()
        assert same == [row not in (1, 4) for row in range(7)]
    one, two = net(), net()
    for maker, transforms in ((one, [Lazy(moments=moments)]), (two, [])):
        optimizer = derive(adam(maker), transforms)
        for step in range(5):
            fill(maker, step, rows=range(7))
            optimizer.step()
    assert gap(weights(one), weights(two)) == 0


def test_kept_moments_are_torchs_sparse_adam() -> None:
    torch.manual_seed(0)
    tables = [nn.Embedding(7, 5, sparse=sparse).double() for sparse in (True, False)]
    tables[1].load_state_dict(tables[0].state_dict())
    optimizers = [torch.optim.SparseAdam(tables[0].parameters(), lr=0.1),
                  derive(torch.optim.Adam(tables[1].named_parameters(), lr=0.1), [Lazy(rows=("weight",))])]  # fmt: skip
    for step in range(9):
        ids = torch.tensor([step % 7, 3, step * 5 % 7])
        for table, optimizer in zip(tables, optimizers, strict=True):
            optimizer.zero_grad()
            (table(ids).square().sum() + table(ids).sum()).backward()
            optimizer.step()
    torch.testing.assert_close(tables[0].weight, tables[1].weight, atol=1e-6, rtol=0)      # its epsilon stands elsewhere
    with pytest.raises(ConfigError, match="sparse"):
        derive(torch.optim.SparseAdam(tables[0].parameters())).step()


# (h) Schedules

@pytest.mark.parametrize("knots", [{1000: 1, 2000: 0.1}, {0: 1}, {0: 0.2, 3: 1, 7: 0}, {5: 2}])
def test_piecewise_linear_is_torchs_lambda_lr(knots: dict[int, float]) -> None:
    factor = piecewise(knots)
    one, two = net(), net()
    plain = adam(one)
    scheduler = torch.optim.lr_scheduler.LambdaLR(plain, factor)
    derived = derive(adam(two), [PiecewiseLinear(knots)])
    for step in range(12):
        train(plain, one, [step])
        train(derived, two, [step])
        scheduler.step()
        assert gap(weights(one), weights(two)) == 0
    assert derived.param_groups[0]["lr"] == 0.1
