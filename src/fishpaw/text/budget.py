"""What a program that is not trusted may do: steps of work, characters that it makes, characters that it writes; all are counted before
they are spent, so that neither time nor memory runs away. A step takes about a microsecond at most, 10^6 of them seconds."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import Any

from fishpaw.errors import ConfigError

__all__ = ["STEPS", "TURN", "Budget"]

STEPS = 10**6                                                   # entries looked at
TURN = 5                                                        # steps of a turn or call
_READ = 256                                                     # characters that are read in a step
_LARGEST = 2**24                                                # characters of one value, and of all output
_COPIED = 2**28                                                 # characters that all values on the way have together
_HOLDERS = (dict, list, tuple, set, frozenset, KeysView, ItemsView, ValuesView)


class Budget:
    """What one rendering has left."""

    def __init__(self) -> None:
        self.steps, self.written, self.copied = STEPS, _LARGEST, _COPIED

    def step(self, written: int) -> str:
        """One turn of a loop or call of a macro, which writes at least so many characters."""
        self.work(TURN)
        return self.spend(written)

    def work(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise _too_much(f"more than {STEPS:,} steps")

    def spend(self, characters: int) -> str:
        self.written -= characters
        if self.written < 0:
            raise _too_much(f"more than {_LARGEST:,} characters")
        return ""

    def write(self, value: object) -> object:
        """An expression's value on its way into the text."""
        self.spend(self.weigh(value))
        return value

    def room(self, characters: int) -> None:
        """Refuse a value before it is made."""
        self.copied -= characters
        if characters > _LARGEST or self.copied < 0:
            raise _too_much(f"values of more than {_LARGEST:,} characters")

    def weigh(self, value: object) -> int:
        """Characters and entries of a value, spelt out: a list that holds another a hundred times counts it a hundred times."""
        total = sum(len(one) + 1 if isinstance(one, str | bytes) else one.bit_length() // 3 + 1 if isinstance(one, int) else 1
                    for one in self.entries(value))
        self.room(total)
        return total

    def entries(self, value: object) -> Iterator[object]:
        """The value, what it holds, and so on; a step each."""
        waiting = [value]
        while waiting:
            one = waiting.pop()
            self.work(1)
            yield one
            if isinstance(one, _HOLDERS):
                self.work(len(one))
                waiting += [*one, *one.values()] if isinstance(one, dict) else one

    def read(self, value: object) -> None:
        """Every character and entry is looked at."""
        for one in self.entries(value):
            self.work(len(one) // _READ if isinstance(one, str | bytes) else 0)

    def search(self, text: str | bytes, sought: int, *, backwards: bool = False) -> None:
        """A text is searched for so many characters: forwards in linear time, backwards (and in `strip`) in their product."""
        self.work(1 + len(text) * (1 + (sought if backwards else min(sought, 100)) // 10) // _READ)

    def compare(self, left: object, right: object) -> None:
        """An order or equality, which is known when the smaller of them has been read."""
        if isinstance(left, str | bytes) and isinstance(right, str | bytes) or isinstance(left, _HOLDERS) and isinstance(right, _HOLDERS):
            self.read(min(left, right, key=len))
        else:
            self.work(1)

    def contain(self, one: object, all: object) -> None:
        """`one in all`"""
        if isinstance(one, str | bytes) and isinstance(all, str | bytes):
            self.search(all, len(one))
        elif isinstance(one, _HOLDERS):
            self.read([one, all])
        else:
            found = len(all) if isinstance(all, list | tuple | ValuesView) else 1
            self.work(found * (1 + (len(one) // _READ if isinstance(one, str | bytes) else 0)))

    def made(self, value: object) -> Any:
        """A value that was just made, of entries that were there: its own characters or entries, counted as they come where it is lazy."""
        if isinstance(value, Iterator):
            return self._each(value)
        if isinstance(value, str | bytes | list | tuple | dict):
            self.work(len(value) // (_READ if isinstance(value, str | bytes) else 1))
            self.room(len(value))
        return value

    def _each(self, values: Iterator[object]) -> Iterator[object]:
        for one in values:
            self.work(1)
            yield one


def _too_much(what: str) -> ConfigError:
    return ConfigError(f"the chat template makes {what}.", fix="Don't use this template, or give it shorter messages.")
