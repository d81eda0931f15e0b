"""Distances of keys from queries, made once where rows share their positions."""

from __future__ import annotations

import pytest
import torch

from fishpaw.config import ModelConfig
from fishpaw.positions.distances import distances, looks_ahead, shared


def test_distances_are_key_minus_query():
    q_pos, k_pos = torch.randint(0, 97, (3, 5)), torch.randint(0, 97, (3, 7))
    found = distances(q_pos, k_pos)
    assert found.shape == (3, 5, 7)
    assert all(found[b, q, k] == k_pos[b, k] - q_pos[b, q] for b in range(3) for q in range(5) for k in range(7))


def test_one_row_expanded_is_one_row_and_equal_rows_are_not_taken_for_it():
    line = torch.arange(7).expand(3, 7)
    assert shared(line).shape == (1, 7) and shared(line.clone()).shape == (3, 7)
    assert distances(line, line).shape == (1, 7, 7)
    assert torch.equal(distances(line, line.clone())[2], distances(line, line)[0])


@pytest.mark.parametrize(("mask", "ahead"), [("full", True), ("unilm", True), ("causal", False), ({"name": "causal", "window": 3}, False)])
def test_only_a_causal_mask_hides_what_is_ahead(mask, ahead):
    config = ModelConfig(vocab_size=3, hidden_size=4, layers=1, attention_heads=1, intermediate_size=3, mask=mask)
    assert looks_ahead(config) is ahead
