"""Pictures of a survey: charts of its measures, and samples with their objects drawn."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from spatialembed.doctor.objects import Objects
from spatialembed.doctor.probe import Pair, read_again, read_image
from spatialembed.doctor.recommend import Advice
from spatialembed.doctor.survey import Survey
from spatialembed.pictures.charts import Chart, Mark, bars, histogram, spread
from spatialembed.pictures.drawing import display, overlay, panel, zoom_for
from spatialembed.pictures.html import counted
from spatialembed.types import UNIT

SHOWN_PX = 640
"""Longer side of a sample; a larger image is thinned out."""
SUSPICIOUS = 3
"""Samples of images with odd objects."""
ROWS = 12
"""Bars of sizes and classes at most."""


class Picture(NamedTuple):
    """A sample with its objects drawn on it."""

    title: str
    note: str
    image: np.ndarray  # (h, w, 3) uint8


# ---------------------------------------------------------------- plots


def plots(survey: Survey, advice: Advice | None) -> Iterator[Chart]:
    """Distributions of objects and images, the limits of the method marked."""
    if advice is not None:
        yield from _of_objects(survey, advice)
    if len(counts := survey.counts):
        note = spread(counts, "objects")
        yield histogram(counts, title="Objects an image", unit="objects", note=note)
        title = "Share of an image that objects cover"
        yield histogram(100 * survey.covered, title=title, unit="% of an image")
    images = [pair.image for pair in survey.pairs if pair.image]
    tops = {"uint8": 255.0, "uint16": 65535.0}
    levels = np.array([100 * i.high / tops[i.dtype] for i in images if i.dtype in tops])
    if len(levels):
        title, note = "Brightest value of an image", "Percentiles stretch dark images."
        yield histogram(levels, title=title, unit="% of its type", note=note)
    sizes = Counter(f"{i.size_hw[0]} x {i.size_hw[1]}" for i in images).most_common(ROWS)
    if sizes:
        yield bars(sizes, title="Sizes of images", note="height x width, px")
    classes = Counter({name: objects for name, (objects, _) in survey.classes_area().items()})
    if classes:
        yield bars(classes.most_common(2 * ROWS), title="Objects of a class")


def _of_objects(survey: Survey, advice: Advice) -> Iterator[Chart]:
    at, scale = f"scale {advice.scale:g}", advice.scale
    cell = f" A cell is the smallest area that the coarsest grid of {advice.network} resolves."
    for title, measure, limits, more in (
        ("Area of an object", "area",
         {"min_pixels": max(1, advice.min_pixels), f"a cell, {at}": advice.cell_px}, cell),
        ("Longer side of an object", "extent",
         {f"crop, {at}": advice.crop / scale, f"reach of offsets, {at}": 2 * UNIT / scale}, ""),
    ):  # fmt: skip
        values = survey.all(measure)
        marks = [Mark(limit, name) for name, limit in limits.items()]
        note = spread(values, "px") + more
        yield histogram(values, title=title, unit="px", log=True, marks=marks, note=note)


# ---------------------------------------------------------------- samples


def pictures(survey: Survey) -> Iterator[Picture]:
    """Samples: typical, most crowded, smallest, largest, odd, and two images that are alike."""
    usable = [(pair, mask.objects) for pair, mask in survey.labelled if len(mask.objects)]
    if not usable:
        return
    # Typical: its number of objects and median size are nearest to the medians of all.
    logs = np.log([(len(objects), np.median(objects.area)) for _, objects in usable])
    typical = usable[int(np.abs(logs - np.median(logs, axis=0)).sum(axis=1).argmin())]
    crowded = max(usable, key=lambda of: len(of[1]))
    for title, (pair, objects) in (("Typical", typical), ("Most crowded", crowded)):
        note = f"{pair.name}, {counted(len(objects), 'object')}"
        yield Picture(title, note, _drawn(survey, pair, objects))
    for title, sign, measure in (("Smallest object", 1, "area"), ("Largest object", -1, "extent")):
        pair, objects = min(usable, key=lambda of: (sign * getattr(of[1], measure)).min())
        at = int((sign * getattr(objects, measure)).argmin())
        size = f"{objects.area[at]} px, {objects.extent[at]} px wide"
        note = f"{pair.name}, id {objects.ids[at]}: {size}"
        yield Picture(title, note, _drawn(survey, pair, objects, [at]))
    for pair, objects in sorted(usable, key=lambda of: -_oddness(of[1]).sum())[:SUSPICIOUS]:
        which = np.flatnonzero(_oddness(objects)).tolist()
        if which:
            note = f"{pair.name}, {_why(objects, which)}"
            yield Picture("Look at these", note, _drawn(survey, pair, objects, which))
    if survey.near_duplicates:
        yield _alike(survey)


def _drawn(survey: Survey, pair: Pair, objects: Objects, which: Sequence[int] = ()) -> np.ndarray:
    """Overlay of an image, or of the surroundings of some of its objects without the others."""
    image, ids = read_again(pair, survey.reading)
    if which:
        window = _window(objects.box[which[0]], ids.shape)
        image, ids = image[window], ids[window]
        ids = np.where(np.isin(ids, objects.ids[list(which)]), ids, 0)
    step = math.ceil(max(ids.shape) / SHOWN_PX)
    image, ids = image[::step, ::step], ids[::step, ::step]
    return overlay(image, ids, zoom=zoom_for(*ids.shape))


def _oddness(objects: Objects) -> np.ndarray:
    """(K,) how many odd things there are about each object."""
    return (objects.parts > 1) * 2 + objects.ring_shaped * 1 + objects.concentric * 1


def _why(objects: Objects, which: Sequence[int]) -> str:
    first = which[0]
    signs = (
        (objects.parts[first] > 1, f"in {objects.parts[first]} parts"),
        (objects.ring_shaped[first], "ring-shaped"),
        (objects.concentric[first], "its centroid is that of another one"),
    )
    words = ", ".join(said for odd, said in signs if odd)
    more = f", and {len(which) - 1} more such" if len(which) > 1 else ""
    return f"id {objects.ids[first]}: {words}{more}"


def _window(box: np.ndarray, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Rows and columns around a box, some times as wide as it."""
    x1, y1, x2, y2 = box.tolist()
    longest = max(x2 - x1, y2 - y1)
    side = max(96, int(1.6 * longest), min(4 * longest, 256))
    starts = (
        min(max(0, (low + high) // 2 - side // 2), max(0, length - side))
        for low, high, length in ((y1, y2, shape[0]), (x1, x2, shape[1]))
    )
    rows, columns = (slice(start, start + side) for start in starts)
    return rows, columns


def _alike(survey: Survey) -> Picture:
    """The two images that are most surely one, least surely by bytes: what the eye must judge."""
    copy = min(survey.near_duplicates, key=lambda copy: copy.correlation)
    tiles = []
    for pair in (survey.pairs[copy.a], survey.pairs[copy.b]):
        image = display(read_image(pair, survey.reading))
        step = math.ceil(max(image.shape[:2]) / (SHOWN_PX // 2))
        tiles.append((pair.name, image[::step, ::step]))
    note = f"{' and '.join(name for name, _ in tiles)}: correlation {copy.correlation:.3f}"
    return Picture("One image or two?", note, panel(tiles, columns=1))
