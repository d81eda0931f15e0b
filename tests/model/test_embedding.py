"""Embeddings: tokens + segments + position, normed, dropped, projected."""

from __future__ import annotations

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch
from fishpaw.model.embedding import Embedding
from fishpaw.positions import learned

torch.set_num_threads(1)


def made(**changes):
    config = ModelConfig(**{"vocab_size": 37, "hidden_size": 11, "layers": 1, "attention_heads": 1, "intermediate_size": 3, "segments": 3,
                            "max_positions": 13, "init_std": 0.6, "dropout": 0.0, **changes})
    return Embedding(config).double().requires_grad_(False), learned.build(config).double().requires_grad_(False)


IDS, SEGMENTS = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]]), torch.tensor([[0, 0, 2, 2], [0, 1, 1, 2]])
KEEP = torch.tensor([[False, True, True, True], [True, True, True, True]])


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("embedding_norm", [True, False])
@pytest.mark.parametrize("size", [11, 7])
def test_it_is_the_sum_of_three_rows_normed_and_projected(size, embedding_norm, norm):
    embedding, position = made(embedding_size=size, embedding_norm=embedding_norm, norm=norm)
    found = embedding(Batch.padded(IDS, keep=KEEP, segments=SEGMENTS), [position])
    places = torch.tensor([[0, 0, 1, 2], [0, 1, 2, 3]])              # tokens only are counted
    rows = []
    for token, segment, place in zip(IDS.flatten(), SEGMENTS.flatten(), places.flatten(), strict=True):
        row = embedding.tokens.weight[token] + embedding.segments.weight[segment] + position.table.weight[place]
        if embedding_norm:
            row = embedding.norm(row)
        rows.append(row if size == 11 else embedding.project.weight @ row + embedding.project.bias)
    assert found.shape == (8, 11) and (embedding.project is None) is (size == 11)
    assert float((found - torch.stack(rows)).abs().max()) < 1e-12


def test_without_segments_every_token_is_of_the_first_and_a_model_may_have_none():
    embedding, position = made()
    assert torch.equal(embedding(Batch.padded(IDS), [position]), embedding(Batch.padded(IDS, segments=torch.zeros_like(IDS)), [position]))
    embedding, position = made(segments=0)
    assert embedding.segments is None
    assert torch.equal(embedding(Batch.padded(IDS), [position]), embedding(Batch.padded(IDS, segments=SEGMENTS), [position]))


def test_vectors_may_stand_in_for_tokens():
    embedding, position = made()
    batch, other = Batch.padded(IDS, segments=SEGMENTS), Batch.padded(torch.zeros_like(IDS), segments=SEGMENTS)
    vectors = embedding.tokens(IDS.flatten())
    assert torch.equal(embedding(other, [position], vectors), embedding(batch, [position]))


def test_the_query_stream_knows_places_and_no_tokens():
    embedding, position = made(stream="positions")
    one, two = (embedding.queries(Batch.padded(ids, segments=SEGMENTS), [position]) for ids in (IDS, IDS + 5))
    assert torch.equal(one, two) and float((one[0] - one[1]).abs().max()) > 1e-3
    with pytest.raises(ValueError, match="stream='positions'"):
        made()[0].queries(Batch.padded(IDS), [position])
