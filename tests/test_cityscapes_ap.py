"""The built-in AP of Cityscapes against the official tools, and scenes with a known answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from spatialembed.data.cityscapes_ids import IDS
from spatialembed.errors import SpatialEmbedError
from spatialembed.evaluation.cityscapes_ap import average_precision, mask_overlaps, overlaps
from spatialembed.types import Instances

CLASSES = tuple(IDS)


class Scene(NamedTuple):
    """Truth of one image, and detections that may overlap."""

    ids: np.ndarray
    masks: list[np.ndarray]
    names: list[str]
    scores: list[float]


def random_scene(rng: np.random.Generator, height: int = 60, width: int = 90) -> Scene:
    """Regions, void, caravans, groups, small instances; detections shifted, cut, doubled."""

    def box() -> np.ndarray:
        y, x = rng.integers(height), rng.integers(width)
        mask = np.zeros((height, width), bool)
        mask[y : y + rng.integers(2, height // 2), x : x + rng.integers(2, width // 2)] = True
        return mask

    ids = np.full((height, width), rng.choice([0, 7, 11, 21, 23, 29001]))
    for _ in range(rng.integers(4)):
        ids[box()] = rng.choice([0, 3, 4, 7, 11, 29, 29001, 30002, 16])
    some = CLASSES[:3]
    for number in range(rng.integers(7)):
        class_id = IDS[some[rng.integers(3)]]
        ids[box()] = class_id if rng.random() < 0.2 else class_id * 1000 + number
    scene = Scene(ids, [], [], [])
    for i in np.unique(ids):
        name = next((n for n, c in IDS.items() if c in (i, i // 1000)), None)
        for _ in range(rng.choice([0, 1, 1, 2]) if name else 0):
            mask = np.roll(ids == i, rng.integers(-2, 3), axis=0)
            scene.masks.append(mask & box() if rng.random() < 0.3 else mask)
            scene.names.append(str(name) if rng.random() < 0.9 else some[0])
    for _ in range(rng.integers(3)):
        scene.masks.append(box())
        scene.names.append(some[rng.integers(3)])
    # Few different scores: detections of one score enter the curve together.
    scene.scores.extend(rng.integers(11, size=len(scene.masks)) / 10)
    return scene


def official_ap(
    scenes: list[Scene], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> np.ndarray | None:
    """(C, 2) AP and AP50; None where the official tools fail, as no detection of a class counts."""
    # Of numpy before 2.4, which they still call.
    monkeypatch.setattr(np, "in1d", lambda a, b: np.isin(a, b).ravel(), raising=False)
    monkeypatch.setenv("CITYSCAPES_DATASET", str(folder))
    from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as official

    monkeypatch.setattr(official, "writeDict2JSON", lambda *_: None)
    truths, results = [], []
    for k, scene in enumerate(scenes):
        truths.append(folder / f"a_{k:06d}_000000_gtFine_instanceIds.png")
        Image.fromarray(scene.ids.astype(np.uint16)).save(truths[-1])
        lines = []
        for n, (mask, name, score) in enumerate(
            zip(scene.masks, scene.names, scene.scores, strict=True)
        ):
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{k}_{n}.png")
            lines.append(f"{k}_{n}.png {IDS[name]} {score}")
        results.append(folder / f"{k}.txt")
        results[-1].write_text("\n".join(lines))
    settings: dict[str, Any] = {
        "predictionPath": str(folder), "predictionWalk": None, "exportFile": None,
        "gtInstancesFile": str(folder / "truth.json"), "JSONOutput": False, "quiet": True,
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setattr(official.args, name, value)
    try:
        found = official.evaluateImgLists(
            [str(r) for r in results], [str(t) for t in truths], official.args
        )
    except IndexError:
        return None
    by_class = found["averages"]["classes"]
    return np.array([(by_class[name]["ap"], by_class[name]["ap50%"]) for name in CLASSES])


def own_ap(scenes: list[Scene]) -> np.ndarray:
    """(C, 2) AP and AP50."""
    images = [mask_overlaps(s.ids, s.masks, s.names, s.scores, CLASSES) for s in scenes]
    ap = average_precision(images, CLASSES)
    return np.stack((ap.mean(axis=1), ap[:, 0]), axis=1)


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_agrees_with_the_official_tools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    compared = 0
    for trial in range(110):
        scenes = [random_scene(rng) for _ in range(rng.integers(1, 8))]
        folder = tmp_path / str(trial)
        folder.mkdir()
        expected = official_ap(scenes, folder, monkeypatch)
        if expected is not None:
            np.testing.assert_allclose(own_ap(scenes), expected, rtol=0, atol=1e-9)
            compared += len(scenes)
    capsys.readouterr()
    assert compared >= 300


def test_label_image_and_masks_say_the_same() -> None:
    rng = np.random.default_rng(1)
    scene = random_scene(rng)
    labels = np.zeros(scene.ids.shape, np.int32)
    for n in range(4):
        labels[rng.integers(50) :, rng.integers(80) :] = n + 1
    classes, scores = rng.integers(8, size=4), np.sort(rng.random(4).astype(np.float32))[::-1]
    a = overlaps(scene.ids, Instances(labels, scores, classes, CLASSES), CLASSES)
    masks = [labels == n + 1 for n in range(4)]
    names = [CLASSES[c] for c in classes]
    b = mask_overlaps(scene.ids, masks, names, [float(s) for s in scores], CLASSES)
    np.testing.assert_array_equal(average_precision([a], CLASSES), average_precision([b], CLASSES))
    assert sum(len(o.scores) for o in a.values()) == len(np.unique(labels)) - 1


def perfect(ids: np.ndarray) -> Instances:
    numbers = np.unique(ids[ids >= 1000])
    labels = np.zeros(ids.shape, np.int32)
    for k, number in enumerate(numbers):
        labels[ids == number] = k + 1
    classes = np.array([list(IDS.values()).index(n // 1000) for n in numbers], np.int64)
    return Instances(labels, np.ones(len(numbers), np.float32), classes, CLASSES)


def test_truth_as_result_is_perfect() -> None:
    ids = np.zeros((40, 60), np.int64)
    ids[:20, :20], ids[:20, 30:50], ids[25:, :30], ids[30:, 40:] = 26001, 26002, 24001, 26
    ap = average_precision([overlaps(ids, perfect(ids), CLASSES)], CLASSES)
    by_name = dict(zip(CLASSES, ap, strict=True))
    assert (by_name["car"] == 1).all()
    assert (by_name["person"] == 1).all()
    assert np.isnan(by_name["bus"]).all()


@pytest.mark.parametrize(
    ("region", "expected"),
    [(26, 1.0), (24, 0.25), (4, 1.0), (7, 0.25), (29001, 0.25)],
    ids=["group", "group of another class", "void", "road", "numbered caravan"],
)
def test_find_beside_the_truth(region: int, expected: float) -> None:
    """A better-scored car in a region: excused in a group of cars and in void, else it counts."""
    ids = np.full((40, 60), 7)
    ids[:20, :20], ids[:20, 30:50] = 26001, region
    labels = np.zeros(ids.shape, np.int32)
    labels[:20, 30:50], labels[:20, :20] = 1, 2
    found = Instances(labels, np.array([0.9, 0.8], np.float32), np.zeros(2, np.int64), ("car",))
    ap = average_precision([overlaps(ids, found, ["car"])], ["car"])
    # If it counts: (recall, precision) (0, 1), (0, 0), (1, 1/2), of which the last weighs a half.
    np.testing.assert_allclose(ap[0], expected)


def test_refuses_other_sizes_and_classes() -> None:
    found = Instances(
        np.ones((2, 2), np.int32), np.ones(1, np.float32), np.zeros(1, np.int64), ("cat",)
    )
    with pytest.raises(SpatialEmbedError, match="unknown_class"):
        overlaps(np.zeros((2, 2), int), found, ["car"])
    with pytest.raises(SpatialEmbedError, match="size_mismatch"):
        overlaps(np.zeros((2, 3), int), found, ["car"])
