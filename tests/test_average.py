"""Averaged weights, weights to start from, and the schedule that a limit of time bends."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from spatialembed.errors import SpatialEmbedError
from spatialembed.inference import model_file
from spatialembed.inference.model_file import ModelInfo
from spatialembed.method.cluster import ClusterOptions
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.training.options import StageOptions, TrainOptions
from spatialembed.training.run_folder import checkpoint_path, read_checkpoint
from spatialembed.training.setup import SEED_OUTPUT, start_from
from spatialembed.training.step import TrainingModule, WeightAverage
from spatialembed.training.train import train
from spatialembed.types import Network, Normalization


def lite(classes: int = 1) -> SpatialEmbeddingNet:
    return SpatialEmbeddingNet(classes, True, "lite")


def saved(folder: Path, classes: int = 2, network: Network = "lite") -> str:
    names = tuple("abcdef"[:classes])
    info = ModelInfo(names, True, Normalization(), ClusterOptions(), network=network)
    return str(model_file.save(folder, SpatialEmbeddingNet(classes, True, network), info))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures of four squares each."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (root / part).mkdir()
    for i in range(5):
        labels = np.zeros((48, 48), np.uint8)
        for k in range(4):
            y, x = 4 + 24 * (k // 2) + rng.integers(0, 6), 4 + 24 * (k % 2) + rng.integers(0, 6)
            labels[y : y + 12, x : x + 12] = k + 1
        grey = np.where(labels > 0, 180, 30) + rng.normal(0, 5, labels.shape)
        Image.fromarray(grey.astype(np.uint8)).save(root / "images" / f"{i}.png")
        Image.fromarray(labels).save(root / "masks" / f"{i}.png")
    return root


def options(data: Path, out: Path, **more: object) -> TrainOptions:
    settings: dict[str, object] = {
        "data": str(data),
        "out": str(out),
        "name": "run",
        "network": "lite",
        "stage1": StageOptions(crop=32, epochs=4, batch=2, crops=4),
        "workers": 0,
        "device": "cpu",
        "validate_every": 10,
    }
    return TrainOptions(**(settings | more))  # type: ignore[arg-type]


def test_the_mean_of_the_weights() -> None:
    """Against the recursion in numpy; counters are copied."""
    torch.manual_seed(0)
    net = lite()
    average = WeightAverage(net, 0.5)
    name = "encoder.stem.conv.weight"
    mean = net.state_dict()[name].double().numpy()
    for step in range(1, 6):
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter)
        net.encoder.stem.bn.num_batches_tracked.fill_(step)
        average.update(net)
        keep = min(0.5, (1 + step) / (10 + step))
        mean = keep * mean + (1 - keep) * net.state_dict()[name].double().numpy()
    found = average.net.state_dict()
    np.testing.assert_allclose(found[name].numpy(), mean, rtol=1e-5, atol=1e-6)
    assert int(found["encoder.stem.bn.num_batches_tracked"]) == 5
    other = WeightAverage(lite(), 0.5)
    other.load_state_dict(average.state_dict())
    assert other.steps == 5
    assert torch.equal(other.net.state_dict()[name], found[name])


@pytest.mark.slow
def test_averaged_weights_are_kept_and_go_on(data: Path, tmp_path: Path) -> None:
    """A run that was resumed half way has the bits of one that was not."""
    whole = train(options(data, tmp_path / "whole", average=0.9))
    net, info = model_file.load(whole / "model")
    assert info.network == "lite"
    last = read_checkpoint(checkpoint_path(whole, 4))
    mean: dict[str, Tensor] = last["average"]["net"]
    assert all(torch.equal(v, mean[k]) for k, v in net.state_dict().items())
    weights = last["state_dict"]
    assert any(not torch.equal(v, weights[f"net.{k}"]) for k, v in mean.items())

    half = train(options(data, tmp_path / "half", average=0.9))
    for done in (3, 4):
        checkpoint_path(half, done).unlink()
    train(TrainOptions(resume=str(half), workers=0))
    again, _ = model_file.load(half / "model")
    assert all(torch.equal(v, mean[k]) for k, v in again.state_dict().items())


def test_time_bends_the_schedule(data: Path, tmp_path: Path) -> None:
    schedule = options(data, tmp_path)
    assert schedule.lr(0, 0.0) == schedule.lr(0)
    assert schedule.lr(1, 0.5) == pytest.approx(5e-4 * 0.5**0.9)
    assert schedule.lr(3, 0.5) == schedule.lr(3)  # the epochs are further on
    assert schedule.lr(1, 7.0) == 0
    run = train(options(data, tmp_path, max_time=0.002))
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    assert rates[0] <= 5e-4
    assert len(rates) < 4


@pytest.mark.parametrize("minutes", [10.0, None], ids=["a limit", "no limit"])
def test_a_resumed_run_goes_on_from_its_learning_rate(
    minutes: float | None, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time was half over when it was stopped in the second of forty epochs."""
    now = [1000.0]
    monkeypatch.setattr("spatialembed.training.step.time.monotonic", lambda: now[0])
    stage = StageOptions(crop=32, epochs=40, batch=2)

    def module(limit: float | None) -> Any:
        settings = options(data, tmp_path, stage1=stage, max_time=limit)
        setup: Any = SimpleNamespace(run=tmp_path, options=settings)
        return TrainingModule(setup, lite())

    def rate(module: Any, epoch: int) -> float:
        group: dict[str, float] = {}
        module.trainer = SimpleNamespace(
            current_epoch=epoch,
            global_rank=0,
            optimizers=[SimpleNamespace(state={}, param_groups=[group])],
            strategy=SimpleNamespace(broadcast=lambda value: value),
        )
        if module.trainer_began:
            module.trainer_began = False
            module.on_train_start()
        module.on_train_epoch_start()
        return group["lr"]

    first = module(10.0)
    first.trainer_began = True
    assert rate(first, 0) == 5e-4
    now[0] += 300
    half = rate(first, 1)
    assert half == pytest.approx(5e-4 * 0.5**0.9)
    state: dict[str, Any] = {}
    first.on_save_checkpoint(state)
    second = module(minutes)
    second.on_load_checkpoint(state)
    second.trainer_began = True
    now[0] += 1e6  # some days later
    assert rate(second, 2) == pytest.approx(half)
    now[0] += 300
    assert rate(second, 21) == pytest.approx(5e-4 * 0.25**0.9, rel=0.01)


def test_weights_of_a_model_of_other_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = saved(tmp_path / "two", classes=2)
    net = lite(classes=3)
    own = {k: v.clone() for k, v in net.state_dict().items()}
    start_from(net, model, Normalization(), 1.0)
    source, _ = model_file.load(model)
    for name, tensor in net.state_dict().items():
        expected = own if name.startswith(SEED_OUTPUT) else source.state_dict()
        assert torch.equal(tensor, expected[name]), name


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    model = saved(tmp_path / "paper", classes=1, network="erfnet")
    with pytest.raises(SpatialEmbedError, match="network erfnet") as caught:
        start_from(lite(), model, Normalization(), 1.0)
    assert caught.value.code == "model_mismatch"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"network": "erfnet", "pretrained": "imagenet"}, "pretrained with network erfnet"),
        ({"init": "m", "pretrained": "imagenet"}, "pretrained and init together"),
        ({"average": 1.0}, "average is 1.0"),
        ({"normalization": Normalization(noise_floor=-1.0)}, "noise_floor is -1.0"),
    ],
)
def test_contradictions_are_named(
    settings: dict[str, object], words: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(SpatialEmbedError, match=words):
        options(data, tmp_path, **settings)


def test_the_network_is_that_of_the_model_to_start_from(data: Path, tmp_path: Path) -> None:
    init = saved(tmp_path / "model", classes=1)
    stage = StageOptions(crop=32, epochs=1, batch=2, crops=2)
    run = train(options(data, tmp_path, init=init, network=None, stage1=stage))
    assert model_file.load(run / "model")[1].network == "lite"


def test_weights_of_another_centre_are_refused(tmp_path: Path) -> None:
    """A learnable centre may lie anywhere: for a medoid its offsets are wrong by that much."""
    model = saved(tmp_path / "m", classes=1)
    net, info = model_file.load(model)
    facts = info.training | {"center": "learnable"}
    model_file.save(model, net, replace(info, training=facts))
    start_from(lite(classes=1), model, Normalization(), 1.0, "learnable")
    with pytest.raises(SpatialEmbedError, match="trained with center learnable") as caught:
        start_from(lite(classes=1), model, Normalization(), 1.0, "medoid")
    assert caught.value.code == "model_mismatch"
