"""The tasks: one class each, with the same five verbs: load, fit, evaluate, predict, save."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fishpaw.tasks.classify import Classify as Classify

__all__ = ["Classify"]

_PLACES = {"Classify": "fishpaw.tasks.classify"}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'fishpaw.tasks' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
