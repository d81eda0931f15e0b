"""Laws of derived optimizers: accumulation is the big batch, lookahead starts at the weights, LAMB's steps, decay against L2, schedules.

Each law is measured on fishpaw.optim itself, in fp64 on a small network, and beside it the size of the errors that are known: a mean of
means of unequal batches; Adam whose bias correction counts calls instead of updates, and which makes an empty update at call 0 (bert4keras,
emulated here); lookahead whose slow copy starts at 0, which multiplies all weights by alpha at its first sync (bert4keras again).
https://kexue.fm/archives/7094, and 6794 on accumulation.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fishpaw.lab.findings import Found, Row, Words
from fishpaw.optim import lamb as lambs
from fishpaw.optim import schedules
from fishpaw.optim.derive import Derived, derive
from fishpaw.optim.transforms import Accumulate, Clip, LayerAdaptation, Lazy, Lookahead, PiecewiseLinear, Transform, WeightDecay

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SOURCE", "TITLE", "counted_by_calls", "draw", "measure"]

TITLE = Words("Laws of six derived optimizers", "六种派生优化器的规律")
SOURCE = "https://kexue.fm/archives/7094"

_CLAIMED = {2: 0.64, 4: 0.55, 16: 0.49}
_KNOTS = {1000: 1.0, 2000: 0.1}
_FACTORS = {0: 0.0, 500: 0.5, 1000: 1.0, 1500: 0.55, 2000: 0.1, 5000: 0.1}
_RATE, _SLOPE, _K, _ALPHA, _START, _MINIMUM = 0.1, 0.7, 5, 0.5, 2.5, 2.0
_SIX: tuple[Transform, ...] = (WeightDecay(0.3), LayerAdaptation(), PiecewiseLinear({2: 1, 5: 0.1}), Accumulate(2), Lookahead(2, 0.3),
                               Lazy(("embedding",)))  # fmt: skip

Batch = tuple[Tensor, Tensor]
Make = Callable[[nn.Module, Sequence[Transform]], Derived]


class _FromZero(Lookahead):
    """Lookahead as bert4keras has it: the slow copy begins at 0."""

    def begin(self, parameter: Tensor, updates: int) -> Tensor:
        return torch.zeros_like(parameter)


def counted_by_calls(n: int, *, updates: int = 1, betas: tuple[float, float] = (0.9, 0.999)) -> tuple[list[float], int]:
    """bert4keras' Adam over n calls, of a constant gradient 1: the lengths of its first real updates at rate 1 (right: 1 each), and how
    many of all its updates had an empty gradient. It updates where call % n = 0, call 0 too, and corrects the bias by call + 1."""
    first = second = gathered = 0.0
    lengths, empty = [], 0
    for call in range(n * updates + 1):
        if call % n == 0:
            gradient, gathered = gathered / n, 0.0
            first = betas[0] * first + (1 - betas[0]) * gradient
            second = betas[1] * second + (1 - betas[1]) * gradient**2
            one, two = first / (1 - betas[0] ** (call + 1)), second / (1 - betas[1] ** (call + 1))
            if gradient == 0:
                empty += 1
            else:
                lengths.append(one / two**0.5)
        gathered += 1.0
    return lengths, empty


def measure(*, seed: int = 0) -> Found:
    """Every law of the table, and the courses that the figure draws."""
    rows = (*_accumulation(seed), *_lookahead(), *_layers(seed), *_decay(seed), *_rest(seed))
    sizes = list(range(2, 33))
    steps = list(range(31))
    course = {name: _course(transforms, len(steps) - 1) for name, transforms in (
        ("SGD", []), ("lookahead", [Lookahead(_K, _ALPHA)]), ("slow copy from 0", [_FromZero(_K, _ALPHA)]))}  # fmt: skip
    return Found(rows, {
        "sizes": sizes, "by calls": [counted_by_calls(n)[0][0] for n in sizes], "ours": [_first_update(n) for n in sizes],
        "claimed": [[n, share] for n, share in _CLAIMED.items()], "steps": steps, "course": course, "minimum": _MINIMUM,
        "moves": {"LAMB": _moves(seed, _lamb, 30), "Adam": _moves(seed, _adam, 30)}, "rate": 0.01,
    })  # fmt: skip


def draw(figure: Figure, series: Mapping[str, Any]) -> None:
    """Adam's first update after accumulation; lookahead's two starts; how far matrices move by LAMB and by Adam."""
    left, middle, right = figure.subplots(1, 3)
    left.plot(series["sizes"], series["ours"], color="tab:blue", label="fishpaw")
    left.plot(series["sizes"], series["by calls"], color="tab:red", label="counted by calls")
    for n, share in series["claimed"]:
        left.plot([0, n], [share, share], color="black", linestyle="--", linewidth=0.8)
        left.annotate(f"{share}", (n, share), xytext=(3, 4), textcoords="offset points", fontsize=8)
    left.set_xlim(0, 33)
    left.set_ylim(0.4, 1.1)
    left.set_xlabel("n, calls per update")
    left.set_ylabel("Adam's first update / right one")
    left.legend(fontsize=8, loc="center right", bbox_to_anchor=(1, 0.7))
    for (name, values), colour in zip(series["course"].items(), ("tab:gray", "tab:blue", "tab:red"), strict=True):
        middle.plot(series["steps"], values, color=colour, label=name)
    middle.axhline(series["minimum"], color="black", linestyle="--", linewidth=0.8, label="minimum")
    middle.set_xlabel("updates")
    middle.set_ylabel("weight")
    middle.set_ylim(0.4, 2.6)
    middle.legend(fontsize=8, loc="lower right")
    for (name, courses), colour in zip(series["moves"].items(), ("tab:blue", "tab:gray"), strict=True):
        for number, values in enumerate(courses.values()):
            right.plot(range(1, len(values) + 1), values, color=colour, label=name if number == 0 else None, alpha=0.8)
    right.axhline(series["rate"], color="black", linestyle="--", linewidth=0.8, label="rate")
    right.set_ylim(bottom=0)
    right.set_xlabel("updates")
    right.set_ylabel("|move| / |matrix|, three matrices")
    right.legend(fontsize=8)


# What is trained

class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.inner, self.outer = nn.Embedding(7, 5), nn.Linear(5, 11), nn.Linear(11, 3)

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.outer(self.inner(self.embedding(ids)).tanh())            # [b 3]
        return scores


def _net(seed: int) -> _Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _Net().double()


def _batches(seed: int, sizes: Iterable[int]) -> list[Batch]:
    noise = torch.Generator().manual_seed(seed)
    return [(torch.randint(7, (size,), generator=noise), torch.randint(3, (size,), generator=noise)) for size in sizes]


def _sgd(model: nn.Module, transforms: Sequence[Transform]) -> Derived:
    return derive(torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9), transforms)


def _adam(model: nn.Module, transforms: Sequence[Transform], *, decay: float = 0.0) -> Derived:
    return derive(torch.optim.Adam(model.named_parameters(), lr=0.01, weight_decay=decay), transforms)


def _lamb(model: nn.Module, transforms: Sequence[Transform]) -> Derived:
    base = torch.optim.AdamW(model.named_parameters(), lr=0.01, weight_decay=0)
    return derive(base, [WeightDecay(0.1), LayerAdaptation(), *transforms])


def _run(optimizer: Derived, model: nn.Module, batches: Iterable[Batch], *, counted: bool = False) -> None:
    """A call a batch, of the mean loss; counted: of the sum and its count."""
    for ids, labels in batches:
        optimizer.zero_grad()
        total = cross_entropy(model(ids), labels, reduction="sum")
        if counted:
            total.backward()
            optimizer.step(count=len(labels))
        else:
            (total / len(labels)).backward()
            optimizer.step()


def _gap(one: nn.Module, other: nn.Module) -> float:
    """The largest difference of two tensors, relative to the larger norm."""
    pairs = [(a.detach(), b.detach()) for a, b in zip(one.parameters(), other.parameters(), strict=True)]
    return max(float((a - b).norm() / torch.maximum(a.norm(), b.norm())) for a, b in pairs)


# The laws

def _accumulated(make: Make, seed: int, *, sizes: Sequence[int], counted: bool) -> float:
    """How far 8 updates of accumulated parts are from those of the whole batches."""
    parts, whole = _net(seed), _net(seed)
    batches = [_batches(seed + step, sizes) for step in range(8)]
    _run(make(parts, [Clip(0.05), Accumulate(len(sizes))]), parts, itertools.chain.from_iterable(batches), counted=counted)
    joined = [(torch.cat([one for one, _ in each]), torch.cat([other for _, other in each])) for each in batches]
    _run(make(whole, [Clip(0.05)]), whole, joined)
    return _gap(parts, whole)


def _first_update(n: int) -> float:
    """Ours: the length of the first update of Adam at rate 1, from a constant gradient accumulated over n calls."""
    theta = nn.Parameter(torch.zeros((), dtype=torch.float64))
    optimizer = derive(torch.optim.Adam([theta], lr=1.0, eps=0), [Accumulate(n)])
    for _ in range(n):
        theta.grad = torch.ones_like(theta)
        optimizer.step()
    return abs(float(theta.detach()))


def _accumulation(seed: int) -> list[Row]:
    rows = [
        Row(Words(f"Accumulation over 4 equal parts against one batch, clipped, {name}: relative difference",
                  f"{name}：4 个等长小批累积与一个大批（含裁剪）的相对差"), 1e-5,
            _accumulated(make, seed, sizes=(3, 3, 3, 3), counted=False), "<=")
        for name, make in (("SGD", _sgd), ("Adam", _adam), ("LAMB", _lamb))
    ]  # fmt: skip
    unequal = (2, 11, 1, 5)
    rows += [
        Row(Words("The same with parts of 2, 11, 1, 5 tokens, weighted by their counts, SGD",
                  "同上，2、11、1、5 个词元的小批，按词元数加权，SGD"),
            1e-5, _accumulated(_sgd, seed, sizes=unequal, counted=True), "<="),
        Row(Words("The same as a mean of means: wrong by at least", "同上，但取均值的均值：误差至少"), 1e-3,
            _accumulated(_sgd, seed, sizes=unequal, counted=False), ">="),
    ]  # fmt: skip
    for n, share in _CLAIMED.items():
        rows.append(Row(Words(f"bert4keras' Adam, n = {n}: first real update / right one",
                              f"bert4keras 的 Adam，n = {n}：首次有效更新与正确值之比"),
                        share, counted_by_calls(n)[0][0], within=0.006))  # fmt: skip
    rows += [
        Row(Words("Its updates with an empty gradient", "其中梯度为空的更新次数"), 1, counted_by_calls(4, updates=3)[1]),
        Row(Words("Ours, the worst of n = 2, 4, 16", "本库，n = 2、4、16 中最差者"), 1.0,
            min((_first_update(n) for n in _CLAIMED), key=lambda share: -abs(share - 1)), within=1e-6),
    ]  # fmt: skip
    return rows


def _course(transforms: Sequence[Transform], steps: int, *, slope: float = _SLOPE) -> list[float]:
    """SGD on a (theta - minimum)^2 / 2: theta before and after each update."""
    theta = nn.Parameter(torch.tensor(_START, dtype=torch.float64))
    optimizer = derive(torch.optim.SGD([theta], lr=_RATE), transforms)
    found = [_START]
    for _ in range(steps):
        theta.grad = slope * (theta.detach() - _MINIMUM)
        optimizer.step()
        found.append(float(theta.detach()))
    return found


def _lookahead() -> list[Row]:
    outer = 1 - _ALPHA + _ALPHA * (1 - _RATE * _SLOPE) ** _K
    course = _course([Lookahead(_K, _ALPHA)], 8 * _K)
    expected = [_MINIMUM + outer**loop * (_START - _MINIMUM) for loop in range(9)]
    frozen = _course([Lookahead(_K, 0.0)], 8 * _K)[::_K]
    base, same = _course([], 40), _course([Lookahead(1, 1.0)], 40)
    still, shrunk = (_course([kind(_K, _ALPHA)], _K, slope=0.0)[-1] / _START for kind in (Lookahead, _FromZero))
    return [
        Row(Words("Lookahead on a quadratic against (1 - a + a (1 - g l)^k)^m, m = 1 … 8",
                  "二次函数上 Lookahead 与 (1 - a + a (1 - g l)^k)^m 之差，m = 1 … 8"),
            1e-6, max(abs(one - other) for one, other in zip(course[::_K], expected, strict=True)), "<="),
        Row(Words("Lookahead with k = 1, alpha = 1 against its base", "k = 1、alpha = 1 的 Lookahead 与原优化器之差"),
            0.0, max(abs(one - other) for one, other in zip(base, same, strict=True)), within=1e-12),
        Row(Words("Lookahead with alpha = 0: distance from the start at its syncs", "alpha = 0 的 Lookahead：同步时与起点的距离"),
            0.0, max(abs(one - _START) for one in frozen)),
        Row(Words("A slow copy from 0: the first sync multiplies resting weights by", "慢权重从 0 开始：首次同步把静止的权重乘以"),
            _ALPHA, shrunk),
        Row(Words("Ours multiplies them by", "本库乘以"), 1.0, still),
    ]  # fmt: skip


def _moves(seed: int, make: Make, steps: int) -> dict[str, list[float]]:
    """|move| / |matrix| at each update; LAMB without decay."""
    model = _net(seed)
    optimizer = lambs.lamb(model, learning_rate=0.01, weight_decay=0) if make is _lamb else make(model, [])
    matrices = {name: p for name, p in model.named_parameters() if p.ndim == 2}
    found: dict[str, list[float]] = {name: [] for name in matrices}
    for batch in _batches(seed, [13] * steps):
        before = {name: p.detach().clone() for name, p in matrices.items()}
        _run(optimizer, model, [batch])
        for name, p in matrices.items():
            found[name].append(float((p.detach() - before[name]).norm() / before[name].norm()))
    return found


def _plain_lamb(model: nn.Module, batches: Sequence[Batch], *, rate: float, decay: float) -> None:
    """Algorithm 2 of the paper (arXiv:1904.00962), all tensors adapted."""
    first, second = ({name: torch.zeros_like(p) for name, p in model.named_parameters()} for _ in range(2))
    for step, (ids, labels) in enumerate(batches, 1):
        gradients = torch.autograd.grad(cross_entropy(model(ids), labels), list(model.parameters()))
        for (name, p), g in zip(model.named_parameters(), gradients, strict=True):
            first[name], second[name] = 0.9 * first[name] + 0.1 * g, 0.999 * second[name] + 0.001 * g**2
            h = first[name] / (1 - 0.9**step) / ((second[name] / (1 - 0.999**step)).sqrt() + 1e-8) + decay * p.detach()
            p.data -= rate * p.detach().norm() / h.norm() * h


def _layers(seed: int) -> list[Row]:
    batches = _batches(seed, [13] * 100)
    ours, plain = _net(seed), _net(seed)
    _run(_lamb(ours, []), ours, batches)
    _plain_lamb(plain, batches, rate=0.01, decay=0.1)
    off = max(abs(move / 0.01 - 1) for moves in _moves(seed, _lamb, 30).values() for move in moves)
    return [
        Row(Words("LAMB without decay: |move| against rate x |matrix|, relative", "无衰减 LAMB：|移动| 与 学习率 × |矩阵| 的相对差"),
            1e-5, off, "<="),
        Row(Words("LAMB against its paper's formula after 100 updates", "LAMB 与论文公式，100 次更新后的差"),
            1e-6, _gap(ours, plain), "<="),
    ]  # fmt: skip


def _decay(seed: int) -> list[Row]:
    batches = _batches(seed, [13] * 100)

    def gap(one: Callable[[nn.Module], Derived], other: Callable[[nn.Module], Derived]) -> float:
        first, second = _net(seed), _net(seed)
        for model, make in ((first, one), (second, other)):
            _run(make(model), model, batches)
        return _gap(first, second)

    def sgd(model: nn.Module, *, l2: float = 0.0, decay: float = 0.0) -> Derived:
        base = torch.optim.SGD(model.named_parameters(), lr=0.1, weight_decay=l2)
        return derive(base, [WeightDecay(decay)] if decay else [])

    def adamw(model: nn.Module) -> Derived:
        return derive(torch.optim.AdamW(model.named_parameters(), lr=0.01, weight_decay=0.1))

    return [
        Row(Words("SGD: decoupled decay against L2 in the loss", "SGD：解耦衰减与损失中 L2 之差"), 1e-7,
            gap(lambda model: sgd(model, decay=0.1), lambda model: sgd(model, l2=0.1)), "<="),
        Row(Words("Adam: decoupled decay against L2 differs by at least", "Adam：解耦衰减与 L2 之差至少"), 1e-2,
            gap(lambda model: _adam(model, [WeightDecay(0.1)]), lambda model: _adam(model, [], decay=0.1)), ">="),
        Row(Words("Adam with decoupled decay against torch's AdamW after 100 updates",
                  "Adam 加解耦衰减与 torch 的 AdamW，100 次更新后的差"),
            1e-6, gap(lambda model: _adam(model, [WeightDecay(0.1)]), adamw), "<="),
    ]  # fmt: skip


def _rest(seed: int) -> list[Row]:
    factor = schedules.piecewise(_KNOTS)
    idle, all_active = _lazy(seed)
    return [
        Row(Words("{1000: 1, 2000: 0.1} at 0, 500, 1000, 1500, 2000, 5000: largest error",
                  "{1000: 1, 2000: 0.1} 在 0、500、1000、1500、2000、5000 处的最大误差"),
            0.0, max(abs(factor(step) - value) for step, value in _FACTORS.items()), within=1e-12),
        Row(Words("Lazy: rows without gradient that moved by a bit", "Lazy：无梯度却变动的行数"), 0, idle),
        Row(Words("Lazy with all rows active against its base", "所有行都有梯度时 Lazy 与原优化器之差"), 0.0, all_active),
        Row(Words("Of 64 combinations of six transforms, those that go on to other bits from a saved state",
                  "六种变换的 64 种组合中，从保存的状态继续后结果有一位不同的个数"), 0, sum(map(_forgets, _subsets()))),
    ]  # fmt: skip


def _lazy(seed: int) -> tuple[int, float]:
    model, full, base = _net(seed), _net(seed), _net(seed)
    optimizer = _adam(model, [WeightDecay(0.1), Lazy(("embedding",))])
    _run(optimizer, model, [(torch.arange(7), torch.arange(7) % 3)] * 3)               # moments everywhere first
    moved = 0
    for batch in _batches(seed, [2] * 9):
        before = model.embedding.weight.detach().clone()
        _run(optimizer, model, [batch])
        changed = (model.embedding.weight.detach() != before).any(1)                   # [7]
        changed[batch[0]] = False
        moved += int(changed.sum())
    everything = [(torch.arange(7), labels) for _, labels in _batches(seed, [7] * 9)]
    _run(_adam(full, [Lazy(("embedding",))]), full, everything)
    _run(_adam(base, []), base, everything)
    return moved, _gap(full, base)


def _subsets() -> list[tuple[Transform, ...]]:
    return [some for size in range(7) for some in itertools.combinations(_SIX, size)]


def _forgets(transforms: Sequence[Transform]) -> bool:
    """Whether a run that goes on from a copy of its state after 3 of 5 calls, amid an accumulation, ends elsewhere."""
    model, batches = _net(0), _batches(0, [5] * 5)
    optimizer = _adam(model, transforms)
    _run(optimizer, model, batches[:3])
    other = copy.deepcopy(model)
    again = _adam(other, transforms)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    _run(optimizer, model, batches[3:])
    _run(again, other, batches[3:])
    return not all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))
