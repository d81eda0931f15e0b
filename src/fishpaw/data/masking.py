"""Which tokens a masked language model must find again, and what it sees in their place (BERT, arXiv:1810.04805, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from fishpaw.errors import ConfigError

__all__ = ["mask_tokens"]


def mask_tokens(
    ids: Tensor,
    *,
    mask_id: int,
    vocab_size: int,
    ordinary: int = 5,
    rate: float = 0.15,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """ids [n] -> what the model reads [n], and the places of the tokens to find again [m].

    Each token of an id from `ordinary` on (special ones lie below) is chosen with probability `rate`; of the chosen, 80 % become mask_id,
    10 % a random ordinary token, 10 % stay. generator: on the CPU, torch's own if None. Errors: ConfigError for a rate that is no share
    and where no id is ordinary.
    """
    if not 0 < rate < 1:
        raise ConfigError(f"The rate of masked tokens is {rate}.", fix="Give a share between 0 and 1.")
    if not 0 <= ordinary < vocab_size:
        raise ConfigError(f"Of {vocab_size} tokens none is ordinary from id {ordinary} on.", fix="Give the first id that isn't special.")
    chosen = (torch.rand(len(ids), generator=generator).to(ids.device) < rate) & (ids >= ordinary)
    places = chosen.nonzero().squeeze(1)                                                            # [m]
    fate = torch.rand(len(places), generator=generator).to(ids.device)
    random = torch.randint(ordinary, vocab_size, (len(places),), generator=generator).to(ids.device)
    seen = torch.where(fate < 0.8, mask_id, torch.where(fate < 0.9, random, ids[places]))
    return ids.index_copy(0, places, seen.to(ids.dtype)), places
