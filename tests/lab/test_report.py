"""The report: well-formed, self-contained, everything escaped, every row counted once, and nothing left out in silence."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from fishpaw.lab.catalogue import Entry
from fishpaw.lab.findings import Found, Row, Words
from fishpaw.lab.records import make
from fishpaw.lab.report import Section, failures, page

EVIL = '<script>alert("1")</script> & \'x\''
ENTRY = Entry("first", Words("First", "第一"), "https://kexue.fm/archives/1", True)
HOLDS, FAILS = Row(Words("right", "对"), 1.0, 1.0), Row(Words("wrong", "错"), 1.0, 1.5)
OPEN, LOST = Row(Words("perhaps", "也许"), 1.0, 1.1, "<=", 0.0, (0.9, 1.3)), Row(Words("lost", "输"), 1.0, 1.2, "<=", 0.0, (1.1, 1.3))
SVG = '<svg xmlns="http://www.w3.org/2000/svg"/>'


def record(*rows, size=None):
    return make("first", Found(rows), seed=3, size=size or {}, seconds=1.0)


class Reader(HTMLParser):
    """Tags that are open, cells by row, links, pictures."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.links, self.images, self.ids, self.tags = [], [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        self.links += [given["href"]] if "href" in given else []
        self.images += [given["src"]] if tag == "img" else []
        self.ids += [given["id"]] if "id" in given else []
        assert not any(name.startswith("on") for name in given)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and "tr" in self.open:
            self.rows[-1][-1] += data


@pytest.mark.parametrize("language", ["en", "zh"])
def test_rows_stand_in_the_page_and_are_counted_by_kind(language):
    sections = [Section(ENTRY, record(HOLDS, HOLDS, OPEN), figure=SVG),
                Section(replace(ENTRY, name="second"), record(FAILS, LOST), figure=SVG, recorded=record(HOLDS, size={"steps": 9}),
                        recorded_figure=SVG)]  # fmt: skip
    seen = Reader(page(sections, language=language, seed=3))
    numbers = [row[2:] for row in seen.rows[1:5]]
    assert numbers == [["2", "1", "0"], ["0", "1", "1"], ["1", "0", "0"], ["0", "0", "0"]]       # quick, then recorded; by kind
    table = [row for row in seen.rows[5:] if len(row) == 4]
    assert len(table) == 3 + 6                                         # three heads, each row once
    assert ["right", "1", "1", "holds"] in table or ["对", "1", "1", "成立"] in table
    assert len(seen.images) == 3 and seen.links.count("#first") == seen.ids.count("first") == 1


def test_nothing_is_fetched_and_nothing_runs():
    text = page([Section(ENTRY, record(HOLDS), figure=SVG)], language="en", seed=0)
    seen = Reader(text)
    assert all(one.startswith("data:image/svg+xml;base64,") for one in seen.images)
    assert base64.b64decode(seen.images[0].split(",")[1]).decode() == SVG
    assert not {"script", "link", "iframe", "object", "style"} & {*seen.tags} - {"style"}
    assert "url(" not in text and "@import" not in text and 'name="viewport"' in text
    assert [one for one in seen.links if not one.startswith("#")] == [ENTRY.source]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_everything_is_escaped(language):
    evil = Words(EVIL, EVIL)
    bad = make(EVIL, Found((replace(HOLDS, claim=evil),)), seed=0, size={EVIL: EVIL}, seconds=0.0)
    bad = replace(bad, processor=EVIL, versions={EVIL: EVIL})
    for source in (EVIL, "javascript:alert(1)", 'https://x/"onload="alert(1)'):
        entry = Entry(EVIL, evil, source, True)
        text = page([Section(entry, bad, figure=SVG, recorded=bad, recorded_figure=SVG), Section(entry, None, EVIL)],
                    language=language, seed=0)  # fmt: skip
        assert "<script" not in text and not re.search(r'["\s]onload=', text.replace("&quot;", ""))
        seen = Reader(text)
        assert "script" not in seen.tags and not any(one.startswith("javascript") for one in seen.links)
        assert any(EVIL in cell for row in seen.rows for cell in row)
    planted = page([Section(Entry("x", evil, "", False), bad)], language=language, seed=0).replace("&lt;", "<").replace("&gt;", ">")
    assert "<script" in planted                                        # the check would see one


def test_what_was_not_measured_is_told_in_three_places():
    sections = [Section(ENTRY, record(HOLDS), figure=SVG), Section(replace(ENTRY, name="second"), None, "ValueError: no root")]
    text = page(sections, language="en", seed=0)
    assert text.count("not measured") == 3 and "ValueError: no root" in text       # summary, contents, section
    assert failures(sections) == ["second: not measured (ValueError: no root)"]
    assert "not measured" not in page(sections[:1], language="en", seed=0) and not failures(sections[:1])
    assert "not measured" in page(sections[1:], language="en", seed=0)


def test_only_mathematical_rows_measured_now_and_missing_things_are_failures():
    one = Section(ENTRY, record(HOLDS, FAILS, OPEN, LOST), recorded=record(FAILS, size={"steps": 1}))
    assert failures([one]) == ["first: wrong"]
    drawn = Section(ENTRY, record(HOLDS), "KeyError: 'x'")
    assert failures([drawn]) == ["first: not drawn (KeyError: 'x')"]
    assert "no figure: KeyError: &#x27;x&#x27;" in page([drawn], language="en", seed=0)
    assert page([], language="en", seed=0)
