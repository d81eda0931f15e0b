"""Checks of what a configuration says; each raises a ConfigError that names the field, shows the value and says what it may be.

Every number has bounds, far beyond any use, so that no product of a few of them overflows and no table of such a size is begun. Comparing
comes before converting: a whole number of hundreds of digits is no float.
"""

from __future__ import annotations

from collections.abc import Sequence

from fishpaw.errors import ConfigError
from fishpaw.switch import nearest

__all__ = ["LARGEST", "SMALLEST", "number", "one_of", "shown", "truth", "whole"]

SMALLEST, LARGEST = 1e-12, 1e12
"""Numbers that multiply or divide lie between these, unless said otherwise."""

_MOST = 2**31 - 1


def truth(field: str, value: object, *, optional: bool = False) -> None:
    """True or False; None, too, where it is optional."""
    if not (isinstance(value, bool) or optional and value is None):
        raise _refused(field, value, "Give true or false", optional)


def whole(field: str, value: object, *, least: int, most: int = _MOST, optional: bool = False) -> None:
    """A whole number from `least` to `most`; None, too, where it is optional."""
    inside = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
    if not (inside or optional and value is None):
        raise _refused(field, value, f"Give a whole number from {least} to {most}", optional)


def number(
    field: str, value: object, *, least: float = SMALLEST, most: float = LARGEST, below: float | None = None, optional: bool = False
) -> None:
    """A number from `least` to `most`, or to below `below`; None, too, where it is optional."""
    inside = isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
    if below is not None:
        inside = inside and isinstance(value, int | float) and value < below
    if not (inside or optional and value is None):
        limit = f"{most:g}" if below is None else f"below {below:g}"
        raise _refused(field, value, f"Give a number from {least:g} to {limit}", optional)


def one_of(field: str, value: object, known: Sequence[str]) -> None:
    """One of the names in `known`."""
    if not isinstance(value, str) or value not in known:
        raise ConfigError(f"{field} is {shown(value)}.", fix=nearest(shown(value).strip("'"), list(known)))


def shown(value: object) -> str:
    """A value as Python writes it, no longer than a line."""
    try:
        text = repr(value)
    except ValueError:                                               # Python writes no number of more than 4300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:79]}…"


def _refused(field: str, value: object, fix: str, optional: bool) -> ConfigError:
    return ConfigError(f"{field} is {shown(value)}.", fix=f"{fix}{', or leave it out' if optional else ''}.")
