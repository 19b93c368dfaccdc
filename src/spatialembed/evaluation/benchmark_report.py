"""The report of a benchmark's evaluator: figures by class, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.markup import escape
from rich.table import Table

from spatialembed.evaluation.label_metrics import mean
from spatialembed.evaluation.label_report import (
    SAMPLED,
    Sampling,
    json_ready,
    number,
    report_table,
    run_words,
    write_json,
)


class Figures(NamedTuple):
    """What an evaluator says of C classes."""

    figures: Mapping[str, np.ndarray]  # name -> (C,) in [0, 1]
    counts: Mapping[str, np.ndarray]  # name -> (C,) int64
    notes: tuple[str, ...]  # sentences below the table


@dataclass(frozen=True)
class BenchmarkReport:
    """Scores of a model on a data set of I images and C classes.

    A figure is NaN for a class that does not occur; means are over the others.
    """

    metric: str  # "cityscapes" or "coco"
    class_names: tuple[str, ...]  # (C,)
    sampling: Sampling
    figures: Mapping[str, np.ndarray]  # name -> (C,) in [0, 1]
    counts: Mapping[str, np.ndarray]  # name -> (C,) int64
    notes: tuple[str, ...]  # sentences below the table
    seconds: tuple[float, ...]  # (I,) of the predictions, without reading and scoring
    truncated: int = 0  # images whose prediction stopped at max_instances
    trained_on: int | None = None  # so many of the images; None: not known

    def mean(self, name: str) -> float:
        """A figure's mean over the classes where it is defined; NaN if it is nowhere."""
        return float(mean(self.figures[name], axis=0))

    @property
    def objects(self) -> int:
        """True objects that count; without any, no figure says how good the model is."""
        return int(self.counts["true"].sum())

    @property
    def median_seconds(self) -> float:
        """Median time of a prediction; a mean would count the first one's warming up."""
        return float(np.median(self.seconds))

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types; what is undefined is None."""
        columns = {**self.figures, **self.counts}
        report: dict[str, Any] = {
            "metric": self.metric,
            "sampling": self.sampling,
            "class_names": self.class_names,
            "images": len(self.seconds),
            "trained_on_images": self.trained_on,
            "truncated_images": self.truncated,
            "seconds": sum(self.seconds),
            "median_seconds": self.median_seconds,
            "mean": {name: self.mean(name) for name in self.figures},
            "by_class": {
                class_name: {name: values[c] for name, values in columns.items()}
                for c, class_name in enumerate(self.class_names)
            },
            "notes": self.notes,
        }
        return json_ready(report)

    def table(self) -> Table:
        """For the screen: a row a class, then means and sums."""
        title = f"{self.metric} metric, {len(self.seconds)} images{SAMPLED[self.sampling]}"
        words = (*self.notes, run_words(self.seconds, self.truncated, self.trained_on))
        table = report_table(title, " ".join(words), padding=(0, 1, 0, 0))
        table.add_column("class", overflow="fold")
        for heading in (*self.figures, *self.counts):
            table.add_column(heading, justify="right")
        for c, name in enumerate(self.class_names):
            figures = (number(values[c]) for values in self.figures.values())
            table.add_row(escape(name), *figures, *(str(n[c]) for n in self.counts.values()))
        means = (number(self.mean(name)) for name in self.figures)
        totals = (str(n.sum()) for n in self.counts.values())
        table.add_row("all", *means, *totals, style="bold")
        return table

    def write(self, folder: str | Path) -> None:
        """Write ``report.json`` into a folder."""
        write_json(Path(folder) / "report.json", self.to_dict())
