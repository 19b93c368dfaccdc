"""The page of a data set: findings, plots, pictures and recommended settings. Needs no other file.

It keeps to what a phone shows, follows the light or dark ground of the reader, and has no script.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spatialembed.results.charts import STYLE as CHART_STYLE
from spatialembed.results.findings import Finding, graded, tally
from spatialembed.results.report import data_uri

LISTED = 500
"""Cases of a finding that the page lists; report.json has all."""


@dataclass(frozen=True)
class Plot:
    """A plot with what it shows."""

    title: str
    svg: str
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A sample with its objects drawn on it."""

    title: str
    note: str
    image: np.ndarray  # (h, w, 3) uint8


@dataclass(frozen=True)
class SurveyPage:
    """All that stands on the page."""

    name: str
    layout: str
    facts: Sequence[tuple[str, str]]  # name, value
    parts: Sequence[Sequence[str]]  # rows of a table, the first is its head; may be empty
    findings: Sequence[Finding]
    plots: Sequence[Plot]
    pictures: Sequence[Picture]
    settings: str  # YAML, "" where there is none
    command: str  # to train with it

    def html(self) -> str:
        """The whole page."""
        name = html.escape(self.name)
        parts = [
            f"<header><h1>{name}</h1><p>{html.escape(self.layout)}</p></header>",
            _verdict(self.findings),
            _facts(self.facts),
            _table(self.parts),
            _findings(self.findings),
            _settings(self.settings, self.command),
            _plots(self.plots),
            _pictures(self.pictures),
        ]
        body = "\n".join(part for part in parts if part)
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>Data report: {name}</title>\n<style>{STYLE}{CHART_STYLE}</style></head>\n"
            f"<body><main>\n{body}\n</main></body></html>\n"
        )


def _verdict(findings: Sequence[Finding]) -> str:
    worst = graded(findings)[0].grade if findings else "note"
    words = {
        "error": "Training refuses this data set as it is: mend the errors first.",
        "warning": "It can be trained on. Look at the warnings first.",
        "note": "It can be trained on.",
    }[worst]
    return f'<p class="verdict {worst}"><b>{words}</b> {tally(findings)}.</p>'


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    items = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
        for name, value in facts
    )
    return f'<dl class="facts">{items}</dl>'


def _table(rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows[1:]
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return "<h2>Findings</h2><p>None.</p>"
    cards = "".join(_finding(finding) for finding in graded(findings))
    return f'<h2>Findings</h2><div class="grid cards">{cards}</div>'


def _finding(finding: Finding) -> str:
    def listed(cases: Sequence[str]) -> str:
        return "<ul>" + "".join(f"<li>{html.escape(case)}</li>" for case in cases) + "</ul>"

    rest = finding.cases[len(finding.examples) : LISTED]
    beyond = "" if len(finding.cases) <= LISTED else "<p>The rest stands in report.json.</p>"
    more = f"<details><summary>{len(finding.cases) - len(finding.examples)} more</summary>"
    return (
        f'<article class="{finding.grade}"><h3><span>{finding.grade}</span> '
        f"<code>{finding.code}</code></h3><p>{html.escape(finding.text)}</p>"
        + (f'<p class="remedy">{html.escape(finding.remedy)}</p>' if finding.remedy else "")
        + (listed(finding.examples) if finding.examples else "")
        + (f"{more}{listed(rest)}{beyond}</details>" if rest else "")
        + "</article>"
    )


def _plots(plots: Sequence[Plot]) -> str:
    figures = "".join(
        f"<figure><h3>{html.escape(plot.title)}</h3>{plot.svg}"
        f"<figcaption>{html.escape(plot.note)}</figcaption></figure>"
        for plot in plots
    )
    return f'<h2>Distributions</h2><div class="grid">{figures}</div>' if plots else ""


def _pictures(pictures: Sequence[Picture]) -> str:
    figures = "".join(
        f"<figure><h3>{html.escape(picture.title)}</h3>"
        f'<img alt="{html.escape(f"{picture.title}: {picture.note}")}" '
        f'width="{picture.image.shape[1]}" height="{picture.image.shape[0]}" '
        f'src="{data_uri(picture.image)}"><figcaption>{html.escape(picture.note)}</figcaption>'
        "</figure>"
        for picture in pictures
    )
    return f'<h2>Samples</h2><div class="grid">{figures}</div>' if pictures else ""


def _settings(settings: str, command: str) -> str:
    if not settings:
        return ""
    return (
        "<h2>Recommended settings</h2><p>As <code>recommended.yaml</code> beside this page:</p>"
        f"<pre>{html.escape(settings)}</pre><pre>{html.escape(command)}</pre>"
    )


STYLE = """
:root { color-scheme: light dark; --ground: #fff; --card: #f5f5f7; --ink: #1c1d21;
  --quiet: #63656e; --line: #dcdde2; --bar: #4c78a8; --mark: #c2410c;
  --error: #c81e1e; --warning: #a15c00; --note: #3b6ea8; }
@media (prefers-color-scheme: dark) { :root { --ground: #18191c; --card: #222327; --ink: #e8e9ec;
  --quiet: #9a9ca5; --line: #37383e; --bar: #6f9fd0; --mark: #f59e5b;
  --error: #ff7b7b; --warning: #f0b429; --note: #8ab4e8; } }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1.25rem; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; } header p { margin: 0; }
header p, figcaption, dt, .remedy, li { color: var(--quiet); }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .8rem; } h3 { font-size: 1rem; margin: 0 0 .3rem; }
.verdict { padding: .7rem 1rem; border-left: 4px solid; background: var(--card);
  border-radius: 4px; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr));
  gap: .6rem; margin: 1rem 0; }
.facts div { background: var(--card); border-radius: 4px; padding: .5rem .75rem; }
dt { font-size: .8rem; } dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: right; padding: .3rem .8rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
article { background: var(--card); border-left: 4px solid var(--line); border-radius: 4px;
  padding: .6rem 1rem; overflow-wrap: anywhere; }
article p { margin: 0; } article h3 { font-weight: 400; }
article h3 span { font-weight: 700; }
ul { margin: .3rem 0 0; padding-left: 1.2rem; font-size: .85rem; }
details { font-size: .85rem; } summary { cursor: pointer; color: var(--note); }
.error { border-color: var(--error); } .warning { border-color: var(--warning); }
.note { border-color: var(--note); }
.error h3 span { color: var(--error); } .warning h3 span { color: var(--warning); }
.note h3 span { color: var(--note); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr));
  gap: 1rem; align-items: start; }
.cards { grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); gap: .6rem; }
figure { margin: 0; background: var(--card); border-radius: 4px; padding: .75rem; }
figcaption { font-size: .85rem; margin-top: .4rem; overflow-wrap: anywhere; }
img { width: 100%; height: auto; display: block; border-radius: 2px; }
pre { background: var(--card); padding: .8rem 1rem; overflow-x: auto; border-radius: 4px;
  font-size: .85rem; }
@media (max-width: 40rem) { pre { white-space: pre-wrap; overflow-wrap: anywhere; } }
"""
