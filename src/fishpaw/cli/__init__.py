"""The program: one function a verb in the files of this folder, put together in `program`; `main` is named here for entry points."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fishpaw.cli.program import main as main

__all__ = ["main"]


def __getattr__(name: str) -> Any:
    if name != "main":
        raise AttributeError(f"module 'fishpaw.cli' has no attribute {name!r}; it has main")
    from fishpaw.cli import program

    return program.main
