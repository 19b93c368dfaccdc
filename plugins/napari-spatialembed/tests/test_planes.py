"""From layers of many axes to one picture, and back to where it stood; no window."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from napari_spatialembed.planes import Plane, full_data, pixel_um, placement, shown_index

STACK = np.arange(3 * 4 * 5 * 6, dtype=np.uint16).reshape(3, 4, 5, 6)  # z, c, y, x


class Lazy:
    """Reads what is asked for, and notes it."""

    def __init__(self, data: np.ndarray) -> None:
        self._data, self.shape, self.read = data, data.shape, 0

    def __getitem__(self, where: Any) -> np.ndarray:
        self.read += self._data[where].size
        return self._data[where]


def test_a_plain_image_is_itself() -> None:
    assert np.array_equal(Plane(()).pixels(STACK[0, 0], rgb=False), STACK[0, 0])


def test_one_plane_of_a_stack_is_read_alone() -> None:
    data = Lazy(STACK)
    assert np.array_equal(Plane((2, 1)).pixels(data, rgb=False), STACK[2, 1])
    assert data.read == 30


@pytest.mark.parametrize("channel", [0, 3, "max"])
def test_a_channel_or_the_maximum_of_all(channel: Any) -> None:
    found = Plane((1, 2), 1, channel).pixels(STACK, rgb=False)
    assert np.array_equal(found, STACK[1].max(0) if channel == "max" else STACK[1, channel])


def test_transparency_is_left_out() -> None:
    colours = np.arange(2 * 5 * 6 * 4, dtype=np.uint8).reshape(2, 5, 6, 4)
    found = Plane((1,)).pixels(colours, rgb=True)
    assert np.array_equal(found, colours[1, ..., :3])
    assert found.flags.c_contiguous


def test_labels_stand_at_their_plane_and_at_all_channels() -> None:
    labels = np.arange(30, dtype=np.int32).reshape(5, 6)
    plane = Plane((2, 1), 1, 0)
    spread = plane.spread(labels, (3, 4))
    assert spread.shape == (1, 4, 5, 6)
    assert all(np.array_equal(spread[0, c], labels) for c in range(4))
    assert plane.offset() == (2, 0, 0, 0)
    spread[0, 3, 0, 0] = 77  # a stroke of the brush
    assert (spread[0, :, 0, 0] == 77).all()
    assert Plane(()).spread(labels, ()).shape == (5, 6)


@pytest.fixture
def layer() -> Any:
    """A layer of napari, which needs no window."""
    layers = pytest.importorskip("napari.layers", reason="napari is not installed (make plugin)")
    return layers.Image(
        STACK,
        scale=(2.0, 1.0, 0.5, 0.25),
        translate=(10, 0, 3, 4),
        units=("um", "pixel", "um", "mm"),
        axis_labels=("z", "c", "y", "x"),
    )


def test_the_plane_that_is_shown(layer: Any) -> None:
    assert shown_index(layer, (14.0, 2.0, 0.0, 0.0)) == (2, 2)
    assert shown_index(layer, (99.0, 10.0, -50.0, 0.0, 0.0)) == (0, 0)  # of a viewer of 5 axes
    assert full_data(layer) is layer.data


def test_labels_lie_on_their_pixels(layer: Any) -> None:
    """In world coordinates, pixel by pixel."""
    from napari.layers import Labels

    plane = Plane((2, 1), 1, 0)
    spread = plane.spread(np.zeros((5, 6), np.int32), (3, 4))
    for turned in (layer, with_turn(layer)):
        labels = Labels(spread, **placement(turned, plane))
        for y, x in ((0, 0), (4, 5)):
            ours = labels.data_to_world((0, 1, y, x))
            assert np.allclose(ours, turned.data_to_world((2, 1, y, x)))
        assert labels.units == layer.units
        assert labels.axis_labels == layer.axis_labels


def with_turn(layer: Any) -> Any:
    from napari.layers import Image

    return Image(
        STACK, scale=layer.scale, translate=layer.translate, units=layer.units, shear=[0.5] * 6,
        rotate=np.eye(4)[[0, 1, 3, 2]] * [1, 1, 1, -1], axis_labels=layer.axis_labels,
    )  # fmt: skip


def test_the_size_of_a_pixel(layer: Any) -> None:
    assert pixel_um(layer) == pytest.approx((250.0, 0.5))
    assert pixel_um(SimpleNamespace(scale=layer.scale, units=layer.units[:2])) is None
