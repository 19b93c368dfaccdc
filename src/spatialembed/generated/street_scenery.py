"""What stands still in a generated street, and the canvas that all is drawn on.

x to the right, y up, z ahead, in metres, the pinhole camera over the origin. Every thing is drawn
twice, in colour and as Cityscapes id, so that what is seen of an object is its mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from spatialembed.generated import street_objects
from spatialembed.generated.street_objects import Colour, Figure, Point, shade

EGO, RECTIFICATION, STATIC = 1, 2, 4
ROAD, SIDEWALK, BUILDING, POLE, LIGHT, SIGN, VEGETATION, SKY = 7, 8, 11, 17, 19, 20, 21, 23
FINE = 2
"""Colours are drawn this many times larger and averaged: soft edges."""
KERB, WALL, FAR = 6.2, 11.0, 150.0
"""Metres: half the road, half the street, where it ends."""


class Camera(NamedTuple):
    """Where points of the street fall in the image."""

    width: int
    height: int
    horizon: float  # row, px
    lift: float = 1.35  # metres above the ground

    @property
    def focal(self) -> float:
        """px; Cityscapes has about 1.1 widths."""
        return 1.1 * self.width

    def __call__(self, x: float, y: float, z: float) -> Point:
        """Image point (x, y) in px of a point in metres."""
        scale = self.focal / z
        return self.width / 2 + scale * x, self.horizon - scale * (y - self.lift)


class Air(NamedTuple):
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


class Canvas:
    """The image and its ids, drawn together."""

    def __init__(self, camera: Camera, air: Air) -> None:
        self.camera, self.air = camera, air
        size = (camera.width, camera.height)
        self.colours = Image.new("RGB", (FINE * size[0], FINE * size[1]))
        self.ids = Image.new("I", size, SKY)
        self._paint, self._mark = ImageDraw.Draw(self.colours), ImageDraw.Draw(self.ids)

    def polygon(self, points: Sequence[Point], colour: Colour, i: int | None) -> None:
        """Fill a polygon of image points; ``i`` None leaves the ids."""
        self._paint.polygon([(FINE * x, FINE * y) for x, y in points], fill=colour)
        if i is not None:
            self._mark.polygon(list(points), fill=i)

    def ellipse(self, a: Point, b: Point, colour: Colour, i: int | None, *, rim: bool) -> None:
        """Fill the ellipse in the box of two corners; of a ``rim`` the colour only on its edge."""
        (x0, x1), (y0, y1) = sorted((a[0], b[0])), sorted((a[1], b[1]))
        box = [FINE * x0, FINE * y0, FINE * x1, FINE * y1]
        thick = max(1, round(0.13 * (x1 - x0) * FINE / 2))
        self._paint.ellipse(
            box, **({"outline": colour, "width": thick} if rim else {"fill": colour})
        )
        if i is not None:
            self._mark.ellipse([x0, y0, x1, y1], fill=i)

    def wall(self, x: float, z: Point, y: Point, colour: Colour, i: int | None) -> None:
        """A rectangle in the plane x, from z to z and y to y, metres."""
        corners = ((z[0], y[0]), (z[1], y[0]), (z[1], y[1]), (z[0], y[1]))
        points = [self.camera(x, height, depth) for depth, height in corners]
        self.polygon(points, self.air(colour, z[0]), i)

    def ground(self, x: Point, z: Point, colour: Colour, i: int | None) -> None:
        """A rectangle on the ground."""
        corners = ((x[0], z[0]), (x[1], z[0]), (x[1], z[1]), (x[0], z[1]))
        self.polygon([self.camera(a, 0, b) for a, b in corners], self.air(colour, z[0]), i)

    def panel(self, x: Point, y: Point, z: float, colour: Colour, i: int | None) -> None:
        """A rectangle that faces the camera."""
        corners = ((x[0], y[0]), (x[1], y[0]), (x[1], y[1]), (x[0], y[1]))
        self.polygon([self.camera(a, b, z) for a, b in corners], self.air(colour, z), i)

    def figure(self, figure: Figure, x: float, z: float, ids: Sequence[int]) -> None:
        """A figure that stands at (x, z), its shapes with their ids, on its shadow."""
        left, top = self.camera(x - figure.width / 2, figure.height, z)
        right, bottom = self.camera(x + figure.width / 2, 0, z)
        flat = 0.07 * (right - left)
        dark = self.air((30, 30, 33), 1.4 * z)
        self.ellipse(
            (left - flat / 2, bottom - flat / 2),
            (right + flat / 2, bottom + flat),
            dark,
            None,
            rim=False,
        )
        for shape, i in zip(figure.shapes, ids, strict=True):
            for part in shape.parts:
                points = [
                    (left + u * (right - left), bottom + v * (top - bottom)) for u, v in part.points
                ]
                colour = self.air(part.colour, z)
                if part.form == "polygon":
                    self.polygon(points, colour, i)
                else:
                    self.ellipse(points[0], points[1], colour, i, rim=part.form == "ring")


# ---------------------------------------------------------------- what stands still


def street(canvas: Canvas, rng: np.random.Generator) -> None:
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


def houses(canvas: Canvas, rng: np.random.Generator) -> None:
    """Two rows of fronts with windows, and what closes the street."""
    for x in np.arange(-34, 34, 7.5):
        height = rng.uniform(10, 24)
        _front_end(canvas, rng, (x, x + 7.5), height)
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


BRICKS: tuple[Colour, ...] = (
    (176, 160, 136), (150, 104, 82), (196, 186, 166), (134, 126, 118), (170, 134, 96),
    (122, 96, 88), (204, 196, 184),
)  # fmt: skip


def _front(canvas: Canvas, rng: np.random.Generator, x: float, z: Point) -> None:
    paint = shade(
        BRICKS[rng.integers(len(BRICKS))], rng.uniform(0.8, 1.1) * (0.82 if x > 0 else 1.05)
    )
    floors = int(rng.integers(3, 7))
    storey = rng.uniform(3.0, 3.6)
    height = floors * storey + 1
    canvas.wall(x, z, (0, height), paint, BUILDING)
    canvas.wall(x, z, (height - 0.5, height), shade(paint, 0.8), BUILDING)
    canvas.wall(x, z, (0, 0.7), shade(paint, 0.7), BUILDING)
    columns = max(2, round((z[1] - z[0]) / rng.uniform(2.2, 3.2)))
    step = (z[1] - z[0]) / columns
    glass = shade(street_objects.GLASS, rng.uniform(0.9, 1.6))
    for floor in range(floors):
        shop = floor == 0 and rng.random() < 0.7
        low, high = floor * storey + (0.6 if shop else 1.0), floor * storey + storey - 0.7
        for n in range(columns):
            share = 0.42 if shop else 0.27
            middle = z[0] + (n + 0.5) * step
            ends = (middle - share * step, middle + share * step)
            if floor > 0:
                canvas.wall(
                    x,
                    (ends[0] - 0.1, ends[1] + 0.1),
                    (low - 0.12, high + 0.12),
                    shade(paint, 1.2),
                    None,
                )
            canvas.wall(x, ends, (low, high), shade(glass, rng.uniform(0.8, 1.25)), None)


def _front_end(canvas: Canvas, rng: np.random.Generator, x: Point, height: float) -> None:
    paint = BRICKS[rng.integers(len(BRICKS))]
    canvas.panel(x, (0, height), FAR, paint, BUILDING)
    for y in np.arange(2, height - 2, 3.4):
        for a in np.arange(x[0] + 0.8, x[1] - 1.2, 2.1):
            canvas.panel((a, a + 1.1), (y, y + 1.9), FAR, street_objects.GLASS, None)


def tree(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
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
        a, b = canvas.camera(cx - size, cy + size, z), canvas.camera(cx + size, cy - size, z)
        canvas.ellipse(a, b, canvas.air(tone, z), VEGETATION, rim=False)


def pole(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A lamp post, a sign or a traffic light."""
    kind, height = rng.choice(["lamp", "sign", "light"]), 3.2
    iron = (92, 94, 98)
    if kind == "lamp":
        height = 7.5
        canvas.panel(
            (min(x, x - np.sign(x) * 1.6), max(x, x - np.sign(x) * 1.6)), (7.4, 7.5), z, iron, POLE
        )
    canvas.panel((x - 0.07, x + 0.07), (0, height), z, iron, POLE)
    if kind == "sign":
        colour = ((200, 40, 40), (40, 80, 170), (220, 190, 40))[rng.integers(3)]
        a, b = canvas.camera(x - 0.36, 3.2, z), canvas.camera(x + 0.36, 2.5, z)
        canvas.ellipse(a, b, canvas.air(colour, z), SIGN, rim=False)
        a, b = canvas.camera(x - 0.26, 3.1, z), canvas.camera(x + 0.26, 2.6, z)
        canvas.ellipse(a, b, canvas.air((228, 228, 224), z), SIGN, rim=False)
    if kind == "light":
        canvas.panel((x - 0.18, x + 0.18), (2.5, 3.5), z, (30, 32, 34), LIGHT)
        lit = rng.integers(3)
        for n, colour in enumerate(((230, 50, 40), (230, 180, 50), (60, 210, 120))):
            a, b = (
                canvas.camera(x - 0.11, 3.42 - 0.32 * n, z),
                canvas.camera(x + 0.11, 3.2 - 0.32 * n, z),
            )
            canvas.ellipse(
                a, b, canvas.air(shade(colour, 1.0 if n == lit else 0.3), z), LIGHT, rim=False
            )


def litter_bin(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """Street furniture: void to the benchmark."""
    colour = ((70, 84, 70), (96, 88, 70), (70, 74, 96))[rng.integers(3)]
    width, height = rng.uniform(0.3, 0.6), rng.uniform(0.9, 1.5)
    canvas.panel((x - width, x + width), (0, height), z, colour, STATIC)
    canvas.panel((x - width, x + width), (height - 0.15, height), z, shade(colour, 1.3), STATIC)
