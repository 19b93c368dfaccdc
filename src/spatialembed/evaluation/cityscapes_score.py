"""AP of the Cityscapes benchmark of a data set in its layout, and the files that it asks for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from spatialembed.data.cityscapes import CityscapesDataset
from spatialembed.evaluation.benchmark_report import Figures
from spatialembed.evaluation.cityscapes_ap import (
    MIN_PIXELS,
    ClassOverlaps,
    average_precision,
    overlaps,
)
from spatialembed.images.listing import refuse_collisions
from spatialembed.results.cityscapes import write_result
from spatialembed.types import Instances, Sample

FILES = "results"
"""Folder of the benchmark's files below the one of the report."""


class CityscapesScore:
    """Scores of images of a Cityscapes data set against its files of ids."""

    def __init__(self, dataset: CityscapesDataset, out: Path | None) -> None:
        """out: folder for the files of the benchmark; None: none are written.

        Raises SpatialEmbedError ``name_collision``.
        """
        if out is not None:  # the benchmark tells images by the last part of their names
            stems = (name.rpartition("/")[2] for name in dataset.names)
            refuse_collisions([(dataset.image_path(i), stem) for i, stem in enumerate(stems)])
        self._dataset = dataset
        self._out = None if out is None else out / FILES
        self._images: list[dict[str, ClassOverlaps]] = []

    def add(self, i: int, sample: Sample, found: Instances) -> None:
        """Score image ``i``: found as numpy.

        Raises SpatialEmbedError ``size_mismatch``, and as ``write_result`` does.
        """
        names = self._dataset.class_names
        found = replace(found, class_names=names)  # a single class may have another name
        self._images.append(overlaps(self._dataset.instance_ids(i), found, names))
        if self._out is not None:
            write_result(self._out, sample.name, found)

    def figures(self) -> Figures:
        """AP and AP50, true instances that count, and detections."""
        names = self._dataset.class_names
        ap = average_precision(self._images, names)  # (C, 10)
        by_class = [[image[name] for image in self._images] for name in names]
        true = [sum(int(image.wanted.sum()) for image in images) for images in by_class]
        found = [sum(len(image.scores) for image in images) for images in by_class]
        note = f"No true instance of {MIN_PIXELS} px or more: there is no AP."
        return Figures(
            {"AP": ap.mean(axis=1), "AP50": ap[:, 0]},
            {"true": np.array(true), "found": np.array(found)},
            (note,) if np.isnan(ap).all() else (),
        )
