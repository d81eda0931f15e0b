"""NEZHA's relative positions against the loop of their definition, gradients included. fp64; tolerances are rounding."""

from __future__ import annotations

import math

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch
from fishpaw.model.transformer import Transformer
from fishpaw.positions.nezha import Nezha, build

torch.set_num_threads(1)
SHAPE = {"vocab_size": 37, "hidden_size": 23, "layers": 2, "attention_heads": 3, "head_size": 10, "intermediate_size": 29, "init_std": 0.6,
         "heads": ("lm",), "dropout": 0.0, "attention_dropout": 0.0}


def rows(reach, size):
    """The table of the paper: row r is the sinusoid of r, not of the distance."""
    table = torch.empty(2 * reach + 1, size, dtype=torch.float64)
    for row in range(2 * reach + 1):
        for unit in range(size):
            angle = row / 10_000.0 ** (2 * (unit // 2) / size)
            table[row, unit] = math.cos(angle) if unit % 2 else math.sin(angle)
    return table


def naive(q, k, weights, q_pos, k_pos, reach, flip=1):
    """[b h q d], [b h k d], [b h q k] -> scores, mixed."""
    table = rows(reach, q.shape[-1])
    scores, mixed = torch.zeros_like(weights), torch.zeros_like(q)
    for b in range(q.shape[0]):
        for i in range(q.shape[2]):
            turned = [table[max(-reach, min(reach, flip * int(k_pos[b, j] - q_pos[b, i]))) + reach] for j in range(k.shape[2])]
            each = torch.stack(turned)                                                              # [k d]
            scores[b, :, i] = (q[b, :, i, None] * (k[b] + each)).sum(-1)
            mixed[b, :, i] = (weights[b, :, i, :, None] * each).sum(1)
    return scores, mixed


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("reach", [1, 4, 64])
def test_scores_and_outputs_are_those_of_the_loop_and_so_are_gradients(reach, shared):
    shapes = ((2, 3, 5, 10), (2, 3, 7, 10), (2, 3, 5, 7))
    q, k, weights = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    q_pos, k_pos = torch.randint(0, 13, (2, 5)), torch.randint(0, 13, (2, 7))
    if shared:
        q_pos, k_pos = q_pos[:1].expand(2, 5), k_pos[:1].expand(2, 7)
    position = Nezha(10, reach)
    at = position.at(q_pos, k_pos, k_pos, torch.float64)
    found = position.score(q, k, at), position.mix(weights, at)
    expected = naive(q, k, weights, q_pos, k_pos, reach)
    assert max(float((one - other).detach().abs().max()) for one, other in zip(found, expected, strict=True)) < 1e-10
    turned = naive(q, k, weights, q_pos, k_pos, reach, flip=-1)      # the planted fault: query minus key
    assert min(float((one - other).detach().abs().max()) for one, other in zip(found, turned, strict=True)) > 1e-2
    probes = [torch.randn_like(one) for one in found]
    ours, theirs = (torch.autograd.grad(pair, (q, k, weights), probes) for pair in (found, expected))
    assert max(float((one - other).abs().max()) for one, other in zip(ours, theirs, strict=True)) < 1e-10


def test_the_frozen_table_is_no_weight_and_keeps_fp64_until_it_is_cast():
    position = build(ModelConfig(**SHAPE))
    assert position.hooks() == {"score", "mix"} and not position.state_dict() and not list(position.parameters())
    assert position.table.dtype == torch.float64 and torch.allclose(position.table, rows(64, 10), rtol=0, atol=1e-12)
    q_pos = torch.arange(3)[None]
    assert position.at(q_pos, q_pos, q_pos, torch.bfloat16)[1].dtype == torch.bfloat16


def test_hundreds_of_keys_beyond_the_reach_are_summed_in_fp32():
    """Added one by one in bf16, as a GPU would, weights of 1/701 stop growing at a half: its neighbour is 1/256 away."""
    position, pos = Nezha(10, 3), torch.arange(701)[None]
    weights = torch.full((1, 1, 1, 701), 1 / 701).bfloat16()
    at = position.at(torch.tensor([[700]]), pos, pos, torch.bfloat16)
    found = position.mix(weights, at)[0, 0, 0].float()
    expected = float(weights[0, 0, 0, 0]) * (rows(3, 10)[:4] * torch.tensor([698.0, 1, 1, 1])[:, None]).sum(0).float()
    assert position.mix(weights, at).dtype == torch.bfloat16
    assert float((found - expected).abs().max()) < 0.02              # bf16 of values up to 1
    total = torch.zeros((), dtype=torch.bfloat16)
    for weight in weights.flatten():
        total = total + weight
    assert float(total) < 0.6                                        # what a sum in the type of the weights comes to


@pytest.mark.parametrize("mask", ["causal", "full", "unilm"])
def test_texts_alone_padded_and_packed_are_the_same(mask):
    model = Transformer(ModelConfig(**{**SHAPE, "mask": mask, "position": {"name": "nezha", "reach": 3}})).double().eval()
    texts = [torch.randint(37, (length,)) for length in (11, 4, 7, 1)]
    packed = Batch.packed(texts)
    with torch.no_grad():
        for text, one in zip(texts, packed.unpack(model(packed).logits), strict=True):
            left = torch.cat((torch.zeros(5, dtype=torch.long), text))[None]
            padded = model(left, padding=torch.arange(left.shape[1])[None] >= 5).logits[0, 5:]
            assert max(float((one - other).abs().max()) for other in (model(text[None]).logits[0], padded)) < 1e-10


def test_cached_decoding_is_the_full_pass():
    model = Transformer(ModelConfig(**SHAPE, mask="causal", position={"name": "nezha", "reach": 3})).double().eval().requires_grad_(False)
    ids = torch.randint(37, (2, 11))
    full, cache = model(ids).logits, model.new_cache()
    found = [model(ids[:, :4], cache=cache).logits, *(model(ids[:, place], cache=cache).logits for place in range(4, 11))]
    assert float((torch.cat([one.view(2, -1, 37) for one in found], dim=1) - full).abs().max()) < 1e-10
