"""T5's buckets: their definition, transformers' own, and what a model makes of them."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.model.transformer import Transformer
from fishpaw.positions.buckets import Buckets, bucket, build

torch.set_num_threads(1)
SHAPE = {"vocab_size": 37, "hidden_size": 23, "layers": 2, "attention_heads": 3, "head_size": 10, "intermediate_size": 29, "init_std": 0.6,
         "heads": ("lm",), "dropout": 0.0, "attention_dropout": 0.0}


def test_near_distances_have_buckets_of_their_own_and_far_ones_share():
    causal = bucket(-torch.arange(300), 32, 128, bidirectional=False)
    assert causal[:16].tolist() == list(range(16)) and causal[113:].unique().tolist() == [31]
    assert sorted(causal.unique().tolist()) == list(range(32)) and bool((causal.diff() >= 0).all())
    assert bucket(torch.arange(300), 32, 128, bidirectional=False).unique().tolist() == [0]
    both = bucket(torch.arange(-300, 301), 32, 128, bidirectional=True)
    behind, ahead = both[:300].flip(0), both[301:]
    assert torch.equal(ahead, behind + 16) and both[300] == 0
    assert behind[:7].tolist() == list(range(1, 8)) and behind[15] == 10 and behind[31] == 12 and behind[127] == 15    # 8 + 2 log2(d / 8)


@pytest.mark.parity
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (64, 256), (8, 20), (32, 1000)])
def test_every_distance_is_in_the_bucket_of_transformers(buckets, farthest, bidirectional):
    attention = import_module("transformers.models.t5.modeling_t5").T5Attention
    distance = torch.arange(-300, 301)
    theirs = attention._relative_position_bucket(distance, bidirectional, buckets, farthest)
    assert torch.equal(bucket(distance, buckets, farthest, bidirectional=bidirectional), theirs)
    assert not torch.equal(bucket(-distance, buckets, farthest, bidirectional=bidirectional), theirs)


@pytest.mark.parity
@pytest.mark.parametrize("decoder", [True, False])
def test_the_bias_is_that_of_transformers(decoder):
    transformers = import_module("transformers")
    config = transformers.T5Config(d_model=30, d_kv=10, num_heads=3, num_layers=1, is_decoder=decoder)
    theirs = import_module("transformers.models.t5.modeling_t5").T5Attention(config, has_relative_attention_bias=True)
    ours = build(ModelConfig(**{**SHAPE, "mask": "causal" if decoder else "full"}))
    with torch.no_grad():
        theirs.relative_attention_bias.weight.normal_()
        ours.load_state_dict({"bias_table.weight": theirs.relative_attention_bias.weight})
        pos = torch.arange(201)[None]
        assert torch.equal(ours.bias(pos, pos), theirs.compute_bias(201, 201))


def test_each_pair_gets_the_bias_of_its_bucket_a_head():
    position = Buckets(3, 8, 20, bidirectional=True, std=0.7)
    q_pos, k_pos = torch.randint(0, 29, (2, 5)), torch.randint(0, 29, (2, 7))
    found = position.bias(q_pos, k_pos)
    for b in range(2):
        for i in range(5):
            for j in range(7):
                row = bucket(k_pos[b, j] - q_pos[b, i], 8, 20, bidirectional=True)
                assert torch.equal(found[b, :, i, j], position.bias_table.weight[row])
    line = torch.arange(5).expand(2, 5)
    assert position.bias(line, line).shape == (1, 3, 5, 5)           # rows that are one row share their bias
    assert position.hooks() == {"bias"} and list(position.state_dict()) == ["bias_table.weight"]
    assert 0.4 < float(position.bias_table.weight.detach().std()) < 1


@pytest.mark.parametrize(("mask", "both"), [("full", True), ("unilm", True), ("causal", False)])
def test_the_direction_follows_the_mask_unless_it_is_given(mask, both):
    config = ModelConfig(**{**SHAPE, "mask": mask})
    assert build(config).bidirectional is both and build(config, bidirectional=not both).bidirectional is not both


def test_the_bias_learns_and_cached_decoding_is_the_full_pass():
    model = Transformer(ModelConfig(**SHAPE, mask="causal", position={"name": "buckets", "buckets": 8, "distance": 10})).double().eval()
    ids = torch.randint(37, (2, 13))
    model(ids).logits.logsumexp(-1).sum().backward()
    assert bool((next(p for n, p in model.named_parameters() if n.endswith("bias_table.weight")).grad.abs().sum(1) > 0).all())
    with torch.no_grad():
        full, cache = model(ids).logits, model.new_cache()
        found = [model(ids[:, :4], cache=cache).logits, *(model(ids[:, place], cache=cache).logits for place in range(4, 13))]
    assert float((torch.cat([one.view(2, -1, 37) for one in found], dim=1) - full).abs().max()) < 1e-10
