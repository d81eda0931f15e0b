"""No position: a set of tokens without a mask, an order with a causal one."""

from __future__ import annotations

import torch

from fishpaw.config import ModelConfig
from fishpaw.model.transformer import Transformer
from fishpaw.positions.none import build

torch.set_num_threads(1)


def tiny(mask):
    return Transformer(ModelConfig(vocab_size=37, hidden_size=22, layers=2, attention_heads=2, intermediate_size=29, position="none",
                                   mask=mask, init_std=0.6, heads=("mlm",))).double().eval().requires_grad_(False)


def test_it_uses_no_hook_and_has_no_weights():
    position = build(tiny("full").config)
    assert position.hooks() == frozenset() and not list(position.parameters())


def test_permuted_tokens_give_permuted_logits_unless_the_mask_is_causal():
    ids, order = torch.randperm(37)[None, :11], torch.randperm(11)
    for mask, same in (("full", True), ("causal", False)):
        model = tiny(mask)
        difference = float((model(ids[:, order]).logits - model(ids).logits[:, order]).abs().max())
        assert (difference < 1e-10) is same
