"""From an image layer of any number of axes to the one picture that is predicted, and back.

    layer.data   (..., H, W), or (..., H, W, 3 or 4) where the layer is RGB
    index        one number for each axis before H, as the sliders of napari stand
    channels     one of those axes, of which a channel is taken, or the maximum of all

No Qt here, and no napari but its arithmetic of transforms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Channel = int | Literal["max"]


@dataclass(frozen=True)
class Plane:
    """Which picture of a layer is predicted."""

    index: tuple[int, ...]  # of each axis before H
    channels: int | None = None  # the axis of the channels, of those
    channel: Channel = "max"  # of that axis

    def pixels(self, data: Any, rgb: bool) -> np.ndarray:
        """The picture (H, W) or (H, W, 3), in memory, as contiguous values of its type.

        data: an array, or a lazy one of dask or Zarr; of a pyramid the first level.
        """
        where: list[int | slice] = list(self.index)
        if self.channels is not None:
            where[self.channels] = slice(None) if self.channel == "max" else self.channel
        part = np.asarray(data[tuple(where)])
        if self.channels is not None and self.channel == "max":
            part = part.max(axis=0)
        return np.ascontiguousarray(part[..., :3] if rgb else part)

    def offset(self) -> tuple[int, ...]:
        """Where the first pixel of ``spread`` stands in the data of the layer."""
        axes = enumerate(self.index)
        return (*(0 if axis == self.channels else at for axis, at in axes), 0, 0)

    def spread(self, labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Labels (H, W) with the axes of the layer, of which ``shape`` are those before H.

        They stand at the predicted plane, and at all channels of it at once: one memory, so that a
        stroke of the brush in one channel is there in all.
        """
        axes = range(len(self.index))
        sides = tuple(shape[axis] if axis == self.channels else 1 for axis in axes)
        strides = (0,) * len(sides) + labels.strides
        return np.lib.stride_tricks.as_strided(labels, sides + labels.shape, strides)


def shown_index(layer: Any, point: tuple[float, ...]) -> tuple[int, ...]:
    """The index of the plane that is shown.

    point: that of ``viewer.dims``, in world coordinates of all axes of the viewer.
    """
    at = layer.world_to_data(point[-layer.ndim :])[: layer.ndim - 2]
    sides = full_data(layer).shape
    return tuple(int(np.clip(round(x), 0, side - 1)) for x, side in zip(at, sides, strict=False))


def full_data(layer: Any) -> Any:
    """The data of a layer, of a pyramid those of its first level."""
    return layer.data[0] if layer.multiscale else layer.data


def placement(layer: Any, plane: Plane) -> dict[str, Any]:
    """Where the labels stand: scale, turn, units and the like of the image, moved to the plane."""
    from napari.utils.transforms import Affine

    linear: Any = {"rotate": layer.rotate, "shear": layer.shear}
    own = Affine(scale=layer.scale, translate=layer.translate, ndim=layer.ndim, **linear)
    return {
        "scale": layer.scale,
        "translate": own(np.array(plane.offset(), float)),
        **linear,
        "affine": layer.affine,
        "units": layer.units,
        "axis_labels": layer.axis_labels,
    }


def pixel_um(layer: Any) -> tuple[float, float] | None:
    """Width and height of a pixel in µm; None where the units of the layer are no lengths."""
    height, width = (
        float((scale * unit).to("micrometer").magnitude)
        if unit.is_compatible_with("micrometer")
        else 0.0
        for scale, unit in zip(layer.scale[-2:], layer.units[-2:], strict=True)
    )
    return (width, height) if width > 0 and height > 0 else None
