"""The demonstration: its yardsticks are right, and what it prints is what it found."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data, measure

from spatialembed.command import demo
from spatialembed.errors import SpatialEmbedError
from spatialembed.generated.nuclei_and_shapes import SyntheticDataset, nuclei_field
from spatialembed.inference import model_file
from spatialembed.method.cluster import ClusterOptions
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.training.options import StageOptions, TrainOptions
from spatialembed.types import Instances, Normalization


def instances(labels: np.ndarray) -> Instances:
    count = int(labels.max())
    return Instances(
        labels, np.linspace(1, 0.5, count, dtype=np.float32), np.zeros(count, np.int64), ("object",)
    )


class Oracle:
    """Answers with given labels for an image of their size, and with nothing for any other."""

    info = model_file.ModelInfo(("object",), True, Normalization(), ClusterOptions())
    device = "an oracle"

    def __init__(self, labels: np.ndarray) -> None:
        self.labels = labels

    def __call__(self, image: np.ndarray) -> Instances:
        fits = image.shape == self.labels.shape
        return instances(self.labels if fits else np.zeros(image.shape, np.int32))


# ---------------------------------------------------------------- yardsticks


def test_coins_truth_has_the_coins() -> None:
    labels = demo.coins_truth(data.coins())
    assert labels.shape == (303, 384)
    assert labels.dtype == np.int32
    regions = measure.regionprops(labels)
    assert [region.label for region in regions] == list(range(1, demo.COINS + 1))
    for region in regions:
        assert 1000 < region.area < 3300
        assert region.eccentricity < 0.65  # near a disc
        assert region.area / region.area_convex > 0.94
    # Four rows of six, as in the photograph.
    rows = np.sort([region.centroid[0] for region in regions]).reshape(4, 6)
    assert (rows.max(1) - rows.min(1) < 40).all()
    assert (np.diff(rows.mean(1)) > 60).all()


def slow_touching(labels: np.ndarray) -> int:
    height, width = labels.shape
    found = set()
    for y in range(height):
        for x in range(width):
            for other in labels[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].ravel():
                if labels[y, x] and other and other != labels[y, x]:
                    found.add(int(labels[y, x]))
    return len(found)


def test_fresh_scenes_are_crowded_and_new() -> None:
    fresh = list(demo.fresh_scenes(3, seed=0))
    assert len(fresh) == 3
    assert all(slow_touching(scene.target.labels.numpy()) >= demo.CROWD for scene in fresh)
    trained_on = SyntheticDataset("shapes", 256, 6, seed=0)
    for scene in fresh:
        assert not any(np.array_equal(scene.image, trained_on[i].image) for i in range(6))


# ---------------------------------------------------------------- bundled models


@pytest.fixture
def oracles(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def install(**labels: np.ndarray) -> None:
        monkeypatch.setattr(demo, "load", lambda name: Oracle(labels[name]))

    return install


def test_demo_says_what_was_found(
    oracles: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    field = nuclei_field(384, 512, seed=3).target.labels.numpy()
    coins = demo.coins_truth(data.coins())
    coins[coins == 24] = 0  # one is missed
    coins[:3, :3] = 24  # and a speck is taken for one
    oracles(nuclei=field, shapes=coins)
    demo.demo(tmp_path, seed=3)
    said = capsys.readouterr().out
    assert f"{field.max()} objects" in said
    assert "mean AP (IoU .50 to .90) 1.000, AP50 1.000" in said
    assert "23 of the 24 coins" in said
    assert "1 other detections: no coin" in said
    assert str(tmp_path / "nuclei_overlay.png") in said
    assert str(tmp_path / "coins_overlay.png") in said
    for name, labels in (("nuclei", field), ("coins", coins)):
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"{name}_labels.png")), labels)
        assert (tmp_path / f"{name}_overlay.png").is_file()
    with (tmp_path / "objects.csv").open(newline="") as file:
        images = [row["image"] for row in csv.DictReader(file)]
    assert images == ["nuclei"] * int(field.max()) + ["coins"] * 24
    coco = json.loads((tmp_path / "instances.json").read_text())
    assert len(coco["annotations"]) == field.max() + 24


def test_nothing_found_is_said_too(
    oracles: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    oracles(nuclei=np.zeros((384, 512), np.int32), shapes=np.zeros((303, 384), np.int32))
    demo.demo(tmp_path)
    said = capsys.readouterr().out
    assert "0 of the 24 coins" in said
    assert "AP50 0.000" in said


@pytest.mark.slow
def test_a_real_model_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    silent = ClusterOptions(start=1.0)  # an untrained network: it must run, not find
    info = model_file.ModelInfo(("object",), True, Normalization(), silent)
    model = model_file.save(tmp_path / "model", SpatialEmbeddingNet(1), info)
    demo.demo(tmp_path / "out", nuclei=model, shapes=model)
    assert "of the 24 coins" in capsys.readouterr().out


def test_a_missing_model_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(SpatialEmbedError) as caught:
        demo.demo(tmp_path / "out", nuclei="no_such_model")
    assert (caught.value.code, caught.value.exit_code) == ("no_model", 4)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- training


@pytest.mark.slow
def test_train_demo_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole way, far too short to learn: what it writes and says."""

    def short(data: Path, runs: Path, name: str, seed: int = 0) -> TrainOptions:
        return TrainOptions(
            data=str(data),
            out=str(runs),
            name=name,
            seed=seed,
            stage1=StageOptions(crop=32, epochs=1, batch=4),
            device="cpu",
            workers=0,
        )

    monkeypatch.setattr(demo, "training_options", short)
    monkeypatch.setattr(demo, "FRESH_SCENES", 1)
    ap50 = demo.train_demo(tmp_path, "first", seed=2, scenes=6)
    said = capsys.readouterr().out
    assert 0 <= ap50 <= 1
    assert f"AP50 {ap50:.3f}, mean over 1 fresh scenes" in said
    assert (tmp_path / "runs" / "first" / "curves.png").is_file()
    assert list((tmp_path / "runs" / "first" / "samples").glob("*.png"))
    assert (tmp_path / "fresh_00_overlay.png").is_file()
    assert (tmp_path / "objects.csv").is_file()


def test_the_short_training_starts_from_nothing() -> None:
    options: Any = demo.training_options(Path("d"), Path("r"), "n", seed=5)
    assert (options.stage1.crop, options.seed, options.data) == (128, 5, "d")
    assert options.init is None
