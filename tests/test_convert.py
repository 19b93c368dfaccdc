"""The released checkpoint: every name of it is known, and nothing in it is executed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_files import WRITERS, Bomb, new_net, same_weights
from spatialembed.errors import SpatialEmbedError
from spatialembed.inference.convert import convert
from spatialembed.inference.model_file import load
from spatialembed.method.cluster import ClusterOptions
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.types import Normalization


def refused(action: Callable[[], Any]) -> str:
    with pytest.raises(SpatialEmbedError) as caught:
        action()
    assert (caught.value.code, caught.value.exit_code) == ("bad_checkpoint", 4)
    assert caught.value.remedy
    return str(caught.value)


def released(net: SpatialEmbeddingNet, **more: Any) -> dict[str, Any]:
    """The released layout: numpy scalars among the metrics, a layer that we do not have."""
    state = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    state["module.encoder.output_conv.weight"] = torch.zeros(4, 128, 1, 1)
    state["module.encoder.output_conv.bias"] = torch.zeros(4)
    return {
        "epoch": 149,
        "best_iou": np.float64(0.7),
        "model_state_dict": state,
        "optim_state_dict": {"state": {}, "param_groups": [{"lr": np.float32(5e-4)}]},
        "logger_data": {"train": [np.float64(1.0)], "iou": np.arange(3.0)},
    } | more


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("classes", "elliptical"), [(1, False), (1, True), (8, True)])
def test_convert(tmp_path: Path, classes: int, elliptical: bool, zipped: bool) -> None:
    net = new_net(5, classes, elliptical)
    torch.save(released(net), tmp_path / "car.pth", _use_new_zipfile_serialization=zipped)
    folder = convert(tmp_path / "car.pth", tmp_path / "car")
    loaded, info = load(folder)
    assert same_weights(loaded, net)
    assert info.elliptical is elliptical
    assert info.class_names[0] == ("car" if classes == 1 else "class_1")
    assert info.normalization == Normalization("none")
    assert info.thresholds == ClusterOptions()
    assert info.training["licence"].startswith("CC BY-NC 4.0")
    assert "released checkpoint" in info.training["source"]


def test_convert_reads_numpy_of_before_version_2(tmp_path: Path) -> None:
    """Old files name numpy's module ``numpy.core``."""
    old = tmp_path / "old.pth"
    torch.save(released(new_net(0, 1)), old, _use_new_zipfile_serialization=False)
    data = old.read_bytes()
    assert b"numpy._core" in data
    old.write_bytes(data.replace(b"numpy._core", b"numpy.core"))
    convert(old, tmp_path / "car")


def test_convert_without_batch_counters(tmp_path: Path) -> None:
    contents = released(new_net(0, 1))
    state = contents["model_state_dict"]
    for name in [name for name in state if name.endswith("num_batches_tracked")]:
        del state[name]
    torch.save(contents, tmp_path / "car.pth")
    convert(tmp_path / "car.pth", tmp_path / "car")


def test_convert_knows_every_released_name(data_root: Path, tmp_path: Path) -> None:
    """The list of names and shapes taken from the released file itself."""
    listed = data_root.parent / "released_checkpoint_keys.txt"
    if not listed.is_file():
        pytest.skip(f"no {listed.name} beside the real data")
    state: dict[str, torch.Tensor] = {}
    for line in listed.read_text().splitlines():
        if line and not line.startswith("#"):
            name, shape = line.split(" ", 1)
            size = [int(n) for n in shape.strip("()").split(",") if n.strip()]
            kind = torch.int64 if name.endswith("num_batches_tracked") else torch.float32
            state[f"module.{name}"] = torch.full(size, 7).to(kind)
    assert len(state) > 300
    torch.save(released(new_net(0, 1), model_state_dict=state), tmp_path / "car.pth")
    net, info = load(convert(tmp_path / "car.pth", tmp_path / "car"))
    assert (net.num_classes, net.elliptical, info.class_names) == (1, False, ("car",))
    assert all(bool((tensor == 7).all()) for tensor in net.state_dict().values())


def change_state(**changes: Any) -> dict[str, Any]:
    contents = released(new_net(0, 1))
    for name, tensor in changes.items():
        key = "module." + name.replace("__", ".")
        if tensor is None:
            del contents["model_state_dict"][key]
        else:
            contents["model_state_dict"][key] = tensor
    return contents


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (lambda: [1, 2], "no model_state_dict"),
        (lambda: {"model_state_dict": {}}, "no model_state_dict"),
        (lambda: {"model_state_dict": {"a": 1}}, "named tensors"),
        (lambda: {"model_state_dict": {"a": torch.ones(1)}}, "0 and 0 outputs"),
        (lambda: change_state(stranger=torch.ones(1)), "stranger is not known"),
        (lambda: change_state(encoder__layers__1__bn1__bias=None), "bn1.bias is missing"),
        (lambda: change_state(encoder__layers__1__bn1__bias=torch.ones(3)), "bn1.bias is (3,)"),
        (lambda: change_state(encoder__layers__1__bn1__bias=torch.full((64,), torch.nan)), "NaN"),
        (lambda: change_state(decoders__0__output_conv__weight=torch.ones(16, 7, 2, 2)), "7 and 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_convert_refuses_other_contents(
    tmp_path: Path, contents: Callable[[], Any], said: str
) -> None:
    torch.save(contents(), tmp_path / "file.pth")
    action = lambda: convert(tmp_path / "file.pth", tmp_path / "out")  # noqa: E731
    assert said in refused(action)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda b: b"", id="empty"),
        pytest.param(lambda b: b[: len(b) // 2], id="half"),
        pytest.param(lambda b: b[:-1], id="a byte short"),
        pytest.param(lambda b: b"hello", id="text"),
        pytest.param(lambda b: b"PK\x03\x04" + b"\0" * 100, id="no zip"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_convert_refuses_damage(
    tmp_path: Path, damage: Callable[[bytes], bytes], zipped: bool
) -> None:
    file = tmp_path / "file.pth"
    torch.save(released(new_net(0, 1)), file, _use_new_zipfile_serialization=zipped)
    file.write_bytes(damage(file.read_bytes()))
    refused(lambda: convert(file, tmp_path / "out"))


def test_convert_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(SpatialEmbedError) as caught:
        convert(tmp_path / "none.pth", tmp_path / "out")
    assert (caught.value.code, caught.value.exit_code) == ("not_found", 3)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("name", ["released.pth", "model.safetensors", "nuclei"])
def test_no_pickle_is_executed_by_convert(
    tmp_path: Path, write: Callable[[Bomb, Path], None], name: str
) -> None:
    write(Bomb(tmp_path / "canary"), tmp_path / name)
    refused(lambda: convert(tmp_path / name, tmp_path / "out"))
    assert not (tmp_path / "canary").exists()
    assert not (tmp_path / "out").exists()
