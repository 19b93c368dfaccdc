"""A finding about a data set: what is wrong with it, how much of it, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich import box
from rich.markup import escape
from rich.table import Table

from spatialembed.console import printable

Grade = Literal["error", "warning", "note"]
GRADES: tuple[Grade, ...] = ("error", "warning", "note")
"""error: do not train on it as it is; warning: something in it is wrong; note: good to know."""
EXAMPLES = 5


@dataclass(frozen=True)
class Finding:
    """One thing that was found, with all of its cases, the worst first."""

    grade: Grade
    code: str  # stable
    count: int  # of what ``text`` counts
    text: str  # one sentence
    remedy: str = ""
    cases: tuple[str, ...] = ()

    @property
    def examples(self) -> tuple[str, ...]:
        """The first cases."""
        return self.cases[:EXAMPLES]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self) | {"examples": list(self.examples), "cases": list(self.cases)}


def graded(findings: Sequence[Finding]) -> list[Finding]:
    """Errors first, then warnings, then notes; else in their order."""
    return sorted(findings, key=lambda finding: GRADES.index(finding.grade))


def tally(findings: Sequence[Finding]) -> str:
    """ "1 error, 3 warnings, 2 notes"."""
    counts = [sum(finding.grade == grade for finding in findings) for grade in GRADES]
    pairs = zip(counts, GRADES, strict=True)
    return ", ".join(f"{count} {grade}{'s' * (count != 1)}" for count, grade in pairs)


def table(findings: Sequence[Finding]) -> Table:
    """For the screen: grade, code, and what it is with one example and the remedy."""
    result = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    styles = {"error": "bold red", "warning": "yellow", "note": "dim"}
    for heading in ("grade", "code", "finding"):
        result.add_column(heading, overflow="fold")
    for finding in graded(findings):
        words = [escape(printable(finding.text))]
        words += [f"[dim]{escape(printable(case))}[/dim]" for case in finding.examples[:1]]
        words += [f"-> {escape(printable(finding.remedy))}"] * bool(finding.remedy)
        style = styles[finding.grade]
        result.add_row(f"[{style}]{finding.grade}", finding.code, "\n".join(words))
    return result
