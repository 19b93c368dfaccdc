"""An engine that takes an image of any size: large ones go through the network tile by tile.

The maps are whole again behind it (20 bytes a pixel for one class), so that evaluation, tuning and
validation need no other way for large images. Tiles and context are those that ``predict`` takes
by default: what is scored is what a user gets.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from spatialembed.inference.engine import Engine
from spatialembed.inference.tiling import (
    BASE_BYTES,
    BYTES_TILE,
    BYTES_WHOLE,
    WIDEST,
    image_context,
    plan_tiles,
    tile_for,
)
from spatialembed.method.networks.erfnet import STRIDE
from spatialembed.types import Embeddings


class TiledEngine:
    """``engine``, with images by tiles whose whole maps would need more memory than is allowed.

    memory: of the process, GB. context: px around a tile that the network sees too, as it sees
    them; less than the network's reach is an approximation, as in ``predict``. stride: px of a cell
    of the network.
    """

    def __init__(
        self, engine: Engine, *, memory: float = 3.0, context: int = 128, stride: int = STRIDE
    ) -> None:
        self.engine = engine
        self.name = engine.name
        self.device = engine.device
        self.precision = engine.precision
        self.memory = memory * 1e9
        self.network_context = context
        self.stride = stride

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
        """Whether an image of so many px would need more memory as a whole."""
        return height * width * self.scale**2 * BYTES_WHOLE > self.memory

    def __call__(self, images: Tensor) -> Embeddings:
        """As ``Engine``; a batch of large images goes one by one."""
        if not self.takes_tiles(*images.shape[-2:]):
            return self.engine(images)
        maps = [self._in_tiles(image) for image in images]
        return Embeddings(*(torch.cat(parts) for parts in zip(*maps, strict=True)))

    def _in_tiles(self, image: Tensor) -> Embeddings:
        """image (3, H, W) -> Embeddings (1, ., H, W)."""
        height, width = image.shape[-2:]
        context = image_context(self.network_context, self.scale, self.stride)
        tile = tile_for(
            self.memory - BASE_BYTES,
            context,
            self.scale,
            bytes_per_pixel=BYTES_TILE,
            most=WIDEST,
            stride=self.stride,
        )
        whole: list[Tensor] = []
        for _, _, core, window in plan_tiles(
            height, width, tile=tile, context=context, scale=self.scale, stride=self.stride
        ):
            maps = self.engine(image[None, :, window.y0 : window.y1, window.x0 : window.x1])
            if not whole:  # allocated here: what an engine returns may be an inference tensor
                whole = [
                    torch.empty((1, m.shape[1], height, width), dtype=m.dtype, device=m.device)
                    for m in maps
                ]
            rows = slice(core.y0 - window.y0, core.y1 - window.y0)
            columns = slice(core.x0 - window.x0, core.x1 - window.x0)
            for into, part in zip(whole, maps, strict=True):
                into[..., core.y0 : core.y1, core.x0 : core.x1] = part[..., rows, columns]
        return Embeddings(*whole)
