"""Multi-head attention against the textbook: a head at a time, from slices of the weights."""

from __future__ import annotations

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.contracts import Grid, Position, Rows, View
from fishpaw.model.multihead import MultiHead

torch.set_num_threads(1)
HEADS, WIDTH, SIZE = 6, 5, 13


def made(keys=6, source_size=None):
    config = ModelConfig(vocab_size=3, hidden_size=SIZE, layers=1, attention_heads=HEADS, key_value_heads=keys, head_size=WIDTH,
                         intermediate_size=3, init_std=0.6, attention_dropout=0.0)
    module = MultiHead(config, source_size=source_size).double().requires_grad_(False)
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return module


def view(queries, keys, b=2):
    rows = [Rows(*[torch.arange(t).expand(b, t)] * 3, torch.ones(b, t, dtype=torch.bool)) for t in (queries, keys)]
    return View(grid=Grid(b, queries), source=Grid(b, keys), q=rows[0], k=rows[1], position=Position())


def head_by_head(x, source, matrices, biases, output, keys):
    """x [b q d], source [b k e]; matrices and biases of queries, keys, values."""
    found = []
    for head in range(HEADS):
        group = head // (HEADS // keys)
        q, k, v = (one @ matrix[place * WIDTH:][:WIDTH].T + bias[place * WIDTH:][:WIDTH] for one, matrix, bias, place in
                   zip((x, source, source), matrices, biases, (head, group, group), strict=True))
        found.append((q @ k.mT / WIDTH**0.5).softmax(-1) @ v)
    return torch.cat(found, -1) @ output.weight.T + output.bias


@pytest.mark.parametrize("keys", [6, 3, 2, 1])
def test_self_attention_is_head_by_head(keys):
    module, x = made(keys), torch.randn(2, 7, SIZE, dtype=torch.float64)
    sizes = [HEADS * WIDTH, keys * WIDTH, keys * WIDTH]
    expected = head_by_head(x, x, module.project.weight.split(sizes), module.project.bias.split(sizes), module.output, keys)
    out, carry, weights = module(x.flatten(0, 1), [view(7, 7)], weights=True)
    assert float((out.view(2, 7, SIZE) - expected).abs().max()) < 1e-10
    assert carry == [None] and weights[0].shape == (2, HEADS, 7, 7)


@pytest.mark.parametrize("keys", [6, 2])
def test_attention_to_a_source_is_head_by_head_and_its_keys_may_be_remembered(keys):
    module = made(keys, source_size=11)
    x, source = torch.randn(2, 3, SIZE, dtype=torch.float64), torch.randn(2, 7, 11, dtype=torch.float64)
    split = keys * WIDTH
    matrices = (module.query.weight, *module.key_value.weight.split(split))
    expected = head_by_head(x, source, matrices, (module.query.bias, *module.key_value.bias.split(split)), module.output, keys)
    memory = module.kernel.memory()
    for given in (source.flatten(0, 1), None):
        out = module(x.flatten(0, 1), [view(3, 7)], source=given, memory=memory)[0]
        assert float((out.view(2, 3, SIZE) - expected).abs().max()) < 1e-10


def test_several_views_are_laid_one_after_another():
    module, x = made(), torch.randn(19, SIZE, dtype=torch.float64)
    one, two = view(5, 5), view(3, 3, b=3)
    second = View(grid=Grid(3, 3, start=10), source=Grid(3, 3, start=10), q=two.q, k=two.k, position=Position())
    expected = torch.cat((module(x[:10], [one])[0], module(x[10:], [two])[0]))
    assert float((module(x, [one, second])[0] - expected).abs().max()) < 1e-12


def test_queries_and_keys_are_normed_a_head_at_a_time():
    config = ModelConfig(vocab_size=3, hidden_size=SIZE, layers=1, attention_heads=HEADS, head_size=WIDTH, intermediate_size=3,
                         init_std=0.6, attention_dropout=0.0, qk_norm=True, norm="rms")
    module = MultiHead(config).double().requires_grad_(False)
    torch.nn.init.normal_(module.query_norm.weight)
    torch.nn.init.normal_(module.key_norm.weight)
    x = torch.randn(2, 7, SIZE, dtype=torch.float64)
    q, k, v = (x @ one.T + bias for one, bias in zip(module.project.weight.chunk(3), module.project.bias.chunk(3), strict=True))

    def normed(y, weight):
        return y / (y.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    found = []
    for head in range(HEADS):
        one, other, value = (part[..., head * WIDTH:][..., :WIDTH] for part in (q, k, v))
        scores = normed(one, module.query_norm.weight) @ normed(other, module.key_norm.weight).mT / WIDTH**0.5
        found.append(scores.softmax(-1) @ value)
    expected = torch.cat(found, -1) @ module.output.weight.T + module.output.bias
    assert float((module(x.flatten(0, 1), [view(7, 7)])[0] - expected.flatten(0, 1)).abs().max()) < 1e-12
