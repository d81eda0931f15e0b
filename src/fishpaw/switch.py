"""The only registry: a switch's name is the name of its file, or of its function in a file. Nothing is imported before it is asked for."""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fishpaw.errors import ConfigError

__all__ = ["Spec", "build", "names", "nearest", "spec_name", "spec_options"]

Spec = str | Mapping[str, Any] | Callable[..., Any]
"""A name, `{"name": name, option: value, …}`, or a callable that builds the part itself."""


def build(room: str, spec: Spec, *arguments: Any) -> Any:
    """The part that `spec` names in a room ("positions", "attention", "norms", …), built with `arguments` and the options of the spec.

    A room is a package (one file a part, its function `build`) or a module (one function a part). A name "module:attribute" is a
    user's own part; a callable is called. Errors: ConfigError for an unknown name (with the nearest match) or option.
    """
    if callable(spec):
        return spec(*arguments)
    name, options = spec_name(spec), spec_options(spec)
    maker = _own(name) if ":" in name else _maker(room, name)
    try:
        inspect.signature(maker).bind(*arguments, **options)
    except TypeError as error:
        raise ConfigError(f"{room}: {name!r} can't be built with the options {options}: {error}.", fix=_signature(maker)) from error
    return maker(*arguments, **options)


def names(room: str) -> list[str]:
    """The parts of a room, by name, read from the files without running them."""
    origin = importlib.util.find_spec(f"fishpaw.{room}")
    if origin is None or origin.origin is None:
        raise ConfigError(f"There is no room named {room!r}.", fix="This is a fault in fishpaw: please report it.")
    path = Path(origin.origin)
    if path.name == "__init__.py":
        return sorted(file.stem for file in path.parent.glob("*.py") if not file.stem.startswith("_") and _has_build(file))
    return sorted(name for name in _functions(path, path.stat().st_mtime_ns) if not name.startswith("_"))


def nearest(name: str, known: list[str]) -> str:
    """A sentence for an unknown name: the nearest match, then the list."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(known) or 'none'}."


def spec_name(spec: Spec) -> str:
    """The name in a spec; a callable answers with its own."""
    if isinstance(spec, str):
        return spec
    if isinstance(spec, Mapping):
        return str(spec["name"])
    return str(getattr(spec, "__qualname__", type(spec).__name__))


def spec_options(spec: Spec) -> dict[str, Any]:
    """The options in a spec, without its name."""
    return {key: value for key, value in spec.items() if key != "name"} if isinstance(spec, Mapping) else {}


def _maker(room: str, name: str) -> Callable[..., Any]:
    known = names(room)
    if name not in known:
        raise ConfigError(f"{room}: there is no {name!r}.", fix=nearest(name, known))
    package = importlib.util.find_spec(f"fishpaw.{room}")
    if package is not None and package.submodule_search_locations is not None:
        maker: Callable[..., Any] = importlib.import_module(f"fishpaw.{room}.{name}").build
    else:
        maker = getattr(importlib.import_module(f"fishpaw.{room}"), name)
    return maker


def _own(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    try:
        maker = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{name!r} can't be imported: {error}.", fix="Name a part of your own as module:attribute.") from error
    if not callable(maker):
        raise ConfigError(f"{name!r} is a {type(maker).__name__}, not a function or class.", fix="Name what builds the part.")
    own: Callable[..., Any] = maker
    return own


def _has_build(file: Path) -> bool:
    return "build" in _functions(file, file.stat().st_mtime_ns)


@functools.cache
def _functions(file: Path, changed: int) -> tuple[str, ...]:
    """The functions of a file, read once as long as it doesn't change: a model asks many times."""
    return tuple(node.name for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef))


def _signature(maker: Callable[..., Any]) -> str:
    options = [item for item in inspect.signature(maker).parameters.values() if item.kind is item.KEYWORD_ONLY]
    named = (f"{item.name} (required)" if item.default is item.empty else f"{item.name}={item.default!r}" for item in options)
    return f"Options: {', '.join(named) or 'none'}."
