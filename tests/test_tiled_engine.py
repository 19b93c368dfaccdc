"""Large images in evaluation, tuning and validation: by tiles, whole maps behind them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import scored_memory
from spatialembed.inference.diameter import at_factor
from spatialembed.inference.tiling import BASE_BYTES, BYTES_WHOLE, TiledEngine, TileOptions
from spatialembed.types import Embeddings

CPU = torch.device("cpu")


class Local:
    """Maps that depend on the pixel alone, and the sizes that were asked for."""

    name, device, precision, scale = "local", CPU, "float32", 1.0

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Embeddings:
        self.asked.append(tuple(images.shape))
        return Embeddings(images[:, :2] + 1, images[:, :2] * 2, images[:, 2:])


def limit(pixels: float) -> float:
    """GB that windows of so many pixels are planned for, and whole images too."""
    return (BASE_BYTES + 300 * pixels) / 1e9


@pytest.mark.parametrize("context", [0, 16])
def test_tiles_give_the_maps_of_the_whole(context: int) -> None:
    local: Any = Local()
    memory = limit(1e6)
    side = int((memory * 1e9 / BYTES_WHOLE) ** 0.5) + 8  # the smallest that does not fit
    images = torch.from_numpy(np.random.default_rng(0).random((2, 3, side, side + 5), np.float32))
    maps = TiledEngine(local, "erfnet", TileOptions(memory=memory, context=context))(images)
    assert len(local.asked) > 2
    assert all(shape[2] * shape[3] < 1.1e6 for shape in local.asked)
    for ours, whole in zip(maps, Local()(images), strict=True):
        torch.testing.assert_close(ours, whole, rtol=0, atol=0)
    maps.seed[0, 0, 0, 0] = 0  # no inference tensor, which could not be written to


def test_a_side_of_tiles_counts_alone_and_progress_is_told() -> None:
    local: Any = Local()
    shares: list[float] = []
    tiles = TileOptions(tile=32, context=0)
    engine = TiledEngine(local, "erfnet", tiles, shares.append)
    images = torch.from_numpy(np.random.default_rng(0).random((1, 3, 32, 64), np.float32))
    maps = engine(images)
    assert local.asked == [(1, 3, 32, 32)] * 2
    assert shares == [0.5, 1.0]
    assert torch.equal(maps.offset, images[:, :2] + 1)
    engine(images[..., :32])
    assert shares == [0.5, 1.0]  # no tiles, no progress


def test_what_fits_goes_as_it_is() -> None:
    local: Any = Local()
    TiledEngine(local, "erfnet")(torch.zeros(2, 3, 40, 50))
    assert local.asked == [(2, 3, 40, 50)]


def test_another_scale_reaches_the_network() -> None:
    local: Any = Local()
    whole = TiledEngine(local, "erfnet")
    half = at_factor(whole, 0.5)
    assert (half.scale, half.engine.scale) == (0.5, 0.5)
    assert (whole.scale, local.scale) == (1.0, 1.0)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts the bytes of a process as Linux does")
@pytest.mark.parametrize("verb", ["evaluate", "tune", "validate"])
def test_scoring_takes_memory_by_the_pixels_of_the_image(verb: str) -> None:
    """Beside the network, whose windows are bounded. At 4096 px 58 to 82 bytes."""
    words = [sys.executable, str(Path(scored_memory.__file__)), verb, "2048"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[2]) < 150
