"""Two processes that hold half of each parameter (fully_shard, gloo) take the steps of one that holds all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn

from fishpaw.optim.derive import Derived, derive
from fishpaw.optim.lamb import lamb
from fishpaw.optim.lion import lion
from fishpaw.optim.transforms import Average, Clip, LayerAdaptation, Lookahead, WeightDecay, vectors


def everything(model: nn.Module) -> Derived:
    base = torch.optim.AdamW(model.named_parameters(), lr=0.01, weight_decay=0, fused=True)
    return derive(base, [WeightDecay(0.1), LayerAdaptation(exclude=(vectors,)), Clip(0.1), Lookahead(2), Average(0.9)])


MAKERS: dict[str, Callable[[nn.Module], Derived]] = {
    "lamb": lambda model: lamb(model, learning_rate=0.01),
    "lion": lambda model: lion(model, learning_rate=0.001),
    "everything": everything,
}


def trained(make: Callable[[nn.Module], Derived], change: Callable[[nn.Module], object]) -> list[Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 13), nn.Tanh(), nn.Linear(13, 5)).double()
    change(model)
    optimizer, rows = make(model), torch.randn(11, 7, dtype=torch.float64)
    for _ in range(5):
        optimizer.zero_grad()
        model(rows).square().mean().backward()
        optimizer.step()
    if make is everything:
        optimizer.exchange()
    return [p.full_tensor().detach() if hasattr(p, "full_tensor") else p.detach() for p in model.parameters()]


def work(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    from torch.distributed.fsdp import fully_shard

    gaps = {name: max(float((a - b).abs().max()) for a, b in zip(trained(make, list), trained(make, fully_shard), strict=True))
            for name, make in MAKERS.items()}  # fmt: skip
    if rank == 0:
        torch.save(gaps, f"{folder}/gaps")
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available() or not distributed.is_gloo_available(), reason="torch without gloo")
@pytest.mark.skipif(not Path("/sys/class/net/lo").exists(), reason="needs the loopback device by its Linux name")
def test_two_halves_are_the_whole(tmp_path: Path) -> None:
    multiprocessing.spawn(work, args=(str(tmp_path),), nprocs=2)
    gaps = torch.load(tmp_path / "gaps", weights_only=True)
    assert gaps.keys() == MAKERS.keys() and max(gaps.values()) < 1e-12, gaps
