"""Running the network: any size, scale, precision and device; averaging over turns and flips."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from spatialembed import engine, geometry
from spatialembed.engine import (
    TorchEngine,
    average_over_turns,
    map_back,
    resize,
    resolve_device,
    resolve_precision,
    turn,
    turn_back,
)
from spatialembed.errors import SpatialEmbedError
from spatialembed.model import SpatialEmbeddingNet
from spatialembed.types import UNIT, Embeddings

CPU = torch.device("cpu")
ALL_TURNS = [(quarters, flip) for flip in (False, True) for quarters in range(4)]


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
    found = TorchEngine(net, device=CPU)(x)
    assert not net.training
    for ours, theirs in zip(found, net(x), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 2.0, 1.3, 0.5, 1 / 16])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 8), (33, 17)])
def test_maps_have_the_size_of_the_image(size: tuple[int, int], scale: float) -> None:
    maps = TorchEngine(new_net(), device=CPU, scale=scale)(images(2, 3, *size))
    assert [tuple(m.shape) for m in maps] == [(2, channels, *size) for channels in (2, 2, 2)]
    assert all(m.dtype == torch.float32 and bool(m.isfinite().all()) for m in maps)
    assert 0 <= maps.seed.min() <= maps.seed.max() <= 1


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_batched_equals_single(scale: float) -> None:
    run = TorchEngine(new_net(), device=CPU, scale=scale)
    x = images(3, 3, 20, 28)
    together = run(x)
    for i in range(3):
        for one, all_ in zip(run(x[i : i + 1]), together, strict=True):
            torch.testing.assert_close(one[0], all_[i], rtol=1e-4, atol=1e-5)


def test_same_input_same_bits() -> None:
    run = TorchEngine(new_net(), device=CPU, precision="bfloat16", scale=1.5)
    x = images(1, 3, 40, 24)
    assert all(torch.equal(a, b) for a, b in zip(run(x), run(x), strict=True))


@pytest.mark.parametrize("precision", [pytest.param("bfloat16", id="INF-07 bfloat16")])
def test_geometry_stays_float32(precision: engine.Precision) -> None:
    """The convolutions round to 8 bits, the maps do not: their values are not those of bfloat16."""
    x = images(1, 3, 64, 64)
    exact = TorchEngine(new_net(), device=CPU)(x)
    rough = TorchEngine(new_net(), device=CPU, precision=precision)(x)
    for a, b in zip(exact, rough, strict=True):
        assert b.dtype == torch.float32
        assert (b.bfloat16().float() == b).float().mean() < 0.2
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.05)
        assert not torch.equal(a, b)


@pytest.mark.parametrize("text", ["DefaultCPUAllocator: can't allocate memory", "CUDA"])
def test_memory_that_runs_out_is_named(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = TorchEngine(new_net(), device=CPU)

    def fail(_: Tensor) -> Embeddings:
        raise torch.OutOfMemoryError(text) if text == "CUDA" else RuntimeError(text)

    monkeypatch.setattr(run.net, "forward", fail)
    with pytest.raises(
        SpatialEmbedError, match=r"out_of_memory.*2 image\(s\) of 5 x 4 px"
    ) as caught:
        run(images(2, 3, 4, 5))
    assert caught.value.exit_code == 5


def test_other_faults_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    run = TorchEngine(new_net(), device=CPU)

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


# Turns and flips


def slopes(x: Tensor) -> Embeddings:
    """A network that turns with its image: offsets are the slopes of the first channel."""
    value = x[:, :1]
    s_x = value.roll(-1, -1) - value.roll(1, -1)
    s_y = value.roll(-1, -2) - value.roll(1, -2)
    return Embeddings(torch.cat((s_x, s_y), 1), torch.cat((s_x**2, s_y**2), 1), value)


def towards_marker(x: Tensor) -> Embeddings:
    """Every pixel points at the brightest one, found by its index."""
    _, _, height, width = x.shape
    at = int(x[0, 0].argmax())
    offset = one_centre(height, width, (at % width, at // width))
    raw = torch.stack((x[:, 1], x[:, 2]), 1)
    return Embeddings(offset, raw, x[:, :1])


@pytest.mark.parametrize(("quarters", "flip"), ALL_TURNS)
@pytest.mark.parametrize("size", [(5, 8), (6, 6), (1, 4)])
def test_each_turn_is_undone_exactly(quarters: int, flip: bool, size: tuple[int, int]) -> None:
    x = images(2, 3, *size)
    back = turn_back(slopes(turn(x, quarters, flip)), quarters, flip)
    for found, expected in zip(back, slopes(x), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(("quarters", "flip"), ALL_TURNS)
def test_vectors_keep_their_target(quarters: int, flip: bool) -> None:
    """The marker is looked up in the turned image: no formula of the turn is used to find it."""
    x = torch.zeros(1, 3, 5, 9)
    x[0, 0, 1, 6] = 1
    back = turn_back(towards_marker(turn(x, quarters, flip)), quarters, flip)
    target = geometry.embed(back.offset)[0] * UNIT
    torch.testing.assert_close(target[0], torch.full((5, 9), 6.0))
    torch.testing.assert_close(target[1], torch.full((5, 9), 1.0))


def test_the_eight_turns_differ() -> None:
    x = images(1, 3, 4, 4)
    turned = [turn(x, *t) for t in ALL_TURNS]
    assert not any(torch.equal(turned[i], turned[j]) for i in range(8) for j in range(i))


def test_precisions_swap_on_quarter_turns_only() -> None:
    tall = torch.tensor((1.0, 2.0)).view(1, 2, 1, 1)
    maps = Embeddings(torch.zeros(1, 2, 3, 3), tall.expand(1, 2, 3, 3), torch.zeros(1, 1, 3, 3))
    for quarters, flip in ALL_TURNS:
        first = turn_back(maps, quarters, flip).log_precision[0, 0, 0, 0]
        assert first == (2 if quarters % 2 else 1)


@pytest.mark.parametrize("run", [slopes, towards_marker])
def test_average_of_an_equivariant_network_is_its_own(run: Callable[[Tensor], Embeddings]) -> None:
    x = images(1, 3, 6, 9)
    x[:, 1:] = 0.5  # what towards_marker gives as precisions: the same on both axes
    for found, expected in zip(average_over_turns(run, x), run(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_average_removes_what_depends_on_the_direction() -> None:
    def biased(x: Tensor) -> Embeddings:
        offset = torch.tensor((0.1, 0.3)).view(1, 2, 1, 1).expand(1, 2, *x.shape[-2:])
        raw = torch.tensor((1.0, 2.0)).view(1, 2, 1, 1).expand(1, 2, *x.shape[-2:])
        return Embeddings(offset, raw, x[:, :1])

    maps = average_over_turns(biased, images(1, 3, 4, 6))
    torch.testing.assert_close(maps.offset, torch.zeros(1, 2, 4, 6), rtol=0, atol=1e-7)
    torch.testing.assert_close(maps.log_precision, torch.full((1, 2, 4, 6), 1.5))


# Device and precision


def test_auto_falls_back_with_a_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(engine, "_fault", lambda device: "driver too old" * (device.type == "cuda"))
    with caplog.at_level(logging.INFO, "spatialembed"):
        assert resolve_device("auto") == CPU
    assert [r.levelname for r in caplog.records] == ["WARNING", "INFO"]
    assert "cuda" in caplog.text
    assert "driver too old" in caplog.text


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_order(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, chosen: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(engine, "_fault", lambda _: "")
    assert resolve_device("auto").type == chosen


@pytest.mark.parametrize(("name", "code"), [("gpu", "unknown_device"), ("cuda:99", "no_device")])
def test_devices_that_are_not_there(name: str, code: str) -> None:
    with pytest.raises(SpatialEmbedError) as caught:
        resolve_device(name)
    assert (caught.value.code, caught.value.exit_code) == (code, 2)


def test_cpu_is_always_there() -> None:
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize("has", [True, False])
def test_auto_precision_asks_the_machine(monkeypatch: pytest.MonkeyPatch, has: bool) -> None:
    monkeypatch.setattr(engine, "_computes_bfloat16", lambda _: has)
    assert resolve_precision("auto", CPU) == ("bfloat16" if has else "float32")
    assert resolve_precision("float32", CPU) == "float32"
    assert resolve_precision("bfloat16", CPU) == "bfloat16"
    with pytest.raises(SpatialEmbedError, match="unknown_precision"):
        resolve_precision("half", CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_agrees_with_the_cpu_and_with_itself() -> None:
    x = images(2, 3, 37, 50)
    cuda = torch.device("cuda")
    run = TorchEngine(new_net(), device=cuda, scale=1.5)
    first, again = run(x), run(x)
    for a, b, c in zip(first, again, TorchEngine(new_net(), device=CPU, scale=1.5)(x), strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a.cpu(), c, rtol=1e-3, atol=1e-4)
