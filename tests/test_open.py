"""What --data means: a folder of masks or a COCO file, through training, evaluation, commands."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from spatialembed.command import main
from spatialembed.data.open import data_name, open_data, select
from spatialembed.errors import SpatialEmbedError
from spatialembed.evaluation.evaluate import evaluate
from spatialembed.inference import model_file
from spatialembed.inference.model_file import ModelInfo
from spatialembed.inference.predictor import Predictor
from spatialembed.method.cluster import ClusterOptions
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.options import PartOptions
from spatialembed.training.options import TrainOptions
from spatialembed.training.train import open_split
from spatialembed.types import Embeddings, Normalization

CLASSES = ("cat", "dog")


def square(number: int, image: int, category: int, at: int, side: int) -> dict[str, Any]:
    x, y = at, at + side
    corners = [[x, x, y, x, y, y, x, y]]
    return {"id": number, "image_id": image, "category_id": category, "segmentation": corners}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Six images of 48 px with two bright squares each, a cat and a dog."""
    folder = tmp_path / "pets"
    (folder / "images").mkdir(parents=True)
    images, objects = [], []
    for n in range(6):
        pixels = np.full((48, 48), 3 * n, np.uint8)
        pixels[4:16, 4:16], pixels[24:44, 24:44] = 200, 120
        Image.fromarray(pixels).save(folder / "images" / f"{n}.png")
        images.append({"id": n, "file_name": f"{n}.png", "height": 48, "width": 48})
        objects += [square(2 * n, n, 1, 4, 12), square(2 * n + 1, n, 2, 24, 20)]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    file = folder / "instances.json"
    file.write_text(
        json.dumps({"images": images, "annotations": objects, "categories": categories})
    )
    return file


def new_model(folder: Path, classes: tuple[str, ...]) -> Path:
    """An untrained model whose seed maps start nothing."""
    info = ModelInfo(classes, True, Normalization("none"), ClusterOptions(start=0.999))
    torch.manual_seed(0)
    model_file.save(folder, SpatialEmbeddingNet(len(classes)), info)
    return folder


def test_a_coco_file_is_split_like_a_folder(coco: Path) -> None:
    train, val = open_split(TrainOptions(data=str(coco), val_fraction=0.3, seed=4))
    assert (len(train), len(val)) == (4, 2)
    assert not set(train.names) & set(val.names)
    assert train.class_names == val.class_names == CLASSES
    held_out = select(PartOptions(data=str(coco), split="val", val_fraction=0.3, seed=4))
    assert held_out.names == val.names
    assert (
        select(PartOptions(data=str(coco), split="train", val_fraction=0.3, seed=4)).names
        == train.names
    )
    assert len(select(PartOptions(data=str(coco)))) == 6
    assert sorted(open_data(coco)[0].target.classes.tolist()) == [0, 1]


def test_the_same_picture_on_both_sides_is_said(
    coco: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """LBL-20 for COCO: each of four in training is each of two in validation."""
    first = (coco.parent / "images" / "0.png").read_bytes()
    for n in range(1, 6):
        (coco.parent / "images" / f"{n}.png").write_bytes(first)
    open_split(TrainOptions(data=str(coco), val_fraction=0.3))
    assert caplog.text.count("the same image in training and validation") == 8


def test_what_a_file_has_not(coco: Path) -> None:
    with pytest.raises(SpatialEmbedError, match="no_split"):
        select(PartOptions(data=str(coco), split="test"))
    with pytest.raises(SpatialEmbedError, match="no_column"):
        select(PartOptions(data=str(coco), group_by="patient"))


def test_the_folder_of_a_coco_file_names_the_file(coco: Path) -> None:
    with pytest.raises(SpatialEmbedError) as caught:
        open_data(coco.parent)
    assert caught.value.code == "no_layout"
    assert str(coco) in caught.value.remedy


@pytest.mark.slow
def test_train_and_evaluate_on_a_coco_file(coco: Path, tmp_path: Path) -> None:
    words = ["--stage1.crop=32", "--stage1.epochs=1", "--stage1.batch=2", "--workers=0"]
    words += ["--device=cpu", "--precision=float32", "--out", str(tmp_path / "runs")]
    assert main.main(["train", "--data", str(coco), *words]) == 0
    model = tmp_path / "runs" / "instances" / "model"
    assert model_file.load(model)[1].class_names == CLASSES
    words = ["--model", str(model), "--device=cpu", "--engine=torch", "--split=val"]
    out = tmp_path / "scores"
    assert main.main(["evaluate", "--data", str(coco), *words, "--out", str(out)]) == 0
    report = json.loads((out / "report.json").read_text())
    assert len(report["per_image"]) == 2


@pytest.mark.parametrize(
    ("change", "code"),
    [
        pytest.param({"images": 3}, "bad_json", id="LBL-21 no list"),
        pytest.param({"categories": []}, "bad_json", id="LBL-21 no class"),
        pytest.param(
            {"annotations": [square(31, 99, 1, 0, 5)]}, "bad_annotation", id="LBL-21 no image"
        ),
        pytest.param(
            {"annotations": [square(31, 0, 1, 0, 5) | {"segmentation": [[1, 2]]}]},
            "bad_annotation", id="LBL-21 polygon",
        ),
        pytest.param(None, "bad_json", id="LBL-21 cut short"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_a_broken_file_ends_the_command(
    verb: str,
    change: dict[str, Any] | None,
    code: str,
    coco: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = coco.read_text()
    coco.write_text(text[:99] if change is None else json.dumps(json.loads(text) | change))
    words = [verb, "--data", str(coco), "--out", str(tmp_path / "out"), "--device=cpu"]
    if verb == "evaluate":
        words += ["--model", str(new_model(tmp_path / "model", CLASSES)), "--engine=torch"]
    else:
        words += ["--workers=0", "--stage1.epochs=1", "--precision=float32"]
    assert main.main(words) == 3
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error {code}: {coco.parent}")
    assert ("annotation 31" in line) == (code == "bad_annotation")


@pytest.mark.slow
def test_photographs(data_root: Path, tmp_path: Path) -> None:
    """Four real ones, the classes of all, through the command."""
    names = open_data(data_root / "coco" / "instances.json").class_names
    data = json.loads((data_root / "coco" / "instances.json").read_text())
    data["images"] = data["images"][:4]
    kept = {image["id"] for image in data["images"]}
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] in kept]
    (tmp_path / "images").symlink_to(data_root / "coco" / "images")
    (tmp_path / "four.json").write_text(json.dumps(data))
    model = new_model(tmp_path / "model", names)
    words = ["--model", str(model), "--data", str(tmp_path / "four.json"), "--device=cpu"]
    words += ["--engine=torch", "--precision=float32", "--out", str(tmp_path / "scores")]
    assert main.main(["evaluate", *words]) == 0
    report = json.loads((tmp_path / "scores" / "report.json").read_text())
    assert len(report["per_image"]) == 4


@pytest.mark.slow
def test_all_photographs(data_root: Path) -> None:
    """All 62 through evaluation by a predictor that sees nothing: each object is missed."""
    dataset = open_data(data_root / "coco" / "instances.json")
    info = ModelInfo(dataset.class_names, True, Normalization("none"), ClusterOptions())
    predictor = Predictor(Blind(len(dataset.class_names)), info)  # type: ignore[arg-type]
    report = evaluate(predictor, dataset, progress=False)
    assert len(report.rows) == 62
    objects = sum(len(dataset[i].target.classes) for i in range(0, 62, 20))
    assert sum(len(report.rows[i].missed) for i in range(0, 62, 20)) == objects > 10
    assert report.mean_ap == 0


class Blind:
    """An engine that sees nothing, in any number of classes."""

    device = torch.device("cpu")
    scale = 1.0

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def __call__(self, images: Tensor) -> Embeddings:
        maps = images.new_zeros(len(images), 4 + self.classes, *images.shape[-2:])
        return Embeddings(maps[:, :2], maps[:, 2:4], maps[:, 4:])


def test_names_of_data_sets(tmp_path: Path) -> None:
    assert data_name(tmp_path / "cells.v2") == "cells.v2"
    assert data_name(tmp_path / "train.json") == "train"
    assert data_name("/") == "data"
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert data_name(loop) == "loop"


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems take text only")
def test_bytes_that_are_no_text_in_a_name() -> None:
    """IMG-29 for the data folder: its name goes into files and to TensorBoard."""
    assert data_name(os.fsdecode(b"/x/caf\xe9")) == "caf\ufffd"
