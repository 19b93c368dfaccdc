"""Colours of instances: neighbours never share one, and all differ to colour-blind eyes as well."""

from __future__ import annotations

import numpy as np

from spatialembed.method.labels import touching_pairs

PALETTE = "e44a08 ffceac e5ae00 c8f23c 02985f 23fdfb 2981fb b0a2fe ba49be fa5d9e"
"""One colour in each tenth of the hues, with the lightness that keeps the two most alike as far
apart as can be, to usual, red-blind and green-blind eyes."""
VARIETY = 0.1
"""Nearness of an object of the same colour that is tolerated so that all colours come in turn."""
BEYOND = 1e6
"""Cost of a colour that is not in the palette: taken where the touching ones have all of it."""


def palette() -> np.ndarray:
    """(K, 3) uint8."""
    return np.frombuffer(bytes.fromhex(PALETTE), np.uint8).reshape(-1, 3)


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


def instance_colours(labels: np.ndarray, count: int) -> np.ndarray:
    """The colour (count + 1, 3) uint8 of each label, background black, unlike those near it.

    labels: (H, W) integer, 0 background, 1..count. Labels that touch, at a corner even, never share
    a colour. The same labels give the same colours.
    """
    size = len(palette())
    pairs, distances = _neighbours(labels)
    weights = 1 / distances**2
    ends = np.searchsorted(pairs[:, 0], np.arange(count + 2))
    index = np.full(count + 1, size)  # no colour yet
    for label in range(1, count + 1):
        mine = slice(ends[label], ends[label + 1])
        others = index[pairs[mine, 1]]
        touching = others[distances[mine] == 1]
        cost = np.zeros(size + 2 + max(len(touching), others.max(initial=size) - size))
        np.add.at(cost, others, weights[mine])
        cost[label * 7 % size] -= VARIETY
        cost[size + 1 :] += BEYOND
        cost[size] = cost[touching] = np.inf
        index[label] = cost.argmin()
    beyond = np.arange(max(0, index.max() - size))[:, None]
    more = 64 + beyond * (37, 83, 101) % 192  # steps without a common factor: no two are alike
    return np.concatenate((palette(), np.zeros((1, 3)), more)).astype(np.uint8)[index]
