"""Drawings: sound XML whatever the words, a square a pair, lines from each node to its two parts, an arc a word."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
import torch

from fishpaw.errors import DataError
from fishpaw.interpret.tree_svg import constituency_svg, dependency_svg, heat_map

WORDS = ["今天", "<a> & \"b\"", "\x00\ud800坏", "很好"]
TREE = ((0, 1), (2, 3))
HEADS = [3, 0, 3, -1]
MATRIX = torch.tensor([[0.0, 1, 2, 3], [4, 0, 5, 6], [7, 8, 0, 9], [10, 11, 12, 0]])
NAME = "{http://www.w3.org/2000/svg}"


def read(drawing: str) -> ElementTree.Element:
    """As a browser does: in UTF-8."""
    return ElementTree.fromstring(drawing.encode("utf-8"))


def texts(page: ElementTree.Element) -> list[str]:
    return [one.text or "" for one in page.iter(f"{NAME}text")]


def inside(page: ElementTree.Element) -> bool:
    """Every coordinate lies on the page."""
    width, height = float(page.attrib["width"]), float(page.attrib["height"])
    for one in page.iter():
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", one.attrib.get("d", ""))]
        if "V" in one.attrib.get("d", ""):
            numbers = [numbers[0], numbers[1], numbers[0], numbers[2]]
        if not all(0 <= x <= width + 1 and -40 <= y <= height for x, y in zip(numbers[::2], numbers[1::2], strict=True)):
            return False
        if one.tag == f"{NAME}text" and not (0 <= float(one.attrib["x"]) <= width and 0 <= float(one.attrib["y"]) <= height):
            return False
    return True


def test_a_heat_map_has_a_square_a_pair_and_the_darkest_is_the_greatest():
    page = read(heat_map(MATRIX, WORDS))
    squares = [one for one in page.iter(f"{NAME}rect") if one.find(f"{NAME}title") is not None]
    told = [one.find(f"{NAME}title").text for one in squares]  # type: ignore[union-attr]  # each has a title
    assert len(squares) == 16 and told[1] == '今天 ← <a> & "b": 1' and told[14] == "很好 ← ��坏: 12"
    assert squares[14].attrib["fill"] == "#08306b" and squares[0].attrib["fill"] == squares[5].attrib["fill"] == "#ffffff"
    red = [int(one.attrib["fill"][1:3], 16) for one in squares]
    assert sorted(range(16), key=lambda at: -red[at]) == sorted(range(16), key=lambda at: float(MATRIX.flatten()[at]))
    places = {(float(one.attrib["x"]), float(one.attrib["y"])) for one in squares}
    assert len(places) == 16 and float(squares[1].attrib["x"]) > float(squares[0].attrib["x"])         # a row is a row
    assert sorted(texts(page)) == sorted(2 * ["今天", '<a> & "b"', "��坏", "很好"]) and inside(page)
    assert "#ffffff" in heat_map(torch.zeros(1, 1), ["今"])


def test_a_tree_of_phrases_has_two_lines_a_node():
    page = read(constituency_svg(TREE, WORDS))
    lines = [one.attrib["d"] for one in page.iter(f"{NAME}path")]
    assert len(lines) == 2 * 3 and texts(page) == ["今天", '<a> & "b"', "��坏", "很好"] and inside(page)
    starts = [line.split(" L ")[0] for line in lines]
    assert len({*starts}) == 3                                         # three nodes
    ends = [line.split(" L ")[1] for line in lines]
    assert len({*ends}) == 6 and len({*ends} & {start.removeprefix("M ") for start in starts}) == 2    # all but the top hang on another
    assert len(list(read(constituency_svg(0, ["今"])).iter(f"{NAME}path"))) == 0


def test_dependencies_have_an_arc_and_an_arrow_a_word():
    page = read(dependency_svg(HEADS, WORDS))
    paths = [one.attrib["d"] for one in page.iter(f"{NAME}path")]
    assert sum("C" in path for path in paths) == 3 and sum("V" in path for path in paths) == 1 and sum("Z" in path for path in paths) == 4
    middles = [float(one.attrib["x"]) for one in page.iter(f"{NAME}text")]
    arcs = [[float(number) for number in re.findall(r"-?[\d.]+", path)] for path in paths if "C" in path]
    found = [(min(range(4), key=lambda at: abs(middles[at] - arc[0])), min(range(4), key=lambda at: abs(middles[at] - arc[-2])))
             for arc in arcs]
    assert found == [(head, word) for word, head in enumerate(HEADS) if head >= 0] and inside(page)
    assert len(list(read(dependency_svg([-1], ["今"])).iter(f"{NAME}path"))) == 2


def test_drawings_are_the_same_each_time():
    assert constituency_svg(TREE, WORDS) == constituency_svg(TREE, WORDS) and dependency_svg(HEADS, WORDS) == dependency_svg(HEADS, WORDS)
    assert not inside(read(dependency_svg(HEADS, WORDS).replace(' x="', ' x="9')))         # planted


@pytest.mark.parametrize("call", [
    lambda: heat_map(torch.zeros(2, 3), ["a", "b"]), lambda: heat_map(torch.zeros(2, 2), ["a"]), lambda: constituency_svg((0, 1), ["a"]),
    lambda: constituency_svg((1, 0), ["a", "b"]), lambda: dependency_svg([-1], ["a", "b"]), lambda: dependency_svg([-1, 2], ["a", "b"]),
])  # fmt: skip
def test_what_does_not_belong_together_is_refused(call):
    with pytest.raises(DataError, match="Give the words"):
        call()
