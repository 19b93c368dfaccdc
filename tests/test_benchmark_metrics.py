"""Evaluation as Cityscapes and COCO count, against their own tools, files in between included."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import shutil
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ideal_maps import oracle
from spatialembed.command import main
from spatialembed.data.cityscapes import CityscapesDataset, open_cityscapes
from spatialembed.data.cityscapes_ids import IDS
from spatialembed.data.coco import open_coco
from spatialembed.data.folder import open_folder
from spatialembed.errors import SpatialEmbedError
from spatialembed.evaluation.benchmark_report import BenchmarkReport
from spatialembed.evaluation.evaluate import evaluate
from spatialembed.generated.streets import generate_street
from spatialembed.method import labels
from spatialembed.results.cityscapes import write_result, write_upload
from spatialembed.types import Instances, Sample

CLASSES = tuple(IDS)
STREETS = (3, 14, 93)
"""Of seed 5, in which together every class has an instance that counts, some are too small to, and
persons and cars stand in groups."""


def write_street(root: Path, name: str, image: np.ndarray, ids: np.ndarray) -> None:
    for folder, kind, pixels in (
        ("leftImg8bit", "leftImg8bit", image),
        ("gtFine", "gtFine_instanceIds", ids.astype(np.uint16)),
    ):
        path = root / folder / "val" / name.split("_", maxsplit=1)[0] / f"{name}_{kind}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> CityscapesDataset:
    root = tmp_path_factory.mktemp("streets")
    for index in STREETS:
        street = generate_street(160, 320, 5, index)
        write_street(root, f"ahornfeld_{index:06d}_000019", street.image, street.ids)
    return open_cityscapes(root, split="val")


class Answers:
    """A predictor that answers each call with the next of the instances it was given."""

    def __init__(self, answers: Sequence[Instances], class_names: tuple[str, ...]) -> None:
        self._like = oracle([], class_names)
        self.info, self.settings, self.engine = self._like.info, self._like.settings, None
        self._answers = iter(answers)

    def __call__(self, image: np.ndarray) -> Instances:
        return next(self._answers)


def score(
    found: Sequence[Instances], dataset: Any, metric: Any, out: Path | None = None
) -> BenchmarkReport:
    predictor: Any = Answers(found, tuple(dataset.class_names))
    report = evaluate(predictor, dataset, metric, out=out, progress=False)
    assert isinstance(report, BenchmarkReport)
    return report


def disturbed(sample: Sample, rng: np.random.Generator, class_names: tuple[str, ...]) -> Instances:
    """The truth with objects left out, shifted, cut, of another class; some in the ignored."""
    height, width = sample.target.labels.shape
    found = np.zeros((height, width), np.int32)
    classes = []
    truth = sample.target.labels.numpy()
    for k, c in enumerate(sample.target.classes.tolist(), start=1):
        mask = np.roll(truth == k, rng.integers(-2, 3, size=2), (0, 1))
        if rng.random() < 0.2:
            mask[:, rng.integers(width) :] = False
        if rng.random() < 0.85 and mask.any():
            classes.append(c if rng.random() < 0.9 else int(rng.integers(len(class_names))))
            found[mask] = len(classes)
    for _ in range(3):
        y, x = rng.integers(height), rng.integers(width)
        classes.append(int(rng.integers(len(class_names))))
        found[y : y + 25, x : x + 25] = len(classes)
    found, kept = labels.relabel(found)
    # Few different scores: detections of one score enter the curve together.
    scores = np.sort(rng.integers(3, 11, size=len(kept)) / 10)[::-1].astype(np.float32)
    return Instances(found, scores, np.array(classes, np.int64)[kept - 1], class_names)


# ---------------------------------------------------------------- Cityscapes


def test_truth_through_maps_clusters_and_files_is_perfect(
    streets: CityscapesDataset, tmp_path: Path
) -> None:
    """Truth -> ideal maps -> clustering -> AP 1 of every class, files beside it."""
    targets = [streets.truth(i) for i in range(len(streets))]
    ids = np.unique(np.concatenate([streets.instance_ids(i).ravel() for i in range(len(streets))]))
    assert set(IDS.values()) & set(ids.tolist()), "no group"
    report = evaluate(
        oracle(targets, CLASSES, min_pixels=20), streets, "cityscapes", out=tmp_path, progress=False
    )
    np.testing.assert_array_equal(report.figures["AP"], np.ones(8))
    np.testing.assert_array_equal(report.figures["AP50"], np.ones(8))
    assert (report.counts["true"] > 0).all()
    texts = sorted((tmp_path / "results").glob("*.txt"))
    assert [path.stem for path in texts] == [f"ahornfeld_{i:06d}_000019" for i in STREETS]
    lines = [line.split(" ") for path in texts for line in path.read_text().splitlines()]
    assert len(lines) == report.counts["found"].sum() > report.counts["true"].sum()
    assert {int(class_id) for _, class_id, _ in lines} == set(IDS.values())


@pytest.mark.parametrize("seed", range(2))
def test_evaluators_agree_through_the_files(
    streets: CityscapesDataset, tmp_path: Path, seed: int
) -> None:
    """The figures are those that cityscapesScripts gives for the files written."""
    rng = np.random.default_rng(seed)
    found = [disturbed(streets[i], rng, CLASSES) for i in range(len(streets))]
    report = score(found, streets, "cityscapes", tmp_path)
    assert 0 < report.mean("AP") < 1
    theirs = own_entry(tmp_path, streets)
    for name in ("AP", "AP50"):
        entry = [theirs[c][name] for c in CLASSES]
        np.testing.assert_allclose(report.figures[name], entry, rtol=0, atol=1e-9)
    report.write(tmp_path)
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["mean"]["AP"] == report.mean("AP")
    assert written["by_class"]["car"]["AP50"] == report.figures["AP50"][2]
    assert f"{report.mean('AP'):.3f}" in shown(report)


def own_entry(folder: Path, streets: CityscapesDataset) -> dict[str, dict[str, float]]:
    """AP and AP50 by class, by the function behind the command line of cityscapesScripts."""
    import cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling as tools

    args = copy.copy(tools.args)
    args.predictionPath, args.predictionWalk = str(folder / "results"), None
    args.gtInstancesFile, args.JSONOutput = str(folder / "none.json"), False
    truths = [str(streets.ids_path(i)) for i in range(len(streets))]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(np, "in1d", lambda a, b: np.isin(a, b).ravel(), raising=False)
        patch.setattr(tools, "writeDict2JSON", lambda *_: None)
        found = tools.evaluateImgLists(
            [tools.getPrediction(truth, args) for truth in truths], truths, args
        )
    by_class = found["averages"]["classes"]
    return {c: {"AP": by_class[c]["ap"], "AP50": by_class[c]["ap50%"]} for c in CLASSES}


def shown(report: BenchmarkReport) -> str:
    """The table as a screen of 80 columns has it, in one line."""
    console = Console(file=io.StringIO(), width=80)
    console.print(report.table())
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "…" not in text
    return " ".join(text.split())


def square_scene(root: Path, ids: dict[tuple[int, int], int]) -> CityscapesDataset:
    """One image of road with squares of 20 px, of these ids, at these places (y, x)."""
    truth = np.full((40, 90), 7)
    for (y, x), number in ids.items():
        truth[y : y + 20, x : x + 20] = number
    write_street(root, "lindenberg_000000_000019", np.zeros((40, 90, 3), np.uint8), truth)
    return open_cityscapes(root, split="val", classes=["car", "person"])


def squares_found(*places: tuple[int, int], classes: Sequence[int]) -> Instances:
    found = np.zeros((40, 90), np.int32)
    for n, (y, x) in enumerate(places, start=1):
        found[y : y + 20, x : x + 20] = n
    scores = np.linspace(0.9, 0.8, len(places), dtype=np.float32)
    return Instances(found, scores, np.asarray(classes, np.int64), ("person", "car"))


def test_images_that_the_benchmark_cannot_tell_apart(tmp_path: Path) -> None:
    square_scene(tmp_path, {(0, 0): 26001})
    for part in ("leftImg8bit", "gtFine"):
        folder = tmp_path / part / "val"
        shutil.copytree(folder / "lindenberg", folder / "other")
    dataset = open_cityscapes(tmp_path, classes=("person", "car"))
    assert len(dataset) == 2
    with pytest.raises(SpatialEmbedError, match=r"name_collision: .*/other/.*/lindenberg/"):
        score([], dataset, "cityscapes", tmp_path / "out")


@pytest.mark.parametrize("metric", ["cityscapes", "coco"])
@pytest.mark.parametrize("fault", ["LBL-13 no instance"])
def test_what_is_undefined_is_null(tmp_path: Path, metric: Any, fault: str) -> None:
    dataset = square_scene(tmp_path, {(0, 0): 26})
    report = score([squares_found((20, 30), classes=[1])], dataset, metric, tmp_path)
    report.write(tmp_path)
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["mean"]["AP"] is None
    assert written["by_class"]["car"] == dict.fromkeys(report.figures) | {"true": 0, "found": 1}
    assert " - " in shown(report)


# ---------------------------------------------------------------- files


def test_files_of_a_result(tmp_path: Path) -> None:
    found = squares_found((0, 0), (20, 60), classes=[1, 0])
    path = write_result(tmp_path, "lindenberg/lindenberg_000000_000019_leftImg8bit", found)
    stem = "lindenberg_000000_000019_leftImg8bit"
    assert path == tmp_path / f"{stem}.txt"
    assert path.read_text() == (
        f"masks/{stem}_0001.png 26 0.8999999761581421\nmasks/{stem}_0002.png 24 0.800000011920929\n"
    )
    with Image.open(tmp_path / "masks" / f"{stem}_0002.png") as file:
        np.testing.assert_array_equal(np.asarray(file.convert("L")) != 0, found.mask(1))
    nothing = write_result(tmp_path, "x/y_000000_000019", found[[]])
    assert nothing.read_text() == ""
    (tmp_path / "masks" / "of_an_earlier_run_0001.png").touch()
    with zipfile.ZipFile(write_upload(tmp_path)) as file:
        masks = [f"masks/{stem}_{n:04d}.png" for n in (1, 2)]
        assert sorted(file.namelist()) == sorted([f"{stem}.txt", "y_000000_000019.txt", *masks])
        assert file.read(masks[0]) == (tmp_path / masks[0]).read_bytes()


def test_results_that_the_format_cannot_hold(tmp_path: Path) -> None:
    found = squares_found((0, 0), classes=[1])
    with pytest.raises(SpatialEmbedError, match="bad_name: 'a/b c'"):
        write_result(tmp_path, "a/b c", found)
    with pytest.raises(SpatialEmbedError, match="unknown_class: dog: not a class") as caught:
        write_result(tmp_path, "a", replace(found, class_names=("dog", "car")))
    assert caught.value.exit_code == 2
    with pytest.raises(SpatialEmbedError, match="no_results"):
        write_upload(tmp_path)


# ---------------------------------------------------------------- COCO


def test_coco_agrees_with_pycocotools(data_root: Path) -> None:
    """Real photographs, overlapping truth and crowds; detections are the truth, disturbed."""
    from pycocotools import mask as mask_tools
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    file = data_root / "coco" / "instances.json"
    if not file.exists():
        pytest.skip("no COCO file")
    every = open_coco(file)
    dataset = every.subset(range(0, len(every), 3))
    rng = np.random.default_rng(0)
    found = [disturbed(dataset[i], rng, dataset.class_names) for i in range(len(dataset))]
    report = score(found, dataset, "coco")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        category = {truth.cats[i]["name"]: i for i in truth.cats}
        image = {Path(entry["file_name"]).stem: i for i, entry in truth.imgs.items()}
        results = []
        for name, instances in zip(dataset.names, found, strict=True):
            for n in range(len(instances)):
                rle = mask_tools.encode(np.asfortranarray(instances.mask(n).astype(np.uint8)))
                class_name = instances.class_names[instances.classes[n]]
                results.append(
                    {
                        "image_id": image[name],
                        "category_id": category[class_name],
                        "segmentation": rle,
                        "score": float(instances.scores[n]),
                    }
                )
        evaluation = COCOeval(truth, truth.loadRes(results), "segm")
        evaluation.params.imgIds = [image[name] for name in dataset.names]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    ours = [report.mean(name) for name in names]
    assert 0.1 < ours[0] < 0.9
    assert any(a.crowd for i in range(len(dataset)) for a in dataset.annotations(i))
    np.testing.assert_allclose(ours, evaluation.stats[:6], rtol=0, atol=1e-9)
    precision = evaluation.eval["precision"][..., 0, -1]  # (10, 101, C)
    every_class = list(evaluation.params.catIds)  # of the file, used or not
    ours_in_it = [every_class.index(category[name]) for name in dataset.class_names]
    by_class = [precision[..., c].mean() for c in ours_in_it]
    defined = np.array(by_class) >= 0
    np.testing.assert_array_equal(np.isfinite(report.figures["AP"]), defined)
    np.testing.assert_allclose(report.figures["AP"][defined], np.array(by_class)[defined])


def coco_file(folder: Path, annotations: Sequence[dict[str, Any]]) -> Path:
    """A file of one image of 40 x 90 px."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (90, 40)).save(folder / "images" / "a.png")
    data = {
        "images": [{"id": 7, "file_name": "a.png", "height": 40, "width": 90}],
        "categories": [{"id": 3, "name": "person"}, {"id": 9, "name": "car"}],
        "annotations": [
            {"id": n, "image_id": 7, "iscrowd": 0} | entry for n, entry in enumerate(annotations)
        ],
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(data))
    return path


def box(y: int, x: int, height: int = 20, width: int = 20) -> list[list[int]]:
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


@pytest.mark.parametrize(
    ("crowd", "expected"),
    [(9, 1.0), (3, 0.5), (None, 0.5)],
    ids=["LBL-14 crowd of the class", "LBL-14 crowd of another", "no crowd"],
)
def test_crowd_excuses_a_find(tmp_path: Path, crowd: int | None, expected: float) -> None:
    """A better-scored car in a crowd of cars is no false positive; precision at any recall."""
    truth = [{"category_id": 9, "segmentation": box(0, 0)}]
    if crowd is not None:
        whole = {"size": [40, 90], "counts": [60 * 40, 30 * 40]}  # the right third
        truth.append({"category_id": crowd, "segmentation": whole, "iscrowd": 1})
    dataset = open_coco(coco_file(tmp_path, truth)).with_classes(("person", "car"))
    found = squares_found((0, 62), (0, 0), classes=[1, 1])
    report = score([found], dataset, "coco")
    assert report.figures["AP"][1] == pytest.approx(expected)
    assert report.counts["true"].tolist() == [0, 1]


def test_true_objects_may_overlap(tmp_path: Path) -> None:
    """The larger of two is found whole: its IoU counts the part below the smaller one too."""
    truth = [{"category_id": 9, "segmentation": box(0, 0, 20, 40), "area": 99999.0}]
    truth += [{"category_id": 9, "segmentation": box(0, 20)}]
    dataset = open_coco(coco_file(tmp_path, truth)).with_classes(("person", "car"))
    labels_of = np.zeros((40, 90), np.int32)
    labels_of[:20, :40] = 1
    found = Instances(labels_of, np.ones(1, np.float32), np.ones(1, np.int64), ("person", "car"))
    report = score([found], dataset, "coco")
    precision_to_half = 51 / 101  # of the recalls 0, 0.01, ... those up to 1/2
    assert report.figures["AP"][1] == pytest.approx(precision_to_half)
    # The area that the file states sorts the first among the large ones, not the 800 px it has.
    assert report.figures["APl"][1] == pytest.approx(1)
    # Covering the small one by just half makes it right at IoU 0.5, of ten thresholds.
    assert report.figures["APs"][1] == pytest.approx(0.1)


@pytest.mark.parametrize("area", [-1, "12", float("nan"), True])
def test_broken_area_is_told(tmp_path: Path, area: Any) -> None:
    path = coco_file(tmp_path, [{"category_id": 9, "segmentation": box(0, 0), "area": area}])
    with pytest.raises(SpatialEmbedError, match=r"bad_annotation: .*annotation 0: .*area"):
        open_coco(path)


def test_pixels_without_truth_are_a_crowd_of_every_class(tmp_path: Path) -> None:
    """Of a street: a detection in void or another class's group is excused, on the road not."""
    dataset = square_scene(tmp_path, {(0, 0): 26001, (0, 30): 24, (0, 60): 4})
    in_ignored = squares_found((0, 30), (0, 60), (0, 0), classes=[1, 1, 1])
    assert score([in_ignored], dataset, "coco").figures["AP"][1] == 1
    on_road = squares_found((20, 30), (20, 60), (0, 0), classes=[1, 1, 1])
    assert score([on_road], dataset, "coco").figures["AP"][1] == pytest.approx(1 / 3)


def test_coco_counts_a_hundred_detections(tmp_path: Path) -> None:
    """The last of 101 objects, all found, is not counted: it is named where that happens."""
    truth = np.zeros((40, 90), np.int32)
    for n in range(101):
        y, x = divmod(n, 20)
        truth[4 * y : 4 * y + 3, 4 * x : 4 * x + 3] = n + 1
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    Image.new("L", (90, 40)).save(tmp_path / "images" / "a.png")
    Image.fromarray(truth.astype(np.uint16)).save(tmp_path / "masks" / "a.png")
    dataset = open_folder(tmp_path)
    scores = np.linspace(1, 0.9, 101, dtype=np.float32)
    found = Instances(truth, scores, np.zeros(101, np.int64), dataset.class_names)
    report = score([found], dataset, "coco")
    assert report.figures["AP"][0] == pytest.approx(100 / 101)
    assert "1 images have more" in shown(report)


def test_coco_without_its_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    dataset = square_scene(tmp_path, {(0, 0): 26001})
    with pytest.raises(SpatialEmbedError, match=r"missing_extra: .*spatialembed\[coco\]"):
        score([], dataset, "coco")


# ---------------------------------------------------------------- command line


@pytest.mark.parametrize("metric", ["cityscapes", "coco"])
def test_verb(
    metric: str,
    streets: CityscapesDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A model of two of the classes that sees the truth of these."""
    two = streets.with_classes(["car", "person"])
    seen = oracle([two.truth(i) for i in range(len(two))], two.class_names)
    monkeypatch.setattr("spatialembed.inference.predictor.load_for", lambda *_, **__: seen)
    root = streets.image_path(0).parents[3]
    words = f"evaluate --model m --split val --metric {metric} --data {root} --out {tmp_path}"
    assert main.main(words.split()) == 0
    said = capsys.readouterr()
    assert f"{metric} metric, 3 images" in said.out
    written = json.loads((tmp_path / "report.json").read_text())
    assert {name: row["AP"] for name, row in written["by_class"].items()} == dict.fromkeys(
        ("person", "car"), 1
    )
    files = {"report.json"} | ({"results"} if metric == "cityscapes" else set())
    assert {path.name for path in tmp_path.iterdir()} == files
    assert "report.json" in said.out.splitlines()[-1]


@pytest.mark.parametrize(
    ("data", "metric", "code"),
    [
        ("folder", "cityscapes", "not_cityscapes"),
        ("file.json", "cityscapes", "not_cityscapes"),
        ("no_truth", "cityscapes", "no_layout"),
        ("gone", "cityscapes", "not_found"),
        ("gone", "coco", "not_found"),
    ],
)
def test_what_cannot_be_scored_is_told_before_the_model_is_loaded(
    data: str,
    metric: str,
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("spatialembed.inference.predictor.load_for", loaded)
    path = tmp_path / data
    if data == "folder":
        for part in ("images", "masks"):
            (path / part).mkdir(parents=True)
            Image.new("L", (8, 8)).save(path / part / "a.png")
    elif data == "file.json":
        path = coco_file(tmp_path, [])
    elif data == "no_truth":
        (path / "leftImg8bit" / "val").mkdir(parents=True)
    split = ["--split", "val"] if data == "no_truth" else []
    words = ["evaluate", "--model", "m", "--data", str(path), "--metric", metric, *split]
    assert main.main(words) == 3
    assert code in capsys.readouterr().err
