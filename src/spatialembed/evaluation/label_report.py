"""The report of an evaluation: a row per image, figures over all, as JSON, a table and a page.

Mean over images: the AP of each image, averaged; an image with few objects weighs as much as one
with many. Pooled: TP, FP, FN of all images added up first. Both are taken class by class, then
averaged over classes; what is undefined is left out of an average and counted.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from spatialembed.data.split_record import sentence
from spatialembed.evaluation.label_metrics import Counts
from spatialembed.evaluation.reliability import Reliability
from spatialembed.files import atomic_write
from spatialembed.pictures.drawing import overlay
from spatialembed.pictures.html import render

Sampling = Literal["seed", "truth"]
RESAMPLES = 1000
"""Bootstrap resamples behind the standard error."""
NAMED = 12
"""Missed objects whose ids the page names, as the mask has them."""


def mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean of the values that are not NaN; NaN where there is none (np.nanmean would warn)."""
    return np.ma.filled(np.ma.masked_invalid(values).mean(axis), np.nan)


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
        return tuple(sum(counts, start=Counts.zero(self.thresholds)) for counts in by_class)

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
        images = len(self.rows)
        if images < 2:
            return np.full(len(self.thresholds), np.nan), math.nan
        rng = np.random.default_rng(0)
        drawn = rng.multinomial(images, np.full(images, 1 / images), RESAMPLES)  # (R, I)
        defined = np.isfinite(self._image_ap)
        total = np.tensordot(drawn, np.where(defined, self._image_ap, 0.0), axes=1)  # (R, C, T)
        weight = np.tensordot(drawn, defined.astype(np.float64), axes=1)
        with np.errstate(invalid="ignore"):  # 0 / 0 where no image of a class was drawn
            ap = mean(total / weight, axis=1)  # (R, T)
        spread = np.ma.filled(np.ma.masked_invalid(ap).std(axis=0), np.nan)
        return spread, float(np.ma.filled(np.ma.masked_invalid(ap.mean(axis=1)).std(), np.nan))

    @property
    def undefined(self) -> int:
        """Images with no instance, neither true nor found: they have no AP."""
        return sum(math.isnan(row.mean_ap) for row in self.rows)

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
        report = {
            "metric": "ap",
            "sampling": self.sampling,
            "class_names": list(self.class_names),
            "thresholds": list(self.thresholds),
            "images": len(self.rows),
            "trained_on_images": self.trained_on,
            "undefined_images": self.undefined,
            "truncated_images": sum(row.truncated for row in self.rows),
            "seconds": sum(row.seconds for row in self.rows),
            "median_seconds": self.median_seconds,
            "mean_over_images": {
                "ap": self.ap,
                "ap_standard_error": error,
                "mean_ap": self.mean_ap,
                "mean_ap_standard_error": mean_error,
            },
            "pooled": {
                "ap": self.pooled_mean("ap"),
                "mean_ap": self.pooled_mean("ap").mean(),
                "f1": self.pooled_mean("f1"),
                "pq": self.pooled_mean("pq")[0],
                "matched_iou": self.pooled_mean("matched_iou")[0],
            },
            "by_class": {
                name: {"ap": ap, "mean_ap": ap.mean(), "pooled": _counts_dict(counts)}
                for name, ap, counts in zip(
                    self.class_names, self.class_ap, self.pooled, strict=True
                )
            },
            "reliability": None if self.reliability is None else self.reliability.to_dict(),
            "per_image": [_row_dict(row) for row in self.rows],
        }
        return json_ready(report)

    def table(self) -> Table:
        """For the screen: AP at each threshold and their mean, by class where there are several."""
        error, mean_error = self.standard_error
        table = Table(
            title=_title(self),
            caption=_caption(self),
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            padding=0,  # eighty columns hold it
            show_edge=False,
        )
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
        for name, values in (
            ("AP, pooled", self.pooled_mean("ap")),
            ("F1, pooled", self.pooled_mean("f1")),
        ):
            add(name, values, float(values.mean()))
        return table

    def write(self, folder: str | Path) -> None:
        """Write ``report.json`` and ``worst.html``, which needs no other file, into a folder."""
        with atomic_write(Path(folder) / "report.json") as path:
            path.write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", "utf-8")
        with atomic_write(Path(folder) / "worst.html") as path:
            # Names of files may hold bytes that are no text.
            path.write_text(_page(self), "utf-8", errors="backslashreplace")


def number(value: float | np.ndarray) -> str:
    """For a table: three decimals, "-" for NaN."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def json_ready(value: Any) -> Any:
    """Dictionaries and lists of JSON types; NaN becomes None."""
    if isinstance(value, dict):
        return {key: json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, np.ndarray)):
        return [json_ready(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value


def _counts_dict(counts: Counts) -> dict[str, Any]:
    """Counts and their figures; PQ and matched IoU at the first threshold, 0.5, as is usual."""
    return {
        "tp": counts.tp,
        "fp": counts.fp,
        "fn": counts.fn,
        "ap": counts.ap,
        "f1": counts.f1,
        "pq": counts.pq[0],
        "matched_iou": counts.matched_iou[0],
    }


def _row_dict(row: ImageScore) -> dict[str, Any]:
    total = row.total
    return {
        "name": row.name,
        "found": total.tp[0] + total.fp[0],
        "truth": total.tp[0] + total.fn[0],
        "ap": row.ap,
        "mean_ap": row.mean_ap,
        "seconds": row.seconds,
        "truncated": row.truncated,
        "missed_ids": list(row.missed),
    }


def _title(report: Report) -> str:
    kind = "" if report.sampling == "seed" else ", true centres and bandwidths"
    return f"{len(report.rows)} images{kind}"


def _caption(report: Report) -> str:
    total = sum(report.pooled[1:], start=report.pooled[0])
    words = [
        f"PQ {number(report.pooled_mean('pq')[0])}, "
        f"mean matched IoU {number(report.pooled_mean('matched_iou')[0])} at IoU 0.5, pooled.",
        f"{total.tp[0] + total.fn[0]} true objects, {total.tp[0] + total.fp[0]} found.",
        f"{report.median_seconds:.3f} s an image (median).",
    ]
    if report.undefined:
        words.append(f"Without any object, so without AP and left out: {report.undefined} images.")
    if truncated := sum(row.truncated for row in report.rows):
        words.append(f"Stopped at the limit of instances: {truncated} images.")
    words.append(sentence(report.trained_on, len(report.rows)))
    return " ".join(words).rstrip()


def _page(report: Report) -> str:
    """A page of the worst images, worst first: image, truth, found. Needs no other file."""
    values = {
        "title": f"The {len(report.worst)} worst of {len(report.rows)} images",
        "subtitle": f"Mean AP {number(report.mean_ap)}. {_caption(report)}",
        "sections": [
            (worst.score.name, number(worst.score.mean_ap), _figures(worst))
            for worst in report.worst
        ],
        "reliability": report.reliability and report.reliability.section(),
    }
    return render("worst.html", values)


def _figures(worst: WorstImage) -> list[tuple[str, np.ndarray]]:
    """Captions and pictures of an image, its truth and the detections."""
    total, missed = worst.score.total, worst.score.missed
    ids = f", not found: ids {', '.join(map(str, missed[:NAMED]))}" if missed else ""
    more = f" and {len(missed) - NAMED} more" if len(missed) > NAMED else ""
    matched = f"{total.tp[0]} of them right at IoU 0.5"
    return [
        ("image", overlay(worst.image, np.zeros_like(worst.truth))),
        (
            f"truth, {total.tp[0] + total.fn[0]} objects{ids}{more}",
            overlay(worst.image, worst.truth),
        ),
        (
            f"found, {total.tp[0] + total.fp[0]} objects, {matched}",
            overlay(worst.image, worst.found),
        ),
    ]
