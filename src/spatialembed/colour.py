"""Numbers as colours: maps by a scale, instances so that neighbours differ.

    instances  neighbours get colours far apart (greedy graph colouring)
    offset     hue = direction, depth = length
    bandwidth  margin in px, log scale, dark = small
    seed       0 black, 1 bright

Colours are made in OKLab (B. Ottosson, 2020), where equal steps look equal. Arrays in; CPU tensors
are taken as well. Every picture is (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from spatialembed.types import UNIT

VIRIDIS = (
    "440154 481a6c 472f7d 414487 39568c 31688e 2a788e 23888e "
    "1f988b 22a884 35b779 54c568 7ad151 a5db36 d2e21b fde725"
)
MAGMA = (
    "000004 0b0924 20114b 3b0f70 57157e 721f81 8c2981 a8327d "
    "c43c75 de4968 f1605d fa7f5e fe9f6d febf84 fddea0 fcfdbf"
)
"""Control points, evenly spaced from 0 to 1 (CC0, Stefan van der Walt and Nathaniel Smith)."""


def _oklab(lightness: Any, a: Any, b: Any) -> np.ndarray:
    """sRGB (..., 3) uint8 of OKLab coordinates; out of gamut is cut."""
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = np.stack(
        (
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        ),
        axis=-1,
    ).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (encoded * 255 + 0.5).astype(np.uint8)


def _palette() -> tuple[np.ndarray, np.ndarray]:
    """Ten instance colours (K, 3) uint8 and their OKLab positions; each hue where it is vivid."""
    hue = np.deg2rad(28 + 36 * np.arange(10))
    lightness = np.array([0.65, 0.75, 0.87, 0.80, 0.68, 0.84, 0.64, 0.60, 0.68, 0.78])
    lab = np.stack((lightness, 0.17 * np.cos(hue), 0.17 * np.sin(hue)), axis=-1)
    return _oklab(*lab.T), lab


def colour_map(values: np.ndarray, control_points: str = VIRIDIS) -> np.ndarray:
    """Values (H, W) in [0, 1] as colours (H, W, 3) uint8; outside values are cut, NaN is 0."""
    points = np.array([list(bytes.fromhex(point)) for point in control_points.split()], float)
    positions = np.linspace(0, 1, len(points))
    table = np.stack([np.interp(np.linspace(0, 1, 256), positions, c) for c in points.T], axis=-1)
    index = (np.nan_to_num(np.asarray(values, np.float32)).clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return (table + 0.5).astype(np.uint8)[index]


# --- instances ------------------------------------------------------------------------------


def _neighbours(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (P, 2) of labels that touch or lie near each other, sorted, and their distance (P,).

    Looked for at distances 1, 2, 4, ... px; coarser samples serve the longer ones, so that the
    work stays in proportion to the pixels. Each pair stands there both ways round.
    """
    codes, distances = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for distance in (2**i for i in range(max(1, (max(labels.shape) // 12).bit_length()))):
        step = max(1, distance // 2)
        coarse = labels[::step, ::step]
        hop = distance // step
        for a, b in (
            (coarse[:, hop:], coarse[:, :-hop]),
            (coarse[hop:], coarse[:-hop]),
            (coarse[hop:, hop:], coarse[:-hop, :-hop]),
            (coarse[hop:, :-hop], coarse[:-hop, hop:]),
        ):
            apart = (a != b) & (a > 0) & (b > 0)
            one, other = a[apart].astype(np.int64), b[apart].astype(np.int64)
            met = np.unique(one << 32 | other)
            codes += [met, (met & 0xFFFFFFFF) << 32 | met >> 32]
            distances += [np.full(len(met), distance)] * 2
    pairs, first = np.unique(np.concatenate(codes), return_index=True)
    return np.stack((pairs >> 32, pairs & 0xFFFFFFFF), axis=1), np.concatenate(distances)[first]


def _colour_indices(labels: np.ndarray, count: int) -> np.ndarray:
    """Palette index (count + 1,) of each label: the colour least like those of its neighbours."""
    position = _palette()[1]
    distance = np.linalg.norm(position[:, None] - position, axis=-1)
    likeness = np.exp(-((distance / 0.12) ** 2)) + 20 * np.eye(len(position))
    likeness = np.concatenate((likeness, np.zeros((1, len(position)))))  # last row: no colour yet
    pairs, distances = _neighbours(labels)
    weights = 1 / distances**2
    ends = np.searchsorted(pairs[:, 0], np.arange(count + 2))
    colours = np.full(count + 1, len(position))
    for label in range(1, count + 1):
        mine = slice(ends[label], ends[label + 1])
        cost = weights[mine] @ likeness[colours[pairs[mine, 1]]]
        cost[label * 7 % len(position)] -= 1e-3  # ties: walk through the palette
        colours[label] = cost.argmin()
    return colours


def instance_colours(labels: np.ndarray, count: int) -> np.ndarray:
    """The colour (count + 1, 3) uint8 of each label, background black, neighbours far apart.

    labels: (H, W) integer, 0 background, 1..count. The same labels give the same colours.
    """
    colours = np.concatenate((_palette()[0], np.zeros((1, 3), np.uint8)))
    return colours[_colour_indices(labels, count)]


# --- maps -----------------------------------------------------------------------------------


def offset_colours(offset: Any, longest: float | None = None) -> np.ndarray:
    """Offsets as colours (H, W, 3) uint8: hue = direction, depth = square root of the length.

    offset: (2, H, W) (x, y), y down, any unit. longest: length of the deepest colour, in the same
    unit; None takes the 99th percentile of the lengths.
    """
    x, y = np.nan_to_num(np.asarray(offset, np.float32))
    length = np.hypot(x, y)
    if longest is None:
        longest = float(np.percentile(length, 99)) if length.size else 0.0
    strength = np.sqrt((length / max(longest, 1e-12)).clip(0, 1))
    scale = 0.19 * strength / np.maximum(length, 1e-12)  # of (x, y) to OKLab's (a, b)
    return _oklab(0.97 - 0.30 * strength, scale * x, scale * y)


def margin_px(log_precision: Any) -> np.ndarray:
    """Margin (H, W) in px, geometric mean over the axes, of the raw bandwidth output (S, H, W).

    1024 sqrt(ln 2 / p), p = exp(clamp(10 r, -40, 40)): ``geometry.margin_px`` without torch.
    """
    exponent = (10 * np.asarray(log_precision, np.float32)).clip(-40, 40).mean(axis=0)
    return UNIT * math.sqrt(math.log(2)) * np.exp(-exponent / 2)


def margin_colours(margin: np.ndarray, low: float, high: float) -> np.ndarray:
    """Margins (H, W) in px as colours (H, W, 3) uint8, ``low`` dark, ``high`` bright, log scale."""
    position = np.log(np.maximum(margin, 1e-6) / low) / math.log(max(high / low, 1.001))
    return colour_map(position, VIRIDIS)
