"""Laws of rotary positions on adjacent pairs (specification: arXiv:2104.09864, section 3.4). fp64; tolerances are rounding."""

from __future__ import annotations

import math

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.errors import ConfigError
from fishpaw.model.transformer import Transformer
from fishpaw.positions.rotary import Rotary, angles, build, turn_pairs

torch.set_num_threads(1)
SIZE = 14


def turned(x, pos, theta=10_000.0, dtype=torch.float64):
    """x [t d] at the positions pos [t]."""
    return turn_pairs(x[None, None], *angles(torch.as_tensor(pos)[None], x.shape[-1], theta, dtype))[0, 0]


def matrix(m, size=SIZE, theta=10_000.0):
    """The explicit d x d matrix R_m."""
    found = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size // 2):
        angle = m * theta ** (-2 * i / size)
        found[2 * i, 2 * i], found[2 * i, 2 * i + 1] = math.cos(angle), -math.sin(angle)
        found[2 * i + 1, 2 * i], found[2 * i + 1, 2 * i + 1] = math.sin(angle), math.cos(angle)
    return found


@pytest.mark.parametrize("shift", [1, 11, 1009, 100_003])
def test_scores_depend_on_the_difference_of_positions_only(shift):
    q, k = torch.randn(2, 7, SIZE, dtype=torch.float64)
    m, n = torch.randint(0, 97, (2, 7))
    scores = (turned(q, m) * turned(k, n)).sum(-1)
    assert float((scores - (turned(q, m - n) * k).sum(-1)).abs().max()) < 1e-9
    assert float((scores - (turned(q, m + shift) * turned(k, n + shift)).sum(-1)).abs().max()) < 1e-9
    assert float((scores - (turned(q, m + shift) * turned(k, n)).sum(-1)).abs().max()) > 1e-2      # one of them alone is caught


def test_norms_are_kept_and_position_zero_is_the_identity():
    x = torch.randn(7, SIZE, dtype=torch.float64)
    assert float((turned(x, torch.arange(7) * 1009).norm(dim=-1) - x.norm(dim=-1)).abs().max()) < 1e-12
    assert torch.equal(turned(x, [0] * 7), x)


@pytest.mark.parametrize("theta", [10_000.0, 500.0])
@pytest.mark.parametrize("m", [0, 1, 5, 97])
def test_it_is_the_explicit_matrix(m, theta):
    x = torch.randn(1, SIZE, dtype=torch.float64)
    assert float((turned(x, [m], theta)[0] - matrix(m, theta=theta) @ x[0]).abs().max()) < 1e-12
    assert m == 0 or float((turned(x, [m], theta)[0] - matrix(-m, theta=theta) @ x[0]).abs().max()) > 1e-3     # the other way round


def test_it_is_complex_multiplication():
    x, pos = torch.randn(7, SIZE, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 50, 97, 1009])
    plane = torch.view_as_complex(x.view(7, -1, 2))
    angle = pos[:, None] * 10_000.0 ** (-torch.arange(0, SIZE, 2).double() / SIZE)
    expected = torch.view_as_real(plane * torch.polar(torch.ones_like(angle), angle)).flatten(1)
    assert float((turned(x, pos) - expected).abs().max()) < 1e-12


@pytest.mark.parametrize(("m", "index"), [(0, 32.5), (1, 31.538), (10, 17.954), (50, 12.629), (100, 10.227), (256, 6.543)])
def test_the_decay_index_is_that_of_the_paper(m, index):
    cos, sin = angles(torch.tensor([[m]]), 128, 10_000.0, torch.float64)
    partial = torch.complex(cos, sin).flatten().cumsum(0).abs()
    assert float(partial.mean()) == pytest.approx(index, abs=1e-12 if m == 0 else 1e-3)


def test_angles_are_made_in_fp64_whatever_the_type():
    """In fp32 the angle at 100,003 would be off by about 4e-3; in bf16 by anything."""
    cos, sin = angles(torch.tensor([[100_003]]), SIZE, 10_000.0, torch.float32)
    exact = 100_003 * 10_000.0 ** (-torch.arange(0, SIZE, 2, dtype=torch.float64) / SIZE)
    assert cos.dtype == sin.dtype == torch.float32
    assert float((cos[0, 0, 0] - exact.cos()).abs().max()) < 1e-7 and float((sin[0, 0, 0] - exact.sin()).abs().max()) < 1e-7
    rounded = 100_003 * 10_000.0 ** (-torch.arange(0, SIZE, 2, dtype=torch.float32) / SIZE)
    assert float((rounded.cos() - exact.cos()).abs().max()) > 1e-5
    assert turned(torch.randn(3, SIZE, dtype=torch.bfloat16), [1, 2, 3], dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_shift_of_all_positions_leaves_a_model_as_it_is():
    model = Transformer(ModelConfig(vocab_size=37, hidden_size=28, layers=2, attention_heads=2, intermediate_size=29, position="rotary",
                                    init_std=0.6, heads=("mlm",))).double().eval().requires_grad_(False)
    ids, positions = torch.randint(37, (2, 7)), torch.arange(7).expand(2, 7)
    here = model(ids).logits
    for shift in (1, 1009):
        assert float((model(ids, positions=positions + shift).logits - here).abs().max()) < 1e-9
    assert float((model(ids, positions=positions * 2).logits - here).abs().max()) > 1e-3


def test_new_keys_have_positions_of_their_own_and_stored_ones_are_left():
    position = Rotary(SIZE, 10_000.0, turn_pairs)
    q, k = torch.randn(1, 3, 2, SIZE).double(), torch.randn(1, 3, 5, SIZE).double()
    q_pos, new_pos = torch.tensor([[4, 9]]), torch.tensor([[0, 1, 2, 3, 7]])
    at = position.at(q_pos, torch.zeros(1, 17), new_pos, torch.float64)
    turned_q, turned_k = position.rotate(q, k, at)
    for head in range(3):
        assert torch.equal(turned_q[0, head], turned(q[0, head], q_pos[0]))
        assert torch.equal(turned_k[0, head], turned(k[0, head], new_pos[0]))
    assert position.rotate(q, None, at)[1] is None


def test_it_uses_rotation_only_and_has_no_weights():
    position = build(ModelConfig(vocab_size=3, hidden_size=28, layers=1, attention_heads=2, intermediate_size=3), theta=7.0)
    assert position.hooks() == {"rotate"} and (position.size, position.theta) == (14, 7.0) and not list(position.state_dict())


def test_an_odd_head_is_refused_by_name():
    with pytest.raises(ConfigError, match="head_size 7 is odd"):
        Rotary(7, 10_000.0, turn_pairs)
