"""Losses that other libraries publish, each file loaded by itself: the packages around them import half of the world."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def published() -> Callable[[str, str], ModuleType]:
    """(package, file in it) -> the module; skips where the package isn't installed."""

    def load(package: str, file: str) -> ModuleType:
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            pytest.skip(f"{package} is not installed")
        spec = importlib.util.spec_from_file_location("published", Path(found.origin).parent / file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
