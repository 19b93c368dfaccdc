"""Colours of instances: those of neighbours are far apart, to colour-blind eyes as well."""

from __future__ import annotations

from functools import cache

import numpy as np

from spatialembed.method.labels import touching_pairs

PALETTE = "e44a08 ffceac e5ae00 c8f23c 02985f 23fdfb 2981fb b0a2fe ba49be fa5d9e"
"""One colour in each tenth of the hues, with the lightness that keeps the two most alike as far
apart as can be, to usual, red-blind and green-blind eyes."""
RED_BLIND = ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052))
GREEN_BLIND = ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969))
"""What they see of RGB (Machado, Oliveira and Fernandes, 2009, severity 1)."""
ALIKE = 0.09
"""Distance in OKLab of colours that are hard to tell apart in small objects."""
VARIETY = 0.1
"""A likeness to a neighbour that is tolerated so that all colours come in turn."""
MOST_EYES = 0.7
"""Weight of distances as most people see them, beside those of the colour-blind."""
LMS = (
    (0.412221, 0.211903, 0.088302),
    (0.536333, 0.680700, 0.281719),
    (0.051446, 0.107397, 0.629979),
)
LAB = (
    (0.210454, 1.977998, 0.025904),
    (0.793618, -2.428592, 0.782772),
    (-0.004072, 0.450594, -0.808676),
)
"""Linear RGB to cones, their cube roots to OKLab (Ottosson, 2020), where equal steps look equal."""


def palette() -> np.ndarray:
    """(K, 3) uint8."""
    return np.frombuffer(bytes.fromhex(PALETTE), np.uint8).reshape(-1, 3)


@cache
def _likeness() -> np.ndarray:
    """(K + 1, K) how alike two colours are to the eyes that tell them apart worst, in [0, 1].

    The last row is that of no colour yet.
    """
    linear = (palette() / 255) ** 2.2
    seen = (linear @ np.transpose(eyes) for eyes in (np.eye(3), RED_BLIND, GREEN_BLIND))
    labs = [np.cbrt(colours.clip(0, 1) @ LMS) @ LAB for colours in seen]
    apart = [np.linalg.norm(lab[:, None] - lab, axis=-1) for lab in labs]  # (K, K) each
    distance = np.minimum(MOST_EYES * apart[0], np.minimum(*apart[1:]))
    return np.pad(np.exp(-((distance / ALIKE) ** 2)), ((0, 1), (0, 0)))


def _neighbours(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (P, 2) of labels that touch or lie near each other, sorted, and their distance (P,).

    Looked for at distances 1, 2, 4, ... px; coarser samples serve the longer ones, so that the
    work stays in proportion to the pixels. Each pair stands there both ways round. Distance 1 is
    exact, corners count as touching.
    """
    met, distances = [], []
    for distance in (2**i for i in range(max(1, (max(labels.shape) // 12).bit_length()))):
        step = max(1, distance // 2)
        pairs = touching_pairs(np.ascontiguousarray(labels[::step, ::step]), distance // step)
        met += [pairs, pairs[:, ::-1]]
        distances += [np.full(2 * len(pairs), distance)]
    every = np.concatenate(met)
    _, first = np.unique(every[:, 0] << 32 | every[:, 1], return_index=True)  # the nearest
    return every[first], np.concatenate(distances)[first]


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
        colours[label] = cost.argmin()
        if np.isinf(cost).all():
            colours[label] = np.setdiff1d(size + 1 + np.arange(len(touching) + 1), touching)[0]
    return colours


def instance_colours(labels: np.ndarray, count: int) -> np.ndarray:
    """The colour (count + 1, 3) uint8 of each label, background black, neighbours far apart.

    labels: (H, W) integer, 0 background, 1..count. Labels that touch, at a corner even, never share
    a colour. The same labels give the same colours.
    """
    index = _colour_indices(labels, count)
    beyond = np.arange(max(0, index.max() - len(palette())))[:, None]
    more = 64 + beyond * (37, 83, 101) % 192  # steps without a common factor: no two are alike
    return np.concatenate((palette(), np.zeros((1, 3)), more)).astype(np.uint8)[index]
