"""Large images in tiles: what the network sees at a time, and what of it is kept.

    +----------- window -----------+     core      pixels whose maps are kept; cores part the image
    |   context                    |     context   pixels around it that the network sees as well
    |      +------ core ------+    |     window    core and context, clipped to the image
    |      |                  |    |
    |      +------------------+    |     windows have one size, also along the borders: there they
    |                              |     are moved inwards, and a core has more context on one side
    +------------------------------+

What an output pixel reads, and where cells begin, depends on the network: ``model.parts_of`` says
both. With a context of ``Parts.exact_context`` px, and windows that begin at multiples of the
stride, tiles change nothing. Sides and places are in px of the image that is cut.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from spatialembed.errors import check
from spatialembed.inference.engine import Engine
from spatialembed.method.model import parts_of
from spatialembed.types import Embeddings, Network

BYTES_WHOLE = 200
"""Memory of the network for each pixel that it sees, bytes: torch 90 to 220, OpenVINO 200."""
BYTES_TILE = 300
"""The same as it is planned for tiles, with their maps and the next one that is read."""
BASE_BYTES = 0.9e9
"""Of the process without the network: libraries, read tiles, clustering."""
WIDEST = 4096
"""Side of the largest window, as the network sees it; more is not quicker."""


@dataclass(frozen=True)
class TileOptions:
    """How large images are worked on."""

    tile: int | None = None
    """Side of the tiles in px of the image, images above it go by tiles; none: by memory."""
    context: int = 128
    """Px around a tile that the network sees too, as it sees them; 624 is exact, 224 of lite."""
    memory: float = 3.0
    """Process memory in GB; images whose whole maps need more go by tiles."""
    scale: float = 1.0
    """Images are reduced by this, in (0, 1], and what is found is enlarged again."""
    labels: Literal["tiff", "zarr"] = "tiff"
    """File of the labels of an image that went by tiles."""

    def __post_init__(self) -> None:
        """Raises SpatialEmbedError ``bad_setting`` (exit 2)."""
        for name, wanted, fine in (
            ("tile", "16 or more", self.tile is None or self.tile >= 16),
            ("context", "0 or more", self.context >= 0),
            ("memory", "1.2 or more", self.memory >= 1.2),
            ("scale", "from 1/64 to 1", 1 / 64 <= self.scale <= 1),
        ):
            check(fine, f"{name} is {getattr(self, name)}", f"give {wanted}")


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

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns of the image."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)


class Tile(NamedTuple):
    """One piece of the plan."""

    row: int
    column: int
    core: Window
    window: Window

    @property
    def kept(self) -> tuple[slice, slice]:
        """Rows and columns of the core in maps of the window."""
        core, (y0, _, x0, _) = self.core, self.window
        return slice(core.y0 - y0, core.y1 - y0), slice(core.x0 - x0, core.x1 - x0)


class Span(NamedTuple):
    """A tile along one axis: core and window, begin and end."""

    begin: int
    end: int
    window_begin: int
    window_end: int


def origin_step(scale: float, stride: int) -> int:
    """Windows of an image that is resized by ``scale`` for the network begin at multiples of this.

    stride: px of a cell of the network. The result is the smallest number of px that become whole
    cells: of 8, 8 at scale 1, 4 at 2, 16 at 0.5 or 1.5.
    """
    ratio = Fraction(scale).limit_denominator(64)
    check(ratio > 0, f"scale is {scale}", "give 1/64 or more")
    unit = stride * ratio.denominator
    return unit // math.gcd(unit, ratio.numerator)


def image_context(network_px: int, scale: float, stride: int) -> int:
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
    height: int, width: int, *, tile: int, context: int, scale: float, stride: int
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


def tile_for(memory_bytes: float, context: int, scale: float, stride: int) -> int:
    """Side of the largest tile whose window the network can take in ``memory_bytes``, px.

    context: in px of the image.

    Raises SpatialEmbedError ``bad_setting`` (exit 2) where less than a quarter of the window would
    be kept along an axis.
    """
    step = origin_step(scale, stride)
    seen = min(math.sqrt(max(0.0, memory_bytes) / BYTES_TILE), WIDEST)
    side = int(seen / scale) // step * step
    tile = side - 2 * context
    check(
        tile >= max(step, side // 4),
        f"the memory allows windows of {side} px, the context takes {2 * context} of them",
        "give more memory or less context",
    )
    return tile


def plan(
    shape_hw: tuple[int, int], tiles: TileOptions, scale: float, network: Network
) -> list[Tile]:
    """Tiles of an image by these settings, for a network that sees it resized by ``scale``."""
    stride = parts_of(network).stride
    context = image_context(tiles.context, scale, stride)
    tile = tiles.tile or tile_for(tiles.memory * 1e9 - BASE_BYTES, context, scale, stride)
    return plan_tiles(*shape_hw, tile=tile, context=context, scale=scale, stride=stride)


class TiledEngine:
    """``engine``, with images by tiles whose whole maps would need more memory than is allowed.

    The maps are whole again behind it (20 bytes a pixel for one class), so that evaluation, tuning
    and validation need no other way for large images. ``tiles`` are those that ``predict`` takes by
    default: what is scored is what a user gets. network: the one that the engine runs. advance:
    called after each tile with the share of its image that is done, in (0, 1].
    """

    def __init__(
        self,
        engine: Engine,
        network: Network,
        tiles: TileOptions = TileOptions(),
        advance: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.engine, self.network, self.tiles, self.advance = engine, network, tiles, advance
        self.name, self.device, self.precision = engine.name, engine.device, engine.precision

    @property
    def scale(self) -> float:
        """That of the engine; set, it is that of a copy, so that another scale can be tried."""
        return self.engine.scale

    @scale.setter
    def scale(self, scale: float) -> None:
        """Of a copy of the engine."""
        self.engine = copy.copy(self.engine)
        self.engine.scale = scale

    def takes_tiles(self, height: int, width: int) -> bool:
        """Whether an image of so many px is above the side of a tile, or needs more memory."""
        if self.tiles.tile is not None:
            return max(height, width) > self.tiles.tile
        return height * width * self.scale**2 * BYTES_WHOLE > self.tiles.memory * 1e9

    def __call__(self, images: Tensor) -> Embeddings:
        """As ``Engine``; a batch of large images goes one by one."""
        if not self.takes_tiles(*images.shape[-2:]):
            return self.engine(images)
        maps = [self._in_tiles(image[None]) for image in images]
        return Embeddings(*map(torch.cat, zip(*maps, strict=True)))

    def _in_tiles(self, image: Tensor) -> Embeddings:
        """image (1, 3, H, W) -> Embeddings (1, ., H, W)."""
        height, width = image.shape[-2:]
        whole: list[Tensor] = []
        tiles = plan((height, width), self.tiles, self.scale, self.network)
        for done, tile in enumerate(tiles, start=1):
            maps = self.engine(image[..., *tile.window.slices])
            if not whole:  # allocated here: what an engine returns may be an inference tensor
                whole = [m.new_empty((1, m.shape[1], height, width)) for m in maps]
            for into, part in zip(whole, maps, strict=True):
                into[..., *tile.core.slices] = part[..., *tile.kept]
            self.advance(done / len(tiles))
        return Embeddings(*whole)
