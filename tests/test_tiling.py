"""The plan of tiles, and images at another size: windows fit together, whatever the numbers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from spatialembed.errors import SpatialEmbedError
from spatialembed.images.resample import enlarged, resample, scaled_side, source_span
from spatialembed.inference.tiling import (
    BYTES_TILE,
    WIDEST,
    Tile,
    cut_off,
    image_context,
    origin_step,
    plan_axis,
    plan_tiles,
    tile_for,
)
from spatialembed.method.model import NETWORKS, SpatialEmbeddingNet

ERFNET = NETWORKS["erfnet"]
STRIDE = ERFNET.stride
SCALES = (1.0, 2.0, 1.5, 3.0, 0.5, 0.25, 1.25)


@pytest.mark.parametrize(
    ("scale", "step"), [(1, 8), (2, 4), (4, 2), (8, 1), (16, 1), (0.5, 16), (1.5, 16), (3, 8)]
)
def test_step(scale: float, step: int) -> None:
    assert origin_step(scale, STRIDE) == step
    assert (step * scale) % STRIDE == 0
    assert all((smaller * scale) % STRIDE for smaller in range(1, step))


@given(
    st.integers(1, 5000), st.integers(1, 900), st.integers(0, 700), st.sampled_from((1, 4, 8, 16))
)
def test_axis(length: int, tile: int, context: int, step: int) -> None:
    spans = plan_axis(length, tile, context, step)
    assert spans[0].begin == 0
    assert spans[-1].end == length
    assert all(a.end == b.begin for a, b in pairwise(spans))
    most = step * -(-tile // step) + 2 * step * -(-context // step)
    sides = [s.window_end - s.window_begin for s in spans]
    assert all(side < most + step for side in sides)
    assert len(set(sides)) <= 2
    for s in spans:
        assert s.begin < s.end
        assert s.begin % step == s.window_begin % step == 0
        assert 0 <= s.window_begin <= max(0, s.begin - context)
        assert min(length, s.end + context) <= s.window_end <= length


def test_tiles_part_the_image() -> None:
    seen = np.zeros((300, 411), int)
    tiles = plan_tiles(300, 411, tile=64, context=16, scale=2.0, stride=STRIDE)
    for number, tile in enumerate(tiles):
        core, window = tile.core, tile.window
        seen[core.y0 : core.y1, core.x0 : core.x1] += 1
        assert window.y0 <= core.y0 < core.y1 <= window.y1 <= 300
        assert window.x0 <= core.x0 < core.x1 <= window.x1 <= 411
        assert (tile.row, tile.column) == divmod(number, tiles[-1].column + 1)
    assert (seen == 1).all()
    assert len({tile.window.shape_hw for tile in tiles}) <= 4


@pytest.mark.parametrize("scale", SCALES)
def test_context_covers_what_the_network_sees(scale: float) -> None:
    context = image_context(ERFNET.exact_context, scale, STRIDE)
    assert context % origin_step(scale, STRIDE) == 0
    # One more px on each side of an enlarged image takes part in what the network sees there.
    assert (context - (0 if scale == 1 else 1)) * scale >= ERFNET.reach
    assert image_context(0, scale, STRIDE) == 0


@settings(deadline=None)
@given(st.integers(30, 200), st.integers(30, 200), st.integers(0, 40), st.data())
def test_objects_that_are_cut_off(
    height: int, width: int, context: int, data: st.DataObject
) -> None:
    tiles = plan_tiles(height, width, tile=24, context=context, scale=1.0, stride=STRIDE)
    y1, x1 = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    y2, x2 = data.draw(st.integers(y1 + 1, height)), data.draw(st.integers(x1 + 1, width))

    def whole(tile: Tile) -> bool:
        """Whether the tile holds no pixel of the box, or sees all of it."""
        core, window = tile.core, tile.window
        apart = y2 <= core.y0 or y1 >= core.y1 or x2 <= core.x0 or x1 >= core.x1
        inside = window.y0 <= y1 < y2 <= window.y1 and window.x0 <= x1 < x2 <= window.x1
        return apart or inside

    cut = cut_off(np.array([[x1, y1, x2, y2]]), tiles, (height, width))
    assert (len(cut) == 0) == all(whole(tile) for tile in tiles)
    if max(y2 - y1, x2 - x1) <= context:
        assert len(cut) == 0


def test_memory_picks_the_tile() -> None:
    tile = tile_for(2e9, 64, 2.0, STRIDE)
    side = (tile + 128) * 2
    assert side**2 * BYTES_TILE <= 2e9 < (side + 8) ** 2 * BYTES_TILE
    assert tile_for(1e12, 0, 1.0, STRIDE) == WIDEST
    with pytest.raises(SpatialEmbedError, match="bad_setting"):
        tile_for(1e8, 624, 1.0, STRIDE)


# ---------------------------------------------------------------- the context that is exact


def test_receptive_field() -> None:
    """The gradient of an output with respect to the image: zero beyond 622 px, and not before.

    All weights are positive, so that no two ways through the network cancel out.
    """
    torch.manual_seed(0)
    net = SpatialEmbeddingNet(1).double().eval()
    for parameter in net.parameters():
        torch.nn.init.uniform_(parameter, 0.001, 0.02)
    reach = []
    for place in range(800, 800 + STRIDE):
        image = torch.rand(1, 3, STRIDE, 1600, dtype=torch.float64).requires_grad_()
        maps = net.decoders[0](net.encoder(image))  # (1, 4, 8, 1600), before the activations
        (gradient,) = torch.autograd.grad(maps[0, :, 4, place].sum(), image)
        seen = gradient.abs().sum((0, 1, 2)).nonzero()[:, 0]
        reach += [place - int(seen[0]), int(seen[-1]) - place]
    assert max(reach) == ERFNET.reach < ERFNET.exact_context


# ---------------------------------------------------------------- another size


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 60), st.integers(1, 60), st.sampled_from((1.0, 0.5, 0.3, 0.77, 2.0)), st.data()
)
def test_windows_of_a_resized_image_fit_together(
    height: int, width: int, factor: float, data: st.DataObject
) -> None:
    rng = np.random.default_rng(height * 100 + width)
    image = rng.integers(0, 60_000, (height, width, 3)).astype(np.uint16)
    out_hw = scaled_side(height, factor), scaled_side(width, factor)
    whole = resample(image, (0, 0), (height, width), (0, out_hw[0], 0, out_hw[1]), factor)
    assert whole.shape == (*out_hw, 3)
    y0, x0 = (data.draw(st.integers(0, side - 1)) for side in out_hw)
    y1, x1 = data.draw(st.integers(y0 + 1, out_hw[0])), data.draw(st.integers(x0 + 1, out_hw[1]))
    rows, columns = source_span(y0, y1, height, factor), source_span(x0, x1, width, factor)
    part = image[slice(*rows), slice(*columns)]
    corner = (rows[0], columns[0])
    window = resample(part, corner, (height, width), (y0, y1, x0, x1), factor)
    assert np.array_equal(window, whole[y0:y1, x0:x1])


@pytest.mark.parametrize("factor", [0.5, 0.25, 0.2])
def test_reduction_is_that_of_torch(factor: float) -> None:
    image = np.random.default_rng(0).random((40, 60), dtype=np.float32)
    size = (round(40 * factor), round(60 * factor))
    ours = resample(image, (0, 0), (40, 60), (0, size[0], 0, size[1]), factor)
    theirs = F.interpolate(
        torch.from_numpy(image)[None, None], size, mode="bilinear", antialias=True
    )
    assert np.allclose(ours, theirs[0, 0].numpy(), atol=1e-6)


@given(st.integers(1, 400), st.floats(1 / 64, 1))
def test_every_found_pixel_is_shown(side: int, factor: float) -> None:
    small = np.arange(1, scaled_side(side, factor) + 1)[None]
    shown = enlarged(small, (1, side), factor)[0]
    assert set(shown.tolist()) == set(small[0].tolist())
    assert (np.diff(shown) >= 0).all()
