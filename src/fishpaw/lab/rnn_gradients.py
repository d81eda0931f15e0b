"""State Jacobians of recurrent cells: the formulas gate by gate, their bounds, and how fast a product of them vanishes.

dh_t/dtheta = (dh_t/dh_(t-1)) dh_(t-1)/dtheta + the step's own part: what vanishes is the factor before the early part, not the gradient.
Scalar cells give the article's formulas, against central differences in fp64; torch's cells and the article's own give Lyapunov exponents
(the mean logarithm by which a step stretches, by QR). The source has no experiment: rows that compare cells test what its count of gates
suggests, and come out either way. Limits of the formulas, each a row: sup over U of |(1 - h_t²) U| = 0.447743 / |h_(t-1)| is of a step
without input or bias, and input raises it; an LSTM's state is (c, h), and the product of its dc_t/dc_(t-1), o_(t-1) held, is not
dc_T/dc_0; the mean logarithm of a step's greatest singular value is above the exponent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fishpaw.lab.cells import (
    CELLS,
    Kind,
    cell,
    exponents,
    growth,
    gru,
    gru_terms,
    jacobians,
    lstm,
    lstm_terms,
    proposed,
    proposed_terms,
    run,
    simple,
    simple_terms,
)
from fishpaw.lab.findings import Found, Row, Words, sampled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SOURCE", "TITLE", "draw", "measure"]

TITLE = Words("Gradients of RNN, LSTM and GRU, gate by gate", "RNN、LSTM、GRU 的梯度，逐门分析")
SOURCE = "https://kexue.fm/archives/7888"

SIZE, INPUTS, WASHOUT, STEPS, SEEDS = 11, 5, 30, 128, 12
EVERY = 8
"""Depths at which the norm of the product is taken: each eighth step."""

VARIANTS: dict[str, tuple[Kind, float]] = {
    "RNN": ("rnn", 0.0), "LSTM": ("lstm", 0.0), "GRU": ("gru", 0.0), "proposed": ("proposed", 0.0),
    "LSTM, bias 3": ("lstm", 3.0), "GRU, bias 3": ("gru", 3.0), "proposed, bias 3": ("proposed", 3.0),
}  # fmt: skip
"""Name: (cell, what is added to the bias of the gate that keeps)."""


def measure(*, seed: int = 0) -> Found:
    """seed: of the scalar cells; the cells of many units have the seeds seed, seed + 1, …"""
    draws = torch.Generator().manual_seed(seed)
    steps = {name: [_steps(kind, seed + run, keep) for run in range(SEEDS)] for name, (kind, keep) in VARIANTS.items()}
    tops = {name: [float(exponents(one)[0]) for one in runs] for name, runs in steps.items()}
    norms = {name: [growth(one, every=EVERY) for one in runs] for name, runs in steps.items()}
    rows = (*_formula_rows(draws), *_bound_rows(seed), *_cell_rows(draws, seed), *_alone_rows(draws), *_exponent_rows(steps["RNN"][0]),
            *_vanishing_rows(seed, tops), *_rest_rows(seed))  # fmt: skip
    return Found(rows, _curves(tops, norms, seed))


def draw(figure: Figure, series: Mapping[str, Any]) -> None:
    """Left: the norm of the product over depth. Middle: what the other terms are beside the gate's own. Right: SimpleRNN's factor."""
    left, middle, right = figure.subplots(1, 3)
    for (name, values), colour in zip(series["norms"].items(), ("C0", "C1", "C2", "C3", "C1", "C2", "C3"), strict=True):
        left.plot(series["depth"], values, label=name, color=colour, marker="." if "bias" in name else None, markersize=4, linewidth=1.2)
    for gate in series["gates"]:
        left.plot(series["depth"], [depth * math.log10(gate) for depth in series["depth"]], "--", color="grey", linewidth=0.8)
    left.set(xlabel="steps T", ylabel="log10 |d state_T / d state_0|", title="dashed: σ(3)^T and σ(0)^T")
    left.legend(frameon=False, fontsize=7)
    for name, values in series["rests"].items():
        middle.loglog(series["scales"], values, label=name, color={"LSTM": "C1", "GRU": "C2", "proposed": "C3"}[name])
    middle.set(xlabel="standard deviation of U", ylabel="mean |Jacobian - its gate|", title="scalar cells: the other terms")
    middle.legend(frameon=False, fontsize=7)
    for drive, values in zip(series["drives"], series["factors"], strict=True):
        right.plot(series["u"], values, label=f"x = {drive:g}")
    right.axhline(series["bound"], color="grey", linestyle="--", linewidth=0.8)
    right.set(xlabel="U", ylabel="|(1 - h²) U|, h before: 0.5", title="dashed: 0.4477 / 0.5")
    right.legend(frameon=False, fontsize=7)


def _random(draws: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=draws, dtype=torch.float64)


def _formula_rows(draws: torch.Generator) -> list[Row]:
    count, near = 997, 1e-5
    state, gate = _random(draws, count).tanh(), _random(draws, count).sigmoid()
    x, u = _random(draws, 3, count), 2 * _random(draws, 3, count)
    pairs: list[tuple[str, Callable[[Tensor], Tensor], Tensor]] = [
        ("SimpleRNN", lambda s: simple(s, x, u), simple_terms(state, x, u)),
        ("LSTM", lambda s: lstm(s, x, u, gate=gate), lstm_terms(state, x, u, gate=gate)),
        ("GRU", lambda s: gru(s, x, u), gru_terms(state, x, u)),
        ("proposed", lambda s: proposed(s, x, u, gate=gate), proposed_terms(state, x, u, gate=gate)),
    ]
    rows = []
    for name, step, terms in pairs:
        error = float(((step(state + near) - step(state - near)) / (2 * near) - terms.sum(0)).abs().max())
        rows.append(Row(Words(f"{name}: the formula against central differences", f"{name}：公式与中心差分之差"), 0.0, error, within=1e-7))
    return rows


def _bound_rows(seed: int) -> list[Row]:
    place, top = _peak()
    bounds = [_steepest(h, 0.0) * h for h in (0.1, 0.5, 0.9)]
    kink = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    relu, = torch.autograd.grad((100 * kink).relu(), kink)
    _, step = cell("gru", INPUTS, SIZE, seed=seed, gain=5.0)
    states = run(step, 5 * _random(torch.Generator().manual_seed(seed), 400, 7, INPUTS), torch.zeros(7, SIZE, dtype=torch.float64))
    return [
        Row(Words("the greatest |x sech² x|", "|x sech² x| 的最大值"), 0.447743, top, within=5e-7),
        Row(Words("which is at", "最大值点"), 0.771701, place, within=2e-6),
        Row(Words("without input, |h| times the greatest |(1 - h_t²) U| over U: least of three h",
                  "无输入时 |h| 乘 |(1 - h_t²) U| 对 U 的上确界：三个 h 中最小"),
            0.447743, min(bounds), within=1e-6),
        Row(Words("the same: greatest of three h", "同上：三个 h 中最大"), 0.447743, max(bounds), within=1e-6),
        Row(Words("an input of 3 raises it: the bound isn't one over all inputs", "输入为 3 时增大：该界并非对所有输入成立"),
            3.0, _steepest(0.5, 3.0) * 0.5, ">="),
        Row(Words("with relu nothing bounds it: U = 100", "用 relu 则无界：U = 100"), 100.0, float(relu), ">="),
        Row(Words("a GRU that begins with 0 stays within -1 … 1 (weights and inputs times 5)",
                  "从 0 出发的 GRU 始终在 -1 … 1 内（权重、输入乘 5）"),
            1.0, float(states.abs().max()), "<="),
    ]


def _cell_rows(draws: torch.Generator, seed: int) -> list[Row]:
    worst = 0.0
    for kind in CELLS:
        _, step = cell(kind, INPUTS, SIZE, seed=seed, gain=2.0)
        x = _random(draws, 7, 1, INPUTS)
        states = run(step, x, 0.5 * _random(draws, 1, _width(kind)))                # [8 1 s]
        product = torch.linalg.multi_dot(list(jacobians(step, x[:, 0], states[:-1, 0]).flip(0)))
        near = 1e-5 * torch.eye(states.shape[-1], dtype=torch.float64)
        ends = [run(step, x.expand(-1, len(near), -1), states[0] + move)[-1] for move in (near, -near)]      # [s s]: a start a row
        measured = ((ends[0] - ends[1]) / 2e-5).T
        worst = max(worst, float((product - measured).abs().max() / measured.abs().max()))
    return [
        Row(Words("cells of many units: the product of seven Jacobians against central differences (relative)",
                  "多单元：七步雅可比之积与中心差分之差（相对）"),
            0.0, worst, within=1e-7),
    ]


def _exponent_rows(matrices: Tensor) -> list[Row]:
    top = float(exponents(matrices)[0])
    product = growth(matrices)[-1] * math.log(10) / len(matrices)
    mean = float(torch.linalg.matrix_norm(matrices, 2).log().mean())
    return [
        Row(Words("the exponent by QR is the logarithm of the product's norm a step, up to a constant over T",
                  "QR 所得指数等于雅可比之积范数对数的每步平均（差一个常数 / T）"),
            0.0, top - product, within=4 / len(matrices)),
        Row(Words("the mean logarithm of each step's greatest singular value is above it", "每步最大奇异值对数的均值高于它"),
            0.05, mean - top, ">="),
    ]


def _vanishing_rows(seed: int, tops: Mapping[str, list[float]]) -> list[Row]:
    """Exponents apart, in nats a step, over seeds."""
    kinds: tuple[Kind, ...] = ("lstm", "gru", "proposed")
    wild = {kind: [float(exponents(_steps(kind, seed + run, 0.0, 6.0))[0]) for run in range(SEEDS)] for kind in kinds}
    late = [_late(seed + run) for run in range(SEEDS)]

    def above(first: list[float], second: list[float], en: str, zh: str) -> Row:
        return sampled(Words(en, zh), 0.0, [a - b for a, b in zip(first, second, strict=True)], relation=">=")

    return [
        above(tops["LSTM"], tops["RNN"], "LSTM's state Jacobian vanishes more slowly than SimpleRNN's (torch's initialisation; exponents)",
              "LSTM 的状态雅可比比 SimpleRNN 消失得慢（torch 初始化；指数之差）"),
        above(tops["GRU"], tops["RNN"], "GRU's vanishes more slowly than SimpleRNN's", "GRU 比 SimpleRNN 慢"),
        above(tops["LSTM"], tops["GRU"], "LSTM's vanishes more slowly than GRU's", "LSTM 比 GRU 慢"),
        above(tops["proposed"], tops["GRU"], "the proposed cell's vanishes more slowly than GRU's", "文中新单元比 GRU 慢"),
        above(tops["LSTM, bias 3"], tops["LSTM"], "a forget bias of 3 slows LSTM's", "遗忘偏置加 3 使 LSTM 变慢"),
        above(tops["GRU, bias 3"], tops["GRU"], "the same bias slows GRU's", "同样的偏置使 GRU 变慢"),
        above(tops["LSTM, bias 3"], tops["GRU, bias 3"], "with that bias LSTM's vanishes more slowly than GRU's",
              "加此偏置后 LSTM 比 GRU 慢"),
        above(wild["gru"], wild["lstm"], "GRU is less stable: with weights of the state times 6 its exponent is above LSTM's",
              "GRU 较不稳定：状态权重乘 6 时其指数高于 LSTM"),
        above(wild["gru"], wild["proposed"], "and above the proposed cell's", "也高于文中新单元"),
        sampled(Words("SimpleRNN's gradient isn't lost, only its early part: share that the first 40 of 60 steps have in it",
                      "SimpleRNN 的梯度并未消失，消失的只是早期部分：60 步中前 40 步所占份额"),
                0.01, late, relation="<="),
    ]


def _rest_rows(seed: int) -> list[Row]:
    rows = []
    for scale in (1.0, 8.0):
        rests = [_rests(seed + run, scale) for run in range(SEEDS)]
        for name, words in (("LSTM", ("LSTM's", "LSTM 的")), ("proposed", ("the proposed cell's", "文中新单元的"))):
            claim = Words(f"scalar cells, U of deviation {scale:g}: GRU's other terms, mean |Jacobian - gate|, are greater than {words[0]}",
                          f"标量单元，U 标准差 {scale:g}：GRU 其余各项的 |雅可比 - 门| 均值大于{words[1]}")  # fmt: skip
            rows.append(sampled(claim, 0.0, [one["GRU"] - one[name] for one in rests], relation=">="))
    return rows


def _peak() -> tuple[float, float]:
    """Where |x sech² x| is greatest, and how great."""
    low, high = 0.0, 5.0
    for _ in range(3):
        x = torch.linspace(low, high, 10_001, dtype=torch.float64)                  # [10001]
        best = int((x * (1 - x.tanh().square())).argmax())
        low, high = float(x[best - 1]), float(x[best + 1])
    return float(x[best]), float(x[best] * (1 - x[best].tanh().square()))


def _steepest(h: float, drive: float) -> float:
    """The greatest |(1 - h_t²) U| over U from -8 / h to 8 / h."""
    u = torch.linspace(-8, 8, 80_001, dtype=torch.float64) / h                      # [80001]: flat at the top, 1e-8 off
    return float(simple_terms(torch.full_like(u, h), torch.full_like(u, drive)[None], u[None]).abs().max())


def _alone_rows(draws: torch.Generator) -> list[Row]:
    """499 scalar LSTMs over five steps, o_0 held: dc_5/dc_0 as products of Jacobians."""
    count, depth, near = 499, 5, 2e-6
    u, x = 2 * _random(draws, 4, count), _random(draws, depth, 4, count)            # gates f, i, ĉ, o

    def step(drive: Tensor, state: Tensor) -> Tensor:
        c, h = state.unbind(-1)
        f, i, new, out = (drive + u.T * h[:, None]).unbind(-1)
        c = f.sigmoid() * c + i.sigmoid() * new.tanh()
        return torch.stack((c, out.sigmoid() * c.tanh()), -1)

    drives = x.transpose(1, 2)                                                      # [t n 4]
    start, gate = _random(draws, count), _random(draws, count).sigmoid()
    states, after, before = (run(step, drives, torch.stack((c, gate * c.tanh()), -1)) for c in (start, start + near, start - near))
    measured = (after - before)[-1, :, 0] / (2 * near)
    alone = torch.ones(count, dtype=torch.float64)
    whole = torch.stack((torch.ones_like(start), gate * (1 - start.tanh().square())), -1)[..., None]      # [n 2 1]
    for index in range(depth):
        c, h = states[index].unbind(-1)
        alone = alone * lstm_terms(c, x[index, :3], u[:3], gate=h / c.tanh()).sum(0)
        whole = jacobians(step, drives[index], states[index]) @ whole
    size = float(measured.abs().mean())
    wrong, right = float((alone - measured).abs().mean()) / size, float((whole[:, 0, 0] - measured).abs().max()) / size
    return [
        Row(Words("LSTM: the product of the Jacobians of (c, h) is dc_T/dc_0, T = 5 (relative)",
                  "LSTM：(c, h) 的雅可比之积等于 dc_T/dc_0，T = 5（相对）"),
            0.0, right, within=1e-7),
        Row(Words("LSTM: the product of dc_t/dc_(t-1) alone is not (mean error / mean size)",
                  "LSTM：仅 dc_t/dc_(t-1) 之积则不等（平均误差 / 平均大小）"),
            0.01, wrong, ">="),
    ]


def _width(kind: Kind) -> int:
    return SIZE if kind in ("rnn", "gru") else 2 * SIZE


def _steps(kind: Kind, seed: int, keep: float, gain: float = 1.0) -> Tensor:
    """Jacobians of successive steps of a cell that reads normal noise, after a washout, [t s s]."""
    _, step = cell(kind, INPUTS, SIZE, seed=seed, keep=keep, gain=gain)
    x = _random(torch.Generator().manual_seed(seed + 1000), WASHOUT + STEPS, 1, INPUTS)
    states = run(step, x, torch.zeros(1, _width(kind), dtype=torch.float64))        # [t+1 1 s]
    return jacobians(step, x[WASHOUT:, 0], states[WASHOUT:-1, 0])


def _late(seed: int) -> float:
    """SimpleRNN, the sum of h_60: how much of its gradient by U comes from the first 40 steps, as a share of the whole's norm."""
    module, step = cell("rnn", INPUTS, SIZE, seed=seed)
    weight = module.get_parameter("weight_hh").requires_grad_()
    x = _random(torch.Generator().manual_seed(seed), 60, 1, INPUTS)
    start = torch.zeros(1, SIZE, dtype=torch.float64)
    whole, = torch.autograd.grad(run(step, x, start)[-1].sum(), weight)
    recent, = torch.autograd.grad(run(step, x[40:], run(step, x[:40], start)[-1].detach())[-1].sum(), weight)
    return float((whole - recent).norm() / whole.norm())


def _rests(seed: int, scale: float, count: int = 499) -> dict[str, float]:
    """Scalar cells after 20 steps of normal noise, U of deviation `scale`: the mean of |Jacobian - its first term|."""
    draws = torch.Generator().manual_seed(seed)
    u = scale * _random(draws, 4, count)
    c, h, d = torch.zeros(3, count, dtype=torch.float64)                            # LSTM's c, GRU's h, the proposed cell's c
    out = gate = torch.full((count,), 0.5, dtype=torch.float64)
    for _ in range(20):
        x = _random(draws, 4, count)
        found = {"LSTM": lstm_terms(c, x, u, gate=out), "GRU": gru_terms(h, x, u), "proposed": proposed_terms(d, x, u, gate=gate)}
        before = out * c.tanh(), gate * d
        c, h, d = lstm(c, x, u, gate=out), gru(h, x, u), proposed(d, x, u, gate=gate)
        out, gate = ((x[3] + u[3] * one).sigmoid() for one in before)
    return {name: float(terms[1:].sum(0).abs().mean()) for name, terms in found.items()}


def _curves(tops: Mapping[str, list[float]], norms: Mapping[str, list[list[float]]], seed: int) -> dict[str, Any]:
    means = {name: [sum(column) / len(column) for column in zip(*runs, strict=True)] for name, runs in norms.items()}
    scales = torch.logspace(-1, 1, 13, dtype=torch.float64).tolist()
    rests = [_rests(seed, scale) for scale in scales]
    u, drives = torch.linspace(-12, 12, 241, dtype=torch.float64), (0.0, 1.0, 3.0)          # [241]
    factors = [simple_terms(torch.full_like(u, 0.5), torch.full_like(u, drive)[None], u[None])[0].abs().tolist() for drive in drives]
    return {
        "depth": list(range(EVERY, STEPS + 1, EVERY)), "norms": means, "exponents": dict(tops), "gates": [1 / (1 + math.exp(-3)), 0.5],
        "scales": scales, "rests": {name: [one[name] for one in rests] for name in rests[0]}, "u": u.tolist(), "drives": list(drives),
        "factors": factors, "bound": 0.447743 / 0.5,
    }  # fmt: skip
