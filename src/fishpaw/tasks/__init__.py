"""The tasks that are classes: Classify (load, fit, evaluate, predict, save) and Generate; functions are in modules of their names."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fishpaw.tasks.classify import Classify as Classify
    from fishpaw.tasks.generate import Generate as Generate

__all__ = ["Classify", "Generate"]

_PLACES = {"Classify": "fishpaw.tasks.classify", "Generate": "fishpaw.tasks.generate"}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'fishpaw.tasks' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
