"""Recurrent cells: torch's equations, Jacobians against loops, exponents against what is known of them. fp64."""

from __future__ import annotations

import math

import pytest
import torch

from fishpaw.lab.cells import (
    CELLS,
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

torch.set_num_threads(1)
KINDS = list(CELLS)


def noise(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def begun(kind, rows, size=7):
    return 0.5 * noise(rows, size * (1 if kind in ("rnn", "gru") else 2))


@pytest.mark.parametrize(("name", "step", "terms", "gates"), [
    ("rnn", simple, simple_terms, 1), ("lstm", lstm, lstm_terms, 3), ("gru", gru, gru_terms, 3), ("proposed", proposed, proposed_terms, 2),
])  # fmt: skip
def test_the_terms_add_up_to_autograds_derivative(name, step, terms, gates):
    state, x, u = noise(31).tanh().requires_grad_(), noise(3, 31), 2 * noise(3, 31).flip(0)
    held = {"gate": noise(31).sigmoid()} if name in ("lstm", "proposed") else {}
    expected, = torch.autograd.grad(step(state, x, u, **held).sum(), state)
    found = terms(state.detach(), x, u, **held)
    torch.testing.assert_close(found.sum(0), expected, atol=1e-14, rtol=0)
    if len(found) == 4:                                              # no summand may be left out
        assert all(float((found.sum(0) - one - expected).abs().max()) > 1e-3 for one in found)


def test_scalar_cells_are_torchs_with_one_unit():
    """The article's LSTM is torch's; its GRU multiplies h by r before U, torch's after (U h + b), the same where b is 0 and U scalar; and
    its z makes new, torch's keeps."""
    x, u = noise(3, 1), 2 * noise(3, 1)
    long, gated = torch.nn.LSTMCell(1, 1).double(), torch.nn.GRUCell(1, 1).double()
    h, c = torch.tensor([[0.3]], dtype=torch.float64), torch.tensor([[-0.7]], dtype=torch.float64)
    with torch.no_grad():
        for module, order, signs in ((long, (1, 0, 2), (1, 1, 1)), (gated, (1, 0, 2), (1, -1, 1))):
            module.bias_hh.zero_()
            module.weight_ih.zero_()
            for row, (gate, sign) in enumerate(zip(order, signs, strict=True)):
                module.bias_ih[row], module.weight_hh[row] = sign * x[gate], sign * u[gate]
        held = h[0] / c[0].tanh()
        torch.testing.assert_close(long(torch.zeros(1, 1).double(), (h, c))[1][0], lstm(c[0], x, u, gate=held), atol=1e-15, rtol=0)
        torch.testing.assert_close(gated(torch.zeros(1, 1).double(), h)[0], gru(h[0], x, u), atol=1e-15, rtol=0)


def test_the_proposed_cell_is_its_scalar_form():
    module, step = cell("proposed", 5, 1, seed=0)
    x, state = noise(1, 5), noise(1, 2)
    drives = (x @ module.weight_ih.T + module.bias_ih).T             # [3 1]: r, z, ĉ
    u = module.weight_hh
    c = proposed(state[:, 1], drives[[1, 2]], u[[1, 2]], gate=state[:, 0] / state[:, 1])
    h = (drives[0] + u[0] * state[:, 0]).sigmoid() * c
    torch.testing.assert_close(step(x, state)[0], torch.stack((h, c), -1)[0], atol=1e-15, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_jacobians_of_many_states_are_those_of_each(kind):
    _, step = cell(kind, 5, 7, seed=0, gain=2.0)
    x, states = noise(3, 5), begun(kind, 3)
    found = jacobians(step, x, states)
    for row in range(3):
        one = x[row : row + 1]
        expected = torch.autograd.functional.jacobian(lambda s, one=one: step(one, s[None])[0], states[row])
        torch.testing.assert_close(found[row], expected, atol=1e-14, rtol=0)
    assert float((found - found.mT).abs().max()) > 1e-2              # rows aren't columns


@pytest.mark.parametrize("kind", ["lstm", "gru", "proposed"])
def test_a_bias_of_the_gate_that_keeps_makes_the_state_stay(kind):
    _, step = cell(kind, 5, 7, seed=0, keep=30.0)
    state = begun(kind, 1)
    part = slice(None) if kind == "gru" else slice(7, None)          # c of (h, c)
    if kind != "lstm":                                               # whose i adds to what f keeps
        torch.testing.assert_close(step(noise(1, 5), state)[:, part], state[:, part], atol=1e-9, rtol=0)
    matrix = jacobians(step, noise(1, 5), state)[0][part, part]
    torch.testing.assert_close(matrix, torch.eye(7, dtype=torch.float64), atol=1e-9, rtol=0)


def test_cells_are_the_same_for_a_seed_and_leave_torchs_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, _ = cell("gru", 5, 7, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    again, other = cell("gru", 5, 7, seed=1)[0], cell("gru", 5, 7, seed=2)[0]
    assert torch.equal(first.weight_hh, again.weight_hh) and not torch.equal(first.weight_hh, other.weight_hh)
    assert float(first.weight_hh.abs().max()) <= 1 / math.sqrt(7)


def test_a_run_begins_with_its_state_and_takes_each_step():
    _, step = cell("rnn", 5, 7, seed=0)
    x, state = noise(4, 2, 5), begun("rnn", 2)
    states = run(step, x, state)
    assert states.shape == (5, 2, 7) and torch.equal(states[0], state)
    torch.testing.assert_close(states[4], step(x[3], step(x[2], step(x[1], step(x[0], state)))), atol=0, rtol=0)


def test_exponents_of_one_matrix_are_the_logarithms_of_its_eigenvalues():
    eigenvalues = torch.tensor([1.5, 0.9, 0.2], dtype=torch.float64)
    basis = noise(3, 3)
    matrix = basis @ eigenvalues.diag() @ torch.linalg.inv(basis)
    found = exponents(matrix.expand(2000, 3, 3), 3)
    torch.testing.assert_close(found, eigenvalues.log(), atol=5e-3, rtol=0)        # off by a constant over 2000
    assert abs(float(torch.linalg.matrix_norm(matrix, 2).log()) - float(found[0])) > 0.05       # the planted fault: a singular value


def test_all_exponents_together_are_the_mean_logarithm_of_the_determinant():
    _, step = cell("rnn", 5, 7, seed=0)
    x = noise(50, 1, 5)
    matrices = jacobians(step, x[:, 0], run(step, x, begun("rnn", 1))[:-1, 0])
    expected = torch.linalg.slogdet(matrices).logabsdet.mean()
    torch.testing.assert_close(exponents(matrices, 7).sum(), expected, atol=1e-10, rtol=0)


def test_growth_is_the_norm_of_the_product_and_does_not_underflow():
    matrices = noise(12, 5, 5)
    found = growth(matrices, every=3)
    product = torch.eye(5, dtype=torch.float64)
    for depth, matrix in enumerate(matrices, 1):
        product = matrix @ product
        if depth % 3 == 0:
            assert found[depth // 3 - 1] == pytest.approx(math.log10(float(torch.linalg.matrix_norm(product, 2))), abs=1e-12)
    assert growth((1e-9 * torch.eye(5, dtype=torch.float64)).expand(100, 5, 5))[-1] == pytest.approx(-900, abs=1e-9)
