"""One HTML page of all analyses: what holds, what doesn't and what wasn't measured, with the figures in it. No script, no other file."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from fishpaw import __version__
from fishpaw.lab.catalogue import Entry
from fishpaw.lab.findings import Row, Words
from fishpaw.lab.records import Record
from fishpaw.lab.table import HEADS, VERDICTS, Kind, Language, cells, circumstances, counted, kind, say

__all__ = ["Section", "failures", "page"]

_KINDS: dict[Kind, Words] = {"mathematical": Words("mathematical", "数学"), "empirical": Words("empirical", "实验")}
_TITLE = Words("fishpaw lab: claims measured again", "fishpaw 实验室：重新测量论断")
_ABOUT = Words(
    "Each row is a claim of its source, measured again. A mathematical row must hold; an empirical one was measured on samples and has a "
    "95 % interval: it is open where the interval lies on both sides of what is claimed.",
    "每一行是来源中的一个论断，重新测量。数学论断必须成立；实验论断由样本测得，附 95 % 区间：区间跨在所述数值两侧的，结论未定。",
)
_QUICK = Words("quick form", "快速形式")
_RECORDED = Words("recorded full form", "记录的完整形式")
_MISSING = Words("not measured", "未能测量")
_UNDRAWN = Words("no figure", "没有图")
_FORM = Words("form", "形式")
_ROWS = Words("rows", "行")
_SOURCE = Words("source", "来源")
_MADE = Words("Quick forms: fishpaw {fishpaw}, seed {seed}, {date}, {processor}.",
              "快速形式：fishpaw {fishpaw}，种子 {seed}，{date}，{processor}。")  # fmt: skip
_FIGURE = Words("figure of", "图：")

_CSS = """
body{font:16px/1.5 system-ui,"PingFang SC","Microsoft YaHei","Noto Sans CJK SC",sans-serif;color:#222;background:#fff;
margin:0 auto;max-width:62rem;padding:1rem}
h1{font-size:1.5rem;margin:.5rem 0}h2{font-size:1.2rem;margin:2.5rem 0 .3rem;border-top:1px solid #ccc;padding-top:1rem}
h3{font-size:1rem;margin:1.2rem 0 .3rem}p{margin:.4rem 0}a{color:#1f5f8b}.small{color:#555;font-size:.85rem;overflow-wrap:anywhere}
table{border-collapse:collapse;width:100%;margin:.6rem 0;font-size:.92rem}th,td{text-align:left;vertical-align:top;padding:.3rem .6rem;
border-bottom:1px solid #ddd}th{color:#555;font-weight:600}td.number{font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.holds{color:#2e6b34}.fails,.missing{color:#a4262c;font-weight:600}.open{color:#8a5a00}
img{width:100%;height:auto;margin:.6rem 0}code{overflow-wrap:anywhere}
@media(max-width:40rem){.summary td,.summary th{padding:.3rem .2rem}ul{padding-left:1.2rem}table.rows thead{display:none}
table.rows tr{display:block;border-bottom:1px solid #ccc;padding:.4rem 0}
table.rows td{display:block;border:0;padding:.1rem 0}table.rows td[data-head]::before{content:attr(data-head) ": ";color:#555}}
""".replace("\n", "")


@dataclass(frozen=True)
class Section:
    """An analysis in the report. record: its quick form, None where measuring raised `error`; figure: SVG, None where drawing did.
    recorded: its full form's record, with its own figure."""

    entry: Entry
    record: Record | None
    error: str | None = None
    figure: str | None = None
    recorded: Record | None = None
    recorded_figure: str | None = None


def failures(sections: Iterable[Section]) -> list[str]:
    """The mathematical rows that don't hold, and what wasn't measured or drawn: "name: claim", in English."""
    found = []
    for one in sections:
        if one.record is None:
            found.append(f"{one.entry.name}: not measured ({one.error})")
            continue
        if one.error is not None:
            found.append(f"{one.entry.name}: not drawn ({one.error})")
        found += [f"{one.entry.name}: {row.claim.en}" for row in one.record.rows if kind(row) == "mathematical" and row.verdict != "holds"]
    return found


def page(sections: Sequence[Section], *, language: Language, seed: int) -> str:
    """The whole page. All texts are escaped, figures are images within it."""
    title = escape(say(_TITLE, language))
    made = next((one.record for one in sections if one.record is not None), None)
    words = {} if made is None else {"fishpaw": __version__, "seed": seed, "date": made.date, "processor": made.processor}
    body = [f"<h1>{title}</h1>", f"<p>{escape(say(_ABOUT, language))}</p>", _summary(sections, language)]
    if made is not None:
        body.append(f'<p class="small">{escape(say(_MADE, language).format(**words))}</p>')
    body += [_contents(sections, language), *(_section(one, language) for one in sections)]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>'
    code = "zh-CN" if language == "zh" else "en"
    return f'<!DOCTYPE html>\n<html lang="{code}"><head>{head}<style>{_CSS}</style></head><body>\n' + "\n".join(body) + "\n</body></html>\n"


def _summary(sections: Sequence[Section], language: Language) -> str:
    """How many rows hold, fail, are open: quick forms and records, mathematical and empirical rows apart."""
    forms = ((_QUICK, [one.record for one in sections]), (_RECORDED, [one.recorded for one in sections]))
    heads = [_FORM, _ROWS, *VERDICTS.values()]
    lines = []
    for form, records in forms:
        if not any(records):
            continue
        total = sum((counted(record.rows) for record in records if record is not None), Counter())
        for each, words in _KINDS.items():
            found = [(verdict if total[each, verdict] else "", total[each, verdict]) for verdict in VERDICTS]
            numbers = "".join(f'<td class="number {colour}">{count}</td>' for colour, count in found)
            lines.append(f"<tr><td>{escape(say(form, language))}</td><td>{escape(say(words, language))}</td>{numbers}</tr>")
    if missing := sum(one.record is None for one in sections):
        lines.append(f'<tr><td>{escape(say(_QUICK, language))}</td><td colspan="4" class="missing">'
                     f"{escape(say(_MISSING, language))}: {missing}</td></tr>")  # fmt: skip
    shown = "".join(f"<th>{escape(say(head, language))}</th>" for head in heads)
    return f'<table class="summary"><thead><tr>{shown}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def _contents(sections: Sequence[Section], language: Language) -> str:
    """A link a section, with its verdicts."""
    items = []
    for one in sections:
        name = escape(one.entry.name, quote=True)
        if one.record is None:
            state = f'<span class="missing">{escape(say(_MISSING, language))}</span>'
        else:
            count = Counter(row.verdict for row in one.record.rows)
            state = ", ".join(f'<span class="{verdict}">{escape(say(words, language))} {count[verdict]}</span>'
                              for verdict, words in VERDICTS.items() if count[verdict])  # fmt: skip
        items.append(f'<li><a href="#{name}">{escape(say(one.entry.title, language))}</a>: {state}</li>')
    return f"<ul>{''.join(items)}</ul>"


def _section(one: Section, language: Language) -> str:
    name, source = escape(one.entry.name, quote=True), escape(one.entry.source, quote=True)
    link = f'<a href="{source}" rel="noopener">{source}</a>' if one.entry.source.startswith("https://") else source
    parts = [f'<h2 id="{name}">{escape(say(one.entry.title, language))}</h2>',
             f'<p class="small"><code>fishpaw lab {name}</code> · {escape(say(_SOURCE, language))}: {link}</p>']  # fmt: skip
    if one.record is None:
        parts.append(f'<p class="missing">{escape(say(_MISSING, language))}: {escape(one.error or "")}</p>')
    else:
        parts += [_rows(one.record.rows, language), _image(one.figure, one.entry, language)]
        if one.error is not None:
            parts.append(f'<p class="missing">{escape(say(_UNDRAWN, language))}: {escape(one.error)}</p>')
    if one.recorded is not None:
        parts += [f"<h3>{escape(say(_RECORDED, language))}</h3>", f'<p class="small">{escape(circumstances(one.recorded, language))}</p>',
                  _rows(one.recorded.rows, language), _image(one.recorded_figure, one.entry, language)]  # fmt: skip
    return f"<section>{''.join(parts)}</section>"


def _rows(rows: Iterable[Row], language: Language) -> str:
    heads = [escape(say(head, language), quote=True) for head in HEADS]
    lines = []
    for row in rows:
        claim, claimed, measured, verdict = map(escape, cells(row, language))
        named = zip(heads[1:], (claimed, measured, verdict), ("number", "number", row.verdict), strict=True)
        others = "".join(f'<td class="{look}" data-head="{head}">{cell}</td>' for head, cell, look in named)
        lines.append(f"<tr><td>{claim}</td>{others}</tr>")
    shown = "".join(f"<th>{head}</th>" for head in heads)
    return f'<table class="rows"><thead><tr>{shown}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def _image(figure: str | None, entry: Entry, language: Language) -> str:
    """As an image and not as elements of the page, so that two figures' identifiers can't meet."""
    if figure is None:
        return ""
    content = base64.b64encode(figure.encode("utf-8")).decode("ascii")
    about = escape(f"{say(_FIGURE, language)} {say(entry.title, language)}", quote=True)
    return f'<img alt="{about}" src="data:image/svg+xml;base64,{content}">'
