"""Running the network: any size, any scale, both precisions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spatialembed.errors import SpatialEmbedError
from spatialembed.inference import engine
from spatialembed.inference.engine import map_back, resize, torch_engine
from spatialembed.method import geometry
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.types import UNIT, Embeddings

CPU = torch.device("cpu")


def new_net(elliptical: bool = True) -> SpatialEmbeddingNet:
    """A network with something to say: its last layers are random too."""
    torch.manual_seed(1)
    net = SpatialEmbeddingNet(2, elliptical)
    for decoder in net.decoders:
        torch.nn.init.normal_(decoder.output_conv.weight, std=0.3)
    return net


def images(*size: int) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(2))


# Sizes, batches, precision


def test_maps_are_those_of_the_network() -> None:
    net = new_net().train()
    x = images(2, 3, 24, 16)
    found = torch_engine(net, device=CPU)(x)
    assert not net.training
    for ours, theirs in zip(found, net(x), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 2.0, 1.3, 0.5, 1 / 16])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 8), (33, 17)])
def test_maps_have_the_size_of_the_image(size: tuple[int, int], scale: float) -> None:
    maps = torch_engine(new_net(), device=CPU, scale=scale)(images(2, 3, *size))
    assert [tuple(m.shape) for m in maps] == [(2, channels, *size) for channels in (2, 2, 2)]
    assert all(m.dtype == torch.float32 and bool(m.isfinite().all()) for m in maps)
    assert 0 <= maps.seed.min() <= maps.seed.max() <= 1


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_batched_equals_single(scale: float) -> None:
    run = torch_engine(new_net(), device=CPU, scale=scale)
    x = images(3, 3, 20, 28)
    together = run(x)
    for i in range(3):
        for one, all_ in zip(run(x[i : i + 1]), together, strict=True):
            torch.testing.assert_close(one[0], all_[i], rtol=1e-4, atol=1e-5)


def test_same_input_same_bits() -> None:
    run = torch_engine(new_net(), device=CPU, precision="bfloat16", scale=1.5)
    x = images(1, 3, 40, 24)
    assert all(torch.equal(a, b) for a, b in zip(run(x), run(x), strict=True))


@pytest.mark.parametrize("precision", [pytest.param("bfloat16", id="INF-07 bfloat16")])
def test_geometry_stays_float32(precision: engine.Precision) -> None:
    """The convolutions round to 8 bits, the maps do not: their values are not those of bfloat16."""
    x = images(1, 3, 64, 64)
    exact = torch_engine(new_net(), device=CPU)(x)
    rough = torch_engine(new_net(), device=CPU, precision=precision)(x)
    for a, b in zip(exact, rough, strict=True):
        assert b.dtype == torch.float32
        assert (b.bfloat16().float() == b).float().mean() < 0.2
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.05)
        assert not torch.equal(a, b)


@pytest.mark.parametrize("text", ["DefaultCPUAllocator: can't allocate memory", "CUDA"])
def test_memory_that_runs_out_is_named(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = torch_engine(new_net(), device=CPU)

    def fail(_: Tensor) -> Embeddings:
        raise torch.OutOfMemoryError(text) if text == "CUDA" else RuntimeError(text)

    monkeypatch.setattr(run.net, "forward", fail)
    with pytest.raises(
        SpatialEmbedError, match=r"out_of_memory.*2 image\(s\) of 4 x 5 px"
    ) as caught:
        run(images(2, 3, 4, 5))
    assert caught.value.exit_code == 5


def test_other_faults_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    run = torch_engine(new_net(), device=CPU)

    def fail(_: Tensor) -> Embeddings:
        raise RuntimeError("a bug")

    monkeypatch.setattr(run.net, "forward", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        run(images(1, 3, 4, 5))


# Scale


def one_centre(height: int, width: int, center_px: tuple[float, float]) -> Tensor:
    """Offsets (1, 2, height, width) by which every pixel points at one centre (x, y)."""
    center = torch.tensor(center_px).view(2, 1, 1) / UNIT
    return (center - geometry.coordinates(height, width, torch.zeros(())))[None]


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize(("s_x", "s_y"), [(2, 2), (3, 3), (1.5, 1.5), (1, 1), (0.5, 0.5), (2, 1.5)])
def test_maps_of_a_resized_image_mean_the_same(s_x: float, s_y: float, axes: int) -> None:
    """The centre lies where it lay, and the margin shrinks as the image does."""
    height, width = 20, 32
    large = (round(height * s_y), round(width * s_x))
    center = (21.0, 14.0)  # in px of the resized image
    raw = torch.full((1, axes, *large), 0.7)
    seed = torch.full((1, 1, *large), 0.25)
    back = map_back(Embeddings(one_centre(*large, center), raw, seed), (height, width))

    found = geometry.embed(back.offset)[0] * UNIT
    expected = [(center[0] + 0.5) / s_x - 0.5, (center[1] + 0.5) / s_y - 0.5]
    inner = found[:, 1:-1, 1:-1] if min(s_x, s_y) < 1 else found  # beyond the last centre: clamped
    for axis in (0, 1):
        torch.testing.assert_close(
            inner[axis], torch.full_like(inner[axis], expected[axis]), rtol=0, atol=1e-4
        )
    margin = geometry.margin_px(torch.tensor(0.7))
    scales = (s_x, s_y) if axes == 2 else ((s_x * s_y) ** 0.5,)
    for channel, s in enumerate(scales):
        mine = geometry.margin_px(back.log_precision[0, channel])
        torch.testing.assert_close(mine, (margin / s).expand_as(mine), rtol=1e-4, atol=0)
    torch.testing.assert_close(back.seed, torch.full((1, 1, height, width), 0.25))


def test_worked_example_of_the_docstring() -> None:
    maps = Embeddings(*(torch.full((1, 1, 8, 8), v) for v in (30 / UNIT, 0.6, 0.5)))
    maps = maps._replace(offset=maps.offset.expand(1, 2, 8, 8))
    back = map_back(maps, (4, 4))
    assert back.offset[0, 0, 0, 0] * UNIT == pytest.approx(15)
    assert back.log_precision[0, 0, 0, 0] == pytest.approx(0.7386, abs=1e-4)


def test_seeds_are_averaged_over_what_became_one_pixel() -> None:
    """Not sampled: of a fine checkerboard every pixel is grey."""
    fine = (torch.arange(32)[:, None] + torch.arange(32)) % 2
    maps = Embeddings(
        torch.zeros(1, 2, 32, 32), torch.zeros(1, 1, 32, 32), fine[None, None].float()
    )
    assert map_back(maps, (8, 8)).seed[..., 1:-1, 1:-1].sub(0.5).abs().max() < 0.02


@pytest.mark.parametrize("size", [(16, 24), (5, 3), (8, 12)])
def test_resize_keeps_a_constant(size: tuple[int, int]) -> None:
    resized = resize(torch.full((1, 3, 8, 12), 0.3), size)
    torch.testing.assert_close(resized, torch.full((1, 3, *size), 0.3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_agrees_with_the_cpu_and_with_itself() -> None:
    x = images(2, 3, 37, 50)
    cuda = torch.device("cuda")
    run = torch_engine(new_net(), device=cuda, scale=1.5)
    first, again = run(x), run(x)
    for a, b, c in zip(
        first, again, torch_engine(new_net(), device=CPU, scale=1.5)(x), strict=True
    ):
        assert torch.equal(a, b)
        torch.testing.assert_close(a.cpu(), c, rtol=1e-3, atol=1e-4)
