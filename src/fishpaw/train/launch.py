"""Which processes train together: those that torchrun started, those of an initialised torch.distributed, or one."""

from __future__ import annotations

import os

import torch

from fishpaw.errors import ConfigError
from fishpaw.train.team import Parallel, Team

__all__ = ["company", "leads"]


def company(parallel: Parallel, device: torch.device) -> Team:
    """The team of this process. torchrun's are met here, over a group that is given up at the end of the run."""
    if parallel not in ("replicated", "sharded"):
        raise ConfigError(f"parallel is {parallel!r}.", fix='Choose "replicated" or "sharded".')
    if not torch.distributed.is_available():
        return Team()
    launched = "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if not launched and not (torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1):
        return Team()
    from fishpaw.train.distributed import join  # what one process does without isn't loaded

    return join(parallel, device)


def leads() -> bool:
    """Whether this process is the only one or the first of several: the one that should write what comes after a run."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return bool(torch.distributed.get_rank() == 0)
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"
