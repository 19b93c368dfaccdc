"""AP of the Cityscapes benchmark, by the built-in evaluator and by the official one beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from spatialembed.console import Stages
from spatialembed.data.cityscapes import CityscapesDataset
from spatialembed.errors import SpatialEmbedError
from spatialembed.evaluation import official
from spatialembed.evaluation.benchmark_report import BenchmarkReport
from spatialembed.evaluation.cityscapes_ap import (
    MIN_PIXELS,
    ClassOverlaps,
    average_precision,
    overlaps,
)
from spatialembed.evaluation.label_report import Sampling, mean
from spatialembed.images.listing import refuse_collisions
from spatialembed.results.cityscapes import write_result
from spatialembed.types import Instances, Sample

FILES = "results"
"""Folder of the benchmark's files below the one of the report."""
TOLERANCE = 1e-9
"""By which the two evaluators may differ."""


class CityscapesScore:
    """Scores of images of a Cityscapes data set against its files of ids."""

    def __init__(
        self, dataset: CityscapesDataset, sampling: Sampling, out: Path | None, *, progress: bool
    ) -> None:
        """out: folder for the files of the benchmark; None: the built-in evaluator alone.

        Raises SpatialEmbedError ``name_collision``.
        """
        if out is not None:  # the benchmark tells images by the last part of their names
            stems = (name.rpartition("/")[2] for name in dataset.names)
            refuse_collisions([(dataset.image_path(i), stem) for i, stem in enumerate(stems)])
        self._dataset = dataset
        self._sampling = sampling
        self._out = None if out is None else out / FILES
        self._progress = progress
        self._images: list[dict[str, ClassOverlaps]] = []
        self._results: list[Path] = []
        self._truths: list[Path] = []
        self._seconds: list[float] = []
        self._truncated = 0

    def add(self, i: int, sample: Sample, found: Instances, seconds: float) -> None:
        """Score image ``i``: found as numpy, in so many seconds.

        Raises SpatialEmbedError ``size_mismatch``, and as ``write_result`` does.
        """
        names = self._dataset.class_names
        found = replace(found, class_names=names)  # a single class may have another name
        self._images.append(overlaps(self._dataset.instance_ids(i), found, names))
        if self._out is not None:
            self._results.append(write_result(self._out, sample.name, found))
            self._truths.append(self._dataset.ids_path(i))
        self._seconds.append(seconds)
        self._truncated += found.truncated

    @property
    def running(self) -> str:
        """Nothing: an AP is of all images together."""
        return ""

    def report(self) -> BenchmarkReport:
        """AP and AP50 by class; the official ones beside them where there are files.

        Raises SpatialEmbedError ``evaluators_differ``.
        """
        names = self._dataset.class_names
        ap = average_precision(self._images, names)
        figures = _figures(ap)
        theirs, notes = self._official(ap)
        if np.isnan(ap).all():
            notes.append(f"No true instance of {MIN_PIXELS} px or more: there is no AP.")
        return BenchmarkReport(
            "cityscapes",
            names,
            self._sampling,
            figures,
            self._counts(),
            tuple(self._seconds),
            self._truncated,
            tuple(notes),
            {} if theirs is None else _figures(theirs),
        )

    def _counts(self) -> dict[str, np.ndarray]:
        """(C,) true instances that count, and detections."""
        true, found = [], []
        for name in self._dataset.class_names:
            images = [image[name] for image in self._images]
            true.append(
                sum(int((i.numbered & (i.truth_areas >= MIN_PIXELS)).sum()) for i in images)
            )
            found.append(sum(len(i.scores) for i in images))
        return {"true": np.array(true), "found": np.array(found)}

    def _official(self, ap: np.ndarray) -> tuple[np.ndarray | None, list[str]]:
        """AP (C, 10) by the official tools, held against ours; and notes on them."""
        if self._out is None:
            return None, ["By the built-in evaluator; the official one needs a folder for files."]
        if not official.has_cityscapes():
            install = "pip install 'spatialembed[cityscapes]'"
            return None, [f"By the built-in evaluator: cityscapesScripts is missing ({install})."]
        with Stages(self._progress, "official tools", len(self._results)) as stages:
            theirs, failed = official.cityscapes_ap(
                self._results,
                self._truths,
                self._dataset.class_names,
                advance=stages.advance,
            )
        _compare(ap, theirs, self._dataset.class_names, failed)
        notes = ["The built-in evaluator and cityscapesScripts agree to 1e-9."]
        if failed:
            notes.append(
                f"The official tools fail, without a figure, where no detection of a class counts: "
                f"{', '.join(failed)}."
            )
        return theirs, notes


def _figures(ap: np.ndarray) -> dict[str, np.ndarray]:
    """ap (C, 10) -> the two figures of the benchmark (C,)."""
    return {"AP": ap.mean(axis=1), "AP50": ap[:, 0]}


def _compare(
    ours: np.ndarray, theirs: np.ndarray, names: tuple[str, ...], failed: tuple[str, ...]
) -> None:
    """Refuse figures (C, 10) that differ."""
    for c, name in enumerate(names):
        if name in failed or np.allclose(
            ours[c], theirs[c], rtol=0, atol=TOLERANCE, equal_nan=True
        ):
            continue
        raise SpatialEmbedError(
            "evaluators_differ",
            f"{name}: AP {mean(ours[c], axis=0):.12f} by the built-in evaluator, "
            f"{mean(theirs[c], axis=0):.12f} by cityscapesScripts",
            "was a file of results or truth changed in between? if not, please report it",
        )
