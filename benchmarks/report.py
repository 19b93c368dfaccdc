"""What a benchmark leaves: tables on the terminal, and JSON that ``run.py`` makes docs/speed.md of.

On a CPU the tables hold ratios, since seconds say more of a machine than of the code; the seconds
themselves are in the JSON, beside the description of the machine.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import rich.table
from rich.console import Console

from spatialembed.command.bench import machine

RESULTS = Path(__file__).resolve().parent / "results"


class Table(NamedTuple):
    """Text in columns, the first one left-aligned."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


class Line(NamedTuple):
    """Seconds against something, for a plot with logarithmic axes."""

    plot: str  # "pixels", "instances", "area": one picture each
    label: str
    x: Sequence[float]
    seconds: Sequence[float]


def finish(
    name: str,
    tables: Iterable[Table],
    *,
    lines: Iterable[Line] = (),
    facts: dict[str, Any] | None = None,
) -> Path:
    """Print the tables and write ``results/<name>.json``; returns its path."""
    tables, console = list(tables), Console()
    for table in tables:
        shown = rich.table.Table(title=table.title)
        for i, column in enumerate(table.columns):
            shown.add_column(column, justify="right" if i else "left")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    script = Path(sys.argv[0])
    content = {
        "name": name,
        "command": shlex.join(["python", f"benchmarks/{script.name}", *sys.argv[1:]]),
        "machine": machine(),
        "tables": [table._asdict() for table in tables],
        "lines": [line._asdict() for line in lines],
        "facts": facts or {},
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}")
    return path


def percent(share: float) -> str:
    """A share in [0, 1] for a table."""
    return f"{100 * share:.1f} %"
