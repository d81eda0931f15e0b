"""Derived optimizers against a plain reference; every combination resumes to the bit; what surrounds a step; refusals."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from runpy import run_path

import pytest
import torch
from torch import Tensor, nn

from fishpaw.errors import ConfigError
from fishpaw.optim.derive import Derived, derive, describe
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
from fishpaw.train import checkpoint
from fishpaw.train.randomness import Randomness

torch.set_num_threads(1)
SMALL = run_path(str(Path(__file__).with_name("small.py")))
net, fill, train, weights, gap, adam, decayless = (SMALL[name] for name in ("net", "fill", "train", "weights", "gap", "adam", "decayless"))
SIX: dict[str, Transform] = {
    "decay": WeightDecay(0.3, exclude=(vectors,)),
    "adaptation": LayerAdaptation(exclude=("norm",)),
    "rate": PiecewiseLinear({2: 1, 5: 0.1}),
    "accumulation": Accumulate(2),
    "lookahead": Lookahead(k=2, alpha=0.3),
    "lazy": Lazy(rows=("embedding",)),
}
COMBINATIONS = [names for size in range(7) for names in itertools.combinations(SIX, size)]


# The plain reference: one parameter after another, every tensor new

def reference(model: nn.Module, transforms: Sequence[Transform], steps: Iterable[int], *, gamma: float = 0.1) -> dict[str, Tensor]:
    theta, first, second, slow, mean, sums = weights(model), {}, {}, {}, {}, {}
    updates = calls = 0
    kinds = {type(one): one for one in transforms}
    for step in steps:
        fill(model, step, rows=(0, 2, step % 7))
        calls += 1
        for name, p in model.named_parameters():
            assert p.grad is not None
            sums[name] = sums.get(name, 0) + p.grad
        n = kinds[Accumulate].n if Accumulate in kinds else 1
        if calls % n:
            continue
        gradients = {name: total / n for name, total in sums.items()}
        sums = {}
        if Clip in kinds:
            length = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
            gradients = {name: g * min(1, kinds[Clip].norm / (length + 1e-6)) for name, g in gradients.items()}
        factor = piecewise(kinds[PiecewiseLinear].knots)(updates) if PiecewiseLinear in kinds else 1.0
        updates += 1
        for name, g in gradients.items():
            old, rate = theta[name], gamma * factor
            if Rates in kinds:
                for part, multiplier in kinds[Rates].multipliers.items():
                    rate *= multiplier if part in name else 1
            if name not in first:
                first[name], second[name], slow[name], mean[name] = 0 * old, 0 * old, old, 0 * old
            moments = first[name], second[name]
            first[name], second[name] = 0.9 * first[name] + 0.1 * g, 0.999 * second[name] + 0.001 * g**2
            new = old - rate * (first[name] / (1 - 0.9**updates)) / ((second[name] / (1 - 0.999**updates)).sqrt() + 1e-8)
            idle = (g == 0).all(-1)
            for one in transforms:
                if isinstance(one, WeightDecay) and not (vectors in one.exclude and old.ndim <= 1):
                    new = new - rate * one.rate * old
                if isinstance(one, LayerAdaptation) and not any(part in name for part in one.exclude if isinstance(part, str)):
                    h = (new - old) / max(rate, 1e-30)
                    new = old + (new - old) * (old.norm() / h.norm() if old.norm() > 0 and h.norm() > 0 else 1.0)
                if isinstance(one, Lazy) and name.startswith("embedding"):
                    new = torch.where(idle[:, None], old, new)
                    if one.moments == "kept":
                        first[name], second[name] = (torch.where(idle[:, None], before, now) for before, now in
                                                     zip(moments, (first[name], second[name]), strict=True))  # fmt: skip
            for one in transforms:
                if isinstance(one, Lookahead) and updates % one.k == 0:
                    slow[name] = new = slow[name] + one.alpha * (new - slow[name])
                if isinstance(one, Average):
                    mean[name] = one.decay * mean[name] + (1 - one.decay) * new
            theta[name] = new
    if Average in kinds:
        return {name: value / (1 - kinds[Average].decay**updates) for name, value in mean.items()}
    return theta


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_all_combinations_are_the_reference_in_both_orders(names: tuple[str, ...]) -> None:
    for order, base in ((names, decayless), (names[::-1], adam)):
        transforms = [SIX[name] for name in order]
        model = net()
        wanted = reference(net(), transforms, range(9))
        train(derive(base(model), transforms), model, range(9))
        assert gap(weights(model), wanted) < 1e-12


MORE = [
    [Clip(0.7), Rates({"embedding": 3, "weight": 0.5})],
    [Lazy(moments="decayed"), WeightDecay(0.2), Average(0.8)],
    [Average(0.8), Lookahead(3, 0.7), LayerAdaptation(), Rates({"inner": 0.1})],
    [Lookahead(3, 0.7), Average(0.8), Clip(2.0), Accumulate(3), WeightDecay(0.1), LayerAdaptation(), Lazy()],
    [PiecewiseLinear({0: 0.5, 4: 2}), Average(0.0)],
]


@pytest.mark.parametrize("transforms", MORE, ids=str)
def test_the_other_transforms_are_the_reference(transforms: list[Transform]) -> None:
    model = net()
    optimizer = derive(decayless(model), transforms)
    train(optimizer, model, range(12))
    if any(isinstance(one, Average) for one in transforms):
        optimizer.exchange()
    assert gap(weights(model), reference(net(), transforms, range(12))) < 1e-12


def test_the_reference_notices_an_order_a_rate_and_a_moment() -> None:
    wanted = reference(net(), [SIX["decay"], SIX["adaptation"], Lazy(), Rates({"inner": 2})], range(5))
    for planted in (
        [SIX["adaptation"], SIX["decay"], Lazy(), Rates({"inner": 2})],
        [SIX["decay"], SIX["adaptation"], Lazy(moments="decayed"), Rates({"inner": 2})],
        [SIX["decay"], SIX["adaptation"], Lazy(), Rates({"inner": 2.01})],
    ):
        model = net()
        train(derive(adam(model), planted), model, range(5))
        assert gap(weights(model), wanted) > 1e-4


# Resuming

Maker = Callable[[nn.Module], Derived]


def resumed_by_torch(model: nn.Module, optimizer: Derived, make: Maker, folder: Path) -> tuple[nn.Module, Derived]:
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "saved.pt")
    saved = torch.load(folder / "saved.pt", weights_only=True)
    other = net(seed=1)
    other.load_state_dict(saved["model"])
    again = make(other)
    again.load_state_dict(saved["optimizer"])
    return other, again


def resumed_by_checkpoint(model: nn.Module, optimizer: Derived, make: Maker, folder: Path) -> tuple[nn.Module, Derived]:
    checkpoint.save(folder / "c", model, optimizer, Randomness.take(torch.device("cpu")), {})
    other = net(seed=1)
    again = make(other)
    checkpoint.load(folder / "c", other, again, checkpoint.read_record(folder / "c"))
    return other, again


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_all_combinations_resume_to_the_bit(names: tuple[str, ...], tmp_path: Path) -> None:
    """After 3 of 7 calls: in the middle of an accumulation, and, without one, between two syncs."""
    def make(model: nn.Module) -> Derived:
        return derive(decayless(model), [*(SIX[name] for name in names), Average(0.9)])

    model = net()
    optimizer = make(model)
    train(optimizer, model, range(3))
    runs = [(model, optimizer), *(resume(model, optimizer, make, tmp_path) for resume in (resumed_by_torch, resumed_by_checkpoint))]
    for own, derived in runs:
        train(derived, own, range(3, 7))
        assert derived.updates == (3 if "accumulation" in names else 7)
        derived.exchange()
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), own.parameters(), strict=True))


@pytest.mark.parametrize("lost", ["slow", "gradient_sum", "average", "exp_avg"])
def test_state_that_is_lost_is_noticed(lost: str) -> None:
    def make(model: nn.Module) -> Derived:
        return derive(decayless(model), [*SIX.values(), Average(0.9)])

    ends = []
    for planted in (False, True):
        model = net()
        optimizer = make(model)
        train(optimizer, model, range(5))
        for state in optimizer.state.values() if planted else ():
            state[lost].zero_()
        train(optimizer, model, range(5, 12))
        optimizer.exchange()
        ends.append(weights(model))
    assert gap(*ends) > 1e-6


# Schedulers, averages, several bases

def test_torchs_schedulers_and_hooks_work_on_a_derived_optimizer() -> None:
    one, two = net(), net()
    said: list[int] = []
    for model, optimizer in ((one, lamb(one, learning_rate=0.1)), (two, derive(lamb_base(two), LAMB))):
        optimizer.register_step_post_hook(lambda *_: said.append(1))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        for step in range(5):
            train(optimizer, model, [step])
            scheduler.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 6)
    assert len(said) == 10 and gap(weights(one), weights(two)) == 0


LAMB = [WeightDecay(0.01, exclude=(vectors,)), LayerAdaptation(exclude=(vectors,))]


def lamb_base(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.named_parameters(), lr=0.1, eps=1e-6, weight_decay=0, fused=True)


def test_clip_is_torchs() -> None:
    one, two = net(), net()
    plain, derived = adam(one), derive(adam(two), [Clip(0.3)])
    for step in range(5):
        fill(one, step)
        nn.utils.clip_grad_norm_(one.parameters(), 0.3)
        plain.step()
        fill(two, step)
        derived.step()
    assert gap(weights(one), weights(two)) < 1e-12


def test_averaged_weights_come_and_go() -> None:
    model = net()
    model.inner.bias.requires_grad_(False)
    optimizer = derive(adam(model), [Average(0.5)])
    with optimizer.averaged():                                       # before the first update: the weights themselves
        assert gap(weights(model), weights(net())) == 0
    model.inner.bias.requires_grad_(True)
    seen = []
    for step in range(3):
        train(optimizer, model, [step])
        seen.append(weights(model))
    with optimizer.averaged():
        wanted = {name: (0.125 * seen[0][name] + 0.25 * seen[1][name] + 0.5 * seen[2][name]) / 0.875 for name in seen[0]}
        assert gap(weights(model), wanted) < 1e-12
        with pytest.raises(ConfigError, match="averaged weights are in the model"):
            optimizer.step()
        with pytest.raises(ConfigError, match="already"):
            optimizer.exchange()
    assert gap(weights(model), seen[-1]) == 0
    with pytest.raises(ConfigError, match="keeps no average"):
        derive(adam(net())).exchange()


def test_a_parameter_that_joins_late_has_the_average_of_its_constant_past() -> None:
    model = net()
    model.inner.bias.requires_grad_(False)
    optimizer = derive(torch.optim.SGD(model.named_parameters(), lr=0.1), [Average(0.5), Lookahead(2)])
    fill(model, 0)
    model.inner.bias.grad = None
    optimizer.step()
    model.inner.bias.requires_grad_(True)
    optimizer.step()
    with optimizer.averaged():
        torch.testing.assert_close(model.inner.bias.detach(), net().get_parameter("inner.bias").detach())


def test_narrow_weights_have_a_wide_average_that_loading_keeps() -> None:
    model = net().to(torch.bfloat16)
    optimizer = derive(torch.optim.SGD(model.named_parameters(), lr=0.1), [Average(0.999)])
    train(optimizer, model, range(3))
    other = net().to(torch.bfloat16)
    again = derive(torch.optim.SGD(other.named_parameters(), lr=0.1), [Average(0.999)])
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        wide = again.state[two]["average"]
        assert wide.dtype == torch.float32 and torch.equal(wide, optimizer.state[one]["average"])


def test_several_optimizers_become_one() -> None:
    model, other = net(), net()
    named, twin = dict(model.named_parameters()), dict(other.named_parameters())
    inner = [name for name in named if name.startswith("inner")]
    outer = [name for name in named if not name.startswith("inner")]
    bases = [torch.optim.SGD([(n, named[n]) for n in inner], lr=0.1, momentum=0.9), torch.optim.Adam([(n, named[n]) for n in outer])]
    derived = derive(bases, [Lookahead(2)])
    both = [derive(torch.optim.SGD([twin[n] for n in inner], lr=0.1, momentum=0.9), [Lookahead(2)]),
            derive(torch.optim.Adam([twin[n] for n in outer]), [Lookahead(2)])]  # fmt: skip
    for step in range(5):
        fill(model, step)
        fill(other, step)
        for optimizer in (derived, *both):
            optimizer.step()
    assert gap(weights(model), weights(other)) == 0
    state = derived.state_dict()
    assert len(state["param_groups"]) == 2 and len(state["state"]) == 5


def test_a_closure_is_called_once_with_gradients() -> None:
    model = net()
    optimizer = derive(adam(model))

    def closure() -> float:
        optimizer.zero_grad()
        total = model(torch.tensor([0, 3, 6])).square().sum()
        total.backward()
        return float(total.detach())

    first = optimizer.step(closure)
    assert optimizer.step(closure) < first


def test_parameters_without_gradient_are_passed_over() -> None:
    model = net()
    optimizer = derive(decayless(model), [WeightDecay(0.1), LayerAdaptation(), Lazy(), Lookahead(2)])
    before = weights(model)
    model.inner.weight.grad = torch.ones_like(model.inner.weight)
    for _ in range(3):
        optimizer.step()
    moved = [name for name, value in weights(model).items() if not torch.equal(value, before[name])]
    assert moved == ["inner.weight"]
    optimizer.zero_grad()
    optimizer.step()
    assert model.inner.weight.grad is None


# Refusals

@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda m: derive([]), "no optimizer"),
        (lambda m: derive(derive(adam(m))), "derived already"),
        (lambda m: derive(torch.optim.LBFGS(m.parameters())), "LBFGS can't be derived from"),
        (lambda m: derive(adam(m), [Lookahead]), "no transform"),
        (lambda m: derive(adam(m), [Clip(1), Clip(2)]), "Clip is there twice"),
        (lambda m: derive(adam(m), [Lookahead(2), Average(), Lookahead(3)]), "slow is there twice"),
        (lambda m: derive(torch.optim.AdamW(m.parameters()), [WeightDecay(0.1)]), "AdamW decays by itself"),
        (lambda m: derive(adam(m), [Rates({"nothing": 2})]), "'nothing', which no parameter"),
        (lambda m: derive(torch.optim.Adam(m.parameters()), [Lazy()]), "given none. Make it with model.named_parameters"),
        (lambda m: derive(adam(m), [WeightDecay(exclude=("x",))]), "'x', which no parameter"),
        (lambda m: derive(adam(m)).add_param_group({"params": []}), "no more parameters"),
        (lambda m: WeightDecay(-1), "rate is -1"),
        (lambda m: Lookahead(k=0), "k is 0"),
        (lambda m: Lookahead(alpha=1.5), "alpha is 1.5"),
        (lambda m: Average(1.0), "decay is 1"),
        (lambda m: Accumulate(True), "n is True"),
        (lambda m: Clip(0), "norm is 0"),
        (lambda m: Clip(math.nan), "norm is nan"),
        (lambda m: Lazy(moments="lost"), "moments is 'lost'"),
        (lambda m: Rates({"inner": -1}), "'inner' is -1"),
        (lambda m: PiecewiseLinear({}), "no steps"),
    ],
)
def test_mistakes_are_named(make: Callable[[nn.Module], object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make(net())


def test_a_description_is_the_same_in_every_process() -> None:
    said = describe(lamb(net(), learning_rate=0.1))
    assert said == describe(lamb(net(), learning_rate=0.1)) and said != describe(lamb(net(), learning_rate=0.2))
    assert said.startswith("AdamW(lr=0.1, betas=(0.9, 0.999), eps=1e-06") and "LayerAdaptation(exclude=('vectors',))" in said
    assert describe(adam(net())) == "Adam" and "0x" not in said
