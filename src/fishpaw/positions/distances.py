"""How far each key stands from each query, for positions that are relative."""

from __future__ import annotations

from torch import Tensor

from fishpaw import switch
from fishpaw.config import ModelConfig

__all__ = ["distances", "looks_ahead", "shared"]


def distances(q_pos: Tensor, k_pos: Tensor) -> Tensor:
    """q_pos [b q], k_pos [b k] -> key minus query, [b q k]; [1 q k] where all rows are known to be the same."""
    return shared(k_pos)[:, None, :] - shared(q_pos)[:, :, None]


def shared(pos: Tensor) -> Tensor:
    """[b t] -> [1 t] if its rows are one row expanded (nothing is padded, nothing stored), so that no table is made b times."""
    return pos[:1] if pos.stride(0) == 0 else pos


def looks_ahead(config: ModelConfig) -> bool:
    """Whether a query may see keys after it: not under a causal mask."""
    spec = config.mask[0] if isinstance(config.mask, list | tuple) else config.mask                 # masks of one model share their clock
    return bool(switch.build("masks", spec, config).clock != "causal")
