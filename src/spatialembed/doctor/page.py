"""The page of a data set: findings, plots, pictures and recommended settings. Needs no other file.

Its looks are those of ``page``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spatialembed.doctor.findings import Finding, graded, tally
from spatialembed.images.write import png_bytes
from spatialembed.pictures.html import chart, data_uri, facts, grid, header, page, table, text

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
        parts = (
            header(self.name, self.layout),
            _verdict(self.findings),
            facts(self.facts),
            table(self.parts),
            _findings(self.findings),
            _settings(self.settings, self.command),
            _plots(self.plots),
            _pictures(self.pictures),
        )
        return page(f"Data report: {self.name}", parts)


def _verdict(findings: Sequence[Finding]) -> str:
    worst = graded(findings)[0].grade if findings else "note"
    words = {
        "error": "Training refuses this data set as it is: mend the errors first.",
        "warning": "It can be trained on. Look at the warnings first.",
        "note": "It can be trained on.",
    }[worst]
    return f'<p class="verdict {worst}"><b>{words}</b> {tally(findings)}.</p>'


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return "<h2>Findings</h2><p>None.</p>"
    cards = [_finding(finding) for finding in graded(findings)]
    return f"<h2>Findings</h2>{grid(cards, 'cards')}"


def _finding(finding: Finding) -> str:
    def listed(cases: Sequence[str]) -> str:
        return "<ul>" + "".join(f"<li>{text(case)}</li>" for case in cases) + "</ul>"

    rest = finding.cases[len(finding.examples) : LISTED]
    beyond = "" if len(finding.cases) <= LISTED else "<p>The rest stands in report.json.</p>"
    more = f"<details><summary>{len(finding.cases) - len(finding.examples)} more</summary>"
    return (
        f'<article class="{finding.grade}"><h3><span>{finding.grade}</span> '
        f"<code>{finding.code}</code></h3><p>{text(finding.text)}</p>"
        + (f'<p class="remedy">{text(finding.remedy)}</p>' if finding.remedy else "")
        + (listed(finding.examples) if finding.examples else "")
        + (f"{more}{listed(rest)}{beyond}</details>" if rest else "")
        + "</article>"
    )


def _plots(plots: Sequence[Plot]) -> str:
    cards = [chart(plot.title, plot.svg, plot.note) for plot in plots]
    return f"<h2>Distributions</h2>{grid(cards)}" if plots else ""


def _pictures(pictures: Sequence[Picture]) -> str:
    figures = [
        f"<figure><h3>{text(picture.title)}</h3>"
        f'<img alt="{text(f"{picture.title}: {picture.note}")}" '
        f'width="{picture.image.shape[1]}" height="{picture.image.shape[0]}" '
        f'src="{data_uri(png_bytes(picture.image))}"><figcaption>{text(picture.note)}</figcaption>'
        "</figure>"
        for picture in pictures
    ]
    return f"<h2>Samples</h2>{grid(figures)}" if pictures else ""


def _settings(settings: str, command: str) -> str:
    if not settings:
        return ""
    return (
        "<h2>Recommended settings</h2><p>As <code>recommended.yaml</code> beside this page:</p>"
        f"<pre>{text(settings)}</pre><pre>{text(command)}</pre>"
    )
