"""Choose a model's thresholds on images with masks, honestly, and calibrate it there.

    sweep -> AP of every image at every cell      the network once an image (threshold_sweep)
          -> best cell                            cross-validated: the choice of the other folds
          -> gain over the thresholds before,     scored on each, with the standard error of that
             with its error                       gain, image by image (bootstrap over groups)
          -> taken if the gain is above its error; else the thresholds stay

The calibration is fitted anew either way: it belongs to the thresholds that are in force.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from spatialembed.console import track
from spatialembed.data.dataset import FileDataset
from spatialembed.data.open import check_classes, has_object
from spatialembed.data.splitting import sentence, trained_on
from spatialembed.errors import USAGE, SpatialEmbedError, require
from spatialembed.evaluation.label_metrics import mean_over_images, resampled
from spatialembed.evaluation.label_report import number, report_table, write_json
from spatialembed.evaluation.threshold_sweep import Surface, sweep
from spatialembed.files import atomic_write, check_writable
from spatialembed.inference.bundled import FACTS, WEIGHTS, bundled_models
from spatialembed.inference.hub import HUB
from spatialembed.inference.model_file import load, save_as
from spatialembed.inference.predictor import Predictor
from spatialembed.method import calibration
from spatialembed.method.calibration import Calibration
from spatialembed.method.cluster import ClusterOptions

BEST, BEFORE, CURVE = "#d1495b", "#5a5f6b", "#2b6a99"
SHOWN = 0.1
"""Cells of the picture that are worse than the best by more than this share one colour."""


@dataclass(frozen=True, eq=False)
class Tuning:
    """The outcome of a sweep over a model's thresholds."""

    surface: Surface
    groups: np.ndarray  # (I,) int64, images of one group stand or fall together
    trained_on: int | None = None  # so many of the images; None: not known
    scale: float = 1.0  # at which they were seen, as a multiple of the model's own

    @cached_property
    def best(self) -> tuple[int, ...]:
        """Cell of the highest mean AP on these images."""
        return self.surface.best()

    @property
    def before(self) -> tuple[int, ...]:
        """Cell of the thresholds before."""
        return self.surface.grid.cell(self.surface.base)

    @cached_property
    def _group(self) -> np.ndarray:
        """(I,) number of the group of each image, from 0 on without a gap."""
        return np.unique(self.groups, return_inverse=True)[1]

    @cached_property
    def cross_validated(self) -> np.ndarray:
        """AP (I, C) of each image at the cell that is best on the other folds."""
        fold = calibration.folds(self._group.max(initial=-1) + 1)[self._group]
        ap = np.full(self.surface.ap.shape[:2], np.nan)
        for part in np.unique(fold):
            cell = self.surface.best((fold != part).astype(np.float64))
            ap[fold == part] = self.at(cell)[fold == part]
        return ap

    def at(self, cell: Sequence[int]) -> np.ndarray:
        """AP (I, C) at a cell."""
        f, s, m, p = cell
        return self.surface.ap[:, :, f, s, m, p]

    def difference(self, ap: np.ndarray, other: np.ndarray) -> tuple[float, float]:
        """Mean of AP (I, C) less that of another on the same images, and its standard error.

        The error is the spread when groups are drawn anew; NaN below two groups.
        """
        both = np.stack((ap, other), axis=2)  # (I, C, 2)
        mean = mean_over_images(both)
        drawn = mean_over_images(both, self._draws)  # (R, 2)
        error = float(np.std(drawn[:, 0] - drawn[:, 1])) if len(drawn) else math.nan
        return float(mean[0] - mean[1]), error

    @cached_property
    def _draws(self) -> np.ndarray:
        return resampled(self._group)

    @cached_property
    def gain(self) -> tuple[float, float]:
        """Cross-validated gain over the thresholds before, and its standard error."""
        return self.difference(self.cross_validated, self.at(self.before))

    @property
    def pays(self) -> bool:
        """Whether the new thresholds are taken: their gain is above its own error."""
        gain, error = self.gain
        return self.best != self.before and gain > error

    @property
    def chosen(self) -> ClusterOptions:
        """The best thresholds if they pay, else those before."""
        base = self.surface.base
        return self.surface.grid.options(self.best, base) if self.pays else base

    @cached_property
    def fitted(self) -> Calibration | None:
        """Calibration at the chosen thresholds; None with too few objects."""
        return calibration.fit(self.surface.objects_at(self.chosen), self.chosen.start)

    def profile(self, axis: int) -> list[tuple[float, float, bool]]:
        """Along one threshold through the best cell: value, mean AP, as good as the best.

        As good: lower by no more than the standard error of the difference.
        """
        rows = []
        for i, value in enumerate(self.surface.grid[axis]):
            cell = (*self.best[:axis], i, *self.best[axis + 1 :])
            ap = self.at(cell)
            mean = float(mean_over_images(ap))
            if not math.isnan(mean):
                drop, error = self.difference(self.at(self.best), ap)
                rows.append((float(value), mean, i == self.best[axis] or drop <= error))
        return rows

    def to_dict(self) -> dict[str, Any]:
        """What is worth keeping: thresholds and figures before and after, and how flat it is."""
        base, grid = self.surface.base, self.surface.grid
        gain, error = self.gain
        return {
            "images": len(self.surface.ap),
            "trained_on_images": self.trained_on,
            "groups": len(np.unique(self.groups)),
            "cells": int(np.isfinite(self.surface.mean()).sum()),
            "before": {"thresholds": asdict(base), "ap": _mean(self.at(self.before))},
            "best": {
                "thresholds": asdict(grid.options(self.best, base)),
                "ap": _mean(self.at(self.best)),
                "ap_cross_validated": _mean(self.cross_validated),
                "as_good": {
                    name: [value for value, _, good in self.profile(axis) if good]
                    for axis, name in enumerate(grid._fields)
                },
            },
            "gain": _rounded(gain),
            "gain_standard_error": _rounded(error),
            "taken": self.pays,
        }


def _mean(ap: np.ndarray) -> float | None:
    return _rounded(float(mean_over_images(ap)))


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


def tune(
    predictor: Predictor,
    dataset: FileDataset,
    *,
    groups: Sequence[str] | None = None,
    progress: bool = True,
) -> Tuning:
    """Sweep foreground, start, membership and min_pixels of a model over images with masks.

    Args:
        predictor: The model.
        dataset: Images with truth, as ``open_data`` returns them.
        groups: One name per image; images of one group (tiles of one field of view) stay together
            in the cross-validation. None: each image by itself.
        progress: Whether to draw a bar on stderr.

    Returns:
        The surface of AP over the thresholds, the best cell, its gain with standard error, and the
        calibration; ``save`` writes the chosen ones into a model.

    Raises:
        SpatialEmbedError: ``empty_dataset``, ``class_mismatch``, ``no_objects``, and the errors of
            reading or predicting an image.
    """
    check_classes(predictor.info.class_names, dataset)
    if not has_object(dataset):
        what, remedy = (
            "no object in the images to tune on",
            "check the masks with spatialembed doctor",
        )
        raise SpatialEmbedError("no_objects", what, remedy)
    seen = trained_on(predictor.info.split, dataset)
    names = [str(i) for i in range(len(dataset))] if groups is None else list(groups)
    number = np.unique(names, return_inverse=True)[1]
    images = (dataset[i] for i in range(len(dataset)))
    surface = sweep(
        predictor.engine,
        predictor.info.normalization,
        track(images, "tune", total=len(dataset), shown=progress),
        predictor.settings,
        len(dataset.class_names),
        groups=number.tolist(),
    )
    return Tuning(surface, number, seen, predictor.engine.scale / predictor.info.scale)


def prepare(model: str, out: str | None) -> Path:
    """Where the tuned model goes, ``out`` or the folder of ``model``; checked before the work.

    Raises SpatialEmbedError ``missing_extra``, ``bundled_model``, ``not_writable`` (all exit 2).
    """
    require("matplotlib", "train", "drawing a tuning")
    if out is None and (model in bundled_models() or model.startswith(HUB)):
        raise SpatialEmbedError(
            "bundled_model",
            f"{model}: a model of the package or the hub is never overwritten",
            "name a new model folder with --out",
            USAGE,
        )
    folder = Path(out or model)
    if out is None and folder.name in (WEIGHTS, FACTS):
        folder = folder.parent
    check_writable(folder, "give another folder by --out")
    return folder


def save(tuning: Tuning, model: str | Path, folder: str | Path, data: str) -> Path:
    """Write a model with the chosen thresholds, its calibration and a record of the tuning.

    Args:
        tuning: The result of ``tune``.
        model: The model that was tuned: a bundled name, a folder, or a file inside one.
        folder: Model folder to write, which may be the model's own.
        data: Name of the images that it was tuned on, for the record.

    Returns:
        The folder.

    Raises:
        SpatialEmbedError: As ``model_file.save_as``.
    """
    _, info = load(model)
    thresholds = info.thresholds
    if tuning.pays:  # the model counts pixels of images seen at its own scale
        pixels = round(tuning.chosen.min_pixels * tuning.scale**2)
        thresholds = replace(tuning.chosen, min_pixels=pixels)
    facts = info.training | {"tuned": {"data": data, **tuning.to_dict()}}
    changed = replace(info, thresholds=thresholds, calibration=tuning.fitted, training=facts)
    return save_as(model, folder, changed)


def table(tuning: Tuning) -> Table:
    """For the screen: each threshold before, at the best, and where it is as good."""
    facts = tuning.to_dict()
    before, best = facts["before"], facts["best"]
    verdict = "taken" if facts["taken"] else "within noise, so the thresholds before stay"
    caption = (
        f"On images that the choice has not seen: {number(best['ap_cross_validated'])}, "
        f"gain {number(facts['gain'])}, standard error {number(facts['gain_standard_error'])}: "
        f"{verdict}. As good: lower by less than the standard error of the difference. "
        f"{sentence(facts['trained_on_images'], facts['images'])}"
    )
    title = f"{facts['images']} images, {facts['cells']} settings"
    # As wide as the caption, which would wrap at the columns.
    table = report_table(title, caption.rstrip(), min_width=78)
    table.add_column("")
    for heading in ("before", "best", "as good"):
        table.add_column(heading, justify="right")
    for name, good in best["as_good"].items():
        span = f"{good[0]:g} to {good[-1]:g}" if len(good) > 1 else f"{good[0]:g}"
        values = (f"{facts[when]['thresholds'][name]:g}" for when in ("before", "best"))
        table.add_row(name, *values, span)
    table.add_row("mean AP", number(before["ap"]), number(best["ap"]), style="bold")
    return table


def write_report(tuning: Tuning, folder: str | Path) -> None:
    """Write ``tuning.json``, ``tuning.csv`` (every cell) and ``tuning.png`` into a folder.

    Raises SpatialEmbedError ``disk_full`` (exit 5).
    """
    folder = Path(folder)
    calibrated = None if tuning.fitted is None else asdict(tuning.fitted)
    write_json(folder / "tuning.json", {**tuning.to_dict(), "calibration": calibrated})
    grid, mean = tuning.surface.grid, tuning.surface.mean()
    with atomic_write(folder / "tuning.csv") as path, path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow((*grid._fields, "mean_ap"))
        for cell in np.argwhere(np.isfinite(mean)):
            values = [tried[i] for tried, i in zip(grid, cell, strict=True)]
            writer.writerow((*values, round(float(mean[tuple(cell)]), 5)))
    _draw(tuning, folder / "tuning.png")


def _draw(tuning: Tuning, path: Path) -> None:
    """Mean AP over start and foreground, and along each threshold through the best cell."""
    from matplotlib.figure import Figure

    grid, best, before = tuning.surface.grid, tuning.best, tuning.before
    figure = Figure(figsize=(13, 7), layout="constrained")
    axes: Any = figure.subplot_mosaic([["map"] * 4, list(grid._fields)], height_ratios=(1.15, 1))
    _heat_map(axes["map"], tuning)
    for axis, name in enumerate(grid._fields):
        values, ap, good = map(np.array, zip(*tuning.profile(axis), strict=True))
        one, top = axes[name], float(ap.max())
        one.axvline(grid[axis][before[axis]], color=BEFORE, linestyle=":", label="before")
        one.axvline(grid[axis][best[axis]], color=BEST, alpha=0.6, label="best")
        one.plot(values, ap, "o-", color=CURVE, markerfacecolor="white")
        one.plot(values[good], ap[good], "o", color=CURVE, label="as good as the best")
        one.set(xlabel=name, ylim=(max(0.0, top - SHOWN), top + SHOWN / 8))
        one.grid(alpha=0.3)
    axes["foreground"].set_ylabel("mean AP, the others at their best")
    axes["foreground"].legend(loc="lower left", fontsize=8, framealpha=0.9)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _heat_map(axes: Any, tuning: Tuning) -> None:
    """Mean AP over start and foreground at the best membership and min_pixels."""
    grid, best, before = tuning.surface.grid, tuning.best, tuning.before
    layer = tuning.surface.mean()[:, :, best[2], best[3]]  # (F, S)
    top = float(np.nanmax(layer))
    low = max(0.0, top - SHOWN)
    picture = axes.imshow(layer, origin="lower", aspect="auto", vmin=low, vmax=low + SHOWN)
    for f, s in np.argwhere(np.isfinite(layer)):
        ink = "white" if layer[f, s] < low + SHOWN / 2 else "black"
        text = f"{layer[f, s]:.3f}".removeprefix("0")
        axes.text(s, f, text, ha="center", va="center", color=ink, fontsize=8)
    # The smaller frame is drawn last, so that both show where they are one.
    for cell, colour, side, label in ((before, BEFORE, 44, "before"), (best, BEST, 36, "best")):
        frame = {"marker": "s", "facecolors": "none", "edgecolors": colour, "linewidths": 2.5}
        axes.scatter(cell[1], cell[0], s=side**2, label=label, **frame)
    axes.set_xticks(range(len(grid.start)), [f"{value:g}" for value in grid.start])
    axes.set_yticks(range(len(grid.foreground)), [f"{value:g}" for value in grid.foreground])
    where = f"membership {grid.membership[best[2]]:g}, min_pixels {grid.min_pixels[best[3]]}"
    axes.set(xlabel="start", ylabel="foreground", title=f"mean AP at {where}")
    axes.legend(loc="upper left", framealpha=0.9, markerscale=0.3)
    axes.figure.colorbar(picture, ax=axes, extend="min" if low else "neither", pad=0.01)
