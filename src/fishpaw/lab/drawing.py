"""Figures without a display and without pyplot: one style, PNG and SVG, the same bytes each time."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fishpaw.errors import ConfigError
from fishpaw.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["drawn", "png", "require", "save", "svg"]

_COLOURS = ("#1f5f8b", "#c8553d", "#588157", "#8d6a9f", "#b08900", "#4a4e69", "#2a9d8f", "#9c6644")
_STYLE: dict[Any, Any] = {
    "font.size": 9.0, "axes.titlesize": 10.0, "axes.labelsize": 9.0, "legend.fontsize": 8.0, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#555555", "axes.grid": True, "axes.axisbelow": True,
    "grid.color": "#dddddd", "grid.linewidth": 0.6, "lines.linewidth": 1.5, "lines.markersize": 4.0, "figure.dpi": 100.0,
    "savefig.dpi": 144.0, "savefig.facecolor": "white",
    "svg.fonttype": "path",                                          # the same letters wherever it is looked at
    "svg.hashsalt": "fishpaw",                                       # else identifiers are drawn by chance
}  # fmt: skip


def require() -> None:
    """ConfigError where matplotlib isn't installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("Figures need matplotlib, which is not installed.", fix="Install it: pip install 'fishpaw[plot]'.")


def drawn(
    draw: Callable[[Figure, Mapping[str, Any]], None], series: Mapping[str, Any], *, width: float = 9.0, height: float = 4.0
) -> Figure:  # fmt: skip
    """A figure that `draw` has drawn from `series`; it belongs to no window. width, height: inches. ConfigError without matplotlib."""
    require()
    with _styled():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure, series)
        figure.draw_without_rendering()                              # places the axes, once: a second time would move them a little
        figure.set_layout_engine("none")
    return figure


def png(figure: Figure) -> bytes:
    """A figure as a PNG file, without date and program."""
    return _file(figure, "png", {"Software": None})


def svg(figure: Figure) -> str:
    """A figure as an SVG file, without date and program."""
    return _file(figure, "svg", {"Date": None, "Creator": None}).decode("utf-8")


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write stem.png and stem.svg; returns their paths."""
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    write_atomic(paths[0], png(figure))
    write_atomic(paths[1], svg(figure))
    return paths


def _file(figure: Figure, kind: str, metadata: dict[str, Any]) -> bytes:
    content = io.BytesIO()
    with _styled():
        figure.savefig(content, format=kind, metadata=metadata)
    return content.getvalue()


@contextmanager
def _styled() -> Iterator[None]:
    """The style of the lab on top of matplotlib's own: what a user has set for other figures stays out of these."""
    import matplotlib
    import matplotlib.style
    from matplotlib.rcsetup import cycler

    with matplotlib.style.context("default"), matplotlib.rc_context({**_STYLE, "axes.prop_cycle": cycler(color=_COLOURS)}):
        yield
