"""Numbers as colours: maps by a scale, instances so that neighbours differ.

    instances  neighbours get colours far apart (greedy graph colouring), also to colour-blind eyes
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


def colour_map(values: np.ndarray, control_points: str = VIRIDIS) -> np.ndarray:
    """Values (H, W) in [0, 1] as colours (H, W, 3) uint8; outside values are cut, NaN is 0."""
    points = np.array([list(bytes.fromhex(point)) for point in control_points.split()], float)
    positions = np.linspace(0, 1, len(points))
    table = np.stack([np.interp(np.linspace(0, 1, 256), positions, c) for c in points.T], axis=-1)
    index = (np.nan_to_num(np.asarray(values, np.float32)).clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return (table + 0.5).astype(np.uint8)[index]


# --- instances ------------------------------------------------------------------------------

PALETTE = "e44a08 ffceac e5ae00 c8f23c 02985f 23fdfb 2981fb b0a2fe ba49be fa5d9e"
"""Of instances: one in each tenth of the hues, with the lightness that keeps the two most alike as
far apart as can be, to usual, red-blind and green-blind eyes."""
RED_BLIND = ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052))
GREEN_BLIND = ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969))
"""What they see of linear RGB (Machado, Oliveira and Fernandes, 2009, severity 1)."""
ALIKE = 0.09
"""Distance in OKLab of colours that are hard to tell apart in small objects."""
VARIETY = 0.1
"""A likeness to a neighbour that is borne so that all colours come in turn."""
MOST_EYES = 0.7
"""Weight of distances as most people see them, beside those of the colour-blind."""


def _palette() -> np.ndarray:
    """(K, 3) uint8."""
    return np.frombuffer(bytes.fromhex(PALETTE.replace(" ", "")), np.uint8).reshape(-1, 3)


def _likeness() -> np.ndarray:
    """(K + 1, K) how alike two colours are to the eyes that tell them apart worst, in [0, 1].

    The last row is that of no colour yet.
    """
    encoded = _palette() / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.transpose(eyes) for eyes in (np.eye(3), RED_BLIND, GREEN_BLIND))
    labs = [_to_oklab(colours.clip(0, 1)) for colours in seen]
    apart = [np.linalg.norm(lab[:, None] - lab, axis=-1) for lab in labs]  # (K, K) each
    distance = np.minimum(MOST_EYES * apart[0], np.minimum(*apart[1:]))
    return np.concatenate((np.exp(-((distance / ALIKE) ** 2)), np.zeros((1, len(encoded)))))


def _to_oklab(linear: np.ndarray) -> np.ndarray:
    """OKLab (..., 3) of linear RGB (..., 3) in [0, 1]."""
    cones = np.cbrt(
        linear
        @ np.array(
            [
                [0.4122214708, 0.2119034982, 0.0883024619],
                [0.5363325363, 0.6806995451, 0.2817188376],
                [0.0514459929, 0.1073969566, 0.6299787005],
            ]
        )
    )
    return cones @ np.array(
        [
            [0.2104542553, 1.9779984951, 0.0259040371],
            [0.7936177850, -2.4285922050, 0.7827717662],
            [-0.0040720468, 0.4505937099, -0.8086757660],
        ]
    )


def _neighbours(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (P, 2) of labels that touch or lie near each other, sorted, and their distance (P,).

    Looked for at distances 1, 2, 4, ... px; coarser samples serve the longer ones, so that the
    work stays in proportion to the pixels. Each pair stands there both ways round. Distance 1 is
    exact, corners count as touching.
    """
    codes, distances = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for distance in (2**i for i in range(max(1, (max(labels.shape) // 12).bit_length()))):
        step = max(1, distance // 2)
        coarse = np.ascontiguousarray(labels[::step, ::step])
        hop = distance // step
        for a, b in (
            (coarse[:, hop:], coarse[:, :-hop]),
            (coarse[hop:], coarse[:-hop]),
            (coarse[hop:, hop:], coarse[:-hop, :-hop]),
            (coarse[hop:, :-hop], coarse[:-hop, hop:]),
        ):
            differ = a != b  # few do, so the rest is done of those only
            one, other = a[differ].astype(np.int64), b[differ].astype(np.int64)
            met = np.unique((one << 32 | other)[(one > 0) & (other > 0)])
            codes += [met, (met & 0xFFFFFFFF) << 32 | met >> 32]
            distances += [np.full(len(met), distance)] * 2
    pairs, first = np.unique(np.concatenate(codes), return_index=True)
    return np.stack((pairs >> 32, pairs & 0xFFFFFFFF), axis=1), np.concatenate(distances)[first]


def _colour_indices(labels: np.ndarray, count: int) -> np.ndarray:
    """Index (count + 1,) of the colour of each label: that least like those of its neighbours.

    Where the touching ones have all of the palette, it is a number above, which none of them has.
    """
    likeness = _likeness()
    size = likeness.shape[1]
    pairs, distances = _neighbours(labels)
    weights = 1 / distances**2
    ends = np.searchsorted(pairs[:, 0], np.arange(count + 2))
    colours = np.full(count + 1, size)
    for label in range(1, count + 1):
        mine = slice(ends[label], ends[label + 1])
        others = colours[pairs[mine, 1]]
        cost = weights[mine] @ likeness[np.minimum(others, size)]
        cost[label * 7 % size] -= VARIETY
        touching = others[distances[mine] == 1]
        cost[touching[touching < size]] = np.inf
        best = int(cost.argmin())
        if math.isinf(cost[best]):
            taken = set(touching.tolist())
            best = next(i for i in range(size + 1, size + 2 + len(taken)) if i not in taken)
        colours[label] = best
    return colours


def _more_colours(count: int) -> np.ndarray:
    """(count, 3) uint8 colours beside the palette, for objects that touch very many others."""
    i = np.arange(count)
    hue = math.pi * (3 - math.sqrt(5)) * i  # the golden angle: never twice the same
    return _oklab(0.62 + 0.1 * (i % 3), 0.12 * np.cos(hue), 0.12 * np.sin(hue))


def instance_colours(labels: np.ndarray, count: int) -> np.ndarray:
    """The colour (count + 1, 3) uint8 of each label, background black, neighbours far apart.

    labels: (H, W) integer, 0 background, 1..count. Labels that touch, at a corner even, never share
    a colour. The same labels give the same colours.
    """
    index = _colour_indices(labels, count)
    palette = _palette()
    more = _more_colours(max(0, int(index.max()) - len(palette)))
    return np.concatenate((palette, np.zeros((1, 3), np.uint8), more))[index]


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
