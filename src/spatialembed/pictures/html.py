"""What all HTML pages share: one stylesheet, the shell of a page, its smaller parts.

A page needs no other file and asks no server, follows the light or dark ground of its reader, fits
a phone, and has no script. What comes from outside goes through ``text``.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

from spatialembed.pictures.charts import STYLE as CHART_STYLE


def plain(words: str) -> str:
    """Words without what cannot be shown or written: control and broken characters escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words)


def text(words: object) -> str:
    """Words as HTML shows them, whatever a file or a class is called; lines stay lines."""
    return html.escape("\n".join(plain(line) for line in str(words).split("\n")))


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page of parts that are HTML; empty ones are left out."""
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}{CHART_STYLE}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def header(title: str, below: str) -> str:
    """The head of a page."""
    return f"<header><h1>{text(title)}</h1><p>{text(below)}</p></header>"


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values, each pair a small card."""
    items = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in rows
    )
    return f'<dl class="facts">{items}</dl>'


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first row is the head, the first column is on the left; may be empty."""
    if not rows:
        return ""
    head = "".join(f"<th>{text(cell)}</th>" for cell in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:]
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def chart(title: str, svg: str, note: str = "") -> str:
    """A plot as a card; svg is of ``charts``."""
    return (
        f"<figure><h3>{text(title)}</h3>{svg}"
        + (f"<figcaption>{text(note)}</figcaption>" if note else "")
        + "</figure>"
    )


def grid(items: Sequence[str], kind: str = "") -> str:
    """Cards side by side; kind: "cards" are wider, "plots" and "thumbs" narrower."""
    return f'<div class="{f"grid {kind}".strip()}">{"".join(items)}</div>' if items else ""


def data_uri(picture: bytes, kind: str = "png") -> str:
    """The bytes of a picture file as an address; kind: "png" or "jpeg"."""
    return f"data:image/{kind};base64," + base64.b64encode(picture).decode("ascii")


STYLE = """
:root { color-scheme: light dark; --ground: #fff; --card: #f4f5f7; --ink: #1c1d21;
  --quiet: #5d5f68; --line: #dcdde2; --bar: #4c78a8; --mark: #c2410c;
  --error: #c81e1e; --warning: #a15c00; --note: #3b6ea8; --fine: #2f7d4f; }
@media (prefers-color-scheme: dark) { :root { --ground: #18191c; --card: #222327; --ink: #e8e9ec;
  --quiet: #a2a4ad; --line: #37383e; --bar: #6f9fd0; --mark: #f59e5b;
  --error: #ff7b7b; --warning: #f0b429; --note: #8ab4e8; --fine: #6cc492; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 1.5rem 1.25rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
header p { margin: .15rem 0 0; overflow-wrap: anywhere; }
header p, figcaption, dt, .remedy, li, .quiet { color: var(--quiet); }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .8rem; overflow-wrap: anywhere; }
h2 + p { margin: -.5rem 0 .8rem; } h3 { font-size: 1rem; margin: 0 0 .3rem; }
a { color: var(--note); }
.verdict { padding: .7rem 1rem; border-left: 4px solid; background: var(--card);
  border-radius: 4px; overflow-wrap: anywhere; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr));
  gap: .6rem; margin: 1rem 0; }
.facts div { background: var(--card); border-radius: 4px; padding: .5rem .75rem; }
dt { font-size: .8rem; } dd { margin: 0; font-weight: 600; overflow-wrap: anywhere;
  font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .8rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
article { background: var(--card); border-left: 4px solid var(--line); border-radius: 4px;
  padding: .6rem 1rem; overflow-wrap: anywhere; }
article p { margin: 0; } article h3 { font-weight: 400; }
article h3 span { font-weight: 700; }
ul { margin: .3rem 0 0; padding-left: 1.2rem; font-size: .85rem; overflow-wrap: anywhere; }
details { font-size: .85rem; } summary { cursor: pointer; color: var(--note); }
.error { border-color: var(--error); } .warning { border-color: var(--warning); }
.note { border-color: var(--note); } .fine { border-color: var(--fine); }
.error h3 span { color: var(--error); } .warning h3 span { color: var(--warning); }
.note h3 span { color: var(--note); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr));
  gap: 1rem; align-items: start; }
.cards { grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); gap: .6rem; }
.plots { grid-template-columns: repeat(auto-fit, minmax(min(16.5rem, 100%), 1fr)); }
.thumbs { grid-template-columns: repeat(auto-fill, minmax(min(8.6rem, 45%), 1fr)); gap: .6rem; }
figure { margin: 0; background: var(--card); border-radius: 4px; padding: .75rem; }
figcaption { font-size: .85rem; margin-top: .4rem; overflow-wrap: anywhere; }
img { width: 100%; height: auto; display: block; border-radius: 2px; }
.thumbs figure { padding: .4rem; } .thumbs figcaption { font-size: .78rem; line-height: 1.35; }
.thumbs b { color: var(--ink); font-variant-numeric: tabular-nums; }
.thumbs img { aspect-ratio: 1; object-fit: contain; background: #18191c; }
.thumbs a { display: block; color: inherit; text-decoration: none; }
.thumbs a:hover figcaption, .thumbs a:focus figcaption { text-decoration: underline; }
.three { grid-template-columns: repeat(auto-fit, minmax(min(15rem, 100%), 1fr)); }
.pixels img { image-rendering: pixelated; }
pre { background: var(--card); padding: .8rem 1rem; overflow-x: auto; border-radius: 4px;
  font-size: .85rem; }
@media (max-width: 40rem) { pre { white-space: pre-wrap; overflow-wrap: anywhere; } }
@media print { figure, article { break-inside: avoid; } }
"""
