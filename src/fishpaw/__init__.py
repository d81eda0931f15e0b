"""fishpaw: one Transformer that becomes BERT, RoFormer, GPT-2 and others by switches, and what Chinese NLP builds on it.

Importing this package imports nothing else: each public name is resolved when it is first used (PEP 562).

>>> import fishpaw as fp
>>> model, tokenizer = fp.load("a folder, a file or a hub id")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fishpaw import tasks as tasks
    from fishpaw.config import ModelConfig as ModelConfig
    from fishpaw.data.labelled import LabelledText as LabelledText
    from fishpaw.data.labelled import read_labelled as read_labelled
    from fishpaw.errors import FishpawError as FishpawError
    from fishpaw.model.transformer import Transformer as Transformer
    from fishpaw.tasks.encode import encode as encode
    from fishpaw.train.options import Options as Options
    from fishpaw.weights.load import load as load
    from fishpaw.weights.load import load_model as load_model
    from fishpaw.weights.save import save as save

__all__ = [
    "FishpawError", "LabelledText", "ModelConfig", "Options", "Transformer", "__version__", "encode", "load", "load_model", "read_labelled",
    "save", "tasks",
]  # fmt: skip

__version__ = "0.1.0"

_PLACES = {                                                          # public name -> module, and the name there ("" for the module itself)
    "FishpawError": ("fishpaw.errors", "FishpawError"),
    "LabelledText": ("fishpaw.data.labelled", "LabelledText"),
    "ModelConfig": ("fishpaw.config", "ModelConfig"),
    "Options": ("fishpaw.train.options", "Options"),
    "Transformer": ("fishpaw.model.transformer", "Transformer"),
    "encode": ("fishpaw.tasks.encode", "encode"),
    "load": ("fishpaw.weights.load", "load"),
    "load_model": ("fishpaw.weights.load", "load_model"),
    "read_labelled": ("fishpaw.data.labelled", "read_labelled"),
    "save": ("fishpaw.weights.save", "save"),
    "tasks": ("fishpaw.tasks", ""),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'fishpaw' has no attribute {name!r}; it has {', '.join(sorted(__all__))}")
    module, attribute = _PLACES[name]
    found = importlib.import_module(module)
    value = getattr(found, attribute) if attribute else found
    globals()[name] = value                                          # the next use costs nothing
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
