"""Recurrent cells and their state Jacobians: scalar forms term by term, torch's cells, products over steps, Lyapunov exponents.

Scalar cells are those of https://kexue.fm/archives/7888 (x [gates n] is what input and bias give each gate, u [gates n] its weight of the
state; each of the n is a cell of its own). A step of many units takes x [n i] and a state [n s] and gives the next state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["CELLS", "Kind", "Proposed", "Step", "cell", "exponents", "growth", "gru", "gru_terms", "jacobians", "lstm", "lstm_terms",
           "proposed", "proposed_terms", "run", "simple", "simple_terms"]

Kind = Literal["rnn", "lstm", "gru", "proposed"]
Step = Callable[[Tensor, Tensor], Tensor]
"""x, state -> the next state."""


def simple(h: Tensor, x: Tensor, u: Tensor) -> Tensor:
    """tanh(x + U h)."""
    return (x[0] + u[0] * h).tanh()


def simple_terms(h: Tensor, x: Tensor, u: Tensor) -> Tensor:
    """dh_t/dh_(t-1) = (1 - h_t²) U, [1 n]."""
    return ((1 - simple(h, x, u).square()) * u[0])[None]


def lstm(c: Tensor, x: Tensor, u: Tensor, *, gate: Tensor) -> Tensor:
    """f c + i ĉ with h = o tanh(c); gates f, i, ĉ; gate: o_(t-1), held."""
    h = gate * c.tanh()
    return (x[0] + u[0] * h).sigmoid() * c + (x[1] + u[1] * h).sigmoid() * (x[2] + u[2] * h).tanh()


def lstm_terms(c: Tensor, x: Tensor, u: Tensor, *, gate: Tensor) -> Tensor:
    """dc_t/dc_(t-1) as its four summands, [4 n], k = o (1 - tanh² c): f, f (1-f) k c U_f, i (1-i) k ĉ U_i, (1-ĉ²) k i U_c."""
    h, k = gate * c.tanh(), gate * (1 - c.tanh().square())
    f, i, new = (x[0] + u[0] * h).sigmoid(), (x[1] + u[1] * h).sigmoid(), (x[2] + u[2] * h).tanh()
    return torch.stack((f, f * (1 - f) * k * c * u[0], i * (1 - i) * k * new * u[1], (1 - new.square()) * k * i * u[2]))


def gru(h: Tensor, x: Tensor, u: Tensor) -> Tensor:
    """(1 - z) h + z ĥ, ĥ = tanh(x + U (r h)); gates z, r, ĥ."""
    z, r = (x[0] + u[0] * h).sigmoid(), (x[1] + u[1] * h).sigmoid()
    return (1 - z) * h + z * (x[2] + u[2] * r * h).tanh()


def gru_terms(h: Tensor, x: Tensor, u: Tensor) -> Tensor:
    """dh_t/dh_(t-1), [4 n]: 1 - z, -z (1-z) h U_z, z (1-z) ĥ U_z, (1-ĥ²) r (1 + (1-r) h U_r) z U_h."""
    z, r = (x[0] + u[0] * h).sigmoid(), (x[1] + u[1] * h).sigmoid()
    new = (x[2] + u[2] * r * h).tanh()
    last = (1 - new.square()) * r * (1 + (1 - r) * h * u[1]) * z * u[2]
    return torch.stack((1 - z, -z * (1 - z) * h * u[0], z * (1 - z) * new * u[0], last))


def proposed(c: Tensor, x: Tensor, u: Tensor, *, gate: Tensor) -> Tensor:
    """(1 - z) c + z ĉ with h = r c and ĉ = tanh(x + U h) of the whole h; gates z, ĉ; gate: r_(t-1), held."""
    h = gate * c
    z = (x[0] + u[0] * h).sigmoid()
    return (1 - z) * c + z * (x[1] + u[1] * h).tanh()


def proposed_terms(c: Tensor, x: Tensor, u: Tensor, *, gate: Tensor) -> Tensor:
    """dc_t/dc_(t-1), [4 n]: 1 - z, -z (1-z) r c U_z, z (1-z) r ĉ U_z, (1-ĉ²) r z U_c."""
    h = gate * c
    z, new = (x[0] + u[0] * h).sigmoid(), (x[1] + u[1] * h).tanh()
    return torch.stack((1 - z, -z * (1 - z) * gate * c * u[0], z * (1 - z) * gate * new * u[0], (1 - new.square()) * gate * z * u[1]))


class Proposed(nn.Module):
    """The article's cell: c_t = (1 - z) c_(t-1) + z ĉ, h_t = r c_t, z, r and ĉ of x_t and h_(t-1). Weights begin as torch's cells' do."""

    def __init__(self, inputs: int, size: int) -> None:
        super().__init__()
        self.weight_ih, self.weight_hh = nn.Parameter(torch.empty(3 * size, inputs)), nn.Parameter(torch.empty(3 * size, size))
        self.bias_ih = nn.Parameter(torch.empty(3 * size))
        for weight in self.parameters():
            nn.init.uniform_(weight, -1 / math.sqrt(size), 1 / math.sqrt(size))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """x [n i], state h, c [n d] -> h, c."""
        h, c = state
        reset, update, new = (x @ self.weight_ih.T + self.bias_ih + h @ self.weight_hh.T).chunk(3, -1)
        c = (1 - update.sigmoid()) * c + update.sigmoid() * new.tanh()
        return reset.sigmoid() * c, c


CELLS: dict[Kind, Callable[[int, int], nn.Module]] = {"rnn": nn.RNNCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell, "proposed": Proposed}


def cell(kind: Kind, inputs: int, size: int, *, seed: int, keep: float = 0.0, gain: float = 1.0) -> tuple[nn.Module, Step]:
    """A cell in fp64 with torch's initialisation, and its step on states as one vector (h [n size], or h and c side by side).

    keep: added to the bias of the gate that keeps (LSTM's f, torch's GRU's z; taken from the article's z, which forgets). gain: what the
    weights of the state are multiplied by.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = CELLS[kind](inputs, size).double()
    with torch.no_grad():
        module.get_parameter("weight_hh").mul_(gain)
        if kind != "rnn":
            module.get_parameter("bias_ih")[size : 2 * size] += -keep if kind == "proposed" else keep       # the second gate of each
    module.requires_grad_(False)
    if kind in ("rnn", "gru"):
        return module, module
    return module, lambda x, state: torch.cat(module(x, state.chunk(2, -1)), -1)


def run(step: Step, x: Tensor, state: Tensor) -> Tensor:
    """x [t n i], state [n s] -> the states before each step and after the last, [t+1 n s]."""
    states = [state]
    for one in x:
        states.append(step(one, states[-1]))
    return torch.stack(states)


def jacobians(step: Step, x: Tensor, states: Tensor) -> Tensor:
    """x [n i], states [n s] -> d next state / d state of each, [n s s]: one row for all at a time, by autograd."""
    states = states.detach().requires_grad_()
    after = step(x, states)
    return torch.stack([torch.autograd.grad(after[:, i].sum(), states, retain_graph=True)[0] for i in range(states.shape[1])], 1)


def exponents(matrices: Tensor, count: int = 1) -> Tensor:
    """Jacobians of successive steps, [t s s] -> their `count` largest Lyapunov exponents by QR, in nats a step, [count]."""
    size = matrices.shape[-1]
    frame = torch.linalg.qr(torch.cos(torch.arange(size * count, dtype=torch.float64).view(size, count) ** 2))[0]        # [s count]
    total = torch.zeros(count, dtype=torch.float64)
    for matrix in matrices:
        frame, stretch = torch.linalg.qr(matrix @ frame)
        total += stretch.diagonal().abs().log()
    return total / len(matrices)


def growth(matrices: Tensor, *, every: int = 1) -> list[float]:
    """Jacobians of successive steps, [t s s] -> log10 of the spectral norm of the product of the first every, 2 every, … of them."""
    product, scale, found = torch.eye(matrices.shape[-1], dtype=matrices.dtype), 0.0, []
    for depth, matrix in enumerate(matrices, 1):
        product = matrix @ product
        if depth % every == 0:
            norm = float(torch.linalg.matrix_norm(product, 2))
            scale += math.log10(norm)
            product = product / norm                                    # it would underflow
            found.append(scale)
    return found
