"""Encoders of timm: their maps, folded form and model files; names that do not fit. Random weights:
none are downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spatialembed.errors import SpatialEmbedError
from spatialembed.inference import model_file
from spatialembed.inference.engines.folded import FoldedNet
from spatialembed.inference.model_file import ModelInfo
from spatialembed.method.cluster import ClusterOptions
from spatialembed.method.model import SpatialEmbeddingNet, parts_of
from spatialembed.method.networks.timm_encoder import TimmEncoder
from spatialembed.training.options import TrainOptions
from spatialembed.types import Normalization

pytest.importorskip("timm")


@pytest.mark.parametrize(
    ("name", "stride", "channels"),
    [
        ("timm:test_resnet", 32, (32, 32, 48, 192, 96)),
        ("timm:convnext_atto", 32, (16, 40, 80, 160, 320)),  # its own begin at stride 4
    ],
)
def test_maps_of_any_size(name: str, stride: int, channels: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net = SpatialEmbeddingNet(2, network=name).eval()
    assert isinstance(net.encoder, TimmEncoder)
    assert (net.stride, net.encoder.channels) == (stride, channels)
    maps = net.encoder(torch.rand(1, 3, 64, 96))
    assert [m.shape[1] for m in maps[1:]] == list(channels)
    assert [m.shape[2:] for m in maps] == [(64 // s, 96 // s) for s in (1, 2, 4, 8, 16, 32)]
    with torch.inference_mode():
        offset, log_precision, seed = net(torch.rand(1, 3, 45, 70))
    assert (offset.shape, log_precision.shape) == ((1, 2, 45, 70), (1, 2, 45, 70))
    assert seed.shape == (1, 2, 45, 70)
    assert (offset == 0).all()  # at initialisation, as of every network
    assert (log_precision == 1).all()


def test_pixels_as_its_weights_take_them() -> None:
    """test_resnet was trained on (x - 0.5) / 0.5."""
    encoder = SpatialEmbeddingNet(1, network="timm:test_resnet").eval().encoder
    x = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(encoder(x)[-1], encoder.body((x - 0.5) / 0.5)[-1])  # type: ignore[operator]


def test_folded_is_equal() -> None:
    torch.manual_seed(0)
    net = SpatialEmbeddingNet(1, network="timm:test_resnet")
    with torch.inference_mode():
        for _ in range(3):
            net(torch.rand(2, 3, 64, 64))  # statistics of their own
        net.eval()
        torch.nn.init.normal_(net._last_layer()[0], std=0.02)
        x = torch.rand(1, 3, 50, 61)
        for plain, folded in zip(net(x), FoldedNet(net)(x), strict=True):
            torch.testing.assert_close(folded, plain, atol=2e-5, rtol=1e-4)


def test_a_model_file_names_it(tmp_path: Path) -> None:
    net = SpatialEmbeddingNet(1, network="timm:test_resnet")
    options, grey = ClusterOptions(), Normalization()
    model_file.save(
        tmp_path / "m", net, ModelInfo(("cell",), True, grey, options, network=net.network)
    )
    loaded, info = model_file.load(tmp_path / "m")
    assert info.network == loaded.network == "timm:test_resnet"
    for name, tensor in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:no_such_network", "Unknown model"),
        ("timm:vit_tiny_patch16_224", "strides"),
        ("resnet18", "network is 'resnet18'"),
    ],
)
def test_names_that_do_not_fit(name: str, message: str) -> None:
    with pytest.raises(SpatialEmbedError, match=message) as caught:
        parts_of(name)
    assert caught.value.code == "bad_setting"


def test_settings_know_the_names() -> None:
    assert TrainOptions(data="x", network="timm:resnet18", pretrained="imagenet").network
    for network in ("unet", "timm:", "erfnet "):
        with pytest.raises(SpatialEmbedError, match="network is"):
            TrainOptions(data="x", network=network)


def test_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TimmEncoder("timm:test_resnet")
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("timm.create_model", unreachable)
    with pytest.raises(SpatialEmbedError, match="no network") as caught:
        encoder.load_pretrained()
    assert caught.value.code == "no_weights"
    assert all(torch.equal(encoder.state_dict()[name], old) for name, old in before.items())
