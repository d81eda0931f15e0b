"""Checks of the options that positions take; each raises a ConfigError that names the option and what it may be."""

from __future__ import annotations

import math

from fishpaw.errors import ConfigError
from fishpaw.switch import nearest

__all__ = ["check_one_of", "check_positive", "check_whole"]


def check_positive(name: str, value: object, *, below: float = math.inf) -> None:
    """ConfigError unless `value` is a number above 0 and below `below`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < below:
        limit = "" if math.isinf(below) else f" and below {below:g}"
        raise ConfigError(f"The position's {name} is {value!r}.", fix=f"Give a number above 0{limit}.")


def check_whole(name: str, value: object, *, least: int) -> None:
    """ConfigError unless `value` is a whole number from `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"The position's {name} is {value!r}.", fix=f"Give a whole number from {least}.")


def check_one_of(name: str, value: object, known: list[str]) -> None:
    """ConfigError unless `value` is one of the names in `known`."""
    if value not in known:
        raise ConfigError(f"The position's {name} is {value!r}.", fix=nearest(str(value), known))
