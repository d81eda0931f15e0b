"""Split halves are adjacent pairs after a fixed permutation of the units, and not before."""

from __future__ import annotations

import torch

from fishpaw.config import ModelConfig
from fishpaw.model.transformer import Transformer
from fishpaw.positions.rotary import angles, turn_pairs
from fishpaw.positions.rotary_half import turn_halves

torch.set_num_threads(1)


def test_halves_are_pairs_after_the_permutation_and_not_without():
    x = torch.randn(2, 3, 7, 14, dtype=torch.float64)
    tables = angles(torch.randint(0, 97, (2, 7)), 14, 10_000.0, torch.float64)
    order = torch.arange(14).view(7, 2).T.flatten()                  # even units first
    assert torch.equal(turn_halves(x[..., order], *tables), turn_pairs(x, *tables)[..., order])
    assert float((turn_halves(x, *tables) - turn_pairs(x, *tables)).abs().max()) > 0.1


def test_permuted_rows_of_the_query_and_key_matrices_make_one_model_the_other():
    shape = {"vocab_size": 37, "hidden_size": 23, "layers": 2, "attention_heads": 3, "head_size": 10, "intermediate_size": 29,
             "init_std": 0.6, "heads": ("mlm",)}
    pairs = Transformer(ModelConfig(**shape, position="rotary")).double().eval().requires_grad_(False)
    halves = Transformer(ModelConfig(**shape, position="rotary_half")).double().eval().requires_grad_(False)
    halves.load_state_dict(pairs.state_dict())
    ids = torch.randint(37, (2, 11))
    assert float((halves(ids).logits - pairs(ids).logits).abs().max()) > 1e-3      # the planted fault: weights of the other layout
    order = torch.arange(10).view(5, 2).T.flatten()
    rows = torch.cat([head * 10 + order for head in range(6)])       # 3 heads of queries, 3 of keys; values stay
    for block in halves.layers:
        for parameter in (block.attention.project.weight, block.attention.project.bias):
            parameter[:60] = parameter[:60][rows]
    assert float((halves(ids).logits - pairs(ids).logits).abs().max()) < 1e-10
