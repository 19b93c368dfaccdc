"""Things of the street as flat articulated shapes, for generated scenes.

A shape is a list of parts in painter's order, in its own frame: u from 0 left to 1 right, v from 0
at the ground to 1 at the top. Sizes are in metres. Shapes of two instances, as a rider on a
bicycle, are two shapes in one frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

Point = tuple[float, float]
Colour = tuple[int, int, int]

GLASS, TYRE, RIM = (52, 66, 80), (24, 24, 26), (150, 152, 156)
LAMP, TAIL = (244, 236, 205), (176, 26, 22)
PAINTS: tuple[Colour, ...] = (
    (34, 36, 40), (120, 124, 128), (186, 188, 190), (226, 226, 222), (34, 52, 92), (122, 22, 24),
    (70, 78, 70), (150, 130, 96), (24, 74, 70), (60, 62, 74),
)  # fmt: skip
CLOTHS: tuple[Colour, ...] = (
    (30, 32, 42), (48, 60, 90), (98, 38, 40), (66, 74, 60), (150, 140, 124), (196, 190, 180),
    (36, 82, 104), (120, 84, 50), (200, 150, 40), (86, 52, 92),
)  # fmt: skip
SKINS: tuple[Colour, ...] = ((224, 186, 160), (196, 150, 120), (142, 98, 72), (92, 62, 46))


class Part(NamedTuple):
    """One patch of colour."""

    form: Literal["polygon", "ellipse", "ring"]
    points: tuple[Point, ...]  # of a polygon; of an ellipse or ring two corners of its box
    colour: Colour


class Shape(NamedTuple):
    """One instance."""

    name: str  # class of Cityscapes
    parts: Sequence[Part]


class Figure(NamedTuple):
    """Shapes that share a frame, and its size in metres."""

    shapes: tuple[Shape, ...]
    width: float
    height: float

    @classmethod
    def of(cls, name: str, parts: Sequence[Part], width: float, height: float) -> Figure:
        """A single shape."""
        return cls((Shape(name, parts),), width, height)


def polygon(colour: Colour, *points: Point) -> Part:
    """A filled polygon."""
    return Part("polygon", points, colour)


def box(colour: Colour, u0: float, v0: float, u1: float, v1: float) -> Part:
    """A filled rectangle."""
    return polygon(colour, (u0, v0), (u0, v1), (u1, v1), (u1, v0))


def ellipse(colour: Colour, u: float, v: float, ru: float, rv: float) -> Part:
    """A filled ellipse about (u, v)."""
    return Part("ellipse", ((u - ru, v - rv), (u + ru, v + rv)), colour)


def wheels(where: Sequence[float], v: float, tyre: Point, rim: Point) -> list[Part]:
    """Wheels about (u, v) of each u, with their radii along u and v."""
    return [part for u in where for part in (ellipse(TYRE, u, v, *tyre), ellipse(RIM, u, v, *rim))]


def bar(colour: Colour, a: Point, b: Point, thick_u: float, thick_v: float) -> Part:
    """A straight limb or tube from a to b."""
    du, dv = b[0] - a[0], b[1] - a[1]
    length = max(float(np.hypot(du, dv)), 1e-6)
    nu, nv = -dv / length * thick_u / 2, du / length * thick_v / 2
    return polygon(
        colour, (a[0] + nu, a[1] + nv), (b[0] + nu, b[1] + nv), (b[0] - nu, b[1] - nv),
        (a[0] - nu, a[1] - nv),
    )  # fmt: skip


def shade(colour: Colour, factor: float) -> Colour:
    """A colour made darker (below 1) or lighter."""
    r, g, b = (min(255, max(0, round(c * factor))) for c in colour)
    return r, g, b


def mirrored(figure: Figure) -> Figure:
    """The figure facing the other way."""
    shapes = (Shape(name, _moved(parts, -1, 1, 1)) for name, parts in figure.shapes)
    return figure._replace(shapes=tuple(shapes))


def _moved(parts: Sequence[Part], u_by: float, u_from: float, v_by: float) -> list[Part]:
    return [
        p._replace(points=tuple((u_from + u_by * u, v_by * v) for u, v in p.points)) for p in parts
    ]


def _pick(rng: np.random.Generator, colours: Sequence[Colour]) -> Colour:
    return colours[int(rng.integers(len(colours)))]


# ---------------------------------------------------------------- people


def person(rng: np.random.Generator) -> Figure:
    """Somebody who stands or walks, from the side or the front."""
    top, trousers, skin = _pick(rng, CLOTHS), _pick(rng, CLOTHS), _pick(rng, SKINS)
    hair = _pick(rng, ((40, 30, 24), (84, 62, 40), (20, 20, 22), (150, 144, 138)))
    stride = rng.uniform(0.03, 0.26)
    swing = rng.uniform(0.0, 0.2)
    wide = rng.uniform(0.26, 0.34)
    parts = [
        bar(shade(trousers, 0.8), (0.5, 0.5), (0.5 - stride, 0.03), 0.17, 0.1),
        ellipse(TYRE, 0.5 - stride + 0.03, 0.025, 0.1, 0.025),
        bar(trousers, (0.5, 0.5), (0.5 + stride, 0.03), 0.17, 0.1),
        ellipse(TYRE, 0.5 + stride + 0.03, 0.025, 0.1, 0.025),
        bar(shade(top, 0.75), (0.5 - wide / 2, 0.78), (0.5 - wide / 2 - swing, 0.46), 0.11, 0.07),
        polygon(
            top, (0.5 - wide / 2, 0.46), (0.5 - wide / 1.7, 0.8), (0.42, 0.85), (0.58, 0.85),
            (0.5 + wide / 1.7, 0.8), (0.5 + wide / 2, 0.46),
        ),
        bar(shade(top, 0.9), (0.5 + wide / 2, 0.78), (0.5 + wide / 2 + swing, 0.47), 0.11, 0.07),
        ellipse(skin, 0.5 + wide / 2 + swing, 0.45, 0.045, 0.02),
        bar(skin, (0.5, 0.84), (0.5, 0.89), 0.12, 0.1),
        ellipse(hair, 0.49, 0.935, 0.125, 0.065),
        ellipse(skin, 0.53, 0.925, 0.09, 0.055),
    ]  # fmt: skip
    if rng.random() < 0.25:  # a bag
        parts.append(ellipse(_pick(rng, CLOTHS), 0.5 - wide / 1.6, 0.6, 0.11, 0.09))
    if rng.random() < 0.25:  # a skirt or coat
        skirt = polygon(shade(top, 0.9), (0.34, 0.3), (0.4, 0.55), (0.6, 0.55), (0.68, 0.3))
        parts.insert(5, skirt)
    return Figure.of("person", parts, 0.7, rng.uniform(1.45, 1.95))


# ---------------------------------------------------------------- two wheels


def bicycle(rng: np.random.Generator, *, ridden: bool = False) -> Figure:
    """A bicycle from the side, alone or with its rider."""
    paint = _pick(rng, (*PAINTS, (190, 60, 30), (40, 120, 170)))
    top = 0.62 if ridden else 1.0  # of the handlebars in the frame
    hub = 0.31 * top
    saddle, bars = (0.36, 0.9 * top), (0.76, 0.97 * top)
    machine = [
        *(ellipse(TYRE, u, hub, 0.2, hub)._replace(form="ring") for u in (0.21, 0.79)),
        bar(paint, (0.21, hub), saddle, 0.025, 0.03),
        bar(paint, (0.21, hub), (0.47, 0.28 * top), 0.025, 0.03),
        bar(paint, (0.47, 0.28 * top), (0.38, 0.8 * top), 0.03, 0.03),
        bar(paint, (0.4, 0.75 * top), (0.71, 0.78 * top), 0.03, 0.035),
        bar(paint, (0.47, 0.28 * top), (0.71, 0.76 * top), 0.03, 0.035),
        bar(shade(paint, 0.7), (0.79, hub), (0.7, 0.88 * top), 0.028, 0.03),
        bar(TYRE, (0.69, 0.9 * top), bars, 0.03, 0.035),
        ellipse(TYRE, saddle[0], saddle[1] + 0.03 * top, 0.07, 0.03 * top),
        ellipse(RIM, 0.47, 0.28 * top, 0.035, 0.045 * top),
    ]
    alone = Figure.of("bicycle", machine, 1.75, 1.05)
    return _with_rider(rng, alone, saddle, (0.5, 0.1), bars) if ridden else alone


def motorcycle(rng: np.random.Generator, *, ridden: bool = False) -> Figure:
    """A motorcycle or scooter from the side, alone or with its rider."""
    paint = _pick(rng, PAINTS)
    top = 0.66 if ridden else 1.0
    machine = [
        *(ellipse(TYRE, u, 0.25 * top, 0.155, 0.25 * top) for u in (0.17, 0.83)),
        *(ellipse(RIM, u, 0.25 * top, 0.08, 0.13 * top) for u in (0.17, 0.83)),
        bar(RIM, (0.83, 0.25 * top), (0.7, 0.85 * top), 0.03, 0.04),
        polygon(
            shade(paint, 0.6), (0.26, 0.2 * top), (0.3, 0.5 * top), (0.66, 0.5 * top),
            (0.62, 0.18 * top),
        ),
        polygon(
            paint, (0.1, 0.6 * top), (0.14, 0.68 * top), (0.44, 0.64 * top), (0.52, 0.78 * top),
            (0.68, 0.76 * top), (0.74, 0.56 * top), (0.6, 0.44 * top), (0.3, 0.46 * top),
        ),
        polygon(
            TYRE, (0.12, 0.68 * top), (0.16, 0.74 * top), (0.44, 0.7 * top), (0.46, 0.63 * top),
        ),
        bar(RIM, (0.1, 0.2 * top), (0.5, 0.24 * top), 0.03, 0.06),
        polygon(
            shade(paint, 1.2), (0.68, 0.66 * top), (0.7, 0.9 * top), (0.76, 0.98 * top),
            (0.8, 0.62 * top),
        ),
        ellipse(LAMP, 0.79, 0.7 * top, 0.03, 0.05 * top),
        bar(TYRE, (0.62, 0.88 * top), (0.74, 0.9 * top), 0.03, 0.04),
    ]  # fmt: skip
    alone, bars = Figure.of("motorcycle", machine, 2.05, 1.15), (0.64, 0.9 * top)
    return _with_rider(rng, alone, (0.36, 0.74 * top), (0.5, 0.14), bars) if ridden else alone


def _with_rider(
    rng: np.random.Generator, machine: Figure, saddle: Point, pedal: Point, bars: Point
) -> Figure:
    """A rider, an instance of his own, between three points of the machine."""
    top, trousers, skin = _pick(rng, CLOTHS), _pick(rng, CLOTHS), _pick(rng, SKINS)
    helmet = _pick(rng, (*PAINTS, (40, 30, 24)))
    shoulder = (saddle[0] + 0.16, 0.83)
    knee = ((saddle[0] + bars[0]) / 2 + 0.06, saddle[1] - 0.04)
    rider = [
        bar(trousers, saddle, knee, 0.1, 0.085),
        bar(shade(trousers, 0.85), knee, pedal, 0.075, 0.07),
        ellipse(TYRE, pedal[0] + 0.03, pedal[1], 0.05, 0.02),
        bar(top, saddle, shoulder, 0.17, 0.14),
        bar(shade(top, 0.85), (shoulder[0], shoulder[1] - 0.03), bars, 0.06, 0.055),
        ellipse(skin, bars[0], bars[1], 0.025, 0.02),
        ellipse(skin, shoulder[0] + 0.05, 0.915, 0.055, 0.05),
        ellipse(helmet, shoulder[0] + 0.035, 0.945, 0.07, 0.05),
    ]
    return Figure((*machine.shapes, Shape("rider", rider)), machine.width, rng.uniform(1.6, 1.85))


# ---------------------------------------------------------------- four wheels and more


def car(rng: np.random.Generator, *, side: bool) -> Figure:
    """A car from the side, or from behind or in front."""
    paint = _pick(rng, PAINTS)
    if not side:
        return Figure.of("car", _car_end(rng, paint), 1.8, rng.uniform(1.4, 1.75))
    tail = rng.uniform(0.02, 0.16)  # a hatchback ends high, a saloon low
    roof = rng.uniform(0.6, 0.72)
    dark = shade(paint, 0.72)
    parts = [
        polygon(
            paint, (0.01, 0.2), (0.0, 0.52), (0.03, 0.62), (tail + 0.02, 0.68), (tail + 0.12, 0.96),
            (tail + 0.2, 1.0), (roof - 0.06, 1.0), (roof, 0.97), (0.8, 0.66), (0.96, 0.56),
            (1.0, 0.44), (0.99, 0.2),
        ),
        box(dark, 0.01, 0.2, 0.99, 0.34),
        polygon(
            GLASS, (tail + 0.08, 0.67), (tail + 0.15, 0.91), (0.41, 0.94), (0.41, 0.67),
        ),
        polygon(GLASS, (0.44, 0.67), (0.44, 0.94), (roof - 0.03, 0.93), (0.745, 0.67)),
        polygon(shade(GLASS, 1.7), (0.47, 0.8), (0.52, 0.93), (0.55, 0.93), (0.5, 0.8)),
        bar(dark, (0.425, 0.25), (0.425, 0.66), 0.008, 0.01),
        polygon(TAIL, (0.0, 0.5), (0.01, 0.6), (0.05, 0.6), (0.05, 0.5)),
        polygon(LAMP, (0.94, 0.46), (0.93, 0.54), (0.98, 0.52), (0.99, 0.45)),
    ]  # fmt: skip
    for u in (0.2, 0.8):
        parts += wheels((u,), 0.2, (0.082, 0.205), (0.05, 0.125))
        parts.append(ellipse(shade(RIM, 0.6), u, 0.2, 0.018, 0.045))
    return Figure.of("car", parts, rng.uniform(3.9, 4.8), rng.uniform(1.4, 1.7))


def _car_end(rng: np.random.Generator, paint: Colour) -> list[Part]:
    behind = rng.random() < 0.6
    lamp = TAIL if behind else LAMP
    return [
        *(box(TYRE, u, 0.0, u + 0.13, 0.25) for u in (0.06, 0.81)),
        polygon(
            paint, (0.03, 0.14), (0.0, 0.34), (0.03, 0.56), (0.1, 0.66), (0.2, 0.96), (0.3, 1.0),
            (0.7, 1.0), (0.8, 0.96), (0.9, 0.66), (0.97, 0.56), (1.0, 0.34), (0.97, 0.14),
        ),
        polygon(GLASS, (0.17, 0.66), (0.25, 0.92), (0.75, 0.92), (0.83, 0.66)),
        polygon(shade(GLASS, 1.6), (0.3, 0.7), (0.42, 0.9), (0.48, 0.9), (0.36, 0.7)),
        polygon(shade(paint, 0.7), (0.03, 0.14), (0.02, 0.3), (0.98, 0.3), (0.97, 0.14)),
        polygon(lamp, (0.03, 0.44), (0.04, 0.56), (0.22, 0.54), (0.2, 0.45)),
        polygon(lamp, (0.97, 0.44), (0.96, 0.56), (0.78, 0.54), (0.8, 0.45)),
        box((218, 218, 208), 0.38, 0.33, 0.62, 0.42),
        *(ellipse(shade(paint, 0.8), u, 0.68, 0.045, 0.05) for u in (0.03, 0.97)),
    ]  # fmt: skip


def truck(rng: np.random.Generator, *, side: bool) -> Figure:
    """A lorry with a box."""
    paint = _pick(rng, PAINTS)
    load = _pick(rng, ((206, 206, 200), (60, 80, 120), (160, 60, 40), (96, 110, 92)))
    if not side:
        parts = [
            *(box(TYRE, u, 0.0, u + 0.16, 0.16) for u in (0.08, 0.76)),
            box(shade(load, 0.5), 0.04, 0.1, 0.96, 0.22),
            box(load, 0.0, 0.2, 1.0, 1.0),
            box(shade(load, 0.86), 0.05, 0.25, 0.49, 0.95),
            box(shade(load, 0.9), 0.51, 0.25, 0.95, 0.95),
            *(box(TAIL, u, 0.12, u + 0.12, 0.19) for u in (0.05, 0.83)),
        ]  # fmt: skip
        return Figure.of("truck", parts, 2.5, rng.uniform(2.9, 3.6))
    parts = [
        box(TYRE, 0.03, 0.1, 0.97, 0.22),
        box(load, 0.0, 0.2, 0.72, 1.0),
        *(box(shade(load, 0.93), u, 0.22, u + 0.04, 0.98) for u in (0.1, 0.3, 0.5)),
        polygon(
            paint, (0.74, 0.14), (0.74, 0.78), (0.8, 0.84), (0.93, 0.84), (0.99, 0.5), (1.0, 0.14),
        ),
        polygon(GLASS, (0.83, 0.5), (0.83, 0.77), (0.92, 0.77), (0.965, 0.5)),
        box(LAMP, 0.97, 0.2, 1.0, 0.27),
        *wheels((0.12, 0.24, 0.86), 0.13, (0.055, 0.13), (0.026, 0.065)),
    ]  # fmt: skip
    return Figure.of("truck", parts, rng.uniform(7, 10), rng.uniform(3.0, 3.7))


def bus(rng: np.random.Generator, *, side: bool) -> Figure:
    """A city bus."""
    paints = ((206, 178, 40), (190, 40, 36), (220, 220, 216), (40, 96, 150), (60, 130, 80))
    paint = _pick(rng, paints)
    if not side:
        return Figure.of("bus", _coach_end(paint, 0.34), 2.5, rng.uniform(2.9, 3.3))
    return Figure.of("bus", _coach_side(paint, 9, (0.17, 0.8)), 12, 3.1)


def train(rng: np.random.Generator, *, side: bool) -> Figure:
    """A tram."""
    paint = _pick(rng, ((206, 178, 40), (190, 40, 36), (210, 212, 214), (40, 110, 80)))
    rod = [
        bar(TYRE, (0.5, 0.9), (0.44, 0.99), 0.01, 0.02),
        bar(TYRE, (0.44, 0.99), (0.56, 0.99), 0.01, 0.02),
    ]
    if not side:
        return Figure.of("train", [*rod, *_moved(_coach_end(paint, 0.4), 1, 0, 0.92)], 2.6, 3.9)
    coach = _moved(_coach_side(paint, 16, ()), 1, 0, 0.92)
    joints = [box(shade(paint, 0.35), u, 0.06, u + 0.012, 0.9) for u in (0.33, 0.66)]
    return Figure.of("train", [*rod, *coach, *joints], rng.uniform(22, 30), 3.9)


def _coach_end(paint: Colour, sill: float) -> list[Part]:
    return [
        *(box(TYRE, u, 0.0, u + 0.14, 0.14) for u in (0.08, 0.78)),
        polygon(
            paint, (0.0, 0.08), (0.0, 0.92), (0.06, 1.0), (0.94, 1.0), (1.0, 0.92), (1.0, 0.08),
        ),
        polygon(GLASS, (0.07, sill), (0.09, 0.8), (0.91, 0.8), (0.93, sill)),
        polygon(shade(GLASS, 1.5), (0.2, sill), (0.34, 0.8), (0.44, 0.8), (0.3, sill)),
        box((236, 170, 40), 0.25, 0.85, 0.75, 0.93),
        *(box(LAMP, u, 0.14, u + 0.16, 0.21) for u in (0.06, 0.78)),
        box(shade(paint, 0.6), 0.0, 0.08, 1.0, 0.12),
    ]  # fmt: skip


def _coach_side(paint: Colour, windows: int, axles: Sequence[float]) -> list[Part]:
    pane = 0.94 / windows
    parts = [
        box(TYRE, 0.02, 0.02, 0.98, 0.12),
        polygon(
            paint, (0.0, 0.09), (0.0, 0.95), (0.01, 1.0), (0.985, 1.0), (1.0, 0.9), (1.0, 0.09),
        ),
        box(shade(paint, 0.75), 0.0, 0.09, 1.0, 0.28),
    ]  # fmt: skip
    for n in range(windows):
        u = 0.03 + n * pane
        low = 0.14 if n % 4 == 2 else 0.46  # every fourth is a door
        parts.append(box(GLASS, u, low, u + 0.86 * pane, 0.86))
    return [*parts, *wheels(axles, 0.14, (0.042, 0.145), (0.022, 0.075))]
