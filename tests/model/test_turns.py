"""Layers that take switches in turn, layers that share weights, and an encoder that reads its decoder's table."""

from __future__ import annotations

import time

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch
from fishpaw.decoding.stepper import TransformerStepper
from fishpaw.errors import ConfigError
from fishpaw.model.transformer import Transformer, distinct

torch.set_num_threads(1)
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]])
LOCAL = {"name": "causal", "window": 2}


def tiny(**changes):
    torch.manual_seed(0)
    shape = {"vocab_size": 37, "hidden_size": 14, "layers": 5, "attention_heads": 2, "head_size": 6, "intermediate_size": 17,
             "max_positions": 43, "dropout": 0.0, "attention_dropout": 0.0, "init_std": 0.6, "heads": ("lm",)}
    return Transformer(ModelConfig(**{**shape, **changes})).double().eval().requires_grad_(False)


def test_layers_take_masks_and_positions_in_turn():
    turns = [{"name": "rotary", "theta": 50.0}, {"name": "rotary", "theta": 3.0}]
    model = tiny(mask=["causal", LOCAL, LOCAL], position=turns)
    assert len(model.masks) == 2 and len(model.positions) == 2 and model.kinds == [(0, 0), (1, 1), (1, 0), (0, 1), (1, 0)]
    maps = model(IDS, attentions=True).attentions
    far = [bool(one[0, :, 10, :8].any()) for one in maps]
    assert far == [True, False, False, True, False]                  # a window of two forgets what is further away
    x = model.embedding(Batch.padded(IDS), model.positions)
    for index, (mask, theta) in enumerate(zip([None, 2, 2, None, 2], [50.0, 3.0, 50.0, 3.0, 50.0], strict=True)):
        one = tiny(mask="causal" if mask is None else LOCAL, position={"name": "rotary", "theta": theta}, layers=1)
        one.layers[0] = model.layers[index]
        x = one_layer(one, x)
    assert float((x - model(IDS).hidden[0]).abs().max()) < 1e-12


def one_layer(model, x):
    """The only layer of a model, on a stream in the place of its embeddings."""
    embedding = model.embedding.forward
    model.embedding.forward = lambda *_: x
    try:
        return model(IDS).hidden[0]
    finally:
        model.embedding.forward = embedding


def test_turns_are_the_same_cached():
    model = tiny(mask=["causal", LOCAL], position=[{"name": "rotary", "theta": 50.0}, "rotary"])
    stepper = TransformerStepper(model)
    found = [stepper.start(Batch.padded(IDS[:, :4]))] + [stepper.step(IDS[:, place]) for place in range(4, 11)]
    assert float((torch.cat(found) - model(IDS).logits[0, 3:]).abs().max()) < 1e-12


def test_specs_are_one_where_they_are_equal_however_written():
    one, same = {"name": "rotary", "theta": 2, "share": 1.0}, {"share": 1, "theta": 2.0, "name": "rotary"}
    listed = {"name": "x", "y": [{}, []]}
    assert distinct([one, "learned", same, listed, "learned", dict(listed)]) == [one, "learned", listed]
    assert distinct([tiny, "learned", tiny]) == [tiny, "learned"]


def test_a_thousand_layers_of_a_thousand_kinds_take_time_in_proportion():
    masks = [{"name": "causal", "window": 1 + index} for index in range(1000)]
    config = ModelConfig(5, 4, 1000, 1, 3, mask=masks, position=[{"name": "rotary", "theta": 2.0 + index} for index in range(1000)])
    with torch.device("meta"):
        assert Transformer(config).kinds == [(index, index) for index in range(1000)]
    began = time.process_time()
    assert distinct(masks * 20) == masks
    assert time.process_time() - began < 2                           # comparing each with each took a minute


def test_attention_takes_turns_and_round_trips_through_json():
    model = tiny(attention=["softmax", {"name": "softmax", "scale": 1.0}], mask="causal")
    assert [round(block.attention.kernel.scale, 9) for block in model.layers] == [round(6**-0.5, 9), 1.0] * 2 + [round(6**-0.5, 9)]
    assert ModelConfig.from_json(model.config.to_json()) == model.config
    assert tiny(mask=["causal", "causal"]).config.mask == "causal"   # one spelling


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"mask": ["full", "causal"]}, ("full", "causal", "clock")),
        ({"mask": []}, ("mask", "empty")),
        ({"mask": ["causal", 3]}, ("mask", "3")),
        ({"attention": ["softmax", {"name": "softmax", "scale": 1.0}], "distinct_layers": 1}, ("turn", "distinct_layers")),
        ({"distinct_layers": 6}, ("distinct_layers", "5 layers")),
        ({"distinct_layers": 0}, ("distinct_layers",)),
        ({"biases": ["qvk"]}, ("biases", "qkv")),
        ({"biases": "qkv"}, ("biases",)),
        ({"norm_at": "mixed", "encoder": ModelConfig(3, 14, 1, 2, 3)}, ("mixed", "cross-attention")),
        ({"shared_embedding": True}, ("shared_embedding", "encoder")),
        ({"shared_embedding": True, "encoder": ModelConfig(3, 14, 1, 2, 3)}, ("shared_embedding", "vocabulary")),
    ],
)
def test_what_can_not_be_is_refused_by_name(changes, names):
    with pytest.raises(ConfigError) as caught:
        tiny(**changes)
    assert all(name in str(caught.value) for name in names)


@pytest.mark.parametrize(("blocks", "expected"), [(1, [0] * 5), (2, [0, 0, 0, 1, 1]), (5, [0, 1, 2, 3, 4])])
def test_layers_that_share_weights_are_copies_of_one_another(blocks, expected):
    model, apart = tiny(distinct_layers=blocks), tiny()
    assert len(model.layers) == blocks and model.config.blocks == blocks
    state = model.state_dict()
    for index, block in enumerate(expected):
        rows = {name.removeprefix(f"layers.{block}."): value for name, value in state.items() if name.startswith(f"layers.{block}.")}
        apart.layers[index].load_state_dict(rows)
    apart.load_state_dict({name: value for name, value in state.items() if not name.startswith("layers.")}, strict=False)
    assert torch.equal(model(IDS).logits, apart(IDS).logits)


@pytest.mark.parametrize("biases", [(), ("qkv",), ("output", "feed_forward")])
@pytest.mark.parametrize("encoder", [None, ModelConfig(3, 14, 1, 2, 3)])
def test_biases_are_where_they_are_named(biases, encoder):
    model = tiny(biases=biases, encoder=encoder)
    inside = [name.split(".", 2)[2] for name in model.state_dict() if name.startswith("layers.")]
    held = {name for name in inside if name.endswith(".bias") and "norm" not in name}
    matrices = {"qkv": ["attention.project"], "output": ["attention.output"], "feed_forward": ["feed_forward.up", "feed_forward.down"]}
    if encoder is not None:
        matrices = {"qkv": [*matrices["qkv"], "cross.query", "cross.key_value"], "output": [*matrices["output"], "cross.output"],
                    "feed_forward": matrices["feed_forward"]}
    assert held == {f"{name}.bias" for which in biases for name in matrices[which]}
    assert model.config.biases == tuple(one for one in ("qkv", "output", "feed_forward") if one in biases)


def test_an_encoder_reads_its_decoders_table():
    inner = ModelConfig(37, 14, 2, 2, 17, init_std=0.6)
    model = tiny(encoder=inner, shared_embedding=True, mask="causal")
    assert "encoder.embedding.tokens.weight" not in model.state_dict()
    own = tiny(encoder=inner, mask="causal")
    own.load_state_dict({**model.state_dict(), "encoder.embedding.tokens.weight": model.embedding.tokens.weight})
    source = Batch.padded(torch.tensor([[7, 3, 2]]))
    assert torch.equal(model(IDS, encoder_batch=source).logits, own(IDS, encoder_batch=source).logits)
    own.encoder.embedding.tokens.weight.mul_(-1)                     # the planted fault: a table that went its own way
    assert float((model(IDS, encoder_batch=source).logits - own(IDS, encoder_batch=source).logits).abs().max()) > 1e-3
    with pytest.raises(ValueError, match="shares its decoder's table"):
        model.encoder(torch.tensor([[7, 3, 2]]))
    model.embedding.tokens.weight.requires_grad_(True)
    read = model(IDS, encoder_batch=Batch.padded(torch.tensor([[36]]))).hidden[..., 0].sum()
    assert torch.autograd.grad(read, model.embedding.tokens.weight)[0][36].abs().max() > 1e-6        # only the encoder read it
