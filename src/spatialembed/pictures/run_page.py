"""report.html: one page of a prediction run. Its pictures are in it; they link to the overlays.

Bounded, however many images there are: ``THUMBNAILS`` pictures of images, ``LISTED`` further ones
by name, ``IMAGES`` and ``OBJECTS`` at each end, and the numbers of all. A picture takes some 10 kB.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spatialembed.files import atomic_write
from spatialembed.pictures.charts import Chart, bars, histogram, spread
from spatialembed.pictures.html import counted, render
from spatialembed.pictures.thumbnail import EXTREMES, Thumbnail

THUMBNAILS, LISTED = 300, 3000
IMAGES, OBJECTS = 8, EXTREMES
CLASSES = 24
"""Bars of classes at most."""
TOLD = 500
"""Warnings that are listed."""


class RunPage:
    """Collects the thumbnails of images, in their order, and writes the page of the run."""

    def __init__(
        self, out: Path, class_names: Sequence[str], settings: Mapping[str, object]
    ) -> None:
        """settings: by which the run can be repeated, by name."""
        self.out, self.class_names, self.settings = out, tuple(class_names), dict(settings)
        self.calibrated = False
        self._counts: list[int] = []
        self._numbers: list[tuple[np.ndarray, ...]] = []  # areas, quality and scores
        self._classes: Counter[int] = Counter()
        self._thumbnails: list[str] = []  # HTML
        self._names: list[tuple[str, str, int]] = []  # link, name, objects
        self._ends: dict[str, list[tuple[tuple[float, ...], Any]]] = {
            f"{end} {kind}": [] for kind in ("objects", "images") for end in ("Worst", "Best")
        }

    def add(self, image: Thumbnail) -> None:
        """Note an image."""
        place, count = len(self._counts), len(image.scores)
        self._counts.append(count)
        self._numbers.append((image.areas, image.quality, image.scores))
        self._classes.update(image.classes.tolist())
        self.calibrated |= image.expected_iou is not None
        if place < THUMBNAILS:
            self._thumbnails.append(render("image.html", {"shown": image}))
        elif place < THUMBNAILS + LISTED:
            self._names.append((image.link, image.image, count))
        for end, sign, crops in (("Worst", 1, image.worst), ("Best", -1, image.best)):
            ranked = [((sign * crop.quality, place, crop.number), crop) for crop in crops]
            self._rank(f"{end} objects", ranked, OBJECTS)
            if count:
                self._rank(f"{end} images", [((sign * image.mean_quality, place), image)], IMAGES)

    def _rank(self, kind: str, new: Sequence[tuple[tuple[float, ...], Any]], most: int) -> None:
        """Keep the first few by their rank."""
        self._ends[kind] = sorted([*self._ends[kind], *new], key=lambda pair: pair[0])[:most]

    def close(self, failed: Sequence[str], warnings: Sequence[str]) -> None:
        """Write ``report.html``. Raises SpatialEmbedError ``disk_full``.

        failed: of each input without results, its name and why. warnings: of the run.
        """
        with atomic_write(self.out / "report.html") as temporary:
            temporary.write_text(self.html(failed, warnings), "utf-8")

    def html(self, failed: Sequence[str], warnings: Sequence[str]) -> str:
        """The whole page."""
        images = len(self._counts)
        areas, quality, scores = (
            np.concatenate(column)
            for column in zip(*self._numbers, (np.zeros(0),) * 3, strict=True)
        )
        values = {
            "title": f"{counted(len(areas), 'object')} in {counted(images, 'image')}",
            "subtitle": f"spatialembed predict, model {self.settings.get('model', '')}",
            "images": images,
            "failed": failed,
            "warnings": warnings,
            "told": TOLD,
            "facts": [*self._facts(areas, quality), ("failed", f"{len(failed):,}")],
            "charts": self._charts(areas, quality, scores) if images else [],
            "extremes": self._extremes(len(areas)),
            "thumbnails": self._thumbnails,
            "names": self._names,
            "settings": self.settings,
        }
        return render("report.html", values)

    @property
    def _measure(self) -> str:
        return "expected IoU" if self.calibrated else "score"

    def _facts(self, areas: np.ndarray, quality: np.ndarray) -> list[tuple[str, str]]:
        rows = [("images", f"{len(self._counts):,}"), ("objects", f"{len(areas):,}")]
        if self._counts:
            rows.append(("objects an image, median", f"{np.median(self._counts):,.4g}"))
            rows.append(("images without any", f"{self._counts.count(0):,}"))
        if len(areas):
            rows.append(("area, median", f"{np.median(areas):,.4g} px"))
            rows.append((f"{self._measure}, mean", f"{quality.mean():.3f}"))
        return rows

    def _charts(self, areas: np.ndarray, quality: np.ndarray, scores: np.ndarray) -> list[Chart]:
        charts = [histogram(np.array(self._counts), title="Objects an image", unit="objects")]
        if len(areas):
            title, note = "Area of an object", spread(areas, "px")
            charts.append(histogram(areas, title=title, unit="px", log=True, note=note))
            if self.calibrated:
                note = "With the true object, as the model's calibration says."
                charts.append(histogram(quality, title="Expected IoU", unit="", note=note))
            note = "The value of the seed that an object grew from."
            charts.append(histogram(scores, title="Score", unit="", note=note))
        if len(self.class_names) > 1:
            rows = [(self.class_names[c], n) for c, n in self._classes.most_common(CLASSES)]
            charts.append(bars(rows, title="Objects of a class"))
        return charts

    def _extremes(self, objects: int) -> list[tuple[str, str, list[str]]]:
        """The worst and the best, objects first; the best are left out where all are shown."""
        with_objects = len(self._counts) - self._counts.count(0)
        calibrated = "." if self.calibrated else ": this model is not calibrated."
        shown = []
        for title, ranked in self._ends.items():
            one = title.split()[1].removesuffix("s")
            if one == "image" and with_objects <= 2 * IMAGES:
                continue  # all images stand below with their figures
            if ranked and (title.startswith("Worst") or objects > OBJECTS):
                mean = ", mean of an image" if one == "image" else ""
                values = {"class_names": self.class_names}
                figures = [render(f"{one}.html", values | {"shown": item}) for _, item in ranked]
                shown.append((title, f"Ranked by {self._measure}{mean}{calibrated}", figures))
        return shown
