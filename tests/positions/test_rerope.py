"""ReRoPE (kexue.fm/archives/9708): rotary inside the window, one distance outside of it; score by score as the article defines it,
and rotary to the bit where the window is wide. fp64; tolerances are rounding."""

from __future__ import annotations

import math

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch
from fishpaw.model.transformer import Transformer
from fishpaw.positions.rerope import ReRoPE, build
from fishpaw.positions.rotary import Rotary

torch.set_num_threads(1)
SHAPE = {"vocab_size": 37, "hidden_size": 23, "layers": 2, "attention_heads": 3, "head_size": 10, "intermediate_size": 29, "init_std": 0.6,
         "heads": ("lm",), "dropout": 0.0, "attention_dropout": 0.0}


def model(position, mask="causal", **changes):
    torch.manual_seed(0)
    return Transformer(ModelConfig(**{**SHAPE, "position": position, "mask": mask, **changes})).double().eval().requires_grad_(False)


def gathered(q, k, q_pos, k_pos, distance):
    """q [q d], k [k d] -> the scores, one turn of each query for each key: by the complex form, with nothing of ours."""
    size = q.shape[-1]
    frequencies = 10_000.0 ** (-torch.arange(0, size, 2).double() / size)
    planes = [torch.view_as_complex(x.view(len(x), -1, 2)) for x in (q, k)]
    found = torch.empty(len(q), len(k), dtype=torch.float64)
    for i, m in enumerate(q_pos.tolist()):
        for j, n in enumerate(k_pos.tolist()):
            angle = distance(m - n) * frequencies
            found[i, j] = (planes[0][i] * torch.polar(torch.ones_like(angle), angle) * planes[1][j].conj()).sum().real
    return found


def scores_of(position, q, k, q_pos, k_pos):
    at = position.at(q_pos[None], k_pos[None], k_pos[None], torch.float64)
    return position.score(q[None, None], k[None, None], at)[0, 0]


@pytest.mark.parametrize("slope", [0.0, 1 / 16, 1 / 3, 1.0])
@pytest.mark.parametrize("window", [1, 3, 7])
def test_scores_are_those_of_the_clipped_distance_of_each_pair(window, slope):
    q, k = torch.randn(11, 10, dtype=torch.float64), torch.randn(13, 10, dtype=torch.float64)
    q_pos, k_pos = torch.randint(0, 29, (11,)), torch.randint(0, 29, (13,))

    def clipped(distance):
        far = window + (abs(distance) - window) * slope if abs(distance) > window else abs(distance)
        return math.copysign(far, distance)

    found = scores_of(ReRoPE(Rotary(10), window, slope=slope), q, k, q_pos, k_pos)
    assert float((found - gathered(q, k, q_pos, k_pos, clipped)).abs().max()) < 1e-10
    assert slope == 1 or float((found - gathered(q, k, q_pos, k_pos, lambda distance: distance)).abs().max()) > 1e-2
    behind = scores_of(ReRoPE(Rotary(10), window, slope=slope, ahead=False), q, k, q_pos, k_pos)
    before = k_pos <= q_pos[:, None]
    assert torch.equal(behind[before], found[before])                # keys ahead are what `ahead` is for


@pytest.mark.parametrize("layout", ["pairs", "half"])
@pytest.mark.parametrize("mask", ["causal", "full", "unilm"])
def test_a_wide_window_is_rotary_to_the_bit(mask, layout):
    ids = torch.randint(37, (2, 11))
    segments = (torch.arange(11) > 5).long().expand(2, 11)
    plain = model({"name": "rotary", "layout": layout}, mask)(ids, segments=segments, attentions=True)         # the explicit path, too
    wide, narrow = (model({"name": "rerope", "window": window, "layout": layout}, mask)(ids, segments=segments, attentions=True)
                    for window in (10, 3))  # fmt: skip
    assert torch.equal(wide.logits, plain.logits)
    assert float((narrow.logits - plain.logits).abs().max()) > 1e-3


@pytest.mark.parametrize("options", [{}, {"log_n": 4}, {"share": 0.4, "layout": "half"}], ids=str)
@pytest.mark.parametrize("name", ["rerope", "leaky_rerope"])
def test_cached_decoding_is_the_full_pass(name, options):
    rerope = model({"name": name, "window": 3, **options})
    ids = torch.randint(37, (2, 13))
    full, cache = rerope(ids).logits, rerope.new_cache()
    found = [rerope(ids[:, :4], cache=cache).logits, *(rerope(ids[:, place], cache=cache).logits for place in range(4, 13))]
    assert float((torch.cat([one.view(2, -1, 37) for one in found], dim=1) - full).abs().max()) < 1e-10


@pytest.mark.parametrize("mask", ["causal", "full"])
@pytest.mark.parametrize("name", ["rerope", "leaky_rerope"])
def test_texts_alone_padded_and_packed_are_the_same(name, mask):
    rerope = model({"name": name, "window": 3}, mask)
    texts = [torch.randint(37, (length,)) for length in (11, 4, 7, 1)]
    packed = Batch.packed(texts)
    for text, one in zip(texts, packed.unpack(rerope(packed).logits), strict=True):
        left = torch.cat((torch.zeros(5, dtype=torch.long), text))[None]
        assert float((rerope(text[None]).logits[0] - one).abs().max()) < 1e-10
        padded = rerope(left, padding=torch.arange(left.shape[1])[None] >= 5).logits[0, 5:]
        assert float((padded - one).abs().max()) < 1e-10


def test_log_n_multiplies_the_queries_by_their_own_position():
    q, k, pos = torch.randn(9, 10, dtype=torch.float64), torch.randn(9, 10, dtype=torch.float64), torch.arange(9)
    plain, scaled = (scores_of(ReRoPE(Rotary(10), 3, log_n=log_n), q, k, pos, pos) for log_n in (None, 4))
    factors = torch.tensor([max(1, math.log(p + 1) / math.log(4)) for p in range(9)], dtype=torch.float64)
    assert float((scaled - plain * factors[:, None]).abs().max()) < 1e-12


def test_a_causal_mask_spares_the_products_ahead():
    for mask, ahead in (("causal", False), ("full", True), ("unilm", True)):
        assert build(ModelConfig(**{**SHAPE, "mask": mask})).ahead is ahead
    assert build(ModelConfig(**SHAPE)).hooks() == {"score"}
