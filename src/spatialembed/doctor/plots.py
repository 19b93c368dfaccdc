"""Pictures of a survey: charts of its measures, and samples with their objects drawn."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from spatialembed.doctor.objects import Objects
from spatialembed.doctor.page import Picture
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

# ---------------------------------------------------------------- plots


def plots(survey: Survey, advice: Advice | None) -> Iterator[Chart]:
    """Distributions of objects and images, the limits of the method marked."""
    if advice is not None:
        yield from _of_objects(survey, advice)
    if len(counts := survey.counts):
        yield histogram(
            counts, title="Objects an image", unit="objects", note=spread(counts, "objects")
        )
        title = "Share of an image that objects cover"
        yield histogram(100 * covered(survey), title=title, unit="% of an image")
    images = [pair.image for pair in survey.pairs if pair.image]
    tops = {"uint8": 255.0, "uint16": 65535.0}
    levels = np.array([100 * i.high / tops[i.dtype] for i in images if i.dtype in tops])
    if len(levels):
        note = "Percentiles stretch dark images."
        yield histogram(
            levels, title="Brightest value of an image", unit="% of its type", note=note
        )
    sizes = Counter(f"{i.size_hw[0]} x {i.size_hw[1]}" for i in images).most_common(ROWS)
    if sizes:
        yield bars(sizes, title="Sizes of images", note="height x width, px")
    classes = Counter({name: objects for name, (objects, _) in survey.classes_area().items()})
    if classes:
        yield bars(classes.most_common(2 * ROWS), title="Objects of a class")


def _of_objects(survey: Survey, advice: Advice) -> Iterator[Chart]:
    at = f"scale {advice.scale:g}"
    reach = 2 * UNIT / advice.scale
    area_marks = (
        Mark(max(1, advice.min_pixels), "min_pixels"),
        Mark(advice.cell_px, f"a cell, {at}"),
    )
    extent_marks = (
        Mark(advice.crop / advice.scale, f"crop, {at}"),
        Mark(reach, f"reach of offsets, {at}"),
    )
    explained = " A cell is the smallest area that the network's coarsest grid resolves."
    for title, measure, marks, more in (
        ("Area of an object", "area", area_marks, explained),
        ("Longer side of an object", "extent", extent_marks, ""),
    ):
        values = survey.all(measure)
        note = spread(values, "px") + more
        yield histogram(values, title=title, unit="px", log=True, marks=marks, note=note)


def covered(survey: Survey) -> np.ndarray:
    """(I,) share of each image that objects cover, in [0, 1]."""
    shares = [p.mask.objects.area.sum() / math.prod(p.mask.size_hw) for p in survey.measured
              if p.mask]  # fmt: skip
    return np.array(shares, np.float64)


# ---------------------------------------------------------------- samples


def pictures(survey: Survey) -> Iterator[Picture]:
    """Samples: typical, most crowded, smallest, largest, odd, and two images that are alike."""
    usable = [p for p in survey.measured if p.image and not p.faults and len(_objects(p))]
    if not usable:
        return
    crowded = max(usable, key=lambda pair: len(_objects(pair)))
    for title, pair in (("Typical", _typical(usable)), ("Most crowded", crowded)):
        yield Picture(
            title, f"{pair.name}, {counted(len(_objects(pair)), 'object')}", _drawn(survey, pair)
        )
    for title, sign, measure in (("Smallest object", 1, "area"), ("Largest object", -1, "extent")):
        pair = min(usable, key=lambda pair: (sign * getattr(_objects(pair), measure)).min())
        objects = _objects(pair)
        at = int((sign * getattr(objects, measure)).argmin())
        size = f"{objects.area[at]} px, {objects.extent[at]} px wide"
        note = f"{pair.name}, id {objects.ids[at]}: {size}"
        yield Picture(title, note, _drawn(survey, pair, [at]))
    for pair in sorted(usable, key=lambda pair: -_oddness(_objects(pair)).sum())[:SUSPICIOUS]:
        which = np.flatnonzero(_oddness(_objects(pair))).tolist()
        if which:
            yield Picture("Look at these", _why(pair, which), _drawn(survey, pair, which))
    if survey.near_duplicates:
        yield _alike(survey)


def _drawn(survey: Survey, pair: Pair, which: Sequence[int] = ()) -> np.ndarray:
    """Overlay of an image, or of the surroundings of some of its objects without the others."""
    image, ids = read_again(pair, survey.reading)
    if which:
        objects = _objects(pair)
        window = _window(objects.box[which[0]], ids.shape)
        image, ids = image[window], ids[window]
        ids = np.where(np.isin(ids, objects.ids[list(which)]), ids, 0)
    step = math.ceil(max(ids.shape) / SHOWN_PX)
    image, ids = image[::step, ::step], ids[::step, ::step]
    return overlay(image, ids, zoom=zoom_for(*ids.shape))


def _objects(pair: Pair) -> Objects:
    assert pair.mask is not None
    return pair.mask.objects


def _typical(pairs: Sequence[Pair]) -> Pair:
    """That whose number of objects and median size are nearest to the medians of all."""
    logs = np.log([(len(_objects(p)), np.median(_objects(p).area)) for p in pairs])
    return pairs[int(np.abs(logs - np.median(logs, axis=0)).sum(axis=1).argmin())]


def _oddness(objects: Objects) -> np.ndarray:
    """(K,) how many odd things there are about each object."""
    return (objects.parts > 1) * 2 + objects.ring_shaped * 1 + objects.concentric * 1


def _why(pair: Pair, which: Sequence[int]) -> str:
    objects, first = _objects(pair), which[0]
    signs = (
        (objects.parts[first] > 1, f"in {objects.parts[first]} parts"),
        (objects.ring_shaped[first], "ring-shaped"),
        (objects.concentric[first], "its centroid is that of another one"),
    )
    words = ", ".join(said for odd, said in signs if odd)
    more = f", and {len(which) - 1} more such" if len(which) > 1 else ""
    return f"{pair.name}, id {objects.ids[first]}: {words}{more}"


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
        image = display(read_image(pair))
        step = math.ceil(max(image.shape[:2]) / (SHOWN_PX // 2))
        tiles.append((pair.name, image[::step, ::step]))
    note = f"{' and '.join(name for name, _ in tiles)}: correlation {copy.correlation:.3f}"
    return Picture("One image or two?", note, panel(tiles, columns=1))
