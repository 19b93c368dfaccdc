"""What a survey looks like: plots of its measures, and samples with their objects drawn."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from spatialembed.doctor.objects import Objects
from spatialembed.doctor.page import Picture, Plot
from spatialembed.doctor.probe import Pair, read_again
from spatialembed.doctor.recommend import Advice
from spatialembed.doctor.survey import Survey
from spatialembed.method.networks.erfnet import STRIDE
from spatialembed.pictures.charts import Mark, bars, histogram
from spatialembed.pictures.drawing import display, overlay, panel, zoom_for
from spatialembed.types import UNIT

SHOWN_PX = 640
"""Longer side of a sample; a larger image is thinned out."""
SUSPICIOUS = 3
"""Samples of images with odd objects."""
ROWS = 12
"""Bars of sizes and classes at most."""

# ---------------------------------------------------------------- plots


def plots(survey: Survey, advice: Advice | None) -> Iterator[Plot]:
    """Distributions of objects and images, the limits of the method marked."""
    if advice is not None:
        yield from _of_objects(survey, advice)
    if len(survey.counts):
        svg = histogram(survey.counts, title="Objects an image", unit="objects")
        yield Plot("Objects an image", svg, _quartiles(survey.counts, "objects"))
        svg = histogram(100 * covered(survey), title="Area of objects", unit="% of an image")
        yield Plot("Share of an image that objects cover", svg)
    images = [pair.image for pair in survey.pairs if pair.image]
    tops = {"uint8": 255.0, "uint16": 65535.0}
    levels = [100 * i.high / tops[i.dtype] for i in images if i.dtype in tops]
    if levels:
        svg = histogram(np.array(levels), title="Brightest value", unit="% of its type")
        yield Plot("Brightest value of an image", svg, "Percentiles stretch what is dark.")
    sizes = Counter(f"{i.size_hw[1]} x {i.size_hw[0]}" for i in images).most_common(ROWS)
    if sizes:
        yield Plot("Sizes of images", bars(sizes, title="Sizes of images"), "width x height, px")
    classes = survey.classes_area()
    if classes:
        rows = sorted(((n, c) for n, (c, _) in classes.items()), key=lambda row: -row[1])
        yield Plot("Objects of a class", bars(rows[: 2 * ROWS], title="Objects of a class"))


def _of_objects(survey: Survey, advice: Advice) -> Iterator[Plot]:
    areas, extents = survey.all("area"), survey.all("extent")
    cell = math.pi * (STRIDE / advice.scale / 2) ** 2
    at = f"scale {advice.scale:g}"
    marks = [Mark(max(1, advice.min_pixels), "min_pixels"), Mark(cell, f"a cell, {at}")]
    svg = histogram(areas, title="Area of an object", unit="px", log=True, marks=marks)
    note = f"{_quartiles(areas, 'px')} A cell is what the network's coarsest grid tells apart."
    yield Plot("Area of an object", svg, note)
    marks = [
        Mark(advice.crop / advice.scale, f"crop, {at}"),
        Mark(2 * UNIT / advice.scale, f"reach of offsets, {at}"),
    ]
    svg = histogram(extents, title="Width of an object", unit="px", log=True, marks=marks)
    yield Plot("Longer side of an object", svg, _quartiles(extents, "px"))


def covered(survey: Survey) -> np.ndarray:
    """(I,) share of each image that objects cover, in [0, 1]."""
    shares = [p.mask.objects.area.sum() / math.prod(p.mask.size_hw) for p in survey.measured
              if p.mask]  # fmt: skip
    return np.array(shares, np.float64)


def _quartiles(values: np.ndarray, unit: str) -> str:
    low, middle, high = np.percentile(values, (5, 50, 95))
    return f"Median {middle:.4g} {unit}; 90 % from {low:.4g} to {high:.4g}."


# ---------------------------------------------------------------- samples


def pictures(survey: Survey) -> Iterator[Picture]:
    """Samples: typical, most crowded, smallest, largest, odd, and two images that are alike."""
    usable = [p for p in survey.measured if p.image and not p.faults and len(p.mask.objects)]  # type: ignore[union-attr]
    if not usable:
        return

    def whole(title: str, pair: Pair) -> Picture:
        image, ids = read_again(pair, survey.reading)
        step = math.ceil(max(ids.shape) / SHOWN_PX)
        image, ids = image[::step, ::step], ids[::step, ::step]
        note = f"{pair.name}, {_count(pair)}"
        return Picture(title, note, overlay(image, ids, zoom=zoom_for(*ids.shape)))

    def close(title: str, pair: Pair, which: Sequence[int], note: str) -> Picture:
        image, ids = read_again(pair, survey.reading)
        objects = _objects(pair)
        window = _window(objects.box[which[0]], ids.shape)
        image, ids = image[window], ids[window]
        shown = np.where(np.isin(ids, objects.ids[list(which)]), ids, 0)
        step = math.ceil(max(ids.shape) / SHOWN_PX)
        image, shown = image[::step, ::step], shown[::step, ::step]
        return Picture(title, note, overlay(image, shown, zoom=zoom_for(*shown.shape)))

    yield whole("Typical", min(usable, key=_distance_to_typical(usable)))
    yield whole("Most crowded", max(usable, key=lambda pair: len(_objects(pair))))
    for title, best, measure in (("Smallest", min, "area"), ("Largest", max, "extent")):
        values = [getattr(_objects(pair), measure) for pair in usable]
        pair, sizes = best(
            zip(usable, values, strict=True),
            key=lambda item: best(item[1]),
        )
        at = int(np.argmin(sizes) if best is min else np.argmax(sizes))
        objects = _objects(pair)
        note = f"{pair.name}, id {objects.ids[at]}: {objects.area[at]} px, "
        yield close(f"{title} object", pair, [at], f"{note}{objects.extent[at]} px wide")
    odd = sorted(usable, key=lambda pair: -_oddness(_objects(pair)).sum())[:SUSPICIOUS]
    for pair in odd:
        which = np.flatnonzero(_oddness(_objects(pair)))
        if len(which):
            yield close("Look at these", pair, which.tolist(), _why(pair, which))
    if survey.twins:
        yield _twins(survey)


def _objects(pair: Pair) -> Objects:
    assert pair.mask is not None
    return pair.mask.objects


def _count(pair: Pair) -> str:
    count = len(_objects(pair))
    return f"{count} object{'s' * (count != 1)}"


def _distance_to_typical(pairs: Sequence[Pair]):  # type: ignore[no-untyped-def]
    """How far the number of objects and their size are from the medians, as a function."""
    logs = {
        id(pair): np.log((len(_objects(pair)), np.median(_objects(pair).area))) for pair in pairs
    }
    middle = np.median(list(logs.values()), axis=0)
    return lambda pair: float(np.abs(logs[id(pair)] - middle).sum())


def _oddness(objects: Objects) -> np.ndarray:
    """(K,) how many odd things there are about each object."""
    return (objects.parts > 1) * 2 + objects.hollow * 1 + objects.concentric * 1


def _why(pair: Pair, which: np.ndarray) -> str:
    objects = _objects(pair)
    first = which[0]
    words = []
    if objects.parts[first] > 1:
        words.append(f"in {objects.parts[first]} parts")
    if objects.hollow[first]:
        words.append("hollow at its centroid")
    if objects.concentric[first]:
        words.append("its centroid is that of another one")
    more = f", and {len(which) - 1} more such" if len(which) > 1 else ""
    return f"{pair.name}, id {objects.ids[first]}: {', '.join(words)}{more}"


def _window(box: np.ndarray, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Rows and columns around a box, some times as wide as it."""
    x1, y1, x2, y2 = (int(v) for v in box)
    side = max(96, int(1.6 * max(x2 - x1, y2 - y1)), min(4 * max(x2 - x1, y2 - y1), 256))
    slices = []
    for middle, length in (((y1 + y2) // 2, shape[0]), ((x1 + x2) // 2, shape[1])):
        start = min(max(0, middle - side // 2), max(0, length - side))
        slices.append(slice(start, start + side))
    return slices[0], slices[1]


def _twins(survey: Survey) -> Picture:
    """The two images that are most surely one, least surely by bytes: what the eye must judge."""
    twin = min(survey.twins, key=lambda twin: twin.correlation)
    tiles = []
    for pair in (survey.pairs[twin.a], survey.pairs[twin.b]):
        image = display(read_again(pair, survey.reading)[0])
        step = math.ceil(max(image.shape[:2]) / (SHOWN_PX // 2))
        tiles.append((pair.name, image[::step, ::step]))
    names = " and ".join(name for name, _ in tiles)
    return Picture("One image or two?", f"{names}: correlation {twin.correlation:.3f}",
                   panel(tiles, columns=1))  # fmt: skip
