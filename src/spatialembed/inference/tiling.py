"""The plan of tiles of a large image: what the network sees at a time, and what of it is kept.

    +----------- window -----------+     core      pixels whose maps are kept; cores part the image
    |   context                    |     context   pixels around it that the network sees as well
    |      +------ core ------+    |     window    core and context, clipped to the image
    |      |                  |    |
    |      +------------------+    |     windows have one size, also along the borders: there they
    |                              |     are moved inwards, and a core has more context on one side
    +------------------------------+

What an output pixel reads, and where cells begin, depends on the network: ``model.NETWORKS`` says
both. Of ERFNet it is at most ``RECEPTIVE_PX`` pixels to each side, along each axis::

    down 1, 2, 3          1 + 2 + 4                              at strides 1, 2, 4
    5 residuals           5 * 4 * (1 + 1)                        at stride 4
    8 residuals           2 * 8 * ((1 + 2) + (1 + 4) + (1 + 8) + (1 + 16))   at stride 8
    up, 2 residuals       8 + 2 * 4 * (1 + 1)                    at strides 8 and 4
    up, 2 residuals       4 + 2 * 2 * (1 + 1)                    at strides 4 and 2

which is at most 627; where strides and cells fall leaves ``RECEPTIVE_PX``, which a test reads off
the gradient. So a context of ``EXACT_CONTEXT`` px, with windows that begin at multiples of the
stride, changes nothing.

Nothing here knows pixels' values. Sides and places are in px of the image that is cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from spatialembed.errors import USAGE, SpatialEmbedError

STRIDE = 8
"""Of ERFNet's coarsest maps: windows must begin where the whole image's cells begin."""
RECEPTIVE_PX = 622
"""Farthest pixel, along an axis, that an output pixel of ERFNet depends on."""
EXACT_CONTEXT = 624
"""The first multiple of the stride beyond that."""
BYTES_WHOLE = 200
"""Memory of the network for each pixel that it sees, bytes: torch 90 to 220, OpenVINO 200."""
BYTES_TILE = 300
"""The same as it is planned for tiles, with their maps and the next one that is read."""
BASE_BYTES = 0.9e9
"""Of the process without the network: libraries, read tiles, clustering."""
WIDEST = 4096
"""Side of the largest window, as the network sees it; more is not quicker."""


class Window(NamedTuple):
    """A rectangle of an image: rows y0:y1, columns x0:x1."""

    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def shape_hw(self) -> tuple[int, int]:
        """Height and width in px."""
        return self.y1 - self.y0, self.x1 - self.x0


class Tile(NamedTuple):
    """One piece of the plan."""

    row: int
    column: int
    core: Window
    window: Window


class Span(NamedTuple):
    """A tile along one axis: core and window, begin and end."""

    begin: int
    end: int
    window_begin: int
    window_end: int


def origin_step(scale: float, stride: int = STRIDE) -> int:
    """Windows of an image that is resized by ``scale`` for the network begin at multiples of this.

    stride: px of a cell of the network. The result is the smallest number of px that become whole
    cells: of 8, 8 at scale 1, 4 at 2, 16 at 0.5 or 1.5.
    """
    ratio = Fraction(scale).limit_denominator(64)
    if not ratio:
        raise SpatialEmbedError("bad_setting", f"scale is {scale}", "give 1/64 or more", USAGE)
    unit = stride * ratio.denominator
    return unit // math.gcd(unit, ratio.numerator)


def image_context(network_px: int, scale: float, stride: int = STRIDE) -> int:
    """Context in px of the image for one of ``network_px`` as the network sees it, at this scale.

    Rounded up to whole cells, with one px more where the resizing reads a neighbour.
    """
    step = origin_step(scale, stride)
    reach = network_px / scale + (0 if scale == 1 or not network_px else max(1.0, 1 / scale))
    return step * math.ceil(reach / step)


def plan_axis(length: int, tile: int, context: int, step: int) -> list[Span]:
    """Tiles along one axis of ``length`` px, as even as the step allows, none above ``tile``.

    tile and context are rounded up to the step. All windows have one length, except that those
    which end with the axis may be up to step - 1 px longer, and a single one is the whole axis.
    """
    tile, context = (step * math.ceil(side / step) for side in (max(tile, 1), context))
    if length <= tile + 2 * context:
        return [Span(0, length, 0, length)]
    tile = step * math.ceil(length / math.ceil(length / tile) / step)
    side = tile + 2 * context
    last = max(0, length - side) // step * step  # where the last window begins
    spans = []
    for begin in range(0, length, tile):
        window = min(max(0, begin - context), last)
        end = length if window == last else window + side
        spans.append(Span(begin, min(begin + tile, length), window, end))
    return spans


def plan_tiles(
    height: int, width: int, *, tile: int, context: int, scale: float, stride: int = STRIDE
) -> list[Tile]:
    """Tiles of an image, row by row: their cores part it, each window lies in it.

    tile: side of a core. context: px of the image around it that the network sees too, see
    ``image_context``. Both are rounded up to ``origin_step(scale, stride)``.
    """
    step = origin_step(scale, stride)
    rows, columns = (plan_axis(length, tile, context, step) for length in (height, width))
    return [
        Tile(
            i,
            j,
            Window(y.begin, y.end, x.begin, x.end),
            Window(y.window_begin, y.window_end, x.window_begin, x.window_end),
        )
        for i, y in enumerate(rows)
        for j, x in enumerate(columns)
    ]


def cut_off(boxes: np.ndarray, tiles: Sequence[Tile], shape_hw: tuple[int, int]) -> np.ndarray:
    """Which objects no tile saw whole from each of their pixels: indices, ascending.

    boxes: (N, 4) x1 y1 x2 y2 px, x2 and y2 exclusive. An object that is not longer than the context
    is never cut off; a longer one may be, where it lies at a seam.
    """
    seen = np.ones(len(boxes), bool)
    for axis, length in ((1, shape_hw[0]), (0, shape_hw[1])):  # boxes have x first
        first, end = np.empty(length, np.int64), np.empty(length, np.int64)
        for tile in tiles:
            core, window = (t[2:] if axis == 0 else t[:2] for t in (tile.core, tile.window))
            first[slice(*core)], end[slice(*core)] = window
        low, high = boxes[:, axis], boxes[:, axis + 2]
        # Windows move on with their cores: the last pixel sees least of what lies before it.
        seen &= (first[high - 1] <= low) & (end[low] >= high)
    return np.flatnonzero(~seen)


def tile_for(
    memory_bytes: float,
    context: int,
    scale: float,
    *,
    bytes_per_pixel: float,
    most: int,
    stride: int = STRIDE,
) -> int:
    """Side of the largest tile whose window the network can take in ``memory_bytes``, px.

    context: in px of the image. bytes_per_pixel: of the network, for each pixel that it sees.
    most: largest side of a window as the network sees it.

    Raises SpatialEmbedError ``bad_setting`` (exit 2) where less than a quarter of the window would
    be kept along an axis.
    """
    step = origin_step(scale, stride)
    seen = min(math.sqrt(max(0.0, memory_bytes) / bytes_per_pixel), most)
    side = int(seen / scale) // step * step
    tile = side - 2 * context
    if tile < max(step, side // 4):
        raise SpatialEmbedError(
            "bad_setting",
            f"the memory allows windows of {side} px, the context takes {2 * context} of them",
            "give more memory or less context",
            USAGE,
        )
    return tile
