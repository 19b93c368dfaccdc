"""Generated pictures with exact truth: fluorescent nuclei, and shaded shapes on uneven grounds.

Both are made alike: outlines are laid down one after the other, each keeping the pixels that are
still free (so it lies under the earlier ones), then the label map is lit, blurred and given noise.
Everything follows from the seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy import ndimage

from spatialembed.console import track
from spatialembed.errors import SpatialEmbedError
from spatialembed.images.write import write_png
from spatialembed.types import Sample, Target

Seed = int | Sequence[int]
Kind = Literal["nuclei", "shapes"]

_ANGLES = np.linspace(-math.pi, math.pi, 181)  # (181,)
_MIN_PIXELS = 24  # less of an object than this in the picture is no fair truth
_MIN_VISIBLE = 0.88  # part of an outline inside the picture that must not be hidden


class _Outline(NamedTuple):
    """A shape around (0, 0) of the unit disc's area, by its radius at each of _ANGLES."""

    radii: np.ndarray  # (181,)
    bite: float  # depth of a round bite out of the right side, 0 none: makes it a crescent

    @classmethod
    def of(cls, radii: np.ndarray, bite: float = 0.0) -> _Outline:
        """Outline of these radii (181,), brought to the area of the unit disc before the bite."""
        return cls(radii / math.sqrt(np.mean(radii**2)), bite)


class _Place(NamedTuple):
    """Where an outline goes."""

    y: float  # px
    x: float  # px
    radius: float  # px
    turn: float  # direction of the bite, radians


class _Layout(NamedTuple):
    """Where the objects lie."""

    labels: np.ndarray  # (H, W) int32, 0 background, 1..K
    level: np.ndarray  # (H, W) float64, 0 in the middle of an object, 1 at its outline and outside
    radius: np.ndarray  # (K,) px


# ---------------------------------------------------------------- outlines


def _ellipse(rng: np.random.Generator, elongation: float) -> np.ndarray:
    """Radii of an ellipse of any direction, up to ``elongation`` times as long as wide."""
    ratio = math.sqrt(rng.uniform(1, elongation))
    angle = _ANGLES - rng.uniform(0, math.pi)
    return 1 / np.hypot(np.cos(angle) / ratio, np.sin(angle) * ratio)


def _nucleus(rng: np.random.Generator) -> _Outline:
    """An ellipse with a few low waves on it."""
    radii = _ellipse(rng, 1.9)
    for wave in (2, 3, 4, 5):
        size = rng.normal(0, 0.09 / wave)
        radii = radii + size * np.cos(wave * _ANGLES + rng.uniform(0, 2 * math.pi))
    return _Outline.of(radii)


def _polygon(rng: np.random.Generator, corners: int, stretch: float) -> np.ndarray:
    """Radii of a regular polygon with rounded corners, any direction, stretched along one axis."""
    angle = _ANGLES + rng.uniform(0, 2 * math.pi)
    y, x = np.sin(angle) / stretch, np.cos(angle) * stretch
    sides = 2 * math.pi / corners * np.arange(corners)
    towards = np.cos(sides)[:, None] * x + np.sin(sides)[:, None] * y  # (corners, 181)
    return 1 / (np.maximum(0, towards) ** 8).sum(0) ** (1 / 8)


def _plain_shape(rng: np.random.Generator) -> _Outline:
    """Disc (half of them), ellipse, rectangle, triangle or crescent."""
    kind = rng.choice(5, p=[0.4, 0.2, 0.15, 0.12, 0.13])
    if kind == 0:
        return _Outline.of(np.ones_like(_ANGLES))
    if kind == 1:
        return _Outline.of(_ellipse(rng, 2.2))
    if kind == 2:
        return _Outline.of(_polygon(rng, 4, math.sqrt(rng.uniform(1, 1.8))))
    if kind == 3:
        return _Outline.of(_polygon(rng, 3, 1.0))
    return _Outline.of(_ellipse(rng, 1.2), bite=rng.uniform(0.5, 0.9))


def _level(outline: _Outline, y: np.ndarray, x: np.ndarray, turn: float) -> np.ndarray:
    """Of positions in radii: 0 in the middle, 1 on the outline, more outside; the shape of y, x."""
    distance, angle = np.hypot(y, x), np.arctan2(y, x)
    level = distance / np.interp(angle, _ANGLES, outline.radii)
    if outline.bite:
        away = np.hypot(y - 1.5 * math.sin(turn), x - 1.5 * math.cos(turn))
        level = np.maximum(level, 1 + (0.5 + outline.bite - away))
    return level


# ---------------------------------------------------------------- placing


def _scatter(
    rng: np.random.Generator,
    shape: tuple[int, int],
    count: int,
    *,
    radius: tuple[float, float],
    touching: float,
    draw: Callable[[np.random.Generator], _Outline],
) -> _Layout:
    """Lay down up to ``count`` outlines, the part ``touching`` of them beside an earlier one."""
    labels, level = np.zeros(shape, np.int32), np.ones(shape)
    centres: list[_Place] = []
    for _ in range(20 * count):
        if len(centres) == count:
            break
        size = math.exp(rng.uniform(math.log(radius[0]), math.log(radius[1])))
        y, x = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        if centres and rng.random() < touching:
            near = centres[rng.integers(len(centres))]
            away, angle = (size + near.radius) * rng.uniform(0.9, 1.05), rng.uniform(0, 2 * math.pi)
            y, x = near.y + away * math.sin(angle), near.x + away * math.cos(angle)
        place = _Place(y, x, size, turn=rng.uniform(0, 2 * math.pi))
        if _lay(labels, level, len(centres) + 1, place, draw(rng)):
            centres.append(place)
    return _Layout(labels, level, np.array([place.radius for place in centres]))


def _lay(labels: np.ndarray, level: np.ndarray, new: int, place: _Place, outline: _Outline) -> bool:
    """Draw one outline as id ``new`` where pixels are free; if too few are, draw nothing: False."""
    reach = 2 * place.radius  # no outline goes farther
    rows = slice(max(0, int(place.y - reach)), max(0, int(place.y + reach) + 1))
    columns = slice(max(0, int(place.x - reach)), max(0, int(place.x + reach) + 1))
    there = labels[rows, columns]  # (h, w)
    if not there.size:
        return False
    y = (np.arange(there.shape[0])[:, None] + rows.start - place.y) / place.radius  # (h, 1)
    x = (np.arange(there.shape[1]) + columns.start - place.x) / place.radius  # (w,)
    its = _level(outline, y, x, place.turn)  # (h, w)
    inside = its <= 1
    free = _largest_part(inside & (there == 0))
    visible = int(free.sum())
    if visible < max(_MIN_PIXELS, _MIN_VISIBLE * inside.sum()):
        return False
    there[free] = new
    level[rows, columns][free] = its[free]
    return True


def _largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask (H, W) bool."""
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    return mask if count < 2 else parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])


# ---------------------------------------------------------------- light


def _cloud(rng: np.random.Generator, shape: tuple[int, int], grain: float) -> np.ndarray:
    """Smooth noise (H, W) of mean 0 and deviation about 1 whose spots are ``grain`` px wide."""
    if grain < 8:
        noise = ndimage.gaussian_filter(rng.standard_normal(shape), grain / 2)
        return noise / max(float(noise.std()), 1e-6)
    coarse = rng.standard_normal([math.ceil(side / grain) + 3 for side in shape])
    noise = ndimage.zoom(coarse, grain, order=3)[: shape[0], : shape[1]]
    return noise * 1.5  # interpolation takes a third of the deviation


def _slope(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """A plane (H, W), 0 in the middle, that rises by 1 across the picture in a random direction."""
    y, x = np.mgrid[-0.5 : 0.5 : shape[0] * 1j, -0.5 : 0.5 : shape[1] * 1j]
    angle = rng.uniform(0, 2 * math.pi)
    return math.sin(angle) * y + math.cos(angle) * x


def _per_object(layout: _Layout, values: np.ndarray, outside: float = 0.0) -> np.ndarray:
    """Map (H, W) that has values[k - 1] on object k."""
    return np.concatenate(([outside], values))[layout.labels]


def _sample(image: np.ndarray, layout: _Layout, name: str) -> Sample:
    """Picture (H, W) in [0, 1], rounded and clipped to uint8, with its truth."""
    truth = Target(
        torch.from_numpy(layout.labels),
        torch.zeros(len(layout.radius), dtype=torch.int64),
        torch.zeros(layout.labels.shape, dtype=torch.bool),
    )
    return Sample((np.clip(image, 0, 1) * 255).round().astype(np.uint8), truth, name)


# ---------------------------------------------------------------- the two kinds


def nuclei_field(height: int, width: int, *, seed: Seed, count: int | None = None) -> Sample:
    """A fluorescence field of nuclei, many touching: image (height, width) uint8 and its truth.

    One magnification, exposure and stain a field, drawn from the seed. count is an upper bound,
    since crowded fields have no room for more; None draws one.
    """
    rng = np.random.default_rng(seed)
    shape = (height, width)
    radius = math.exp(rng.uniform(math.log(6), math.log(20)))
    if count is None:
        count = max(1, round(rng.uniform(0.12, 0.4) * height * width / (math.pi * radius**2)))
    sizes, touching = (0.8 * radius, 1.3 * radius), rng.uniform(0.2, 0.7)
    layout = _scatter(rng, shape, count, radius=sizes, touching=touching, draw=_nucleus)
    light = _nuclear_light(rng, layout, radius)
    return _sample(_through_microscope(rng, light, radius), layout, "nuclei")


def _nuclear_light(rng: np.random.Generator, layout: _Layout, radius: float) -> np.ndarray:
    """What the stain gives off, (H, W), about 1 on a nucleus: brightness, chromatin, nucleoli."""
    shape, count = layout.labels.shape, len(layout.radius)
    brightness = np.exp(rng.normal(0, rng.uniform(0.1, 0.4), count))
    chromatin = 1 + rng.uniform(0.05, 0.2) * _cloud(rng, shape, max(1.5, radius / 4))
    spots = np.maximum(0, _cloud(rng, shape, max(2.0, radius / 2.5)) - 1.2)
    chromatin += rng.choice([-0.25, 0.4]) * spots
    dome = 1 - rng.uniform(0.15, 0.5) * layout.level**3
    return _per_object(layout, brightness) * dome * np.maximum(chromatin, 0.2)


def _through_microscope(rng: np.random.Generator, light: np.ndarray, radius: float) -> np.ndarray:
    """Lens, background, uneven lamp, photons and camera: (H, W), mostly in [0, 1]."""
    shape = (light.shape[0], light.shape[1])
    focus = ndimage.gaussian_filter(light, rng.uniform(0.6, 1.1))
    haze = ndimage.gaussian_filter(light, 1.5 * radius) * rng.uniform(0.03, 0.15)
    level = rng.uniform(0.02, 0.12)
    ground = level * (1 + 0.5 * _slope(rng, shape) + 0.15 * _cloud(rng, shape, 60))
    y, x = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    lamp = 1 - rng.uniform(0, 0.2) * (y**2 + x**2)
    photons = rng.uniform(150, 1500)
    seen = rng.poisson(np.maximum(0, (focus + haze + ground) * lamp) * photons) / photons
    seen = seen + rng.normal(0, rng.uniform(0.003, 0.012), shape)
    return seen * rng.uniform(0.3, 0.75)


def shapes_scene(height: int, width: int, *, seed: Seed, count: int | None = None) -> Sample:
    """Plain shapes, many touching, as a grey photograph: image (height, width) uint8 and its truth.

    Discs, ellipses, rectangles, triangles and crescents. They stand out from a
    light or dark, uneven, grainy ground by brightness, relief, rim and shadow, in a measure drawn
    for each scene. count is an upper bound as in ``nuclei_field``.
    """
    rng = np.random.default_rng(seed)
    shape = (height, width)
    radius = math.exp(rng.uniform(math.log(9), math.log(24)))
    if count is None:
        count = max(1, round(rng.uniform(0.2, 0.5) * height * width / (math.pi * radius**2)))
    sizes, touching = (0.7 * radius, 1.4 * radius), rng.uniform(0.2, 0.8)
    layout = _scatter(rng, shape, count, radius=sizes, touching=touching, draw=_plain_shape)
    image = _reflected(rng, layout, radius) * _lit(rng, layout, radius)
    image = ndimage.gaussian_filter(image, rng.uniform(0.3, 0.9))
    return _sample(image + rng.normal(0, rng.uniform(0.005, 0.04), shape), layout, "shapes")


def _reflected(rng: np.random.Generator, layout: _Layout, radius: float) -> np.ndarray:
    """Light sent back, (H, W), about 0 to 1: uneven ground, objects all lighter or all darker."""
    shape, count = layout.labels.shape, len(layout.radius)
    contrast, spread = rng.uniform(0.15, 0.5), rng.uniform(0.01, 0.08)
    bright = rng.random() < 0.65
    ground = rng.uniform(0.1, 0.45) if bright else rng.uniform(0.5, 0.85)
    body = ground + (contrast if bright else -contrast) + rng.normal(0, spread, count)
    floor = ground * (
        1
        + rng.uniform(0, 0.35) * _slope(rng, shape)
        + rng.uniform(0, 0.12) * _cloud(rng, shape, 3 * radius)
        + rng.uniform(0, 0.08) * _cloud(rng, shape, rng.uniform(1, 4))
    )
    stains = 1 + rng.uniform(0, 0.15) * _cloud(rng, shape, 0.5 * radius)
    objects = _per_object(layout, np.clip(body, 0.06, 0.95)) * stains
    return np.where(layout.labels > 0, objects, floor)


def _lit(rng: np.random.Generator, layout: _Layout, radius: float) -> np.ndarray:
    """Light that arrives, (H, W) about 1: a lamp to one side, relief and rims, cast shadows."""
    shape, inside = layout.labels.shape, layout.labels > 0
    grain = radius * math.exp(rng.uniform(math.log(0.12), math.log(0.5)))
    texture = _cloud(rng, shape, grain) + 0.5 * _cloud(rng, shape, max(1.0, grain / 3))
    height = (1 - layout.level ** rng.uniform(4, 10)) * rng.uniform(0.2, 1.0)
    height += inside * texture * rng.uniform(0, 0.12) * math.sqrt(grain)
    down, right = (
        ndimage.correlate1d(height, [-0.5, 0, 0.5], axis, mode="nearest") for axis in (0, 1)
    )
    angle = rng.uniform(0, 2 * math.pi)
    relief = 1 + 1.2 * (math.sin(angle) * down + math.cos(angle) * right)
    fall = [-round(0.15 * radius * math.sin(angle)), -round(0.15 * radius * math.cos(angle))]
    shadow = ndimage.shift(ndimage.gaussian_filter(inside.astype(float), 2), fall, order=0)
    light = np.where(inside, np.clip(relief, 0.4, 1.7), 1 - rng.uniform(0, 0.6) * shadow)
    return light * (1 + rng.uniform(0, 0.7) * _slope(rng, shape))


# ---------------------------------------------------------------- as a data set


class SyntheticDataset:
    """Generated pictures as a data set: image ``i`` follows from (seed, i) alone.

    kind: "nuclei" or "shapes". size: side of square pictures or (height, width), px.
    """

    class_names: tuple[str, ...] = ("object",)

    def __init__(self, kind: Kind, size: int | tuple[int, int], length: int, seed: int = 0) -> None:
        self.kind = kind
        self.size = (size, size) if isinstance(size, int) else size
        self.seed = seed
        self.names = [f"{kind}_{i:05d}" for i in range(length)]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Sample:
        name = self.names[i]  # IndexError ends a loop over the data set
        draw = {"nuclei": nuclei_field, "shapes": shapes_scene}[self.kind]
        return replace(draw(*self.size, seed=(self.seed, i % len(self))), name=name)


def write_folder(
    dataset: SyntheticDataset | Sequence[Sample], out: str | Path, *, progress: bool = True
) -> None:
    """Write images as a data set: ``out``/images/NAME.png and masks/NAME.png (16-bit ids).

    Args:
        dataset: Images with truth.
        out: Folder to write, as ``open_folder`` reads it.
        progress: Whether to draw a bar on stderr.

    Raises:
        SpatialEmbedError: ``too_many_objects`` where ids would wrap; ``disk_full`` (exit 5).
    """
    out = Path(out)
    for i in track(range(len(dataset)), "generating", shown=progress):
        sample = dataset[i]
        objects = len(sample.target.classes)
        if objects > np.iinfo(np.uint16).max:
            raise SpatialEmbedError(
                "too_many_objects",
                f"{sample.name}: {objects} objects, 16-bit ids end at 65535",
                "make smaller pictures",
            )
        write_png(out / "images" / f"{sample.name}.png", sample.image)
        masks = sample.target.labels.numpy().astype(np.uint16)
        write_png(out / "masks" / f"{sample.name}.png", masks)
