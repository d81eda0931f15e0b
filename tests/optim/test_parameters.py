"""Which parameters there are, and which of them are tables."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fishpaw.errors import ConfigError
from fishpaw.optim.parameters import fused, tables, trainable


def test_parameters_by_name_without_frozen_and_shared_ones() -> None:
    model = nn.ModuleDict({"out": nn.Linear(5, 7), "embedding": nn.Embedding(7, 5), "frozen": nn.Linear(2, 2).requires_grad_(False)})
    model["out"].weight = model["embedding"].weight
    assert [name for name, _ in trainable(model)] == ["out.weight", "out.bias"]
    assert tables(model) == {"out.weight"}                           # it goes by what it is, not by its name
    assert fused(model.parameters()) is True and fused([torch.zeros(3, dtype=torch.int64)]) is None
    with pytest.raises(ConfigError, match="no parameter to train"):
        trainable(model.requires_grad_(False))
