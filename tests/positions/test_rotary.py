"""Laws of rotary positions (arXiv:2104.09864, section 3.4), of both layouts, alone and in a model. fp64; tolerances are rounding."""

from __future__ import annotations

import math

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.errors import ConfigError
from fishpaw.model.transformer import Transformer
from fishpaw.positions.rotary import Rotary, angles, build, growth, turn_halves, turn_pairs

torch.set_num_threads(1)
SIZE = 14
SHAPE = {"vocab_size": 37, "hidden_size": 23, "layers": 2, "attention_heads": 3, "head_size": 10, "intermediate_size": 29, "init_std": 0.6,
         "heads": ("mlm",)}


def turned(x, pos, theta=10_000.0, dtype=torch.float64, **options):
    """x [t d] at the positions pos [t]."""
    rotary, pos = Rotary(x.shape[-1], theta, **options), torch.as_tensor(pos)[None]
    return rotary.rotate(x[None, None], None, rotary.at(pos, pos, pos, dtype))[0][0, 0]


def matrix(m, size=SIZE, theta=10_000.0):
    """The explicit d x d matrix R_m."""
    found = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size // 2):
        angle = m * theta ** (-2 * i / size)
        found[2 * i, 2 * i], found[2 * i, 2 * i + 1] = math.cos(angle), -math.sin(angle)
        found[2 * i + 1, 2 * i], found[2 * i + 1, 2 * i + 1] = math.sin(angle), math.cos(angle)
    return found


def model(**changes):
    torch.manual_seed(0)
    return Transformer(ModelConfig(**{**SHAPE, "position": "rotary", **changes})).double().eval().requires_grad_(False)


@pytest.mark.parametrize("layout", ["pairs", "half"])
@pytest.mark.parametrize("shift", [1, 11, 1009, 100_003])
def test_scores_depend_on_the_difference_of_positions_only(shift, layout):
    """<R_m q, R_n k> = <R_(m-n) q, k>: within 1e-9."""
    q, k = torch.randn(2, 7, SIZE, dtype=torch.float64)
    m, n = torch.randint(0, 97, (2, 7))
    at = {"layout": layout}
    scores = (turned(q, m, **at) * turned(k, n, **at)).sum(-1)
    assert float((scores - (turned(q, m - n, **at) * k).sum(-1)).abs().max()) < 1e-9
    assert float((scores - (turned(q, m + shift, **at) * turned(k, n + shift, **at)).sum(-1)).abs().max()) < 1e-9
    assert float((scores - (turned(q, m + shift, **at) * turned(k, n, **at)).sum(-1)).abs().max()) > 1e-2   # one alone is caught


@pytest.mark.parametrize("layout", ["pairs", "half"])
def test_norms_are_kept_and_position_zero_is_the_identity(layout):
    """|R_m q| = |q|, and R_0 = I to the bit."""
    x = torch.randn(7, SIZE, dtype=torch.float64)
    assert float((turned(x, torch.arange(7) * 1009, layout=layout).norm(dim=-1) - x.norm(dim=-1)).abs().max()) < 1e-12
    assert torch.equal(turned(x, [0] * 7, layout=layout), x)


@pytest.mark.parametrize("theta", [10_000.0, 500.0])
@pytest.mark.parametrize("m", [0, 1, 5, 97])
def test_it_is_the_explicit_matrix(m, theta):
    """Of 2 x 2 rotations by m theta^(-2i/d) along its diagonal (eq. 15)."""
    x = torch.randn(1, SIZE, dtype=torch.float64)
    assert float((turned(x, [m], theta)[0] - matrix(m, theta=theta) @ x[0]).abs().max()) < 1e-12
    assert m == 0 or float((turned(x, [m], theta)[0] - matrix(-m, theta=theta) @ x[0]).abs().max()) > 1e-3     # the other way round


def test_it_is_complex_multiplication():
    """Of units 2i + 1j (2i+1) by e^(1j m theta_i) (eq. 12)."""
    x, pos = torch.randn(7, SIZE, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 50, 97, 1009])
    plane = torch.view_as_complex(x.view(7, -1, 2))
    angle = pos[:, None] * 10_000.0 ** (-torch.arange(0, SIZE, 2).double() / SIZE)
    expected = torch.view_as_real(plane * torch.polar(torch.ones_like(angle), angle)).flatten(1)
    assert float((turned(x, pos) - expected).abs().max()) < 1e-12


@pytest.mark.parametrize(("m", "index"), [(0, 32.5), (1, 31.538), (10, 17.954), (50, 12.629), (100, 10.227), (256, 6.543)])
def test_the_decay_index_is_that_of_the_paper(m, index):
    """The mean over i of |S_i|, S_i the sum of the first i of e^(1j m theta_i), bounds how a score decays (eq. 37); d = 128."""
    cos, sin = angles(torch.tensor([[m]]), Rotary(128).frequencies())
    partial = torch.complex(cos, sin).flatten().cumsum(0).abs()
    assert float(partial.mean()) == pytest.approx(index, abs=1e-12 if m == 0 else 1e-3)


def test_angles_are_made_in_fp64_whatever_the_type():
    """In fp32 the angle at 100,003 would be off by about 4e-3; in bf16 by anything."""
    pos = torch.tensor([[100_003]])
    cos, sin, *_ = Rotary(SIZE).at(pos, pos, pos, torch.float32)
    exact = 100_003 * 10_000.0 ** (-torch.arange(0, SIZE, 2, dtype=torch.float64) / SIZE)
    assert cos.dtype == sin.dtype == torch.float32
    assert float((cos[0, 0, 0] - exact.cos()).abs().max()) < 1e-7 and float((sin[0, 0, 0] - exact.sin()).abs().max()) < 1e-7
    rounded = 100_003 * 10_000.0 ** (-torch.arange(0, SIZE, 2, dtype=torch.float32) / SIZE)
    assert float((rounded.cos() - exact.cos()).abs().max()) > 1e-5
    assert turned(torch.randn(3, SIZE, dtype=torch.bfloat16), [1, 2, 3], dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("position", [1_000, 10_000, 100_000])
def test_scores_in_fp32_drift_by_rounding_only_however_far_the_text(position):
    """With angles in fp32 the drift of a score (d = 64) would grow with the position to about 1e-3 at 100,000."""
    q, k = torch.randn(2, 11, 64)
    near = (turned(q, [5] * 11, dtype=torch.float32) * turned(k, [2] * 11, dtype=torch.float32)).sum(-1)
    far = (turned(q, [position + 5] * 11, dtype=torch.float32) * turned(k, [position + 2] * 11, dtype=torch.float32)).sum(-1)
    assert float((near - far).abs().max()) < 2e-5                    # 64 products of fp32


@pytest.mark.parametrize("layout", ["pairs", "half"])
def test_a_shift_of_all_positions_leaves_a_model_as_it_is(layout):
    """Only differences of positions enter, so the logits stay; positions twice as far apart are others."""
    rotary, ids, positions = model(position={"name": "rotary", "layout": layout}), torch.randint(37, (2, 7)), torch.arange(7).expand(2, 7)
    here = rotary(ids).logits
    for shift in (1, 1009):
        assert float((rotary(ids, positions=positions + shift).logits - here).abs().max()) < 1e-9
    assert float((rotary(ids, positions=positions * 2).logits - here).abs().max()) > 1e-3


def test_new_keys_have_positions_of_their_own_and_stored_ones_are_left():
    position = Rotary(SIZE)
    q, k = torch.randn(1, 3, 2, SIZE).double(), torch.randn(1, 3, 5, SIZE).double()
    q_pos, new_pos = torch.tensor([[4, 9]]), torch.tensor([[0, 1, 2, 3, 7]])
    at = position.at(q_pos, torch.zeros(1, 17), new_pos, torch.float64)
    turned_q, turned_k = position.rotate(q, k, at)
    for head in range(3):
        assert torch.equal(turned_q[0, head], turned(q[0, head], q_pos[0]))
        assert torch.equal(turned_k[0, head], turned(k[0, head], new_pos[0]))
    assert position.rotate(q, None, at)[1] is None


# The two layouts

def test_halves_are_pairs_after_the_permutation_and_not_without():
    x = torch.randn(2, 3, 7, SIZE, dtype=torch.float64)
    tables = angles(torch.randint(0, 97, (2, 7)), Rotary(SIZE).frequencies())
    order = torch.arange(SIZE).view(7, 2).T.flatten()                # even units first
    assert torch.equal(turn_halves(x[..., order], *tables), turn_pairs(x, *tables)[..., order])
    assert float((turn_halves(x, *tables) - turn_pairs(x, *tables)).abs().max()) > 0.1


def test_permuted_rows_of_the_query_and_key_matrices_make_one_model_the_other():
    """What ports most often do wrong: RoFormer turns adjacent pairs (2i, 2i+1), GPT-NeoX and Llama in transformers the units i and i + d/2.
    Weights of the one load into the other without a complaint, for no shape differs, and answer otherwise (both layouts in one model:
    github.com/huggingface/transformers/issues/47328)."""
    pairs, halves = model(), model(position={"name": "rotary", "layout": "half"})
    halves.load_state_dict(pairs.state_dict())
    ids = torch.randint(37, (2, 11))
    assert float((halves(ids).logits - pairs(ids).logits).abs().max()) > 1e-3      # the planted fault: weights of the other layout
    order = torch.arange(10).view(5, 2).T.flatten()
    rows = torch.cat([head * 10 + order for head in range(6)])       # 3 heads of queries, 3 of keys; values stay
    for block in halves.layers:
        for parameter in (block.attention.project.weight, block.attention.project.bias):
            parameter[:60] = parameter[:60][rows]
    assert float((halves(ids).logits - pairs(ids).logits).abs().max()) < 1e-10


# a share of the units

@pytest.mark.parametrize("layout", ["pairs", "half"])
def test_a_share_of_a_head_turns_as_a_smaller_head_and_the_rest_stays(layout):
    x, pos = torch.randn(7, 20, dtype=torch.float64), torch.arange(7) * 13
    found = turned(x, pos, share=0.3, layout=layout)
    assert torch.equal(found[:, :6], turned(x[:, :6], pos, layout=layout)) and torch.equal(found[:, 6:], x[:, 6:])


# log-n

def test_log_n_multiplies_queries_beyond_the_trained_length_and_no_keys():
    x, pos = torch.randn(1, 1, 5, SIZE, dtype=torch.float64), torch.tensor([[0, 7, 510, 511, 4095]])
    plain, scaled = Rotary(SIZE), Rotary(SIZE, log_n=512)
    expected, found = (one.rotate(x, x, one.at(pos, pos, pos, torch.float64)) for one in (plain, scaled))
    factors = torch.tensor([max(1, math.log(p + 1) / math.log(512)) for p in pos[0].tolist()], dtype=torch.float64)
    assert factors.tolist() == [1, 1, 1, 1, pytest.approx(12 / 9)]   # 2^12 against 2^9
    assert float((found[0] - expected[0] * factors[:, None]).abs().max()) < 1e-12
    assert torch.equal(found[1], expected[1])
    assert scaled.sharpens and not plain.sharpens and Rotary(SIZE, temperature=1.2).sharpens


def test_log_n_leaves_texts_of_the_trained_length_as_they_are():
    ids = torch.randint(37, (2, 11))
    plain, scaled, short = (model(position={"name": "rotary", **log_n}) for log_n in ({}, {"log_n": 11}, {"log_n": 5}))
    assert torch.equal(plain(ids).logits, scaled(ids).logits)
    change = (plain(ids, attentions=True).attentions[0] - short(ids, attentions=True).attentions[0]).abs().amax((0, 1, 3))
    assert torch.equal(change[:5], torch.zeros(5)) and float(change[5:].min()) > 1e-4


def test_growth_is_made_in_fp64_and_cast_last():
    assert growth(torch.tensor([[4095]]), 512, torch.bfloat16).item() == torch.tensor(4 / 3, dtype=torch.bfloat16).item()


# Decoding

@pytest.mark.parametrize("options", [{}, {"layout": "half"}, {"share": 0.4}, {"log_n": 3}], ids=str)
def test_cached_decoding_is_the_full_pass(options):
    rotary = model(position={"name": "rotary", **options}, mask="causal", heads=("lm",))
    ids = torch.randint(37, (2, 11))
    full, cache = rotary(ids).logits, rotary.new_cache()
    found = [rotary(ids[:, :4], cache=cache).logits, *(rotary(ids[:, place], cache=cache).logits for place in range(4, 11))]
    assert float((torch.cat([one.view(2, -1, 37) for one in found], dim=1) - full).abs().max()) < 1e-10


def test_it_uses_rotation_only_and_has_no_weights():
    position = build(ModelConfig(vocab_size=3, hidden_size=28, layers=1, attention_heads=2, intermediate_size=3), theta=7.0)
    assert position.hooks() == {"rotate"} and (position.size, position.theta) == (14, 7.0) and not list(position.state_dict())


def test_an_odd_head_is_refused_by_name():
    with pytest.raises(ConfigError, match="head_size 7"):
        Rotary(7)
