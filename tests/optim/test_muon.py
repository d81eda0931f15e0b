"""Muon: who takes which parameters, how long a step is, and in which direction it goes."""

from __future__ import annotations

import copy
from pathlib import Path
from runpy import run_path

import pytest
import torch
from torch import nn

from fishpaw.optim.muon import muon

torch.set_num_threads(1)
SMALL = run_path(str(Path(__file__).with_name("small.py")))
net, fill, train, weights, gap = (SMALL[name] for name in ("net", "fill", "train", "weights", "gap"))


def test_matrices_go_to_muon_and_the_rest_to_adamw() -> None:
    model = net()
    optimizer = muon(model, learning_rate=0.1, weight_decay=0.3)
    train(optimizer, model, range(1))
    held = {name: set(optimizer.state[p]) for name, p in model.named_parameters()}
    moments = {"step", "exp_avg", "exp_avg_sq"}
    assert held.pop("inner.weight") == {"momentum_buffer"} and all(keys == moments for keys in held.values())
    decays = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["param_names"]}
    assert decays == {"inner.weight": 0.3, "embedding.weight": 0.3, "norm.weight": 0, "norm.bias": 0, "inner.bias": 0}
    assert len(muon(model, learning_rate=0.1, exclude=("inner",)).param_groups) == 2
    assert len(muon(nn.Linear(3, 5, bias=False), learning_rate=0.1).param_groups) == 1


@pytest.mark.parametrize("shape", [(31, 17), (17, 31)])
def test_a_first_step_is_the_orthogonal_matrix_of_the_gradient(shape: tuple[int, int]) -> None:
    """U V' of the gradient's U S V', to the bounds of five steps in bf16 (singular values 0.65 to 1.25), 0.2 in root mean square."""
    torch.manual_seed(0)
    layer = nn.Linear(shape[1], shape[0], bias=False)
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.randn(shape)
    u, _, v = torch.linalg.svd(layer.weight.grad, full_matrices=False)
    muon(layer, learning_rate=0.01, weight_decay=0).step()
    move = (before - layer.weight.detach()) / (0.01 * 0.2 * max(shape) ** 0.5)
    singular = torch.linalg.svdvals(move)
    assert 0.6 < float(singular.min()) and float(singular.max()) < 1.3
    assert float(nn.functional.cosine_similarity(move.flatten(), (u @ v).flatten(), dim=0)) > 0.97
    assert 0.14 < float((before - layer.weight.detach()).square().mean().sqrt()) / 0.01 < 0.26                # as long as AdamW's steps


def test_muon_learns_and_resumes_to_the_bit() -> None:
    model, other = net(), net(seed=1)
    optimizer = muon(model, learning_rate=0.01)
    train(optimizer, model, range(3))
    again = muon(other, learning_rate=0.5)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other.load_state_dict(model.state_dict())
    for one, two in ((model, optimizer), (other, again)):
        train(two, one, range(3, 6))
    assert gap(weights(model), weights(other)) == 0
