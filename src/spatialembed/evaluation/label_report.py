"""The report of an evaluation: a row per image, figures over all, as JSON, a table and a page.

Mean over images: the AP of each image, averaged; an image with few objects weighs as much as one
with many. Pooled: TP, FP, FN of all images added up first. Both are taken class by class, then
averaged over classes; what is undefined is left out of an average and counted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich import box
from rich.markup import escape
from rich.padding import PaddingDimensions
from rich.table import Table

from spatialembed.data.splitting import sentence
from spatialembed.evaluation.label_metrics import (
    AP_THRESHOLDS,
    Counts,
    best_ious,
    counts_by_class,
    mean,
    mean_over_images,
    missed,
    overlaps,
    resampled,
)
from spatialembed.evaluation.reliability import Reliability, merged
from spatialembed.files import atomic_write
from spatialembed.pictures.drawing import overlay
from spatialembed.pictures.html import render
from spatialembed.types import Instances, Sample

Sampling = Literal["seed", "truth"]
SAMPLED = {"seed": "", "truth": ", true centres and bandwidths"}
"""How instances were made, for a title."""
WORST = 12
"""Images on the page of the worst."""
PAGE_PX = 640
"""Longest side of a picture on that page; larger ones are thinned out."""


@dataclass(frozen=True)
class ImageScore:
    """One image of the data set."""

    name: str
    by_class: tuple[Counts, ...]  # (C,)
    seconds: float  # of the prediction, without reading and scoring
    truncated: bool = False  # prediction stopped at max_instances
    missed: tuple[int, ...] = ()  # ids in its mask of the true objects not found at IoU 0.5

    @property
    def ap(self) -> np.ndarray:
        """(T,) AP at each threshold, mean over the classes that occur; NaN where none does."""
        return mean(np.stack([counts.ap for counts in self.by_class]), axis=0)

    @property
    def mean_ap(self) -> float:
        """Mean over the thresholds, NaN where undefined."""
        return float(self.ap.mean())

    @property
    def total(self) -> Counts:
        """Counts of all classes."""
        return sum(self.by_class[1:], start=self.by_class[0])


@dataclass(frozen=True)
class WorstImage:
    """An image for the page of the worst, thinned out where it is large."""

    score: ImageScore
    image: np.ndarray  # (h, w) or (h, w, 3), the dtype of the sample
    truth: np.ndarray  # (h, w) int32
    found: np.ndarray  # (h, w) int32


@dataclass(frozen=True)
class Report:
    """Scores of a model on a data set. C classes, T thresholds, I images."""

    rows: tuple[ImageScore, ...]  # (I,)
    class_names: tuple[str, ...]  # (C,)
    sampling: Sampling
    thresholds: tuple[float, ...]  # (T,)
    worst: tuple[WorstImage, ...] = field(default=(), repr=False, compare=False)
    reliability: Reliability | None = field(default=None, repr=False, compare=False)
    trained_on: int | None = None  # so many of the images; None: not known

    @cached_property
    def _image_ap(self) -> np.ndarray:
        """(I, C, T) AP, NaN where a class does not occur in an image, or in the truth of none."""
        ap = np.stack([[counts.ap for counts in row.by_class] for row in self.rows])
        ap[:, self._absent] = np.nan
        return ap

    @cached_property
    def _absent(self) -> np.ndarray:
        """(C,) bool: classes without a true object in any image, where others have some."""
        true = np.array([counts.tp[0] + counts.fn[0] for counts in self.pooled])
        return (true == 0) & bool(true.any())

    @cached_property
    def pooled(self) -> tuple[Counts, ...]:
        """(C,) counts of each class over all images."""
        by_class = zip(*(row.by_class for row in self.rows), strict=True)
        return tuple(sum(counts[1:], start=counts[0]) for counts in by_class)

    @property
    def class_ap(self) -> np.ndarray:
        """(C, T) AP of each class, mean over the images where it is defined."""
        return mean(self._image_ap, axis=0)

    @property
    def ap(self) -> np.ndarray:
        """(T,) mean over images, then over classes."""
        return mean(self.class_ap, axis=0)

    @property
    def mean_ap(self) -> float:
        """``ap`` averaged over the thresholds: the headline figure."""
        return float(self.ap.mean())

    @cached_property
    def standard_error(self) -> tuple[np.ndarray, float]:
        """Of ``ap`` (T,) and of ``mean_ap``: their spread when images are drawn anew (bootstrap).

        Images of one field of view are alike: the true error is then larger. NaN below two images.
        """
        drawn = resampled(np.arange(len(self.rows)))
        if not len(drawn):
            return np.full(len(self.thresholds), np.nan), math.nan
        ap = np.ma.masked_invalid(mean_over_images(self._image_ap, drawn))  # (R, T)
        spread = np.ma.filled(ap.std(axis=0), np.nan)
        return spread, float(np.ma.filled(np.ma.masked_invalid(ap.mean(axis=1)).std(), np.nan))

    @property
    def objects(self) -> int:
        """True objects; without any, no figure says how good the model is."""
        return int(sum(counts.tp[0] + counts.fn[0] for counts in self.pooled))

    @property
    def undefined(self) -> int:
        """Images with no instance, neither true nor found: they have no AP."""
        return sum(math.isnan(row.mean_ap) for row in self.rows)

    @property
    def truncated(self) -> int:
        """Images whose prediction stopped at the limit of instances."""
        return sum(row.truncated for row in self.rows)

    @property
    def median_seconds(self) -> float:
        """Median time of a prediction; a mean would count the first one's warming up."""
        return float(np.median([row.seconds for row in self.rows]))

    def pooled_mean(self, figure: Literal["ap", "f1", "pq", "matched_iou"]) -> np.ndarray:
        """(T,) a figure of the pooled counts, mean over the classes where it is defined."""
        values = np.stack([getattr(counts, figure) for counts in self.pooled]).astype(np.float64)
        values[self._absent] = np.nan
        return mean(values, axis=0)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types; what is undefined is None."""
        error, mean_error = self.standard_error
        by_class = zip(self.class_names, self.class_ap, self.pooled, strict=True)
        report = {
            "metric": "ap",
            "sampling": self.sampling,
            "class_names": self.class_names,
            "thresholds": self.thresholds,
            "images": len(self.rows),
            "trained_on_images": self.trained_on,
            "undefined_images": self.undefined,
            "truncated_images": self.truncated,
            "seconds": sum(row.seconds for row in self.rows),
            "median_seconds": self.median_seconds,
            "mean_over_images": {
                "ap": self.ap,
                "ap_standard_error": error,
                "mean_ap": self.mean_ap,
                "mean_ap_standard_error": mean_error,
            },
            "pooled": {"mean_ap": self.pooled_mean("ap").mean(), **_figures(self.pooled_mean)},
            "by_class": {
                name: {"ap": ap, "mean_ap": ap.mean(), "pooled": _counts(counts)}
                for name, ap, counts in by_class
            },
            "reliability": self.reliability and self.reliability.to_dict(),
            "per_image": [_row(row) for row in self.rows],
        }
        return json_ready(report)

    def table(self) -> Table:
        """For the screen: AP at each threshold and their mean, by class where there are several."""
        error, mean_error = self.standard_error
        title = f"{len(self.rows)} images{SAMPLED[self.sampling]}"
        table = report_table(title, _caption(self), padding=0)
        table.add_column("IoU", overflow="fold")
        for heading in (*(f"{threshold:.2f}" for threshold in self.thresholds), "mean"):
            table.add_column(heading, justify="right", no_wrap=True)

        def add(name: str, values: np.ndarray, average: float, style: str = "") -> None:
            table.add_row(name, *(number(value) for value in (*values, average)), style=style)

        add("AP, image mean", self.ap, self.mean_ap, "bold")
        add("  standard error", error, mean_error, "dim")
        if len(self.class_names) > 1:
            for name, values in zip(self.class_names, self.class_ap, strict=True):
                add(f"  {escape(name)}", values, float(values.mean()))
        for name, values in (("AP", self.pooled_mean("ap")), ("F1", self.pooled_mean("f1"))):
            add(f"{name}, pooled", values, float(values.mean()))
        return table

    def write(self, folder: str | Path) -> None:
        """Write ``report.json`` and ``worst.html``, which needs no other file, into a folder."""
        write_json(Path(folder) / "report.json", self.to_dict())
        values = {
            "report": self,
            "title": f"The {len(self.worst)} worst of {len(self.rows)} images",
            "subtitle": f"Mean AP {number(self.mean_ap)}. {_caption(self)}",
            "overlay": overlay,
            "number": number,
            "reliability": self.reliability and self.reliability.section(),
        }
        with atomic_write(Path(folder) / "worst.html") as path:
            path.write_text(render("worst.html", values), "utf-8")


def report_table(
    title: str, caption: str, *, padding: PaddingDimensions = (0, 1), min_width: int | None = None
) -> Table:
    """An empty table for the screen; eighty columns hold most without padding."""
    return Table(
        title=title, caption=escape(caption), caption_justify="left", box=box.SIMPLE_HEAD,
        padding=padding, show_edge=False, min_width=min_width,
    )  # fmt: skip


def run_words(seconds: Sequence[float], truncated: int, trained_on: int | None) -> str:
    """Sentences about a run: its time by image, and what speaks against its figures."""
    words = [f"{np.median(seconds):.3f} s an image (median)."]
    if truncated:
        words.append(f"Stopped at the limit of instances: {truncated} images.")
    return " ".join((*words, sentence(trained_on, len(seconds)))).rstrip()


def write_json(path: Path, report: dict[str, Any]) -> None:
    """Write a report of JSON types."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", "utf-8")


def number(value: float | np.ndarray | None) -> str:
    """For a table: three decimals, "-" for NaN and None."""
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def json_ready(report: dict[str, Any]) -> dict[str, Any]:
    """A report of JSON types, arrays as lists; NaN becomes None."""
    text = json.dumps(report, default=lambda array: array.tolist())
    ready: dict[str, Any] = json.loads(text, parse_constant=lambda nan: None)
    return ready


def _figures(of: Callable[[Any], np.ndarray]) -> dict[str, Any]:
    """Figures by name; PQ and matched IoU at the first threshold, 0.5, as is usual."""
    return {"ap": of("ap"), "f1": of("f1"), "pq": of("pq")[0], "matched_iou": of("matched_iou")[0]}


def _counts(counts: Counts) -> dict[str, Any]:
    numbers = {"tp": counts.tp, "fp": counts.fp, "fn": counts.fn}
    return numbers | _figures(lambda name: getattr(counts, name))


def _row(row: ImageScore) -> dict[str, Any]:
    return {
        "name": row.name,
        "found": row.total.tp[0] + row.total.fp[0],
        "truth": row.total.tp[0] + row.total.fn[0],
        "ap": row.ap,
        "mean_ap": row.mean_ap,
        "seconds": row.seconds,
        "truncated": row.truncated,
        "missed_ids": row.missed,
    }


def _caption(report: Report) -> str:
    found = sum(counts.tp[0] + counts.fp[0] for counts in report.pooled)
    words = [
        f"PQ {number(report.pooled_mean('pq')[0])}, "
        f"mean matched IoU {number(report.pooled_mean('matched_iou')[0])} at IoU 0.5, pooled.",
        f"{report.objects} true objects, {found} found.",
    ]
    if report.undefined:
        words.append(f"Without any object, so without AP and left out: {report.undefined} images.")
    seconds = [row.seconds for row in report.rows]
    words.append(run_words(seconds, report.truncated, report.trained_on))
    return " ".join(words)


# ---------------------------------------------------------------- image by image


class LabelScore:
    """Scores of images by their overlaps with the truth; see ``label_metrics``."""

    def __init__(self, class_names: tuple[str, ...]) -> None:
        self._class_names = class_names
        self._rows: list[ImageScore] = []
        self._objects: list[Reliability] = []
        self._worst: list[WorstImage] = []

    def add(self, sample: Sample, found: Instances, seconds: float) -> None:
        """Score an image: found as numpy, in so many seconds. Raises ``size_mismatch``."""
        target, classes = sample.target, sample.target.classes.numpy()
        pairs = overlaps(found.labels, target.labels.numpy(), target.ignore.numpy())
        counts = counts_by_class(pairs, found.classes, classes, len(self._class_names))
        labels = missed(pairs, found.classes, classes)
        ids = tuple((labels if sample.ids is None else sample.ids[labels - 1]).tolist())
        row = ImageScore(sample.name, tuple(counts), seconds, found.truncated, ids)
        self._rows.append(row)
        i = pairs.found_ids - 1
        expected = None if found.expected_iou is None else found.expected_iou[i]
        ious = best_ious(pairs, found.classes, classes)
        self._objects.append(Reliability(found.scores[i], expected, ious))
        self._keep_if_bad(row, sample, found)

    def _keep_if_bad(self, row: ImageScore, sample: Sample, found: Instances) -> None:
        """Put an image in its place among the worst; of two alike the earlier one stays."""
        enough = len(self._worst) == WORST
        if math.isnan(row.mean_ap) or (enough and self._worst[-1].score.mean_ap <= row.mean_ap):
            return
        step = math.ceil(max(found.labels.shape) / PAGE_PX)
        arrays = (sample.image, sample.target.labels.numpy(), found.labels)
        image = WorstImage(row, *(array[::step, ::step].copy() for array in arrays))
        self._worst = sorted([*self._worst, image], key=lambda one: one.score.mean_ap)[:WORST]

    @property
    def running(self) -> str:
        """Where it stands, in a word for the progress bar."""
        ap = mean(np.array([row.mean_ap for row in self._rows]), axis=0)
        return "" if math.isnan(ap) else f"AP {ap:.3f}"

    def report(self, sampling: Sampling, trained_on: int | None) -> Report:
        """Everything that follows from the images."""
        return Report(
            tuple(self._rows),
            self._class_names,
            sampling,
            AP_THRESHOLDS,
            tuple(self._worst),
            merged(self._objects) if sampling == "seed" else None,
            trained_on,
        )
