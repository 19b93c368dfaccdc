"""Generated street scenes in the layout of Cityscapes, to train and test on without its data.

Counts by class are those of Cityscapes, about 17 instances an image with a spread as wide as there.
Depths are even in their logarithm, which gives the long tail of small ones. Far crowds carry the id
of their class without number, as groups do; a bonnet and a rim of the image are void.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom

from spatialembed.console import track
from spatialembed.data.cityscapes_ids import IDS, NUMBERED
from spatialembed.errors import USAGE, SpatialEmbedError
from spatialembed.files import atomic_write
from spatialembed.generated import street_objects, street_scenery
from spatialembed.generated.street_objects import Colour, Figure, mirrored, shade
from spatialembed.generated.street_scenery import KERB, Air, Camera, Canvas

MEAN_COUNTS = {
    "person": 11.0, "rider": 0.9, "car": 12.5, "truck": 0.24, "bus": 0.18, "train": 0.08,
    "motorcycle": 0.2, "bicycle": 1.2,
}  # fmt: skip
"""Set out in an image; what is seen of them is near the counts of Cityscapes. A rider comes with a
machine."""
CLUMPING = 1.6
"""Shape of the gamma law that spreads the counts between images: some streets are crowded."""
CITIES = {"train": ("ahornfeld", "birkenau", "eschbach"), "val": ("lindenberg",)}
"""Invented."""


class Street(NamedTuple):
    """One generated image with its truth."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    ids: np.ndarray  # (H, W) int32 Cityscapes ids, class * 1000 + number for instances


def generate_street(height: int, width: int, seed: int, index: int = 0) -> Street:
    """The street that follows from (seed, index), height and width in px; the same everywhere."""
    rng = np.random.default_rng((seed, index))
    camera = Camera(width, height, height * rng.uniform(0.40, 0.46), rng.uniform(1.2, 1.5))
    air = _air(rng)
    canvas = Canvas(camera, air)
    _sky(canvas, rng)
    street_scenery.houses(canvas, rng)
    street_scenery.street(canvas, rng)
    things = [*_still(canvas, rng), *_moving(canvas, rng)]
    for thing in sorted(things, key=lambda t: -t.z):
        thing.draw()
    _bonnet(canvas, rng)
    ids = np.asarray(canvas.ids, np.int32).copy()
    rim = max(1, width // 400)
    ids[:, :rim] = ids[:, -rim:] = ids[:rim] = street_scenery.RECTIFICATION
    image = canvas.colours.reduce(street_scenery.FINE)
    return Street(_developed(np.asarray(image), ids, rng), ids)


class _Thing(NamedTuple):
    z: float
    draw: Callable[[], None]


# ---------------------------------------------------------------- light


def _air(rng: np.random.Generator) -> Air:
    haze: Colour = ((206, 212, 220), (196, 198, 200), (222, 206, 184))[rng.integers(3)]
    return Air(rng.uniform(0.75, 1.12), haze, rng.uniform(120, 320))


def _sky(canvas: Canvas, rng: np.random.Generator) -> None:
    """From the haze at the horizon up to blue or grey."""
    width, height = canvas.colours.size
    top = np.array(((96, 136, 190), (150, 158, 168), (130, 150, 180))[rng.integers(3)], float)
    share = np.clip(np.linspace(0, 1.6, height), 0, 1)[:, None, None]
    sky = (1 - share) * top + share * np.array(canvas.air.haze, float)
    clouds = zoom(
        gaussian_filter(rng.normal(size=(24, 40)), 1.2), (height / 24, width / 40), order=1
    )
    clouds = np.clip(clouds[:height, :width, None] * rng.uniform(20, 70), 0, 46)
    sky = np.clip(sky + clouds * (1 - 0.6 * share), 0, 255)
    canvas.colours.paste(Image.fromarray(sky.astype(np.uint8)))


GRAIN = {7: 5.0, 8: 5.5, 11: 5.0, 21: 13.0, 23: 0.8}
"""Standard deviation of the fine texture of a region, grey levels."""


def _developed(image: np.ndarray, ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Texture of each material, lens and sensor."""
    height, width = ids.shape
    region = np.where(ids >= NUMBERED, 0, ids)
    grain = np.full(64, 2.5, np.float32)
    for i, value in GRAIN.items():
        grain[i] = value
    fine = rng.standard_normal((height, width), np.float32)
    coarse = zoom(rng.standard_normal((height // 16 + 1, width // 16 + 1), np.float32), 16, order=1)
    texture = grain[region] * (1.3 * gaussian_filter(fine, 0.8) + 0.35 * coarse[:height, :width])
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
    vignette = 1 - 0.10 * (x**2 + y[:, None] ** 2)
    developed = (image + texture[..., None]) * vignette[..., None]
    developed += rng.standard_normal(developed.shape, np.float32) * rng.uniform(0.8, 2.2)
    return np.clip(developed, 0, 255).astype(np.uint8)


def _bonnet(canvas: Canvas, rng: np.random.Generator) -> None:
    """The own car, void."""
    width, height = canvas.camera.width, canvas.camera.height
    x = np.linspace(0.06, 0.94, 25)
    y = 0.93 - 0.05 * np.sqrt(np.maximum(0, 1 - ((x - 0.5) / 0.46) ** 2))
    paint = canvas.air(shade(street_objects.PAINTS[rng.integers(4)], 0.8), 1)
    edge = [(width * a, height * b) for a, b in zip(x, y, strict=True)]
    canvas.polygon(
        [(width * 0.02, height), *edge, (width * 0.98, height)], paint, street_scenery.EGO
    )
    shine = [(a, b + 0.012 * height) for a, b in edge[3:-3]]
    low = [(a, b + 0.03 * height) for a, b in reversed(shine)]
    canvas.polygon([*shine, *low], shade(paint, 1.35), None)


# ---------------------------------------------------------------- what stands about


def _still(canvas: Canvas, rng: np.random.Generator) -> list[_Thing]:
    things = []

    def put(draw: Callable[..., None], x: float, z: float) -> None:
        things.append(_Thing(z, lambda: draw(canvas, rng, x, z)))

    trees = rng.random() < 0.75
    for side in (-1, 1):
        for z in np.arange(rng.uniform(7, 16), 110, rng.uniform(11, 19)):
            if trees and rng.random() < 0.7:
                put(street_scenery.tree, side * rng.uniform(8.3, 9.6), z)
        for z in np.arange(rng.uniform(6, 20), 100, rng.uniform(14, 24)):
            put(street_scenery.pole, side * rng.uniform(6.7, 7.2), z)
        for _ in range(rng.poisson(0.8)):
            put(
                street_scenery.litter_bin, side * rng.uniform(7.2, 9), np.exp(rng.uniform(2.1, 4.0))
            )
    return things


# ---------------------------------------------------------------- what has instances


def _moving(canvas: Canvas, rng: np.random.Generator) -> list[_Thing]:
    """Objects of all classes, numbered by class, and groups."""
    crowd = rng.gamma(CLUMPING, 1 / CLUMPING)
    numbers = dict.fromkeys(IDS, 0)
    things = []

    def put(figure: Figure, x: float, z: float, *, group: bool = False) -> None:
        ids = []
        for shape in figure.shapes:
            number = IDS[shape.name] * NUMBERED + numbers[shape.name]
            numbers[shape.name] += not group
            ids.append(IDS[shape.name] if group else number)
        if rng.random() < 0.5:
            figure = mirrored(figure)
        things.append(_Thing(z, lambda: canvas.figure(figure, x, z, ids)))

    for name, mean in MEAN_COUNTS.items():
        for _ in range(rng.poisson(mean * crowd)):
            put(*_placed(name, rng))
    for _ in range(rng.poisson(0.5)):
        _group(rng, put)
    return things


def _seen_at(rng: np.random.Generator, x: float, near: float, far: float) -> tuple[float, float]:
    """Place (x, z) at a depth, even in its logarithm, from which x is in the image."""
    near = max(near, abs(x) / 0.46)  # half a width at 1.1 widths of focal length
    return x, float(np.exp(rng.uniform(np.log(near), np.log(far))))


def _placed(name: str, rng: np.random.Generator) -> tuple[Figure, float, float]:
    """A new object of a class, and its place (x, z) in metres."""
    side = rng.choice((-1, 1))
    if name == "person":
        on_road = rng.random() < 0.15
        x = rng.uniform(-KERB, KERB) if on_road else side * rng.uniform(6.6, 10.4)
        return street_objects.person(rng), *_seen_at(rng, x, 8, 130)
    if name in ("rider", "bicycle", "motorcycle"):
        ridden = name == "rider"
        motor = name == "motorcycle" or (ridden and rng.random() < 0.2)
        make = street_objects.motorcycle if motor else street_objects.bicycle
        x = side * (rng.uniform(1.5, 5.8) if ridden else rng.uniform(6.4, 9.5))
        return make(rng, ridden=ridden), *_seen_at(rng, x, 8, 90)
    if name == "car":
        return _placed_car(rng, side)
    make_long = {
        "truck": street_objects.truck,
        "bus": street_objects.bus,
        "train": street_objects.train,
    }
    across = rng.random() < 0.35
    figure = make_long[name](rng, side=across)
    if across:  # it crosses the street far ahead
        return figure, *_seen_at(rng, rng.uniform(-8, 8), 28, 90)
    return figure, *_seen_at(rng, side * rng.uniform(1.7, 2.1), 12, 90)


def _placed_car(rng: np.random.Generator, side: int) -> tuple[Figure, float, float]:
    kind = rng.random()
    if kind < 0.55:  # parked along the kerb
        x, near, far, turned = side * rng.uniform(4.6, 5.2), 8, 140, False
    elif kind < 0.85:  # in its lane
        x, near, far, turned = side * rng.uniform(1.5, 2.1), 9, 140, False
    elif kind < 0.93:  # across, at a crossing ahead
        x, near, far, turned = rng.uniform(-6, 6), 22, 110, True
    else:  # with its side to the street, before a house
        x, near, far, turned = side * rng.uniform(7.6, 9.4), 14, 90, True
    return street_objects.car(rng, side=turned), *_seen_at(rng, x, near, far)


def _group(rng: np.random.Generator, put: Callable[..., None]) -> None:
    """A far crowd, a rack of bicycles or a row of cars that nobody would part."""
    name = rng.choice(("person", "bicycle", "car"), p=(0.5, 0.3, 0.2))
    side = rng.choice((-1, 1))
    _, z = _seen_at(rng, 0, 35, 100)
    for _ in range(rng.integers(5, 12)):
        if name == "car":
            figure, x = street_objects.car(rng, side=False), side * rng.uniform(4.2, 5.4)
        else:
            make = street_objects.person if name == "person" else street_objects.bicycle
            figure, x = make(rng), side * (7.8 + rng.normal(0, 0.9))
        put(figure, x, z * rng.uniform(1.0, 1.12), group=True)


# ---------------------------------------------------------------- files


def write_streets(
    out: str | Path,
    images: int,
    size_hw: tuple[int, int],
    seed: int = 0,
    *,
    val_fraction: float = 0.2,
    progress: bool = True,
) -> None:
    """Write streets as a Cityscapes root: leftImg8bit and gtFine, train and val.

    Of each image: instanceIds (16 bit) and labelIds (8 bit). The last ``val_fraction`` of them are
    val. Raises SpatialEmbedError ``bad_setting`` for fewer than 2 images.
    """
    if images < 2:
        raise SpatialEmbedError("bad_setting", f"images is {images}", "make two or more", USAGE)
    held_out = min(max(1, round(images * val_fraction)), images - 1)
    for index in track(range(images), "streets", shown=progress):
        split = "val" if index >= images - held_out else "train"
        city = CITIES[split][index % len(CITIES[split])]
        frame = f"{city}_{index:06d}_000019"
        street = generate_street(*size_hw, seed, index)
        plain = np.where(street.ids >= NUMBERED, street.ids // NUMBERED, street.ids)
        for folder, kind, pixels in (
            ("leftImg8bit", "leftImg8bit", street.image),
            ("gtFine", "gtFine_instanceIds", street.ids.astype(np.uint16)),
            ("gtFine", "gtFine_labelIds", plain.astype(np.uint8)),
        ):
            with atomic_write(Path(out, folder, split, city, f"{frame}_{kind}.png")) as path:
                Image.fromarray(pixels).save(path, format="PNG", compress_level=3)
