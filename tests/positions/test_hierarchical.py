"""Hierarchical positions (kexue.fm/archives/7947), by the definition alpha u_i + (1 - alpha) u_j and by the closed form: the first n
rows are the table's own, and a place is told from its mirror."""

from __future__ import annotations

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.errors import DataError
from fishpaw.model.transformer import Transformer
from fishpaw.positions import learned
from fishpaw.positions.hierarchical import build
from fishpaw.weights.load import load_model
from fishpaw.weights.save import save

torch.set_num_threads(1)
SHAPE = {"vocab_size": 37, "hidden_size": 22, "embedding_size": 7, "layers": 2, "attention_heads": 2, "intermediate_size": 29,
         "max_positions": 11, "init_std": 0.6, "heads": ("mlm",), "dropout": 0.0, "attention_dropout": 0.0}


def extended(position):
    """All rows that the table extends to, [n^2 e]."""
    return position.embed(torch.zeros(position.length, 7, dtype=position.table.weight.dtype), torch.arange(position.length)).detach()


def defined(table, alpha):
    """By u, counted from 1 as in the article."""
    n = len(table)
    u = [(table[i] - alpha * table[0]) / (1 - alpha) for i in range(n)]
    return torch.stack([alpha * u[i] + (1 - alpha) * u[j] for i in range(n) for j in range(n)])


@pytest.mark.parametrize("alpha", [0.1, 0.4, 0.6])
def test_it_is_its_definition_and_its_closed_form(alpha):
    position = build(ModelConfig(**SHAPE), alpha=alpha).double()
    table, rows = position.table.weight.detach(), extended(position)
    assert position.length == 121 and rows.shape == (121, 7)
    assert float((rows - defined(table, alpha)).abs().max()) < 1e-12
    closed = torch.stack([table[j] + alpha / (1 - alpha) * (table[i] - table[0]) for i in range(11) for j in range(11)])
    assert float((rows - closed).abs().max()) < 1e-12
    assert float((rows - defined(table, 1 - alpha)).abs().max()) > 1e-2


def test_the_first_rows_are_the_table_to_the_bit():
    position = build(ModelConfig(**SHAPE))
    assert torch.equal(extended(position)[:11], position.table.weight)


def test_places_and_their_mirrors_differ_but_for_alpha_one_half():
    table, mirrored = torch.randn(11, 7, dtype=torch.float64), torch.arange(121).view(11, 11).T.flatten()
    rows = defined(table, 0.5)
    assert float((rows - rows[mirrored]).abs().max()) < 1e-12        # why 0.5 is refused
    position = build(ModelConfig(**SHAPE), alpha=0.4).double()
    rows = extended(position)
    assert float((rows - rows[mirrored]).norm(dim=1)[mirrored != torch.arange(121)].min()) > 1e-2


def test_a_block_is_the_first_one_moved():
    blocks = extended(build(ModelConfig(**SHAPE)).double()).view(11, 11, 7)
    moved = blocks - blocks[:1]
    assert float((moved - moved[:, :1]).abs().max()) < 1e-12


def test_gradients_go_to_the_table_alone():
    position = build(ModelConfig(**SHAPE), alpha=0.4).double()
    position.embed(torch.zeros(1, 7, dtype=torch.float64), torch.tensor([3 * 11 + 5])).sum().backward()
    assert [name for name, _ in position.named_parameters()] == ["table.weight"] and position.table.weight.shape == (11, 7)
    expected = torch.zeros(11, dtype=torch.float64)
    expected[[5, 3, 0]] = torch.tensor([1, 2 / 3, -2 / 3], dtype=torch.float64)
    assert float((position.table.weight.grad - expected[:, None]).abs().max()) < 1e-12


def test_a_model_of_learned_positions_is_unchanged_within_its_length_and_reads_on():
    torch.manual_seed(0)
    plain = Transformer(ModelConfig(**SHAPE)).eval().requires_grad_(False)
    long = Transformer(ModelConfig(**SHAPE, position={"name": "hierarchical", "alpha": 0.4})).eval().requires_grad_(False)
    long.load_state_dict(plain.state_dict())                         # the same names and shapes
    ids = torch.randint(37, (2, 121))
    assert torch.equal(long(ids[:, :11]).logits, plain(ids[:, :11]).logits)
    assert long(ids).logits.shape == (2, 121, 37)
    with pytest.raises(DataError, match="11 positions"):
        plain(ids[:, :12])
    with pytest.raises(DataError, match="121 positions"):
        long(torch.randint(37, (1, 122)))


def test_a_checkpoint_of_learned_positions_is_loaded_into_it(tmp_path):
    torch.manual_seed(0)
    save(Transformer(ModelConfig(**SHAPE | {"embedding_size": None})), tmp_path / "bert")
    ids = torch.randint(37, (2, 11))
    plain, long = (load_model(tmp_path / "bert", position=position) for position in (None, {"name": "hierarchical", "alpha": 0.4}))
    with torch.no_grad():
        assert torch.equal(long(ids).logits, plain(ids).logits)
        assert long(torch.randint(37, (1, 121))).logits.shape == (1, 121, 37)


def test_rows_before_position_zero_are_left_out():
    config = ModelConfig(**SHAPE)
    position, plain = build(config, offset=2).double(), learned.build(config, offset=2).double()
    plain.load_state_dict(position.state_dict())
    rows, pos = extended(position), torch.arange(9)
    assert position.length == 81
    assert torch.equal(rows[:9], plain.embed(torch.zeros(9, 7).double(), pos))
    assert float((rows - defined(position.table.weight.detach()[2:], 0.4)).abs().max()) < 1e-12
