"""Generated street scenes in the layout of Cityscapes, to train and test on without its data.

x to the right, y up, z ahead, in metres, the pinhole camera over the origin. Every thing is drawn
twice, in colour and as Cityscapes id, so that the visible part of an object is its mask.

Counts by class are those of Cityscapes, about 17 instances an image with a spread as wide as there.
Depths are even in their logarithm, which gives the long tail of small ones. Far crowds carry the id
of their class without number, as groups do; a bonnet and a rim of the image are void.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter, zoom

from spatialembed.console import track
from spatialembed.data.cityscapes_ids import IDS, NUMBERED
from spatialembed.errors import USAGE, SpatialEmbedError
from spatialembed.files import atomic_write
from spatialembed.generated import street_objects
from spatialembed.generated.street_objects import GLASS, Colour, Figure, Point, mirrored, shade

EGO, RECTIFICATION, STATIC = 1, 2, 4
ROAD, SIDEWALK, BUILDING, POLE, LIGHT, SIGN, VEGETATION, SKY = 7, 8, 11, 17, 19, 20, 21, 23
FINE = 2
"""Colours are drawn this many times larger and averaged: soft edges."""
KERB, WALL, FAR = 6.2, 11.0, 150.0
"""Metres: half the road, half the street, where it ends."""
BRICKS: tuple[Colour, ...] = (
    (176, 160, 136), (150, 104, 82), (196, 186, 166), (134, 126, 118), (170, 134, 96),
    (122, 96, 88), (204, 196, 184),
)  # fmt: skip
GRAIN = {7: 5.0, 8: 5.5, 11: 5.0, 21: 13.0, 23: 0.8}
"""Standard deviation of the fine texture of a region, grey levels."""
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


_Thing = tuple[float, Callable[[], None]]
"""Its distance in metres, and the function that draws it."""


def generate_street(height: int, width: int, seed: int, index: int = 0) -> Street:
    """The street that follows from (seed, index), height and width in px; the same everywhere."""
    rng = np.random.default_rng((seed, index))
    camera = _Camera(width, height, height * rng.uniform(0.40, 0.46), rng.uniform(1.2, 1.5))
    haze: Colour = ((206, 212, 220), (196, 198, 200), (222, 206, 184))[rng.integers(3)]
    canvas = _Canvas(camera, _Air(rng.uniform(0.75, 1.12), haze, rng.uniform(120, 320)))
    _sky(canvas, rng)
    _houses(canvas, rng)
    _road(canvas, rng)
    things = [*_still(canvas, rng), *_moving(canvas, rng)]
    for _, draw in sorted(things, key=lambda thing: -thing[0]):
        draw()
    _bonnet(canvas, rng)
    ids = np.asarray(canvas.ids, np.int32).copy()
    rim = max(1, width // 400)
    ids[:, :rim] = ids[:, -rim:] = ids[:rim] = RECTIFICATION
    image = canvas.colours.reduce(FINE)
    return Street(_developed(np.asarray(image), ids, rng), ids)


# ---------------------------------------------------------------- drawing


class _Camera(NamedTuple):
    """Where points of the street fall in the image."""

    width: int
    height: int
    horizon: float  # row, px
    lift: float  # metres above the ground

    def __call__(self, x: float, y: float, z: float) -> Point:
        """Image point (x, y) in px of a point in metres."""
        scale = 1.1 * self.width / z  # Cityscapes has a focal length of about 1.1 widths
        return self.width / 2 + scale * x, self.horizon - scale * (y - self.lift)


class _Air(NamedTuple):
    """Light and haze of an image."""

    light: float
    haze: Colour
    sight: float  # metres at which 63 % is haze

    def __call__(self, colour: Colour, z: float) -> Colour:
        """A colour as it looks from z metres away."""
        left = np.exp(-z / self.sight)
        r, g, b = (
            round(left * min(255, c * self.light) + (1 - left) * h)
            for c, h in zip(colour, self.haze, strict=True)
        )
        return r, g, b


class _Canvas:
    """The image and its ids, drawn together. An id ``i`` of None leaves the ids as they are."""

    def __init__(self, camera: _Camera, air: _Air) -> None:
        self.camera, self.air = camera, air
        size = (camera.width, camera.height)
        self.colours = Image.new("RGB", (FINE * size[0], FINE * size[1]))
        self.ids = Image.new("I", size, SKY)
        self._paint, self._mark = ImageDraw.Draw(self.colours), ImageDraw.Draw(self.ids)

    def polygon(self, points: Sequence[Point], colour: Colour, i: int | None) -> None:
        """Fill a polygon of image points."""
        self._paint.polygon([(FINE * x, FINE * y) for x, y in points], fill=colour)
        if i is not None:
            self._mark.polygon(list(points), fill=i)

    def ellipse(
        self, a: Point, b: Point, colour: Colour, i: int | None, *, rim: bool = False
    ) -> None:
        """Fill the ellipse in the box of two corners; of a ``rim`` the colour only on its edge."""
        (x0, x1), (y0, y1) = sorted((a[0], b[0])), sorted((a[1], b[1]))
        box = [FINE * x0, FINE * y0, FINE * x1, FINE * y1]
        if rim:
            thick = max(1, round(0.13 * (x1 - x0) * FINE / 2))
            self._paint.ellipse(box, outline=colour, width=thick)
        else:
            self._paint.ellipse(box, fill=colour)
        if i is not None:
            self._mark.ellipse([x0, y0, x1, y1], fill=i)

    def wall(self, x: float, z: Point, y: Point, colour: Colour, i: int | None) -> None:
        """A rectangle in the plane x, from z to z and y to y, metres."""
        corners = ((z[0], y[0]), (z[1], y[0]), (z[1], y[1]), (z[0], y[1]))
        self.polygon([self.camera(x, b, a) for a, b in corners], self.air(colour, z[0]), i)

    def ground(self, x: Point, z: Point, colour: Colour, i: int | None) -> None:
        """A rectangle on the ground."""
        corners = ((x[0], z[0]), (x[1], z[0]), (x[1], z[1]), (x[0], z[1]))
        self.polygon([self.camera(a, 0, b) for a, b in corners], self.air(colour, z[0]), i)

    def panel(self, x: Point, y: Point, z: float, colour: Colour, i: int | None) -> None:
        """A rectangle that faces the camera."""
        corners = ((x[0], y[0]), (x[1], y[0]), (x[1], y[1]), (x[0], y[1]))
        self.polygon([self.camera(a, b, z) for a, b in corners], self.air(colour, z), i)

    def disc(self, x: float, y: Point, half: float, z: float, colour: Colour, i: int) -> None:
        """An ellipse that faces the camera, 2 x ``half`` wide, from y down to y."""
        a, b = self.camera(x - half, y[0], z), self.camera(x + half, y[1], z)
        self.ellipse(a, b, self.air(colour, z), i)

    def figure(self, figure: Figure, x: float, z: float, ids: Sequence[int]) -> None:
        """A figure that stands at (x, z), its shapes with their ids, on its shadow."""
        left, top = self.camera(x - figure.width / 2, figure.height, z)
        right, bottom = self.camera(x + figure.width / 2, 0, z)
        flat = 0.07 * (right - left)
        ends = (left - flat / 2, bottom - flat / 2), (right + flat / 2, bottom + flat)
        self.ellipse(*ends, self.air((30, 30, 33), 1.4 * z), None)
        for shape, i in zip(figure.shapes, ids, strict=True):
            for form, points, colour in shape.parts:
                placed = [
                    (left + u * (right - left), bottom + v * (top - bottom)) for u, v in points
                ]
                if form == "polygon":
                    self.polygon(placed, self.air(colour, z), i)
                else:
                    a, b = placed
                    self.ellipse(a, b, self.air(colour, z), i, rim=form == "ring")


# ---------------------------------------------------------------- what stands still


def _road(canvas: _Canvas, rng: np.random.Generator) -> None:
    """Sidewalks, road, kerbs, lines."""
    grey = int(rng.integers(78, 104))
    road = (grey, grey, grey + 3)
    walk = shade((150, 144, 138), rng.uniform(0.8, 1.05))
    near = 1.5
    z = np.geomspace(near, FAR, 14)
    for a, b in pairwise(z):
        canvas.ground((-40, 40), (a, b), walk, SIDEWALK)
        canvas.ground((-KERB, KERB), (a, b), road, ROAD)
    for side in (-1, 1):
        canvas.ground((side * KERB, side * (KERB + 0.25)), (near, FAR), shade(walk, 1.2), SIDEWALK)
        canvas.ground((side * 3.6, side * 3.72), (near, FAR), (190, 190, 186), ROAD)
    for a in np.arange(2.0, FAR, 9.0):
        canvas.ground((-0.07, 0.07), (a, a + 4.5), (205, 205, 200), ROAD)
    for a in np.arange(2.0, 60, 1.5):  # slabs
        for side in (-1, 1):
            canvas.ground((side * 6.6, side * WALL), (a, a + 0.04), shade(walk, 0.86), None)


def _houses(canvas: _Canvas, rng: np.random.Generator) -> None:
    """Two rows of fronts with windows, and what closes the street."""
    for x in np.arange(-34, 34, 7.5):
        height = rng.uniform(10, 24)
        canvas.panel((x, x + 7.5), (0, height), FAR, BRICKS[rng.integers(len(BRICKS))], BUILDING)
        for y in np.arange(2, height - 2, 3.4):
            for a in np.arange(x + 0.8, x + 7.5 - 1.2, 2.1):
                canvas.panel((a, a + 1.1), (y, y + 1.9), FAR, GLASS, None)
    for side in (-1, 1):
        z = FAR * 0.9
        blocks = []
        while z > 2:
            length = min(rng.uniform(9, 20), z - 1.2)
            blocks.append((z - length, z))
            z -= length
        for near, far in blocks:
            if rng.random() < 0.12:
                continue  # a gap, through which the sky is seen
            _front(canvas, rng, side * WALL * rng.uniform(1.0, 1.12), (max(near, 1.2), far))


def _front(canvas: _Canvas, rng: np.random.Generator, x: float, z: Point) -> None:
    bricks = BRICKS[rng.integers(len(BRICKS))]
    paint = shade(bricks, rng.uniform(0.8, 1.1) * (0.82 if x > 0 else 1.05))
    floors = int(rng.integers(3, 7))
    storey = rng.uniform(3.0, 3.6)
    height = floors * storey + 1
    canvas.wall(x, z, (0, height), paint, BUILDING)
    canvas.wall(x, z, (height - 0.5, height), shade(paint, 0.8), BUILDING)
    canvas.wall(x, z, (0, 0.7), shade(paint, 0.7), BUILDING)
    columns = max(2, round((z[1] - z[0]) / rng.uniform(2.2, 3.2)))
    step = (z[1] - z[0]) / columns
    glass = shade(GLASS, rng.uniform(0.9, 1.6))
    for floor in range(floors):
        shop = floor == 0 and rng.random() < 0.7
        low, high = floor * storey + (0.6 if shop else 1.0), floor * storey + storey - 0.7
        half = (0.42 if shop else 0.27) * step
        for n in range(columns):
            middle = z[0] + (n + 0.5) * step
            ends = (middle - half, middle + half)
            if floor > 0:
                frame = (ends[0] - 0.1, ends[1] + 0.1)
                canvas.wall(x, frame, (low - 0.12, high + 0.12), shade(paint, 1.2), None)
            canvas.wall(x, ends, (low, high), shade(glass, rng.uniform(0.8, 1.25)), None)


def _tree(canvas: _Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A tree: a cluster of leaves on a trunk."""
    green = shade((74, 98, 52), rng.uniform(0.6, 1.15))
    trunk = rng.uniform(2.2, 3.2)
    canvas.panel((x - 0.16, x + 0.16), (0, trunk + 1), z, (74, 60, 48), VEGETATION)
    radius = rng.uniform(1.6, 2.8)
    for _ in range(46):
        angle, r = rng.uniform(0, 2 * np.pi), radius * np.sqrt(rng.random())
        size = radius * rng.uniform(0.18, 0.4)
        cx, cy = x + r * np.cos(angle), trunk + radius * 1.1 + 1.1 * r * np.sin(angle)
        tone = shade(green, 0.72 + 0.22 * (cy - trunk) / radius + rng.uniform(-0.12, 0.12))
        canvas.disc(cx, (cy + size, cy - size), size, z, tone, VEGETATION)


def _pole(canvas: _Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A lamp post, a sign or a traffic light."""
    kind = rng.choice(["lamp", "sign", "light"])
    iron = (92, 94, 98)
    if kind == "lamp":
        arm = sorted((x, x - np.sign(x) * 1.6))
        canvas.panel((arm[0], arm[1]), (7.4, 7.5), z, iron, POLE)
    canvas.panel((x - 0.07, x + 0.07), (0, 7.5 if kind == "lamp" else 3.2), z, iron, POLE)
    if kind == "sign":
        colour = ((200, 40, 40), (40, 80, 170), (220, 190, 40))[rng.integers(3)]
        canvas.disc(x, (3.2, 2.5), 0.36, z, colour, SIGN)
        canvas.disc(x, (3.1, 2.6), 0.26, z, (228, 228, 224), SIGN)
    if kind == "light":
        canvas.panel((x - 0.18, x + 0.18), (2.5, 3.5), z, (30, 32, 34), LIGHT)
        lit = rng.integers(3)
        for n, colour in enumerate(((230, 50, 40), (230, 180, 50), (60, 210, 120))):
            seen = shade(colour, 1.0 if n == lit else 0.3)
            canvas.disc(x, (3.42 - 0.32 * n, 3.2 - 0.32 * n), 0.11, z, seen, LIGHT)


def _litter_bin(canvas: _Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """Street furniture: void to the benchmark."""
    colour = ((70, 84, 70), (96, 88, 70), (70, 74, 96))[rng.integers(3)]
    width, height = rng.uniform(0.3, 0.6), rng.uniform(0.9, 1.5)
    canvas.panel((x - width, x + width), (0, height), z, colour, STATIC)
    canvas.panel((x - width, x + width), (height - 0.15, height), z, shade(colour, 1.3), STATIC)


# ---------------------------------------------------------------- light


def _sky(canvas: _Canvas, rng: np.random.Generator) -> None:
    """From the haze at the horizon up to blue or grey."""
    width, height = canvas.colours.size
    top = np.array(((96, 136, 190), (150, 158, 168), (130, 150, 180))[rng.integers(3)], float)
    share = np.clip(np.linspace(0, 1.6, height), 0, 1)[:, None, None]
    sky = (1 - share) * top + share * np.array(canvas.air.haze, float)
    blots = gaussian_filter(rng.normal(size=(24, 40)), 1.2)
    clouds = zoom(blots, (height / 24, width / 40), order=1)
    clouds = np.clip(clouds[:height, :width, None] * rng.uniform(20, 70), 0, 46)
    sky = np.clip(sky + clouds * (1 - 0.6 * share), 0, 255)
    canvas.colours.paste(Image.fromarray(sky.astype(np.uint8)))


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


def _bonnet(canvas: _Canvas, rng: np.random.Generator) -> None:
    """The own car, void."""
    width, height = canvas.camera.width, canvas.camera.height
    x = np.linspace(0.06, 0.94, 25)
    y = 0.93 - 0.05 * np.sqrt(np.maximum(0, 1 - ((x - 0.5) / 0.46) ** 2))
    paint = canvas.air(shade(street_objects.PAINTS[rng.integers(4)], 0.8), 1)
    edge = [(width * a, height * b) for a, b in zip(x, y, strict=True)]
    canvas.polygon([(width * 0.02, height), *edge, (width * 0.98, height)], paint, EGO)
    shine = [(a, b + 0.012 * height) for a, b in edge[3:-3]]
    low = [(a, b + 0.03 * height) for a, b in reversed(shine)]
    canvas.polygon([*shine, *low], shade(paint, 1.35), None)


# ---------------------------------------------------------------- things, by distance


def _still(canvas: _Canvas, rng: np.random.Generator) -> Iterator[_Thing]:
    """Trees, poles and bins on both sides."""

    def thing(draw: Callable[..., None], x: float, z: float) -> _Thing:
        return z, lambda: draw(canvas, rng, x, z)

    trees = rng.random() < 0.75
    for side in (-1, 1):
        for z in np.arange(rng.uniform(7, 16), 110, rng.uniform(11, 19)):
            if trees and rng.random() < 0.7:
                yield thing(_tree, side * rng.uniform(8.3, 9.6), z)
        for z in np.arange(rng.uniform(6, 20), 100, rng.uniform(14, 24)):
            yield thing(_pole, side * rng.uniform(6.7, 7.2), z)
        for _ in range(rng.poisson(0.8)):
            yield thing(_litter_bin, side * rng.uniform(7.2, 9), np.exp(rng.uniform(2.1, 4.0)))


def _moving(canvas: _Canvas, rng: np.random.Generator) -> list[_Thing]:
    """Objects of all classes, numbered by class, and groups."""
    crowd = rng.gamma(CLUMPING, 1 / CLUMPING)
    numbers = dict.fromkeys(IDS, 0)
    things: list[_Thing] = []

    def put(figure: Figure, x: float, z: float, *, group: bool = False) -> None:
        ids = []
        for shape in figure.shapes:
            number = IDS[shape.name] * NUMBERED + numbers[shape.name]
            numbers[shape.name] += not group
            ids.append(IDS[shape.name] if group else number)
        if rng.random() < 0.5:
            figure = mirrored(figure)
        things.append((z, lambda: canvas.figure(figure, x, z, ids)))

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
    across = rng.random() < 0.35
    figure = getattr(street_objects, name)(rng, side=across)  # truck, bus or train
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
