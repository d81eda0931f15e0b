"""AdamW: which parameters decay, and one step against the paper's formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fishpaw.errors import ConfigError
from fishpaw.optim.adamw import adamw, groups

torch.set_num_threads(1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.norm = nn.LayerNorm(5)
        self.inner = nn.Linear(5, 3)
        self.output = nn.Linear(5, 7)
        self.output.weight = self.embedding.weight                      # tied: must count once
        self.scale = nn.Parameter(torch.ones(()))


def names(model: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    return {name for name, own in model.named_parameters() if any(own is p for p in parameters)}


def test_only_matrices_decay_and_each_parameter_stands_in_one_group() -> None:
    model = Net()
    decayed, free = groups(model, weight_decay=0.1)
    assert names(model, decayed["params"]) == {"embedding.weight", "inner.weight"} and decayed["weight_decay"] == 0.1
    assert names(model, free["params"]) == {"norm.weight", "norm.bias", "inner.bias", "output.bias", "scale"} and free["weight_decay"] == 0
    _, free = groups(model, weight_decay=0.1, exempt=["embedding"])
    assert "embedding.weight" in names(model, free["params"])


def test_frozen_parameters_are_left_out_and_nothing_to_train_is_refused() -> None:
    model = Net()
    model.inner.requires_grad_(False)
    assert not {"inner.weight", "inner.bias"} & set().union(*(names(model, group["params"]) for group in groups(model, weight_decay=0)))
    with pytest.raises(ConfigError, match="no parameter to train"):
        groups(model.requires_grad_(False), weight_decay=0)
    with pytest.raises(ConfigError, match="'bias2'"):
        groups(Net(), weight_decay=0, exempt=["bias2"])


def test_two_steps_are_the_papers_formula() -> None:
    model = nn.Linear(3, 2).double()
    optimizer = adamw(model, learning_rate=0.1, weight_decay=0.3)
    assert optimizer.defaults["fused"] is True
    weight, bias = (p.detach().clone() for p in model.parameters())
    m, v = [torch.zeros(2, 3).double(), torch.zeros(2).double()], [torch.zeros(2, 3).double(), torch.zeros(2).double()]
    for step in (1, 2):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        for i, (own, parameter) in enumerate(zip((weight, bias), model.parameters(), strict=True)):
            gradient = parameter.grad
            assert gradient is not None
            m[i], v[i] = 0.9 * m[i] + 0.1 * gradient, 0.999 * v[i] + 0.001 * gradient**2
            own *= 1 - 0.1 * (0.3 if own.ndim == 2 else 0)
            own -= 0.1 * (m[i] / (1 - 0.9**step)) / ((v[i] / (1 - 0.999**step)).sqrt() + 1e-8)
        optimizer.step()
    torch.testing.assert_close(model.weight.detach(), weight, atol=1e-12, rtol=0)
    torch.testing.assert_close(model.bias.detach(), bias, atol=1e-12, rtol=0)
