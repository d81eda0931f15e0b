"""A block is its formula: residuals, and norms after (post) or before (pre)."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from fishpaw.config import ModelConfig
from fishpaw.contracts import Grid, Position, Rows, View
from fishpaw.model.block import Block, FeedForward, Surroundings

torch.set_num_threads(1)


def made(**changes):
    config = ModelConfig(**{"vocab_size": 3, "hidden_size": 14, "layers": 1, "attention_heads": 2, "intermediate_size": 17, "init_std": 0.6,
                            "dropout": 0.0, "attention_dropout": 0.0, **changes})
    return Block(config).double().requires_grad_(False)


def view(queries, keys):
    rows = [Rows(*[torch.arange(t).expand(2, t)] * 3, torch.ones(2, t, dtype=torch.bool)) for t in (queries, keys)]
    return View(grid=Grid(2, queries), source=Grid(2, keys), q=rows[0], k=rows[1], position=Position())


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("reads", [False, True])
def test_pre_and_post_norm_are_their_formulas(norm, reads):
    encoder = ModelConfig(vocab_size=3, hidden_size=11, layers=1, attention_heads=1, intermediate_size=3) if reads else None
    x, encoded = torch.randn(14, 14, dtype=torch.float64), torch.randn(10, 11, dtype=torch.float64)
    around = Surroundings([view(7, 7)], [view(7, 5)], None, encoded) if reads else Surroundings([view(7, 7)])
    found = {}
    for norm_at in ("post", "pre"):
        block = made(norm=norm, norm_at=norm_at, encoder=encoder)
        parts = [(lambda y, b=block: b.attention(y, around.views)[0], block.attention_norm)]
        parts += [(lambda y, b=block: b.cross(y, around.cross, source=encoded)[0], block.cross_norm)] if reads else []
        parts += [(block.feed_forward, block.feed_forward_norm)]
        expected = x
        for part, normed in parts:
            expected = normed(expected + part(expected)) if norm_at == "post" else expected + part(normed(expected))
        found[norm_at], carry, maps = block(x, around)
        assert float((found[norm_at] - expected).abs().max()) < 1e-12
        assert carry[0] == [None] and maps[0] == [None]
    assert float((found["post"] - found["pre"]).abs().max()) > 1e-2


@pytest.mark.parametrize(("name", "function"), [("gelu", functional.gelu), ("relu", functional.relu), (torch.sin, torch.sin)])
def test_feed_forward_is_two_products_around_an_activation(name, function):
    layer = FeedForward(ModelConfig(vocab_size=3, hidden_size=5, layers=1, attention_heads=1, intermediate_size=7, activation=name,
                                    init_std=0.6)).double()
    x = torch.randn(3, 5, dtype=torch.float64)
    expected = function(x @ layer.up.weight.T + layer.up.bias) @ layer.down.weight.T + layer.down.bias
    assert float((layer(x) - expected).detach().abs().max()) < 1e-12


def test_dropout_acts_on_what_is_added_and_never_on_the_residual():
    block = made(norm_at="pre", dropout=0.5).train()
    block.attention.output.weight.zero_()
    block.feed_forward.down.weight.zero_()
    x = torch.randn(14, 14, dtype=torch.float64)
    assert torch.equal(block(x, Surroundings([view(7, 7)]))[0], x)


def test_mixed_norms_stand_around_the_feed_forward():
    block, x = made(norm_at="mixed"), torch.randn(14, 14, dtype=torch.float64)
    between = x + block.attention(x, [view(7, 7)])[0]
    expected = block.feed_forward_norm(between + block.feed_forward(block.attention_norm(between)))
    assert float((block(x, Surroundings([view(7, 7)]))[0] - expected).abs().max()) < 1e-12
    assert float((made(norm_at="pre")(x, Surroundings([view(7, 7)]))[0] - expected).abs().max()) > 1e-2


@pytest.mark.parametrize(("name", "function"), [("geglu", functional.gelu), ("swiglu", functional.silu), ("reglu", functional.relu)])
def test_a_gated_feed_forward_multiplies_the_half_that_is_not_activated(name, function):
    layer = FeedForward(ModelConfig(vocab_size=3, hidden_size=5, layers=1, attention_heads=1, intermediate_size=7, activation=name,
                                    init_std=0.6, biases=())).double()
    x = torch.randn(3, 5, dtype=torch.float64)
    expected = (function(x @ layer.up.weight[:7].T) * (x @ layer.up.weight[7:].T)) @ layer.down.weight.T
    wrong = (function(x @ layer.up.weight[7:].T) * (x @ layer.up.weight[:7].T)) @ layer.down.weight.T
    away, astray = (float((layer(x) - one).detach().abs().max()) for one in (expected, wrong))
    assert layer.up.bias is None and away < 1e-12 < 1e-3 < astray


def test_dropout_alone_in_training_mode_draws():
    """Monte Carlo dropout: the block is evaluated, its dropout isn't."""
    block, around = made(dropout=0.5).eval(), Surroundings([view(7, 7)])
    x = torch.randn(14, 14, dtype=torch.float64)
    assert torch.equal(block(x, around)[0], block(x, around)[0])
    block.dropout.train()
    assert not torch.equal(block(x, around)[0], block(x, around)[0])
