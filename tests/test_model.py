"""The network: names, shapes, first outputs, any size, and a gradient for every parameter."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.method.networks.erfnet import BATCH_NORM_EPS, pad_to_stride

Shapes = dict[str, tuple[int, ...]]


@pytest.fixture(scope="module")
def net() -> SpatialEmbeddingNet:
    """Weights that have left their start, in evaluation mode."""
    torch.manual_seed(0)
    net = SpatialEmbeddingNet(3)
    nn.init.normal_(net.decoders[0].output_conv.weight, std=0.1)  # type: ignore[union-attr]
    return net.eval()


def norm(name: str, channels: int) -> Shapes:
    vectors = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{v}": (channels,) for v in vectors} | {f"{name}.num_batches_tracked": ()}


def conv(name: str, *shape: int, bias: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": (bias,)}


def down(name: str, inputs: int, outputs: int) -> Shapes:
    kernels = outputs - inputs  # the rest is the max-pool
    return conv(f"{name}.conv", kernels, inputs, 3, 3, bias=kernels) | norm(f"{name}.bn", outputs)


def residual(name: str, c: int) -> Shapes:
    shapes: Shapes = {}
    for half in (1, 2):
        shapes |= conv(f"{name}.conv3x1_{half}", c, c, 3, 1, bias=c)
        shapes |= conv(f"{name}.conv1x3_{half}", c, c, 1, 3, bias=c)
        shapes |= norm(f"{name}.bn{half}", c)
    return shapes


def up(name: str, inputs: int, outputs: int) -> Shapes:
    return conv(f"{name}.conv", inputs, outputs, 3, 3, bias=outputs) | norm(f"{name}.bn", outputs)


def expected_shapes(outputs: tuple[int, int]) -> Shapes:
    """Name and shape of every weight of the branched ERFNet, from the description of its layers."""
    shapes = down("encoder.initial_block", 3, 16) | down("encoder.layers.0", 16, 64)
    for i in range(1, 6):
        shapes |= residual(f"encoder.layers.{i}", 64)
    shapes |= down("encoder.layers.6", 64, 128)
    for i in range(7, 15):
        shapes |= residual(f"encoder.layers.{i}", 128)
    for d, channels in enumerate(outputs):
        layers = f"decoders.{d}.layers"
        shapes |= up(f"{layers}.0", 128, 64)
        shapes |= residual(f"{layers}.1", 64) | residual(f"{layers}.2", 64)
        shapes |= up(f"{layers}.3", 64, 16)
        shapes |= residual(f"{layers}.4", 16) | residual(f"{layers}.5", 16)
        shapes |= conv(f"decoders.{d}.output_conv", 16, channels, 2, 2, bias=channels)
    return shapes


@pytest.mark.parametrize(("classes", "elliptical"), [(1, False), (1, True), (8, True)])
def test_names_and_shapes(classes: int, elliptical: bool) -> None:
    state = SpatialEmbeddingNet(classes, elliptical).state_dict()
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert found == expected_shapes((4 if elliptical else 3, classes))


def test_names_and_shapes_are_those_of_the_released_checkpoint(data_root: Path) -> None:
    path = data_root.parent / "released_checkpoint_keys.txt"
    if not path.is_file():
        pytest.skip("no list of the released checkpoint's names")
    listed = dict(re.findall(r"^(\S+) \((.*)\)$", path.read_text(), re.MULTILINE))
    released = {
        name: tuple(int(n) for n in re.findall(r"\d+", shape))
        for name, shape in listed.items()
        if not name.startswith("encoder.output_conv.")  # which nothing uses
    }
    assert released == expected_shapes((3, 1))


def test_parameter_count() -> None:
    net = SpatialEmbeddingNet(1, elliptical=False)  # 3 + 1 outputs
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(2.25e6, rel=0.005)


def test_settings_that_names_do_not_show() -> None:
    net = SpatialEmbeddingNet(1)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {m.eps for m in norms} == {BATCH_NORM_EPS}
    dropouts = [m.p for m in net.encoder.modules() if isinstance(m, nn.Dropout2d)]
    assert dropouts == [0.03] * 5 + [0.3] * 8
    dilations = [b.conv1x3_2.dilation for b in net.encoder.layers[7:]]  # type: ignore[union-attr]
    assert dilations == [(1, d) for d in (2, 4, 8, 16)] * 2


@pytest.mark.parametrize("elliptical", [False, True])
def test_first_outputs(elliptical: bool) -> None:
    """Each pixel starts as its own centre with a margin of 5.7 px, whatever the picture."""
    net = SpatialEmbeddingNet(2, elliptical)
    maps = net(torch.rand(2, 3, 16, 24))
    assert not maps.offset.any()
    assert bool((maps.log_precision == 1).all())
    assert [tuple(m.shape[1:]) for m in maps] == [
        (2, 16, 24), (2 if elliptical else 1, 16, 24), (2, 16, 24),
    ]  # fmt: skip
    assert bool(((maps.seed > 0) & (maps.seed < 1)).all())


@pytest.mark.parametrize("size", [*range(1, 34)], ids=lambda n: f"INF-08 {n}")
def test_maps_have_the_size_of_the_image(size: int, net: SpatialEmbeddingNet) -> None:
    with torch.inference_mode():
        for height, width in ((size, 9), (9, size)):
            maps = net(torch.rand(1, 3, height, width))
            assert all(m.shape[-2:] == (height, width) for m in maps)
            assert all(m.dtype == torch.float32 and bool(m.isfinite().all()) for m in maps)


def test_padding_repeats_the_border_and_is_cut_off(net: SpatialEmbeddingNet) -> None:
    image = torch.rand(1, 3, 13, 22)
    padded = image[..., [*range(13), 12, 12, 12], :][..., [*range(22), 21, 21]]
    assert torch.equal(pad_to_stride(image), padded)
    assert pad_to_stride(padded) is padded
    with torch.inference_mode():
        for whole, part in zip(net(padded), net(image), strict=True):
            torch.testing.assert_close(whole[..., :13, :22], part, rtol=1e-4, atol=1e-5)


def test_images_of_a_batch_do_not_know_each_other(net: SpatialEmbeddingNet) -> None:
    images = torch.rand(3, 3, 16, 16)
    with torch.inference_mode():
        together = net(images)
        for i in range(3):
            for whole, alone in zip(together, net(images[i : i + 1]), strict=True):
                torch.testing.assert_close(whole[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def test_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(1)
    net = SpatialEmbeddingNet(2)
    nn.init.normal_(net.decoders[0].output_conv.weight, std=0.1)  # type: ignore[union-attr]
    for layer in net.modules():
        if isinstance(layer, nn.Dropout2d):
            layer.p = 0.0
    maps = net(torch.rand(2, 3, 32, 32))
    # Weights of random size: a plain sum over a map has no gradient behind a batch-norm.
    torch.stack([(m * torch.randn_like(m)).sum() for m in maps]).sum().backward()
    without = {name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == set()


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_maps_are_float32_under_autocast(dtype: torch.dtype, net: SpatialEmbeddingNet) -> None:
    with torch.inference_mode(), torch.autocast("cpu", dtype):
        assert all(m.dtype == torch.float32 for m in net(torch.rand(1, 3, 16, 16)))


def test_a_network_without_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="num_classes is 0"):
        SpatialEmbeddingNet(0)
