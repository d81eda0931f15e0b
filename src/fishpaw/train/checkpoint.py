"""Checkpoints from which a run goes on to the bit: weights, optimiser, random states as safetensors, the rest as JSON. No pickle.

A checkpoint is a folder that is swapped in whole and listed with SHA-256 (files.py): a kill at any moment leaves the former one
or the new one. It knows what it belongs to (options, data, torch), and goes on with nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fishpaw.errors import CheckpointError, ConfigError
from fishpaw.files import MANIFEST, folder_atomic, recover, verify_manifest, write_atomic
from fishpaw.train.randomness import Randomness
from fishpaw.train.team import Team

__all__ = ["differences", "exists", "load", "load_weights", "put_weights", "read_facts", "read_record", "save", "save_weights", "weights"]

_FORMAT = 1
_AGAIN = "Remove the folder to start anew, or copy it again."
_ALONE = Team()


def exists(folder: Path) -> bool:
    """True if there is a checkpoint (puts the former one back if a process died between two renames)."""
    recover(folder)
    return (folder / MANIFEST).exists()


def save(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, randomness: Randomness, record: Mapping[str, Any],
    team: Team = _ALONE,
) -> None:  # fmt: skip
    """Write a checkpoint in place of the one in `folder`. record: everything else, as JSON can hold it.

    team: all its processes must call this; the leader writes, the same files however many they are, and whatever is spread over them.
    Raises FishpawError if it can't be written (the former one stays), ConfigError for an optimiser state that is no tensor or number.
    """
    tensors, values = _optimizer_state(model, optimizer)
    own, tensors = _whole(weights(model), team), _whole(tensors, team)
    content = {"format": _FORMAT, "optimizer": values, **record}
    if not team.leader:
        return
    with folder_atomic(folder) as new:
        _write_tensors(new / "model.safetensors", own)
        _write_tensors(new / "optimizer.safetensors", tensors)
        _write_tensors(new / "random.safetensors", randomness.tensors())
        write_atomic(new / "state.json", json.dumps(content, ensure_ascii=False, indent=1))


def read_record(folder: Path) -> dict[str, Any]:
    """Verify every byte of a checkpoint, then return its JSON. Raises CheckpointError that names the file."""
    verify_manifest(folder)
    path = folder / "state.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: no training checkpoint ({error}).", fix=_AGAIN) from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: not of format {_FORMAT}.", fix="Go on with the version of fishpaw that wrote it, or start anew.")
    return record


def load(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, record: Mapping[str, Any], team: Team = _ALONE
) -> Randomness:
    """Put weights and optimiser state of a checkpoint that `read_record` verified into place; return its random states.

    team: the leader reads, and all its processes get what is theirs; only the leader's random states are those of the checkpoint.
    """
    path = folder / "model.safetensors"
    put_weights(model, _read_tensors(path) if team.leader else {}, where=path, team=team)
    path = folder / "optimizer.safetensors"
    tensors = _read_tensors(path) if team.leader else {}
    kinds: list[Any] = team.told([[key, list(value.shape), _type(value)] for key, value in tensors.items()])
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for key in (*(kind[0] for kind in kinds), *record["optimizer"]["state"]):
        name, _, part = key.rpartition("/")
        if name not in parameters:
            raise CheckpointError(f"{path}: the model has no parameter {name!r}.", fix="Build the same model, or start anew.")
    for key, shape, kind in kinds:
        name, _, part = key.rpartition("/")
        parameter, dtype = parameters[name], getattr(torch, kind)
        optimizer.state[parameter][part] = team.spread(tensors.get(key), shape=torch.Size(shape), dtype=dtype, like=parameter)
    for key, value in record["optimizer"]["state"].items():
        name, _, part = key.rpartition("/")
        optimizer.state[parameters[name]][part] = value
    for group, saved in zip(optimizer.param_groups, record["optimizer"]["groups"], strict=True):
        group.update(saved)
    if not team.leader:
        return Randomness.take(torch.device("cpu"))
    return Randomness.from_tensors(_read_tensors(folder / "random.safetensors"))


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, detached, no copies; of tensors under several names the first name only."""
    kept: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise ConfigError(f"The model's state {name!r} is no tensor.", fix="Keep it as a buffer, or out of the state dict.")
        if id(tensor) not in seen:
            seen.add(id(tensor))
            kept[name] = tensor.detach()
    return kept


def put_weights(model: nn.Module, stored: Mapping[str, Tensor], *, where: Path, team: Team = _ALONE) -> None:
    """Copy stored tensors into the model, those of the team's leader. Raises CheckpointError if a name, shape or type is not the model's;
    then nothing was copied."""
    here = weights(model)
    if team.leader:
        _refuse_others(here, stored, where)
    with torch.no_grad():
        for name, tensor in here.items():
            tensor.copy_(team.spread(stored.get(name), shape=tensor.shape, dtype=tensor.dtype, like=tensor))


def save_weights(folder: Path, model: nn.Module, facts: Mapping[str, Any], team: Team = _ALONE) -> None:
    """The weights alone, and what is known of them (facts.json), written by the team's leader."""
    own = _whole(weights(model), team)
    if not team.leader:
        return
    with folder_atomic(folder) as new:
        _write_tensors(new / "model.safetensors", own)
        write_atomic(new / "facts.json", json.dumps(facts, ensure_ascii=False, indent=1))


def read_facts(folder: Path) -> dict[str, Any] | None:
    """The facts of `save_weights`; None if they are not there."""
    recover(folder)
    try:
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None


def load_weights(folder: Path, model: nn.Module, team: Team = _ALONE) -> None:
    """Verify a folder of `save_weights` and copy its weights into the model."""
    if team.leader:
        verify_manifest(folder)
    path = folder / "model.safetensors"
    put_weights(model, _read_tensors(path) if team.leader else {}, where=path, team=team)


def differences(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two plain mappings, one phrase a leaf: "batch_size was 32, now 16"."""
    found: list[str] = []
    for name in sorted(stored.keys() | now.keys()):
        before, after = stored.get(name), now.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += [f"{name}: {phrase}" for phrase in differences(before, after)]
        elif before != after:
            found.append(f"{name} was {before}, now {after}")
    return found


def _refuse_others(here: Mapping[str, Tensor], stored: Mapping[str, Tensor], where: Path) -> None:
    missing, strange = here.keys() - stored.keys(), stored.keys() - here.keys()
    both = here.keys() & stored.keys()
    unlike = [name for name in both if (here[name].shape, here[name].dtype) != (stored[name].shape, stored[name].dtype)]
    if missing or strange or unlike:
        said = [f"missing {name}" for name in sorted(missing)] + [f"unknown {name}" for name in sorted(strange)]
        said += [f"{n} is {_described(stored[n])}, the model's {_described(here[n])}" for n in sorted(unlike)]
        more = f" and {len(said) - 20} more" if len(said) > 20 else ""
        raise CheckpointError(f"{where}: of another model: {'; '.join(said[:20])}{more}.", fix="Build the same model, or start anew.")


def _whole(tensors: Mapping[str, Tensor], team: Team) -> dict[str, Tensor]:
    """Whole tensors, on the leader only; what has to be gathered is kept in memory, not on the device."""
    found = {}
    for name, tensor in tensors.items():
        full = team.whole(tensor)
        if team.leader:
            found[name] = full if full is tensor else full.cpu()
    return found


def _optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for parameter, parts in optimizer.state.items():
        if id(parameter) not in names:
            raise ConfigError("The optimiser holds a parameter that the model doesn't.", fix="Build it from the model that is trained.")
        for part, value in parts.items():
            key = f"{names[id(parameter)]}/{part}"
            if isinstance(value, Tensor):
                tensors[key] = value.detach()
            elif isinstance(value, (bool, int, float, type(None))):
                numbers[key] = value
            else:
                what = f"The optimiser's state {key!r} is a {type(value).__name__}."
                raise ConfigError(what, fix="Only tensors and numbers can be saved.")
    plain = (bool, int, float, str, type(None))
    groups = [{name: value for name, value in group.items() if isinstance(value, plain)} for group in optimizer.param_groups]
    return tensors, {"state": numbers, "groups": groups}


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    # Views of one storage (a fused matrix and its parts) would be refused: each is written on its own.
    owned: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        plain = tensor.cpu().contiguous()
        owned[name] = plain.clone() if pointer in storages and plain.data_ptr() == tensor.data_ptr() else plain
        storages.add(pointer)
    try:
        save_file(owned, path)
    except SafetensorError as error:                               # the writer's name for a full disk
        raise OSError(str(error)) from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: can't be read ({error}).", fix=_AGAIN) from error


def _described(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {_type(tensor)}"


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
