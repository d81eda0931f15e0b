"""Figures: the same bytes each time, nobody else's style, no window, and one sentence without matplotlib."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

import fishpaw
from fishpaw.errors import ConfigError
from fishpaw.lab.drawing import drawn, png, require, save, svg

matplotlib = pytest.importorskip("matplotlib")
SERIES = {"x": [0.0, 1.0, 2.0], "y": [1.0, 4.0, 2.5]}


def draw(figure, series):
    left, right = figure.subplots(1, 2)
    left.plot(series["x"], series["y"], label="$y$")
    left.axhline(2.0, linestyle="--")
    left.set(xlabel="x [1]", ylabel="y [1]")
    left.legend()
    right.hist(series["y"])


def test_the_same_bytes_each_time():
    one, two = (drawn(draw, SERIES, width=5, height=2) for _ in range(2))
    assert svg(one) == svg(two) == svg(one) and png(one) == png(two)
    other = drawn(draw, {**SERIES, "y": [1.0, 4.0, 2.6]}, width=5, height=2)
    assert svg(other) != svg(one) and png(other) != png(one)           # planted


def test_the_same_bytes_in_another_process(tmp_path):
    code = "\n".join(["import hashlib, sys", "from fishpaw.lab.drawing import drawn, png, svg",
                      "figure = drawn(lambda figure, series: figure.subplots().plot(series, marker='o'), [1, 4, 2])",
                      "print(hashlib.sha256(svg(figure).encode() + png(figure)).hexdigest(), 'matplotlib.pyplot' in sys.modules)"])
    said = set()
    for seed in ("1", "2"):                                            # the order of sets
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={
            **os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(fishpaw.__file__).parents[1]), "SOURCE_DATE_EPOCH": seed})
        assert done.returncode == 0, done.stderr
        said.add(done.stdout)
    assert len(said) == 1 and said.pop().split()[1] == "False"


def test_a_users_style_stays_out_and_ours_stays_in():
    plain = svg(drawn(draw, SERIES))
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"lines.linewidth": 9, "axes.facecolor": "red", "savefig.dpi": 30}):
        assert svg(drawn(draw, SERIES)) == plain
    assert dict(matplotlib.rcParams) == before


def test_files_are_pictures_without_a_date(tmp_path):
    paths = save(drawn(draw, SERIES, width=7, height=3), tmp_path / "deep" / "name.of.it")
    assert [path.name for path in paths] == ["name.of.it.png", "name.of.it.svg"]
    content = paths[0].read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and [int.from_bytes(content[at : at + 4], "big") for at in (16, 20)] == [1008, 432]
    root = ElementTree.fromstring(paths[1].read_text(encoding="utf-8"))
    assert root.tag.endswith("svg")
    for path in paths:
        assert not any(word in path.read_bytes() for word in (b"<dc:date>", b"Software", b"Matplotlib v"))


def test_without_matplotlib_one_sentence_says_how_to_get_it(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "matplotlib" else find_spec(name, *rest))
    for ask in (require, lambda: drawn(draw, SERIES)):
        with pytest.raises(ConfigError, match=r"pip install 'fishpaw\[plot\]'"):
            ask()


def test_what_draw_raises_comes_through_and_leaves_no_style():
    before = dict(matplotlib.rcParams)
    with pytest.raises(KeyError, match="y"):
        drawn(draw, {"x": [1.0]})
    assert dict(matplotlib.rcParams) == before


def test_no_analysis_lays_its_figure_out_itself():
    """The lab does, once; a second layout in `draw` warned, and failed beside a colour bar."""
    for path in (Path(fishpaw.__file__).parent / "lab").glob("*.py"):
        if path.name != "drawing.py":
            assert not re.search(r"tight_layout|set_layout_engine|subplots_adjust", path.read_text(encoding="utf-8")), path
