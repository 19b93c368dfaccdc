"""Normalising on the device, against the way of the processor, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from spatialembed.errors import SpatialEmbedError
from spatialembed.inference.device import device_input
from spatialembed.method.normalization import network_input
from spatialembed.types import Normalization

CPU = torch.device("cpu")
HOW = [Normalization("none"), Normalization("fixed"), Normalization("percentile", low=1, high=99.8)]
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9))
IMAGES = st.one_of(SHAPES, SHAPES.map(lambda size: (*size, 3))).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 255))
)


@given(IMAGES, st.sampled_from(HOW))
def test_the_same_bits(image: np.ndarray, how: Normalization) -> None:
    found, expected = device_input(image, how, CPU), network_input(image, how)
    assert (found.dtype, found.shape) == (torch.float32, (3, *image.shape[:2]))
    assert torch.equal(found, expected)


def test_a_view_is_read_as_what_it_shows() -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)[::-1, ::2]
    assert torch.equal(device_input(image, HOW[2], CPU), network_input(image, HOW[2]))


def test_memory_that_runs_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "bincount", fail)
    with pytest.raises(SpatialEmbedError, match=r"out_of_memory.* 4 x 5 px"):
        device_input(np.zeros((4, 5), np.uint8), HOW[2], CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("how", HOW, ids=lambda how: how.kind)
def test_the_same_bits_on_cuda(how: Normalization) -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    found = device_input(image, how, torch.device("cuda"))
    assert found.device.type == "cuda"
    assert torch.equal(found.cpu(), network_input(image, how))
