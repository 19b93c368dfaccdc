"""Parts without one of the model's classes, parts with images of one name, ids to be ignored."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spatialembed.data.folder import open_folder
from spatialembed.data.open import open_data, with_classes_of
from spatialembed.errors import SpatialEmbedError
from spatialembed.evaluation.evaluate import evaluate
from spatialembed.method.cluster import ClusterOptions
from spatialembed.options import DataOptions
from spatialembed.training.options import TrainOptions
from spatialembed.training.train import open_split
from spatialembed.types import Instances

BOXES = {1: np.s_[2:10, 2:10], 2: np.s_[14:26, 2:14], 3: np.s_[14:26, 16:30]}


def folder(root: Path, images: Mapping[str, Sequence[int]]) -> Path:
    """Images of 32 px with squares of these ids."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for name, ids in images.items():
        mask = np.zeros((32, 32), np.uint8)
        for number in ids:
            mask[BOXES[number]] = number
        Image.fromarray(mask * 60).save(root / "images" / f"{name}.png")
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    return root


def table(root: Path, rows: Sequence[str]) -> None:
    (root / "classes.csv").write_text("\n".join(("image,id,class", *rows)) + "\n")


class Answers:
    """A model of the classes a, b, c that finds in each image what it is told to."""

    settings, engine = ClusterOptions(), None
    info = SimpleNamespace(class_names=("a", "b", "c"), split=None)

    def __init__(self, classes: Mapping[int, int]) -> None:
        self.classes = classes

    def __call__(self, image: np.ndarray) -> Instances:
        labels = np.zeros(image.shape[:2], np.int32)
        for k, number in enumerate(self.classes, start=1):
            labels[BOXES[number]] = k
        classes = np.array(list(self.classes.values()), np.int64)
        scores = np.linspace(0.9, 0.8, len(classes)).astype(np.float32)
        return Instances(labels, scores, classes, self.info.class_names)


def test_a_class_without_truth_is_left_out(tmp_path: Path) -> None:
    """Names tell the classes: the c of the data is the third of the model, whatever its number."""
    root = folder(tmp_path / "d", {"x": [1, 2], "y": [1]})
    table(root, ["x,1,c", "x,2,a", "y,1,c"])
    dataset = with_classes_of(Answers.info.class_names, open_folder(root))
    assert dataset.class_names == ("a", "b", "c")
    predictor: Any = Answers({1: 2, 2: 0, 3: 1})  # all of x and, wrongly, a b in both
    report = evaluate(predictor, dataset, progress=False)
    said = report.to_dict()
    assert said["by_class"]["c"]["mean_ap"] == 1
    assert said["by_class"]["b"]["mean_ap"] is None
    assert said["by_class"]["b"]["pooled"]["fp"][0] == 2
    assert said["by_class"]["a"]["mean_ap"] == 0.5  # found in y too, where it is not
    assert said["mean_over_images"]["mean_ap"] == 0.75
    other = folder(tmp_path / "other", {"x": [1]})
    table(other, ["x,1,d"])
    with pytest.raises(SpatialEmbedError) as caught:
        evaluate(predictor, with_classes_of(("a", "b", "c"), open_folder(other)), progress=False)
    assert caught.value.code == "class_mismatch"


def test_a_coco_file_with_fewer_categories(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "images" / "x.png")
    square = [[2, 2, 10, 2, 10, 10, 2, 10]]
    facts = {
        "images": [{"id": 1, "file_name": "x.png", "height": 32, "width": 32}],
        "categories": [{"id": 7, "name": "c"}, {"id": 9, "name": "a"}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": c, "segmentation": square}
            for n, c in ((1, 7), (2, 9))
        ],
    }
    facts["annotations"][1]["segmentation"] = [[14, 14, 26, 14, 26, 26, 14, 26]]  # type: ignore[index]
    (tmp_path / "x.json").write_text(json.dumps(facts))
    coco = open_data(tmp_path / "x.json")
    assert coco.class_names == ("c", "a")
    assert sorted(coco.truth(0).classes.tolist()) == [0, 1]
    dataset = with_classes_of(("a", "b", "c"), coco)
    assert dataset.class_names == ("a", "b", "c")
    at = dataset.truth(0).labels[3, 3] - 1
    assert dataset.truth(0).classes[at] == 2
    assert dataset.truth(0).classes[1 - at] == 0


def test_training_takes_a_validation_part_without_a_class(tmp_path: Path) -> None:
    folder(tmp_path / "train", {"x": [1, 2, 3]})
    table(tmp_path / "train", ["x,1,a", "x,2,b", "x,3,c"])
    folder(tmp_path / "val", {"y": [1, 2]})
    table(tmp_path / "val", ["y,1,c", "y,2,a"])
    train, val = open_split(TrainOptions(data=str(tmp_path)))
    assert train.class_names == val.class_names == ("a", "b", "c")
    assert val.truth(0).classes.tolist() == [2, 0]


def test_images_of_one_name_are_told_apart_by_part(tmp_path: Path) -> None:
    folder(tmp_path / "train", {"x": [1, 2]})
    folder(tmp_path / "val", {"x": [1]})
    table(tmp_path, ["train/x,1,a", "train/x,2,b", "val/x.png,1,b"])
    train, val = open_split(TrainOptions(data=str(tmp_path)))
    assert train.truth(0).classes.tolist() == [0, 1]
    assert val.truth(0).classes.tolist() == [1]


def test_an_id_can_be_ignored(tmp_path: Path) -> None:
    root = folder(tmp_path, {"x": [1, 2, 3]})
    whole, part = open_folder(root)[0], open_folder(root, reading=DataOptions(ignore_id=2))[0]
    assert not whole.target.ignore.any()
    assert part.target.ignore[BOXES[2]].all()
    assert int(part.target.ignore.sum()) == 12 * 12
    assert part.ids is not None
    assert part.ids.tolist() == [1, 3]
    by_setting, _ = open_split(TrainOptions(data=str(both_parts(tmp_path)), ignore_id=2))
    assert by_setting[0].target.ignore[BOXES[2]].all()


def both_parts(root: Path) -> Path:
    folder(root / "parts" / "train", {"x": [1, 2]})
    folder(root / "parts" / "val", {"y": [1]})
    return root / "parts"
