"""The page of a data set: findings, plots, pictures and recommended settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from spatialembed.doctor.findings import Finding, graded, tally
from spatialembed.pictures.charts import Chart
from spatialembed.pictures.html import render

LISTED = 500
"""Cases of a finding that the page lists; report.json has all."""


class Picture(NamedTuple):
    """A sample with its objects drawn on it."""

    title: str
    note: str
    image: np.ndarray  # (h, w, 3) uint8


class SurveyPage(NamedTuple):
    """Everything on the page."""

    title: str
    subtitle: str
    facts: Sequence[tuple[str, str]]  # name, value
    table: Sequence[Sequence[str]]  # rows, the first is the head; may be empty
    findings: Sequence[Finding]
    charts: Sequence[Chart]
    pictures: Sequence[Picture]
    settings: str  # YAML, "" where there is none
    command: str  # to train with it

    def html(self) -> str:
        """The whole page."""
        findings = graded(self.findings)
        said = {"findings": findings, "tally": tally(findings), "listed": LISTED}
        return render("doctor.html", self._asdict() | said)
