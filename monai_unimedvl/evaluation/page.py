# SPDX-License-Identifier: Apache-2.0
"""One HTML page out of sections, cards and pictures: self-contained, light or dark as the reader's screen is.

Pictures are data URIs, styles are inline, nothing is loaded from anywhere. What a model made has a dashed
frame and says so under it, and inside its own PNG bytes.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from monai_unimedvl.provenance import Facts, png_mark, to_picture

Verdict = bool | Literal["even"] | None  # better than its baseline, as good, or not compared
SIGNS: dict[Verdict, str] = {True: "\u25b2 ", "even": "= ", False: "\u25bc ", None: ""}


def against(value: float, baseline: float, shape: str) -> Verdict:
    """Where a score stands that a reader sees as `shape.format(value)`; higher is better.

    What reads the same is even: nobody can see that it is above or below.
    """
    if math.isnan(value) or math.isnan(baseline):
        return None
    return "even" if shape.format(value) == shape.format(baseline) else value > baseline


@dataclass(frozen=True)
class Figure:
    """A picture (3, H, W) in [0, 1] with its label and score; `facts` where a model made it."""

    image: Tensor
    label: str
    score: str = ""
    good: Verdict = None
    facts: Facts | None = None


@dataclass(frozen=True)
class Card:
    """Pictures side by side, words, a table, and where the pictures come from.

    Args:
        rows: of the table, the header first; a cell may be (text, verdict).
        lines: (label, text), shown under the pictures.
        legend: name -> colour (red, green, blue) of a map.
        wide: over the whole width of the page.
    """

    title: str
    figures: Sequence[Figure] = ()
    lines: Sequence[tuple[str, str]] = ()
    rows: Sequence[Sequence[str | tuple[str, Verdict]]] = ()
    credit: str = ""
    legend: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """A heading, a sentence or two, cards."""

    title: str
    about: str
    cards: Sequence[Card] = ()
    note: str = ""
    rows: Sequence[Sequence[str | tuple[str, Verdict]]] = field(default_factory=list)
    markdown: str = ""  # tables of a bundle's papers

    @property
    def anchor(self) -> str:
        """What a link to it says."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


def page(title: str, lead: Sequence[str], sections: Sequence[Section], foot: Sequence[str]) -> str:
    """The whole HTML text.

    Args:
        lead, foot: paragraphs above and below, plain text.
    """
    links = "".join(f'<a href="#{s.anchor}">{escape(s.title)}</a>' for s in sections)
    return "\n".join([
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="generator" content="monai_unimedvl">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<header><h1>{escape(title)}</h1>",
        *(f"<p>{_linked(line)}</p>" for line in lead),
        f"<nav>{links}</nav></header><main>",
        *(_section(section) for section in sections),
        "</main><footer>",
        *(f"<p>{_linked(line)}</p>" for line in foot),
        "</footer></body></html>\n",
    ])  # fmt: skip


def markdown_tables(text: str) -> str:
    """The tables of scores (with a column "metric") in a Markdown text as HTML, with their headings."""
    found: list[str] = []
    heading, rows = "", []
    for line in [*text.splitlines(), ""]:
        if line.lstrip().startswith("|"):
            cells = [cell.strip().strip("`*") for cell in line.strip().strip("|").split("|")]
            if not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
                rows.append(cells)
            continue
        if rows and "metric" in rows[0]:
            found += [f"<h3>{escape(heading)}</h3>" if heading else "", _table(rows)]
            heading = ""
        rows = []
        if line.startswith("#"):
            heading = line.lstrip("#").strip()
    return "\n".join(filter(None, found))


def _section(section: Section) -> str:
    cards = "".join(map(_card, section.cards))
    return (
        f'<section id="{section.anchor}"><h2>{escape(section.title)}</h2>'
        f'<p class="about">{_linked(section.about)}</p>'
        + (_table(section.rows) if section.rows else "")
        + section.markdown
        + (f'<div class="cards">{cards}</div>' if cards else "")
        + (f'<p class="note">{_linked(section.note)}</p>' if section.note else "")
        + "</section>"
    )


def _card(card: Card) -> str:
    lines = "".join(f"<dt>{escape(label)}</dt><dd>{escape(text)}</dd>" for label, text in card.lines)
    legend = "".join(
        f'<li><i style="background:rgb{colour}"></i>{escape(name)}</li>'
        for name, colour in card.legend.items()
    )
    pictures = "".join(map(_figure, card.figures))
    words = (f"<dl>{lines}</dl>" if lines else "") + (_table(card.rows) if card.rows else "")
    kind = "wide" if card.wide else "side" if len(card.figures) == 1 else ""
    return (
        f'<article class="{kind}"><h3>{escape(card.title)}</h3><div class="body">'
        + (f'<div class="row">{pictures}</div>' if pictures else "")
        + (f'<ul class="legend">{legend}</ul>' if legend else "")
        + (f'<div class="words">{words}</div>' if words else "")
        + (f'</div><p class="credit">{escape(card.credit)}</p>' if card.credit else "</div>")
        + "</article>"
    )


def _figure(figure: Figure) -> str:
    made = figure.facts is not None
    words = f"{figure.label}, synthetic" if made else figure.label
    score = (
        f'<span class="score{_shade(figure.good)}">{SIGNS[figure.good]}{escape(figure.score)}</span>'
        if figure.score
        else ""
    )
    mark = '<span class="mark">synthetic</span>' if made else ""
    return (
        f'<figure class="{"made" if made else "real"}"><div class="label">{escape(figure.label)}</div>'
        f'<img alt="{escape(words)}" src="{_uri(figure)}"><figcaption>{score}{mark}</figcaption></figure>'
    )


def _uri(figure: Figure) -> str:
    stream = io.BytesIO()
    mark = PngInfo() if figure.facts is None else png_mark(figure.facts)
    to_picture(figure.image).save(stream, "PNG", pnginfo=mark, optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _table(rows: Sequence[Sequence[str | tuple[str, Verdict]]]) -> str:
    def cell(value: str | tuple[str, Verdict], tag: str) -> str:
        text, good = value if isinstance(value, tuple) else (value, None)
        return f'<{tag} class="{_shade(good).strip()}">{escape(text)}</{tag}>'

    head, *body = rows
    lines = ["".join(cell(value, "th") for value in head)]
    lines += ["".join(cell(value, "td") for value in row) for row in body]
    return f'<div class="table"><table><thead><tr>{lines[0]}</tr></thead><tbody>' + "".join(
        f"<tr>{line}</tr>" for line in lines[1:]
    ) + "</tbody></table></div>"  # fmt: skip


def _shade(good: Verdict) -> str:
    return "" if good is None or good == "even" else " good" if good else " bad"


def _linked(text: str) -> str:
    """Plain text as HTML; what stands in back quotes is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


STYLE = """
:root{color-scheme:light dark;--paper:#f6f7f9;--card:#fff;--ink:#1b2330;--soft:#5b6675;--line:#dfe4ea;
--tint:#eef2f7;
--good:#0b6b45;--good-tint:#dff3e8;--bad:#99400b;--bad-tint:#fdebdc;--made:#4a5fd0}
@media(prefers-color-scheme:dark){:root{--paper:#12161c;--card:#1a2028;--ink:#e7ecf2;--soft:#9aa7b6;
--line:#2b3440;
--tint:#222a34;--good:#7fdcae;--good-tint:#143528;--bad:#f3b07d;--bad-tint:#3d2615;--made:#93a4ff}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",
Roboto,sans-serif}
header,main,footer{max-width:1216px;margin:0 auto;padding:0 24px}
header{padding-top:40px}
h1{font-size:30px;line-height:1.2;margin:0 0 12px;letter-spacing:-.01em}
h2{font-size:22px;line-height:1.25;margin:0 0 6px;letter-spacing:-.005em}
h3{font-size:15px;line-height:1.35;margin:0 0 12px;font-weight:600}
header p,.about,.note{max-width:820px;margin:0 0 10px;color:var(--soft)}
nav{display:flex;flex-wrap:wrap;gap:8px;margin:20px 0 0}
nav a{padding:4px 12px;border:1px solid var(--line);border-radius:16px;color:inherit;text-decoration:none;
font-size:14px;
background:var(--card)}
nav a:hover,nav a:focus-visible{border-color:var(--made)}
section{padding:36px 0 0;scroll-margin-top:8px}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,540px),1fr));gap:16px;
margin-top:14px}
article{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px;min-width:0}
.row{display:flex;flex-wrap:wrap;gap:12px}
figure{margin:0;width:116px}
figure img{display:block;width:116px;height:116px;object-fit:contain;background:#000;
image-rendering:pixelated;
border-radius:4px}
figure.made img{outline:2px dashed var(--made);outline-offset:2px}
.label{font-size:13px;line-height:1.3;padding-bottom:6px;color:var(--soft);white-space:nowrap}
figcaption{display:flex;flex-direction:column;align-items:start;gap:3px;font-size:13px;line-height:1.3;
padding-top:7px}
.score{font-variant-numeric:tabular-nums}
.score.good,.score.bad{padding:1px 6px;border-radius:4px;font-weight:600}
td.good,td.bad{white-space:nowrap}
.good{color:var(--good)}.score.good{background:var(--good-tint)}
.bad{color:var(--bad)}.score.bad{background:var(--bad-tint)}
.mark{font-size:11px;color:var(--made);letter-spacing:.02em}
.wide{grid-column:1/-1}
.side .body{display:flex;gap:16px}
.side .row{flex:none}
.side .words{flex:1;min-width:0}
.side .words>:first-child{margin-top:0}
.legend{display:flex;flex-wrap:wrap;gap:4px 14px;list-style:none;margin:10px 0 0;padding:0;font-size:13px}
.legend i{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:6px;outline:1px solid
var(--line)} dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 12px;margin:12px 0
0;font-size:14px} dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere} .table{overflow-x:auto;margin:12px
0 0} table{border-collapse:collapse;font-size:14px;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:5px 12px 5px 0;border-bottom:1px solid var(--line);vertical-align:top}
tr:last-child td{border-bottom:0} th{font-weight:600;color:var(--soft)}
section>.table{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:8px 16px}
section>h3{margin:18px 0 0} .credit{margin:12px 0 0;font-size:12px;line-height:1.4;color:var(--soft)}
.note{margin-top:14px;font-size:14px} code{font:0.92em
ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;background:var(--tint); border-radius:4px;padding:1px
5px} footer{padding:36px 24px 48px;color:var(--soft);font-size:13px} footer p{margin:0 0 6px;max-width:980px}
@media(max-width:600px){.side .body{flex-direction:column}
header,main,footer{padding-left:14px;padding-right:14px}figure,figure img{ width:calc(50vw - 40px);
height:auto}figure img{aspect-ratio:1}} @media print{nav{display:none}article{break-inside:avoid}}
"""
