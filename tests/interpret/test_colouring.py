"""Colouring: a text comes back whole, signs and depths are those of the scores, and nothing in a text becomes a tag."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fishpaw.interpret.colouring import END, SHADES, Piece, coloured, head, in_html, numbered, pieces, section

TEXTS = st.text(alphabet="今天 ,<>&\"'\n👍", max_size=17)
SPANS = st.lists(st.tuples(st.integers(0, 17), st.integers(0, 17), st.floats(-1, 1)), max_size=7)


class Reader(HTMLParser):
    """What a browser would make of a page: text, tags, and the titles of spans."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.titles, self.open, self.seen = "", [], [], set()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        if tag not in ("meta",):
            self.open.append(tag)
        self.titles += [float(value) for name, value in attrs if name == "title"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open and "title" not in self.open:
            self.text += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert not reader.open
    return reader


@given(TEXTS, SPANS)
def test_a_text_comes_back_whole_from_any_spans(text, spans):
    spans = [(first, last, score) for first, last, score in spans if last <= len(text)]
    parts = pieces(text, spans)
    assert "".join(part.text for part in parts) == text and all(part.text for part in parts)
    assert re.sub("\x1b\\[[0-9;]*m", "", coloured(parts)) == text
    assert read(in_html(parts)).text == text
    kept = sum(score for first, last, score in spans if first < last)
    assert sum(part.score or 0 for part in parts) == pytest.approx(kept, abs=1e-9)


def test_pieces_by_hand():
    parts = [("今", 0.5), ("天", -0.25), (" ", None), ("很", 1.0), ("好", None)]
    assert pieces("今天 很好", [(0, 1, 0.5), (1, 2, -0.25), (3, 4, 1.0)]) == parts
    several = [(1, 2, 0.5), (0, 1, 2.0), (1, 2, 0.25), (0, 0, 9.0)]      # two tokens of a character, one of none
    assert pieces("今天", several) == [("今", 2.0), ("天", 0.75)]
    assert pieces("", []) == [] and pieces("今", []) == [("今", None)]


def test_green_is_for_and_red_against_and_depth_is_the_share_of_the_largest():
    parts = [Piece("a", 1.0), Piece("b", -1.0), Piece("c", 0.5), Piece("d", -0.02), Piece("e", None)]
    shown = coloured(parts)
    assert re.findall(r"48;5;(\d+)m(.)", shown) == [(str(SHADES["for"][4]), "a"), (str(SHADES["against"][4]), "b"),
                                                     (str(SHADES["for"][1]), "c")]
    assert shown.endswith("de") and coloured([Piece("a", 0.0)]) == "a" == coloured([Piece("a", None)])
    deeper = coloured([Piece("a", 0.1), Piece("b", -0.1)])               # only shares matter
    assert deeper == coloured([Piece("a", 10.0), Piece("b", -10.0)])
    assert coloured([Piece("a", -1.0)]) != coloured([Piece("a", 1.0)])   # planted: the sign


def test_numbers_for_who_sees_no_colours():
    assert numbered([Piece("今", 0.0314), Piece(" ", None), Piece("天", -0.5), Piece("很好", None)]) == "今+0.031 天-0.500 很好"


def test_titles_hold_the_scores_and_dots_tell_what_is_against():
    shown = in_html([Piece("今", 0.5), Piece("天", -0.25), Piece("气", -0.001)])
    assert read(shown).titles == [0.5, -0.25, -0.001]
    assert re.findall(r'<span( class="a")? style="background:rgba\((\d+),\d+,\d+,([0-9.]+)', shown) == \
        [("", "0", "0.75"), (' class="a"', "220", "0.38"), ("", "220", "0.00")]  # fmt: skip


def test_a_page_needs_nothing_else_and_no_text_becomes_a_tag():
    evil = "<script>alert('今')</script>&amp;\"</p>"
    page = head(evil) + section(evil, [pieces(evil, [(0, 8, 1.0)]), pieces("第二", [])], note=evil) + section("b", []) + END
    found = read(page)
    assert found.seen <= {"html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "p", "span", "section", "small"}
    assert found.text.count(evil) == 4 and "第二" in found.text
    assert "http" not in page and "src=" not in page and "url(" not in page and 'charset="utf-8"' in page
    planted = page.replace("&lt;script&gt;", "<script>", 1)
    assert "script" in read(planted.replace("&lt;/script&gt;", "</script>", 1)).seen
