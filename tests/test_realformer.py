"""RealFormer (arXiv:2012.11747): scores that run on from layer to layer. What test_contracts.py holds beside this: one layer is the usual
model to the bit, later layers without queries repeat the first map, cached and beamed is a full pass.

fp64, 1e-10 (rounding) unless a comment says otherwise.
"""

from __future__ import annotations

import pytest
import torch

from fishpaw import switch
from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch
from fishpaw.errors import ConfigError
from fishpaw.model.transformer import Transformer

torch.set_num_threads(1)
VOCABULARY = 37


def real(**changes):
    """A RealFormer of odd sizes and large weights."""
    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "hidden_size": 14, "layers": 5, "attention_heads": 2, "head_size": 6, "intermediate_size": 18,
             "max_positions": 23, "dropout": 0.0, "attention_dropout": 0.0, "init_std": 0.6, "residual_scores": True, "heads": ("lm",)}
    return Transformer(ModelConfig(**{**shape, **changes})).double().eval().requires_grad_(False)


def kinds():
    """Every attention with a matrix of scores."""
    found = []
    for name in switch.names("attention"):
        try:
            real(attention=name, layers=1)
        except ConfigError:
            continue
        found.append(name)
    return found


def listen(model, place):
    """What each layer's kernel gets and gives; place 0: to the tokens themselves, 1: to the encoder."""
    heard = []
    for pair in model.kernels():
        pair[place].register_forward_hook(lambda kernel, inputs, output: heard.append((kernel, inputs, output)))
    return heard


def raw(heard):
    """The scores of each layer's own queries and keys, [layers b h q k]."""
    return torch.stack([inputs[0] @ inputs[1].mT * kernel.scale for kernel, inputs, _ in heard])


@pytest.mark.parametrize("changes", [{}, {"norm_at": "pre", "mask": "causal"}, {"block": "gau"}, {"mask": "unilm"}], ids=str)
@pytest.mark.parametrize("attention", kinds())
def test_every_layer_reads_the_sum_of_all_raw_scores_below(attention, changes):
    """bert4keras returned scores that lacked the layer below from commit 20a4694 (2023-03-06) on: its chain was one layer long, and its
    masks, now booleans, no longer added up with the scores."""
    model = real(attention=attention, **changes)
    heard = listen(model, 0)
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1]])
    padding = torch.tensor([[True] * 7, [True] * 5 + [False] * 2])
    maps = model(torch.randint(VOCABULARY, (2, 7)), segments=segments, padding=padding, attentions=True).attentions
    expected = raw(heard).cumsum(0)
    for layer, (kernel, inputs, output) in enumerate(heard):
        assert float((output.carry - expected[layer]).abs().max()) < 1e-10 * float(expected.abs().max())
        assert float((maps[layer] - kernel.shares(expected[layer], inputs[3])).abs().max()) < 1e-10
    short = raw(heard) + torch.cat((torch.zeros_like(expected[:1]), raw(heard)[:-1]))               # the planted fault, from layer 3 on
    assert float((short - expected)[:2].abs().max()) < 1e-10 * float(expected.abs().max())
    assert all(float((short - expected)[layer].abs().max()) > 1e-3 for layer in range(2, 5))


def test_it_is_one_attention_over_all_queries_and_keys_side_by_side():
    """A_n = [Q_1 … Q_n] [K_1 … K_n]^T: the summed Q and K of the article's rewriting would add what crosses layers."""
    model = real()
    heard = listen(model, 0)
    model(torch.randint(VOCABULARY, (2, 7)), attentions=True)
    q, k = (torch.cat([inputs[place] for _, inputs, _ in heard], dim=-1) for place in (0, 1))
    assert float((q @ k.mT * heard[0][0].scale - heard[-1][2].carry).abs().max()) < 1e-10
    summed = sum(inputs[0] for _, inputs, _ in heard) @ sum(inputs[1] for _, inputs, _ in heard).mT * heard[0][0].scale
    assert float((summed - heard[-1][2].carry).abs().max()) > 1.0


def test_a_decoder_has_a_chain_to_itself_and_one_to_its_encoder():
    encoder = ModelConfig(vocab_size=VOCABULARY, hidden_size=10, layers=1, attention_heads=2, intermediate_size=7, init_std=0.6)
    model = real(mask="causal", encoder=encoder)
    own, cross = listen(model, 0), listen(model, 1)
    model(torch.randint(VOCABULARY, (2, 7)), encoder_batch=Batch.padded(torch.randint(VOCABULARY, (2, 5))))
    for heard, keys in ((own, 7), (cross, 5)):
        carried = torch.stack([output.carry for _, _, output in heard])
        assert carried.shape == (5, 2, 2, 7, keys)
        assert float((carried - raw(heard).cumsum(0)).abs().max()) < 1e-10 * float(carried.abs().max())


@pytest.mark.parametrize("attention", kinds())
@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_no_layer_of_a_causal_chain_sees_the_future(attention, position):
    model = real(attention=attention, mask="causal", position=position)
    ids = torch.randint(VOCABULARY, (1, 11))
    other = ids.clone()
    other[0, 7:] = (ids[0, 7:] + 5) % VOCABULARY
    one, two = model(ids, all_hidden=True), model(other, all_hidden=True)
    assert all(torch.equal(a[:, :7], b[:, :7]) for a, b in zip(one.all_hidden, two.all_hidden, strict=True))
    assert not torch.equal(one.logits[:, 7:], two.logits[:, 7:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mask", ["full", "causal", "unilm"])
def test_rows_of_padding_stay_finite_in_half_precision_through_many_layers(dtype, mask):
    """Masks aren't carried: added masks of -10,000 a layer leave fp16 after the seventh."""
    model = real(layers=12, init_std=0.1, mask=mask).to(dtype)
    heard = listen(model, 0)
    padding = torch.tensor([[True] * 7, [True] * 3 + [False] * 4, [False] * 7])
    output = model(torch.randint(VOCABULARY, (3, 7)), segments=torch.zeros(3, 7, dtype=torch.long), padding=padding, all_hidden=True)
    assert all(bool(hidden.isfinite().all()) for hidden in output.all_hidden)
    assert heard[-1][2].carry.dtype == torch.float32 and float(heard[-1][2].carry.abs().max()) < 1e4
    added = torch.full((), -10_000.0, dtype=torch.float16).repeat(12).cumsum(0, dtype=torch.float16)
    assert bool(added.isinf().any())                                 # the planted fault


def test_without_a_chain_the_fused_kernel_serves_and_nothing_is_carried():
    model = real(residual_scores=False)
    heard = listen(model, 0)
    model(torch.randint(VOCABULARY, (2, 7)))
    assert all(output.carry is None and output.weights is None for _, _, output in heard)
