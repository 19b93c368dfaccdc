"""Mask R-CNN beside ours: its targets, owners of pixels, fair turns, going on; end to end."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from spatialembed.baselines.detectors import detection_target
from spatialembed.evaluation.label_metrics import label_ap
from spatialembed.generated.nuclei_and_shapes import SyntheticDataset, write_folder
from spatialembed.types import Target

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
pytest.importorskip("torchvision")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_targets_of_mask_rcnn() -> None:
    labels = torch.zeros(6, 8, dtype=torch.int32)
    labels[1:4, 2:7] = 1
    labels[2, 3] = 2  # one pixel, inside the box of the first
    labels[5, 7] = labels[4, 7] = 3  # at the corner
    target = Target(labels, torch.tensor([1, 0, 1]), torch.zeros(6, 8, dtype=torch.bool))
    made = detection_target(target)
    assert made["boxes"].tolist() == [[2, 1, 7, 4], [3, 2, 4, 3], [7, 4, 8, 6]]
    assert made["labels"].tolist() == [2, 1, 2]
    assert made["boxes"].dtype == torch.float32
    assert made["masks"].dtype == torch.uint8
    assert made["masks"].sum((1, 2)).tolist() == [14, 1, 2]
    assert all(torch.equal(made["masks"][k] == 1, labels == k + 1) for k in range(3))
    nothing = Target(labels * 0, torch.zeros(0, dtype=torch.int64), target.ignore)
    made = detection_target(nothing)
    assert made["boxes"].shape == (0, 4)
    assert made["masks"].shape == (0, 6, 8)


def test_the_better_find_owns_a_pixel(script: Callable[[str], ModuleType]) -> None:
    contestants = script("contestants")
    masks = np.zeros((3, 1, 6), bool)
    masks[0, 0, :4] = masks[1, 0, 2:] = masks[2, 0, 5] = True
    detections = contestants.Detections(masks, np.array([0.9, 0.6, 0.2]), np.zeros(3, np.int64))
    assert contestants.owned(detections, 0.5).tolist() == [[1, 1, 1, 1, 2, 2]]
    assert contestants.owned(detections, 0.6).tolist() == [[1, 1, 1, 1, 2, 2]]
    assert contestants.owned(detections, 0.7).tolist() == [[1, 1, 1, 1, 0, 0]]
    swapped = detections._replace(scores=np.array([0.6, 0.9, 1.0]))
    assert contestants.owned(swapped, 0.5).tolist() == [[1, 1, 2, 2, 2, 3]]


def test_coco_ap_of_known_detections(script: Callable[[str], ModuleType]) -> None:
    """Truth scores 1; half of two objects 0.5 in recall; a half-true mask only at low IoU."""
    race_data, contestants = script("race_data"), script("contestants")
    sample = SyntheticDataset("nuclei", 96, 1)[0]
    labels = sample.target.labels.numpy()
    count = int(labels.max())
    masks = labels == np.arange(1, count + 1)[:, None, None]
    every = contestants.Detections(masks, np.linspace(1, 0.5, count), np.zeros(count, np.int64))

    def ap(detections: Any) -> dict[str, float]:
        scored = race_data.CocoAp()
        scored.add(0, sample, detections)
        figures: dict[str, float] = scored.figures()
        return figures

    assert ap(every) == pytest.approx({"ap": 1, "ap50": 1})
    half = contestants.Detections(*(v[: count // 2] for v in every))
    # COCO reads precision at 101 recalls: those up to the one that was reached count 1.
    reached = (np.linspace(0, 1, 101) <= (count // 2) / count).mean()
    assert ap(half) == pytest.approx({"ap": reached, "ap50": reached})
    none = contestants.Detections(*(v[:0] for v in every))
    assert ap(none) == {"ap": 0, "ap50": 0}


def test_a_flat_curve_ends_in_two_steps(script: Callable[[str], ModuleType]) -> None:
    race = script("race")
    augment = script("race_data").AugmentOptions()
    schedule = race.Schedule(tuple(range(1, 100)), 90.0, 2, 1, 32, 1, augment)
    now, seen = race.Standing(), []
    for ap in (0.1, 0.2, 0.2, 0.2, 0.3, 0.3, 0.3, 0.3):
        race.note(now, {"ap": ap}, schedule)
        seen.append((now.dropped_at, now.done))
        if now.done:
            break
    # Flat after the fourth: the rate falls. From then on 0.3 is new, and flat two scorings later.
    assert seen == [(None, False)] * 3 + [(4, False)] * 3 + [(4, True)]
    assert [point["images"] for point in now.curve] == [0] * 7
    fixed = race.Standing()
    for _ in range(3):
        race.note(fixed, {"ap": 0.0}, replace(schedule, marks=(1.0, 2.0, 3.0), patience=None))
    assert fixed.done
    assert fixed.dropped_at is None


def test_crops_are_the_same_for_both(script: Callable[[str], ModuleType]) -> None:
    """Crop n depends on n alone; every image comes once before any comes twice."""
    race, race_data = script("race"), script("race_data")
    images = SyntheticDataset("nuclei", 64, 5)
    recipe = replace(_recipe(script), classes=images.class_names)
    schedule = race.Schedule((1.0,), 1.0, None, 1, 32, 2, race_data.AugmentOptions())
    stream = race.Stream(images, recipe, schedule)
    first, later = stream.batches(0), stream.batches(4)
    batches = [next(first) for _ in range(3)]
    assert torch.equal(batches[2].images, next(later).images)
    names = [name for batch in [*batches, next(first), next(first)] for name in batch.names]
    assert sorted(names[:5]) == sorted(names[5:]) == sorted(images[i].name for i in range(5))


def _recipe(script: Callable[[str], ModuleType]) -> Any:
    contestants = script("contestants")
    how = script("race_data").Normalization()
    return contestants.Recipe(("nucleus",), how, 8, 20, 16, (4, 8, 16, 32, 64))


@pytest.fixture
def tiny(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Six images, a smaller backbone, half a second of training; the page that it renews."""
    race_data, docs = script("race_data"), tmp_path / "docs"
    data = tmp_path / "data" / "nuclei"
    write_folder(SyntheticDataset("nuclei", 64, 6), data, progress=False)
    names = sorted(path.stem for path in (data / "images").iterdir())
    (data / "index.csv").write_text("id,mosaic\n" + "".join(f"{n},{n}\n" for n in names))
    size = replace(race_data.SMALL, name="tiny", nuclei_crop=48, val=2, minutes=0.5 / 60)
    monkeypatch.setenv("SPATIALEMBED_DATA", str(data.parent))
    monkeypatch.setattr(script("mask_rcnn"), "SMALL", size)
    monkeypatch.setattr(script("mask_rcnn"), "RESULTS", tmp_path)
    monkeypatch.setattr(script("mask_rcnn"), "ROUNDS", 1)
    monkeypatch.setattr(script("mask_rcnn"), "TIMED", 1)
    # So early it would find hundreds of nothings, and draw a mask for each.
    monkeypatch.setattr(script("contestants"), "LEAST_SCORE", 0.9)
    monkeypatch.setattr(race_data, "SHARES", (1.0,))
    monkeypatch.setattr(race_data, "CHOOSING", 1)
    monkeypatch.setattr(script("contestants"), "RESNET", "resnet18")
    monkeypatch.setattr(script("race_report"), "DOCS", docs)
    docs.mkdir()
    page = docs / "mask_rcnn.md"
    page.write_text("before\n<!-- tiny -->\nold\n<!-- /tiny -->\nafter\n")
    return page


@pytest.mark.slow
def test_end_to_end(
    script: Callable[[str], ModuleType],
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Both learn, are scored at the same times, go on after an end, and reach tables and page."""
    mask_rcnn, race = script("mask_rcnn"), script("race")
    words = ["mask_rcnn.py", "--data", "nuclei", "--device", "cpu", "--runs", str(tmp_path / "r")]
    monkeypatch.setattr("sys.argv", words)

    class Cut(Exception):
        pass

    save, saved = race.save, []

    def save_and_end(*args: Any) -> None:
        save(*args)
        saved.append(args)
        raise Cut

    monkeypatch.setattr(race, "save", save_and_end)
    with pytest.raises(Cut):
        mask_rcnn.main()
    before = {name: list(standing.curve) for name, standing in saved[0][1].items()}
    assert sorted(map(len, before.values())) == [0, 1]
    monkeypatch.setattr(race, "save", save)
    mask_rcnn.main()
    stored = json.loads((tmp_path / "mask_rcnn_tiny.json").read_text())
    part = stored["parts"][0]
    for name, curve in part["curves"].items():
        assert curve[: len(before[name])] == before[name]
        assert len(curve) == 1
        assert curve[-1]["seconds"] >= 0.5
        assert curve[-1]["images"] >= 2
    assert part["parameters"]["Mask R-CNN"] > 30e6
    assert part["parameters"]["ours"] < 3e6
    assert set(part["labels"]) == {"Mask R-CNN", "ours"}
    text = tiny.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "ours, same time" in text
    assert (tmp_path / "docs" / "images" / "mask_rcnn_tiny.png").stat().st_size > 10_000
    monkeypatch.setattr(mask_rcnn, "trained", None)  # a finished part is not trained again
    capsys.readouterr()
    mask_rcnn.main()
    assert "At the end of training" in capsys.readouterr().out


def test_ap_at_the_same_images(script: Callable[[str], ModuleType]) -> None:
    at_images = script("race_report").at_images
    curve = [{"images": 10, "ap": 0.2, "ap50": 0.4}, {"images": 30, "ap": 0.4, "ap50": 0.4}]
    assert at_images(curve, 5) == pytest.approx({"images": 5, "ap": 0.1, "ap50": 0.2})
    assert at_images(curve, 20) == pytest.approx({"images": 20, "ap": 0.3, "ap50": 0.4})
    assert at_images(curve, 31) is None


def test_label_ap_of_own_truth(script: Callable[[str], ModuleType]) -> None:
    """Detections that are the truth, and a worse one below the cut, give AP 1."""
    race_data, contestants = script("race_data"), script("contestants")
    sample = SyntheticDataset("nuclei", 96, 1)[0]
    labels = sample.target.labels.numpy()
    count = int(labels.max())
    masks = np.concatenate([labels == np.arange(1, count + 1)[:, None, None], labels[None] == 0])
    scores = np.append(np.full(count, 0.8), 0.3)
    detections = contestants.Detections(masks, scores, np.zeros(count + 1, np.int64))
    assert race_data._label_aps([detections], [sample], 0.5) == pytest.approx(np.ones((1, 9)))
    low = race_data._label_aps([detections], [sample], 0.3)
    assert low == pytest.approx(np.full((1, 9), count / (count + 1)))
    assert label_ap(labels, labels).mean() == 1


def test_boxes_are_not_rounded_to_bfloat16(
    script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    contestants = script("contestants")
    monkeypatch.setattr(contestants, "RESNET", "resnet18")
    monkeypatch.setattr(contestants, "LEAST_SCORE", 0.0)
    recipe = replace(_recipe(script), min_pixels=0)
    image = np.random.default_rng(0).integers(0, 256, (64, 320, 3), np.uint8)
    found = contestants.MaskRcnn(recipe, torch.device("cpu")).segment(image)
    assert len(found["boxes"]) > 0
    assert found["boxes"].dtype == torch.float32
    assert not torch.equal(found["boxes"], found["boxes"].bfloat16().float())
    assert found["masks"].shape[1:] == (64, 320)


def test_streets_from_truth_score_one(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    """Detections that are the cars of the truth have AP 1 by the benchmark's own counting."""
    race_data, contestants = script("race_data"), script("contestants")
    size = replace(race_data.SMALL, images=5, street_hw=(192, 384), val=1)
    trial = race_data.streets(size, tmp_path, "none")
    assert (len(trial.train), len(trial.val)) == (4, 1)
    assert trial.recipe.classes == ("car",)
    assert trial.schedule.augment.rotate is False
    sample = trial.val[0]
    count = len(sample.target.classes)
    masks = sample.target.labels.numpy() == np.arange(1, count + 1)[:, None, None]
    counted = masks.sum((1, 2)) >= 100
    assert counted.any()

    def score(detections: Any) -> dict[str, float]:
        validation = trial.validation()
        validation.add(0, sample, detections)
        figures: dict[str, float] = validation.figures()
        return figures

    every = contestants.Detections(masks, np.full(count, 0.9), np.zeros(count, np.int64))
    assert score(every) == pytest.approx({"ap": 1, "ap50": 1})
    none = contestants.Detections(masks[:0], every.scores[:0], every.classes[:0])
    assert score(none) == {"ap": 0, "ap50": 0}
    again = race_data.streets(size, tmp_path, "none")  # nothing is drawn twice
    assert again.val.names == trial.val.names
