"""Several processes train one model as one would: each takes rows rank::size of every batch, and gradients are summed over all of them.

Replicated: torch's DistributedDataParallel (arXiv:2006.15704), gradients sent in buckets while the backward pass goes on. Sharded: torch's
fully_shard (arXiv:2304.11277), each process holds 1/size of weights, gradients and optimiser state. Numbers and words go over gloo.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import Any, NoReturn, TypeVar, cast

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from fishpaw.errors import ConfigError, FishpawError
from fishpaw.optim.derive import describe
from fishpaw.optim.parameters import trainable
from fishpaw.train.randomness import seed
from fishpaw.train.team import Forward, Loss, Parallel, Team

__all__ = ["Processes", "Replicated", "Sharded", "join", "own_device"]

_Plain = TypeVar("_Plain")
_UNSHARDABLE = ("Muon", "Adafactor", "Lazy")
_PATIENCE = 1.0                  # seconds for the process that failed to say why: torchrun ends the others once one is gone
_MEETINGS = itertools.count()


def own_device() -> torch.device:
    """Where this process should have its model: the GPU of its number on this machine, the processor where there is none."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else torch.device("cpu")


def join(parallel: Parallel, device: torch.device) -> Processes:
    """Meet the others: over the group that the program made, or one that is made now and given up at the end.

    Raises ConfigError for a device that can't be used so, and where two processes have the same GPU.
    """
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"Several processes can't train on the device {device.type!r}.", fix="Use one process, or a CPU or GPU each.")
    owns = not distributed.is_initialized()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if owns:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    team = Sharded(device, owns) if parallel == "sharded" else Replicated(device, owns)
    places = team.every([socket.gethostname(), str(device)])
    if device.type == "cuda" and any(places.count(place) > 1 for place in places):
        with team:
            team.fail(ConfigError(f"Two processes train on {device}.", fix="Move each model to train.distributed.own_device() before."))
    return team


class Processes(Team):
    """What both ways share: shares of batches, numbers and words, beginning and end."""

    def __init__(self, device: torch.device, owns: bool) -> None:
        self.device, self._owns = device, owns
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self._control = distributed.new_group(backend="gloo")
        self._faults = f"fishpaw/{next(_MEETINGS)}/fault"

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.most(0)
        if error is None or isinstance(error, KeyboardInterrupt | SystemExit):       # all know of it
            self._leave(orderly=error is None)
        elif isinstance(error, RuntimeError) and re.search("gloo|NCCL|Connection|ProcessGroup", str(error)):
            is_known = bool(self._faulty())
            self._leave(orderly=False)
            time.sleep(_PATIENCE)
            if is_known:
                raise SystemExit(FishpawError.exit_code) from None                   # it says itself what was wrong
            what = f"Process {self.rank}: another process of this run is gone ({str(error).splitlines()[0]})."
            raise FishpawError(what, fix="Look for its last words above, then start again: the run goes on.") from None
        else:
            _store().set(f"{self._faults}/{self.rank}", str(error))
            is_leaders = not self.leader and isinstance(error, FishpawError) and self._faulty(patience=_PATIENCE).get(0) == str(error)
            self._leave(orderly=False)
            if is_leaders:
                raise SystemExit(FishpawError.exit_code) from None                   # the same mistake everywhere is told once

    def share(self, rows: NDArray[numpy.int64]) -> NDArray[numpy.int64]:
        return rows[self.rank :: self.size]

    def stir(self, seed_: int, step: int) -> None:
        digest = hashlib.sha256(f"{seed_} {step} {self.rank}".encode()).digest()
        seed(int.from_bytes(digest[:8], "little"))

    def sum(self, values: list[float]) -> list[float]:
        exact = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(exact, group=self._control)
        return cast(list[float], exact.tolist())

    def most(self, value: int) -> int:
        held = torch.tensor(value)
        distributed.all_reduce(held, op=distributed.ReduceOp.MAX, group=self._control)
        return int(held)

    def every(self, value: _Plain) -> list[_Plain]:
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)           # JSON: nothing is unpickled
        padded = torch.zeros(self.most(len(own)), dtype=torch.uint8)
        padded[: len(own)] = own
        texts = [torch.empty_like(padded) for _ in range(self.size)]
        distributed.all_gather(texts, padded, group=self._control)
        return [json.loads(bytes(text.tolist()).rstrip(b"\0")) for text in texts]

    def told(self, value: _Plain) -> _Plain:
        return self.every(value if self.leader else cast(_Plain, None))[0]

    def spread(self, source: Tensor | None, *, shape: torch.Size, dtype: torch.dtype, like: Tensor) -> Tensor:
        full = torch.empty(shape, dtype=dtype, device=like.device) if source is None else source.detach().to(like.device).contiguous()
        distributed.broadcast(full.view(torch.uint8) if dtype == torch.bool else full, src=0)
        return full

    def fail(self, error: FishpawError) -> NoReturn:
        self.most(0)                                               # what others write of it is written
        if self.leader:
            raise error
        time.sleep(_PATIENCE)
        raise SystemExit(error.exit_code)

    def _equalise(self, model: nn.Module) -> None:
        """The leader's weights for all. ConfigError where a process has another model."""
        tensors = list(model.state_dict(keep_vars=True).items())
        everyone = self.every([[name, list(tensor.shape), str(tensor.dtype)] for name, tensor in tensors])
        for rank, names in enumerate(everyone):
            if names != everyone[0]:
                self.fail(ConfigError(f"Process {rank} has another model than process 0.", fix="Build the same one in each."))
        with torch.no_grad():
            for _, tensor in tensors:
                tensor.copy_(self.spread(tensor if self.leader else None, shape=tensor.shape, dtype=tensor.dtype, like=tensor))

    def _faulty(self, *, patience: float = 0.0) -> dict[int, str]:
        """What went wrong, by process, as far as it could still say so."""
        keys = {rank: f"{self._faults}/{rank}" for rank in range(self.size)}
        end = time.monotonic() + patience
        try:
            while not (found := {rank: _store().get(key).decode() for rank, key in keys.items() if _store().check([key])}).get(0):
                if time.monotonic() >= end:
                    break
                time.sleep(0.05)
        except (RuntimeError, OSError):                            # the store went with the process that kept it
            return {}
        return found

    def _leave(self, *, orderly: bool) -> None:
        if self._owns and (orderly or self.device.type == "cpu"):  # NCCL would wait for collectives that nobody will join
            distributed.destroy_process_group()
        elif not self._owns:
            distributed.destroy_process_group(self._control)


class Replicated(Processes):
    """Every process has the whole model and takes the same steps. A batch's backward pass sends nothing unless it is the step's last."""

    def prepare(self, model: nn.Module, loss: Loss) -> Forward:
        from torch.nn.parallel import DistributedDataParallel

        trainable(model)
        self._equalise(model)
        together = DistributedDataParallel(_Replica(model, loss), find_unused_parameters=True)

        def forward(batch: Any, last: bool) -> tuple[Tensor, Tensor | float]:
            with nullcontext() if last else together.no_sync():
                return cast(tuple[Tensor, Tensor | float], together(batch))

        return forward


class Sharded(Processes):
    """Every process has a part of each tensor. Each element of a ModuleList `layers` is gathered when it is called and given up after it;
    all else is there while the loss is computed. Each batch's gradients are spread at once: to keep them whole would cost the memory
    that this way saves."""

    def prepare(self, model: nn.Module, loss: Loss) -> Forward:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        for name, parameter in trainable(model):
            if parameter.ndim == 0:
                self.fail(ConfigError(f"{name} is a single number, which can't be sharded.", fix="Give it one dimension."))
        self._equalise(model)
        self._model, self._whole = model, _Whole(model)
        mesh = init_device_mesh(self.device.type, (self.size,))
        for unit in _units(model):
            fully_shard(unit, mesh=mesh)
        self._root: Any = fully_shard(_Shard(model, loss), mesh=mesh)
        self._whole.empty()
        kept = sorted({name for name, _ in model.named_buffers()} & model.state_dict().keys())
        first = True

        def forward(batch: Any, last: bool) -> tuple[Tensor, Tensor | float]:
            nonlocal first
            if first:                                              # a step begins with the leader's buffers, as with replicas
                held = dict(model.named_buffers())
                for name in kept:
                    own = held[name]
                    own.copy_(self.spread(own if self.leader else None, shape=own.shape, dtype=own.dtype, like=own))
            first = last
            return cast(tuple[Tensor, Tensor | float], self._root(batch))

        return forward

    def check(self, optimizer: torch.optim.Optimizer) -> None:
        if found := re.search(rf"\b({'|'.join(_UNSHARDABLE)})\b", describe(optimizer)):
            self.fail(ConfigError(f"{found[0]} needs whole matrices, and they are sharded.", fix='Use parallel="replicated".'))

    def settle(self, parameters: Iterable[nn.Parameter]) -> None:
        names = [name for name, _ in trainable(self._model)]
        touched = self._root.touched or set()
        counts = self.sum([float(name in touched) for name in names])
        self._root.touched = None
        held = dict(self._model.named_parameters())
        for name, count in zip(names, counts, strict=True):
            if count == self.size:
                held[name].grad = None

    def spread(self, source: Tensor | None, *, shape: torch.Size, dtype: torch.dtype, like: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor, distribute_tensor

        local = like.to_local() if isinstance(like, DTensor) else like
        full = super().spread(source, shape=shape, dtype=dtype, like=local)
        if not isinstance(like, DTensor) or shape != like.shape:
            return full
        return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)

    def whole(self, tensor: Tensor) -> Tensor:
        return cast(Tensor, tensor.full_tensor()) if hasattr(tensor, "full_tensor") else tensor

    @contextmanager
    def reading(self) -> Iterator[None]:
        self._root.unshard()
        try:
            yield
        finally:
            self._root.reshard()

    def release(self) -> None:
        self._whole.restore(self)


class _Replica(nn.Module):
    """A loss as a module: what torch wraps, so that a loss may call the model, or parts of it, as often as it likes."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss
        self.idle = nn.Parameter(torch.zeros(1, device=next(model.parameters()).device))    # torch warns where every parameter is used

    def forward(self, batch: Any) -> tuple[Tensor, Tensor | float]:
        return self.loss(self.model, batch)


class _Shard(nn.Module):
    """A loss as a module, in which every gathered parameter has a gradient, in each process: one that a loss leaves out gets zeros.

    touched: names of those that no batch of this step used so far; None before the first.
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss
        self.touched: set[str] | None = None

    def forward(self, batch: Any) -> tuple[Tensor, Tensor | float]:
        total, count = self.loss(self.model, batch)
        if not torch.is_grad_enabled() or not total.requires_grad:
            return total, count
        gathered = {name: p for name, p in self.model.named_parameters() if p.requires_grad and not hasattr(p, "full_tensor")}
        used = _used(total)
        left = {name: p for name, p in gathered.items() if id(p) not in used}
        for parameter in left.values():
            total = total + 0 * parameter.view(-1)[0].to(total.dtype)
        self.touched = {*left} if self.touched is None else self.touched & left.keys()
        return total, count


class _Whole:
    """A model before it is sharded, so that it can be made so again: its parameters, the modules that hold them, hooks and classes."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = list(model.modules())
        self.holders = [(module, name, p) for module in self.modules for name, p in module._parameters.items() if p is not None]
        self.facts = [(m.__class__, {k: v.copy() if "hooks" in k else v for k, v in m.__dict__.items()}) for m in self.modules]

    def empty(self) -> None:
        """Give up the memory of the whole parameters."""
        for _, _, parameter in self.holders:
            parameter.data = parameter.data.new_empty(0)

    @torch.no_grad()
    def restore(self, team: Team) -> None:
        full = {id(parameter): (parameter, module._parameters[name]) for module, name, parameter in self.holders}
        for parameter, spread in full.values():
            assert spread is not None
            parameter.data = team.whole(spread.detach()).clone()
        for module, (kind, facts) in zip(self.modules, self.facts, strict=True):
            module.__class__ = kind
            for name in [name for name in module.__dict__ if name not in facts and not isinstance(module.__dict__[name], nn.Module)]:
                del module.__dict__[name]
            module.__dict__.update({name: value for name, value in facts.items() if "hooks" in name})
        for module, name, parameter in self.holders:
            module._parameters[name] = parameter


def _units(model: nn.Module) -> list[nn.Module]:
    """Elements of ModuleLists called `layers` that share no parameter with the rest, inner ones first."""
    found: dict[int, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] == "layers":
            found.update({id(unit): unit for unit in module if next(unit.parameters(), None) is not None})
    owners: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(id(module))
    alone = []
    for unit in found.values():
        inside = {id(module) for module in unit.modules()}
        if all(owners[id(parameter)] <= inside for parameter in unit.parameters()):
            alone.append(unit)
    return alone[::-1]


def _used(total: Tensor) -> set[int]:
    """Ids of the parameters that a gradient of `total` reaches."""
    seen: set[Any] = set()
    found: set[int] = set()
    left = [total.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            found.add(id(variable))
        left += [following for following, _ in node.next_functions]
    return found


def _store() -> Any:
    return distributed.distributed_c10d._get_default_store()
