"""Which channel of a data set carries its objects: the one in which they stand out most.

The contrast of a channel is the share of pairs of an object's pixel and a background pixel in which
the first is the brighter one, or the darker one where that is more: 0.5 says nothing, 1 parts them
all. By ranks, it takes no notice of ranges, gamma and a few hot pixels. Of the images, the median.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from spatialembed.data.folder import read_ids
from spatialembed.doctor.probe import Pair
from spatialembed.errors import SpatialEmbedError
from spatialembed.images.channels import ALL, MAX, SUM, Channel
from spatialembed.images.checks import ImageWarning
from spatialembed.images.read import grey_channels, read_image
from spatialembed.options import DataOptions

IMAGES = 20
"""So many are measured."""
MOST = 16
"""More channels than that are not compared: a stack of planes, as a rule."""
PIXELS = 1 << 16
"""Of an image that are ranked."""
CLEAR = 0.6
"""Contrast from which on a channel is recommended."""


@dataclass(frozen=True)
class ChannelContrast:
    """The channels of the images of a data set, and how far the objects stand out in each."""

    names: tuple[str, ...]  # "" where a channel has none
    contrast: tuple[float, ...]  # of each, in [0.5, 1]
    images: int  # that were measured

    @property
    def best(self) -> int:
        """The channel with the highest contrast, from 0."""
        return int(np.argmax(self.contrast))

    @property
    def channel(self) -> Channel:
        """That channel as a setting: its name where it has one of its own, else its number."""
        name = self.names[self.best]
        plain = name.isprintable() and not name.strip().isdecimal() and name == name.strip()
        own = [n.lower() for n in self.names].count(name.lower()) == 1
        special = name.lower() in ("", ALL, MAX, SUM)
        return name if plain and own and not special else self.best + 1

    @property
    def clear(self) -> bool:
        """Whether the objects stand out in it at all."""
        return self.contrast[self.best] >= CLEAR

    def lines(self) -> list[str]:
        """A line for each channel, the best first."""
        order = sorted(range(len(self.names)), key=lambda i: -self.contrast[i])
        named = (f"channel {i + 1} {self.names[i]}".strip() for i in order)
        return [f"{n}: {self.contrast[i]:.0%}" for n, i in zip(named, order, strict=True)]


def channel_contrast(pairs: Sequence[Pair], reading: DataOptions) -> ChannelContrast | None:
    """Measure the channels of images that have several; None: they have not, or one is chosen."""
    if reading.channel is not None or not pairs:
        return None
    taken = pairs[:: -(-len(pairs) // IMAGES)]
    names = [grey_channels(pair.image_path) for pair in taken]
    known = [n for n in names if n is not None]  # others cannot be read
    if not known or len({len(n) for n in known}) > 1 or not 1 < len(known[0]) <= MOST:
        return None
    rows = []
    for pair, its in zip(taken, names, strict=True):
        if its is not None:
            try:
                rows.append(_of_pair(pair, len(its), reading))
            except SpatialEmbedError:  # the survey reports it
                continue
    if not (shares := [row for row in rows if row is not None]):
        return None
    middle = np.median(shares, axis=0)
    same = all(n == known[0] for n in known)
    shown = tuple(known[0]) if same else ("",) * len(known[0])
    contrast = tuple((0.5 + np.abs(middle - 0.5)).tolist())
    return ChannelContrast(shown, contrast, len(shares))


def _of_pair(pair: Pair, channels: int, reading: DataOptions) -> list[float] | None:
    """The share of each channel; None of an image without object or without background."""
    ids, void = read_ids(pair.mask_path, reading)
    planes = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageWarning)
        for i in range(channels):
            plane = read_image(pair.image_path, max_pixels=reading.max_pixels, channel=i + 1)
            planes.append(plane)
    if any(plane.shape != ids.shape for plane in planes):
        return None
    known = np.flatnonzero(~void)
    known = known[:: max(1, len(known) // PIXELS)]
    inside = ids.ravel()[known] > 0
    if inside.all() or not inside.any():
        return None
    return [brighter(plane.ravel()[known], inside) for plane in planes]


def brighter(values: np.ndarray, inside: np.ndarray) -> float:
    """Share of pairs (inside, outside) whose first value is the larger one; ties count half."""
    n, m = int(inside.sum()), int((~inside).sum())
    return float((rankdata(values)[inside].sum() - n * (n + 1) / 2) / (n * m))
