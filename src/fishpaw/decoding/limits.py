"""How long a hypothesis may grow and which tokens end it: checked once, before the first step, so that no search runs without end."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fishpaw.errors import ConfigError

__all__ = ["LONGEST", "Limits", "check_real", "check_whole"]

LONGEST = 2**20                                                  # tokens; beyond it a limit is a slip of the pen, not a wish


@dataclass(frozen=True)
class Limits:
    """The bounds of one hypothesis, in generated tokens (the prompt is not counted).

    max_new: the most tokens, end token included; 1 to 2**20. A hypothesis that reaches it is cut there and has `ended=False`.
    min_new: the fewest tokens before the closing end token; 0 to max_new. Until then the end tokens are banned, not merely ignored.
    ends: ids of the tokens that end a hypothesis; empty: only max_new does.
    min_ends: how many end tokens close it, 1 to max_new (2 for "question [SEP] answer [SEP]"); the earlier ones are ordinary tokens.
    Raises ConfigError that names the field and its range.
    """

    max_new: int
    min_new: int = 0
    ends: tuple[int, ...] = ()
    min_ends: int = 1

    def __post_init__(self) -> None:
        check_whole("max_new", self.max_new, 1, LONGEST)
        check_whole("min_new", self.min_new, 0, self.max_new)
        if not isinstance(self.ends, tuple):
            raise ConfigError(f"ends is {self.ends!r}; allowed: a tuple of token ids.", fix="Write ends=(102,) for the one token 102.")
        for end in self.ends:
            check_whole("ends", end, 0, None)
        check_whole("min_ends", self.min_ends, 1, self.max_new)
        if self.min_ends > 1 and not self.ends:
            raise ConfigError(f"min_ends is {self.min_ends}, but ends is empty.", fix="Name the end tokens in ends.")

    def table(self, vocabulary: int, device: torch.device | None = None) -> Tensor:
        """-> bool [v]: True where the token is an end token. ConfigError where an end token lies outside the vocabulary."""
        for end in self.ends:
            if end >= vocabulary:
                raise ConfigError(f"ends names token {end}; allowed: 0 to {vocabulary - 1}, the model's vocabulary.",
                                  fix="Take the end token from the tokenizer that belongs to this model.")
        table = torch.zeros(vocabulary, dtype=torch.bool, device=device)
        table[list(self.ends)] = True
        return table                                                                                          # [v]


def check_whole(field: str, value: object, low: int, high: int | None) -> None:
    """ConfigError unless value is a whole number, low <= value <= high (None: no upper bound). True and False are no numbers."""
    if isinstance(value, int) and not isinstance(value, bool) and low <= value and (high is None or value <= high):
        return
    span = f"{low} or more" if high is None else f"{low} to {high}"
    raise ConfigError(f"{field} is {value!r}; allowed: a whole number, {span}.", fix=f"Change {field}.")


def check_real(field: str, value: object, allowed: str, inside: Callable[[float], bool]) -> None:
    """ConfigError unless value is a finite number that is `inside`; allowed: the same in words."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and inside(value):
        return
    raise ConfigError(f"{field} is {value!r}; allowed: {allowed}.", fix=f"Change {field}.")
