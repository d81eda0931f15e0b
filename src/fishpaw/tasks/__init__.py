"""The tasks that are classes: Classify, Dialogue, Seq2Seq (load, fit, evaluate, predict, save), Generate, Pretrain, Score,
Explain, Parse, Segment."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fishpaw.tasks.classify import Classify as Classify
    from fishpaw.tasks.dialogue import Dialogue as Dialogue
    from fishpaw.tasks.explain import Explain as Explain
    from fishpaw.tasks.generate import Generate as Generate
    from fishpaw.tasks.parse import Parse as Parse
    from fishpaw.tasks.pretrain import Pretrain as Pretrain
    from fishpaw.tasks.score import Score as Score
    from fishpaw.tasks.segment import Segment as Segment
    from fishpaw.tasks.seq2seq import Seq2Seq as Seq2Seq

__all__ = ["Classify", "Dialogue", "Explain", "Generate", "Parse", "Pretrain", "Score", "Segment", "Seq2Seq"]

_PLACES = {name: f"fishpaw.tasks.{name.lower()}" for name in __all__}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'fishpaw.tasks' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
