"""Evaluation with a predictor whose answers are known."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO, StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from spatialembed.errors import SpatialEmbedError
from spatialembed.evaluation.evaluate import evaluate
from spatialembed.evaluation.label_metrics import AP_THRESHOLDS, label_ap
from spatialembed.evaluation.label_report import WORST, Report
from spatialembed.inference.tiling import TiledEngine
from spatialembed.method.cluster import ClusterOptions
from spatialembed.method.geometry import coordinates
from spatialembed.types import Embeddings, Instances, Sample, Target

ONE = ("cell",)
TWO = ("cell", "<nucleus> [bold]")
LONG = ("cell", "a rider of a motorcycle on the road")


def disks(number: int, *, seed: int = 0, size: int = 64) -> np.ndarray:
    """Label image (H, W) int32 of disks on a jittered grid, apart from each other."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    labels = np.zeros((size, size), np.int32)
    for k in range(number):
        row, column = divmod(k, 4)
        cy, cx = 8 + 16 * row + rng.uniform(-1, 1), 8 + 16 * column + rng.uniform(-1, 1)
        labels[(y - cy) ** 2 + (x - cx) ** 2 <= 36] = k + 1
    return labels


def found_of(labels: np.ndarray, classes: Sequence[int] | None = None) -> Instances:
    ids = np.unique(labels[labels > 0])
    new = np.searchsorted(ids, labels) + 1
    new[labels == 0] = 0
    if classes is None:
        classes = [0] * len(ids)
    scores = np.linspace(1, 0.9, len(ids), dtype=np.float32)
    return Instances(new.astype(np.int32), scores, np.asarray(classes, np.int64))


class Scenes:
    """Truth images; each image holds its index, so that a predictor can tell them apart."""

    def __init__(
        self,
        truths: Sequence[np.ndarray],
        class_names: tuple[str, ...] = ONE,
        classes: Sequence[Sequence[int]] | None = None,
        ignore: np.ndarray | None = None,
        ids: np.ndarray | None = None,
    ) -> None:
        self.ids = ids
        self.truths = truths
        self.class_names = class_names
        self.classes = classes or [[0] * int(truth.max(initial=0)) for truth in truths]
        self.ignore = ignore

    def __len__(self) -> int:
        return len(self.truths)

    def __getitem__(self, i: int) -> Sample:
        truth = torch.from_numpy(self.truths[i])
        ignore = torch.zeros(truth.shape, dtype=torch.bool)
        if self.ignore is not None:
            ignore |= torch.from_numpy(self.ignore)
        classes = torch.tensor(self.classes[i], dtype=torch.int64)
        image = np.full(truth.shape, i, np.uint8)
        return Sample(image, Target(truth, classes, ignore), f"scene/{i:02}&", self.ids)


class FakePredictor:
    """Answers image ``i`` with the i-th of the instances it was given."""

    settings = ClusterOptions()
    engine: Any = None

    def __init__(self, answers: Sequence[Instances], class_names: tuple[str, ...] = ONE) -> None:
        self.info = SimpleNamespace(class_names=class_names, split=None)
        self.answers = answers

    def __call__(self, image: np.ndarray) -> Instances:
        return self.answers[image.flat[0]]


def run(found: Sequence[Instances], scenes: Scenes, **settings: Any) -> Report:
    predictor: Any = FakePredictor(found, scenes.class_names)
    return evaluate(predictor, scenes, progress=False, **settings)


def shifted(labels: np.ndarray, by: int) -> np.ndarray:
    return np.roll(labels, by, axis=1)


@pytest.fixture(scope="module")
def mixed() -> Report:
    """Four images: perfect, shifted, half missed, and one with nothing at all."""
    truths = [disks(9), disks(8, seed=1), disks(8, seed=2), disks(0)]
    half = np.where(truths[2] > 4, 0, truths[2])
    found = [found_of(a) for a in (truths[0], shifted(truths[1], 2), half, truths[3])]
    return run(found, Scenes(truths))


def test_an_image_in_tiles_is_tried_at_no_other_scale() -> None:
    """As in prediction, which tiles it; a smaller one is tried at other scales in both."""

    class Predictor(FakePredictor):
        def __init__(self, scale: float) -> None:
            super().__init__([found_of(disks(5))])
            inner: Any = SimpleNamespace(name="", device="cpu", precision="float32", scale=scale)
            self.tiled: Any = TiledEngine(inner, "erfnet")
            self.asked: list[str] = []

        @property
        def engine(self) -> Any:  # type: ignore[override]
            return self.tiled

        def __call__(self, image: np.ndarray) -> Instances:
            self.asked.append("at any scale")
            return self.answers[0]

        def embeddings(self, image: np.ndarray) -> str:
            return "maps"

        def instances(self, maps: str) -> Instances:
            self.asked.append(f"of {maps}")
            return self.answers[0]

    for scale, asked in ((1.0, "at any scale"), (1e4, "of maps")):
        predictor: Any = Predictor(scale)
        assert evaluate(predictor, Scenes([disks(5)]), progress=False).mean_ap == 1
        assert predictor.asked == [asked]


def test_mean_over_images_and_pooled(mixed: Report) -> None:
    truth = disks(8, seed=1)
    shifted_ap = label_ap(shifted(truth, 2), truth)
    np.testing.assert_allclose(mixed.ap, (1 + shifted_ap + 0.5) / 3)
    assert mixed.mean_ap == pytest.approx(mixed.ap.mean())
    assert mixed.undefined == 1
    pooled = mixed.pooled[0]
    assert (pooled.tp[0], pooled.fp[0], pooled.fn[0]) == (9 + 8 + 4, 0, 4)
    assert mixed.pooled_mean("ap")[0] == pytest.approx(21 / 25)
    assert mixed.pooled_mean("f1")[0] == pytest.approx(42 / 46)


def test_rows_are_in_order_and_worst_first(mixed: Report) -> None:
    assert [row.name for row in mixed.rows] == [f"scene/{i:02}&" for i in range(4)]
    assert math.isnan(mixed.rows[3].mean_ap)
    values = [image.score.mean_ap for image in mixed.worst]
    assert values == sorted(values)
    assert len(values) == 3  # the image without an AP is not among them


def test_standard_error_is_that_of_a_mean() -> None:
    truths = [disks(10, seed=i) for i in range(40)]
    found = [found_of(np.where(t > 1 + i % 9, 0, t)) for i, t in enumerate(truths)]
    report = run(found, Scenes(truths))
    each = np.array([row.ap[0] for row in report.rows])
    by_formula = each.std() / math.sqrt(len(each))
    assert report.standard_error[0][0] == pytest.approx(by_formula, rel=0.1)
    assert report.standard_error[1] == pytest.approx(by_formula, rel=0.1)


def test_one_image_has_no_standard_error() -> None:
    report = run([found_of(disks(3))], Scenes([disks(3)]))
    assert math.isnan(report.standard_error[1])
    assert report.to_dict()["mean_over_images"]["mean_ap_standard_error"] is None


def test_classes_are_averaged() -> None:
    # Class 0: both found. Class 1: one of two is found, the other called class 0.
    truth = disks(4)
    report = run([found_of(truth, [0, 0, 1, 0])], Scenes([truth], TWO, [[0, 0, 1, 1]]))
    np.testing.assert_allclose(report.class_ap[:, 0], [2 / 3, 1 / 2])
    assert report.ap[0] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert report.to_dict()["by_class"][TWO[1]]["pooled"]["fn"][0] == 1
    assert TWO[1] in text_of(report)


def test_a_class_that_never_occurs_is_left_out() -> None:
    truth = disks(4)
    report = run([found_of(truth)], Scenes([truth], TWO, [[0] * 4]))
    assert report.mean_ap == 1
    assert report.to_dict()["by_class"][TWO[1]]["mean_ap"] is None


def test_ignored_pixels_do_not_count() -> None:
    truth = np.where(disks(16) > 8, 0, disks(16))
    ignore = np.zeros((64, 64), bool)
    ignore[32:] = True  # the found disks of the lower half lie there
    assert run([found_of(disks(16))], Scenes([truth])).ap[0] == 1 / 2
    assert run([found_of(disks(16))], Scenes([truth], ignore=ignore)).ap[0] == 1


def text_of(report: Report, width: int = 80) -> str:
    console = Console(file=StringIO(), width=width)
    console.print(report.table())
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_table_fits_eighty_columns(mixed: Report) -> None:
    text = text_of(mixed)
    assert "…" not in text
    for threshold in AP_THRESHOLDS:
        assert f"{threshold:.2f}" in text
    row = next(line for line in text.splitlines() if line.startswith("AP, image mean"))
    assert row.split()[-1] == f"{mixed.mean_ap:.3f}"
    assert "left out: 1 images" in " ".join(text.split())


def test_long_class_names_do_not_push_the_figures_out() -> None:
    truth = disks(4)
    text = text_of(run([found_of(truth, [0, 0, 1, 1])], Scenes([truth], LONG, [[0, 0, 1, 1]])))
    assert "…" not in text
    assert text.count("1.000") == 5 * 10 + 2  # five rows, and two figures below them


NOTHING = found_of(disks(0))


@pytest.mark.parametrize("images", [1, 3], ids=["LBL-13-one", "LBL-13-all"])
def test_undefined_is_null_in_json(images: int, tmp_path: Path) -> None:
    report = run([NOTHING] * images, Scenes([disks(0)] * images))
    report.write(tmp_path)
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["mean_over_images"]["mean_ap"] is None
    assert written["pooled"]["ap"] == [None] * len(AP_THRESHOLDS)
    assert written["per_image"][0]["ap"] == [None] * len(AP_THRESHOLDS)
    assert written["undefined_images"] == images
    assert "No image has an AP" in (tmp_path / "worst.html").read_text()
    assert "-" in text_of(report)


def test_written_report(mixed: Report, tmp_path: Path) -> None:
    mixed.write(tmp_path / "deep" / "folder")
    written = json.loads((tmp_path / "deep" / "folder" / "report.json").read_text())
    assert written == mixed.to_dict()
    assert written["mean_over_images"]["mean_ap"] == pytest.approx(mixed.mean_ap)
    assert [row["truth"] for row in written["per_image"]] == [9, 8, 8, 0]
    assert [row["found"] for row in written["per_image"]] == [9, 8, 4, 0]
    assert sorted(p.name for p in (tmp_path / "deep" / "folder").iterdir()) == [
        "report.json",
        "worst.html",
    ]


def test_names_of_bytes_that_are_no_text(tmp_path: Path) -> None:
    """IMG-29: such a name reaches both files, and ends no evaluation."""
    scored = run([NOTHING], Scenes([disks(3)]))
    rows = [replace(scored.rows[0], name="caf\udce9")]
    worst = [replace(scored.worst[0], score=rows[0])]
    replace(scored, rows=tuple(rows), worst=tuple(worst)).write(tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["per_image"][0]["name"] == "caf\udce9"
    assert "caf\\udce9" in (tmp_path / "worst.html").read_text()


def test_page_of_the_worst_stands_alone(mixed: Report, tmp_path: Path) -> None:
    mixed.write(tmp_path)
    page = (tmp_path / "worst.html").read_text()
    assert page.index("scene/02&amp;") < page.index("scene/00&amp;")
    assert "http" not in page
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 3 * 3
    for picture in pictures:
        with Image.open(BytesIO(base64.b64decode(picture))) as image:
            assert image.size == (64, 64)
            assert image.mode == "RGB"
            image.load()
    from spatialembed.pictures.drawing import overlay

    with Image.open(BytesIO(base64.b64decode(pictures[1]))) as image:
        expected = overlay(mixed.worst[0].image, mixed.worst[0].truth)
        np.testing.assert_array_equal(np.asarray(image), expected)


def test_only_the_worst_are_kept_and_large_ones_thinned() -> None:
    number = WORST + 3
    truth = np.zeros((1, 1500), np.int32)
    truth[0, :1000] = 1
    scenes = Scenes([truth] * number)
    found = [found_of(np.where(np.arange(1500) < 990 - 30 * i, truth, 0)) for i in range(number)]
    report = run(found, scenes)
    values = sorted(row.mean_ap for row in report.rows)[:WORST]
    assert [image.score.mean_ap for image in report.worst] == values
    assert report.worst[0].found.shape == (1, 500)
    assert report.worst[0].image.shape == (1, 500)


def exact_embeddings(truth: np.ndarray) -> Embeddings:
    """Maps that point every pixel at the centroid of its instance, and see no seed anywhere."""
    labels = torch.from_numpy(truth)
    grid = coordinates(*labels.shape, torch.zeros(()))
    offset = torch.zeros_like(grid)
    for k in range(1, int(labels.max()) + 1):
        inside = labels == k
        offset[:, inside] = grid[:, inside].mean(dim=1, keepdim=True) - grid[:, inside]
    flat = torch.ones(1, 1, *labels.shape)
    return Embeddings(offset[None], flat, 0 * flat)


def test_truth_sampling_needs_no_seeds() -> None:
    truth = disks(9)

    class Blind(FakePredictor):
        def embeddings(self, image: np.ndarray) -> Embeddings:
            return exact_embeddings(truth)

    predictor: Any = Blind([NOTHING])
    scenes = Scenes([truth])
    assert evaluate(predictor, scenes, progress=False).mean_ap == 0
    report = evaluate(predictor, scenes, sampling="truth", progress=False)
    assert report.sampling == "truth"
    # Background pixels within the margin of a centre join it: recall of true pixels is full.
    assert report.pooled[0].tp[0] + report.pooled[0].fp[0] == 9
    assert report.ap[0] == 1


def test_truth_sampling_takes_the_membership_of_the_model() -> None:
    """At 0.1 a disk of radius 6 px takes what lies up to 10 px from it: too much to match."""
    truth = disks(9)

    class Wide(FakePredictor):
        settings = ClusterOptions(membership=0.1)

        def embeddings(self, image: np.ndarray) -> Embeddings:
            return exact_embeddings(truth)

    report = evaluate(Wide([NOTHING]), Scenes([truth]), sampling="truth", progress=False)  # type: ignore[arg-type]
    assert (report.pooled[0].tp[0], report.pooled[0].fp[0]) == (0, 9)


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    predictor: Any = FakePredictor([found_of(disks(3))])
    evaluate(predictor, Scenes([disks(3)]))
    out, err = capsys.readouterr()
    assert out == ""
    assert "AP 1.000" in err
    evaluate(predictor, Scenes([disks(3)]), progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("model", "data"),
    [(ONE, TWO), (TWO, ONE), (TWO, TWO[::-1])],
    ids=["more_in_data", "more_in_model", "other_order"],
)
def test_classes_of_model_and_data_must_agree(
    model: tuple[str, ...], data: tuple[str, ...]
) -> None:
    predictor: Any = FakePredictor([NOTHING], model)
    with pytest.raises(SpatialEmbedError, match="class_mismatch"):
        evaluate(predictor, Scenes([disks(0)], data), progress=False)


def test_one_class_may_have_another_name() -> None:
    predictor: Any = FakePredictor([found_of(disks(2))], ("nucleus",))
    assert evaluate(predictor, Scenes([disks(2)]), progress=False).mean_ap == 1


@pytest.mark.parametrize(
    ("settings", "code", "exit_code"),
    [
        ({"metric": "map"}, "unknown_metric", 2),
        ({"sampling": "grid"}, "unknown_sampling", 2),
        ({}, "empty_dataset", 3),
    ],
    ids=["metric", "sampling", "empty"],
)
def test_what_cannot_be_evaluated_is_refused(
    settings: dict[str, str], code: str, exit_code: int
) -> None:
    with pytest.raises(SpatialEmbedError, match=code) as caught:
        run([], Scenes([]), **settings)
    assert caught.value.exit_code == exit_code


def test_a_result_of_another_size_is_refused() -> None:
    with pytest.raises(SpatialEmbedError, match="size_mismatch"):
        run([found_of(disks(2, size=48))], Scenes([disks(2)]))


@pytest.mark.parametrize("fault", ["LBL-08 ids of the mask"])
def test_missed_objects_are_told_by_the_ids_of_their_mask(tmp_path: Path, fault: str) -> None:
    """Two of six are not found, a third only as another class: their ids, not their new numbers."""
    truth = disks(6)
    partly = np.where(np.isin(truth, (2, 5)), 0, truth)
    ids = np.array([3, 40, 41, 700, 24001, 70_000])
    scenes = Scenes([truth], TWO, [[0, 0, 0, 0, 0, 1]], ids=ids)
    report = run([found_of(partly, [0, 0, 0, 0])], scenes)
    assert report.rows[0].missed == (40, 24001, 70_000)
    assert report.to_dict()["per_image"][0]["missed_ids"] == [40, 24001, 70_000]
    report.write(tmp_path)
    assert "not found: ids 40, 24001, 70000" in (tmp_path / "worst.html").read_text()


def test_truncated_results_are_stated() -> None:
    found = found_of(disks(2))
    cut = Instances(found.labels, found.scores, found.classes, truncated=True)
    report = run([cut], Scenes([disks(2)]))
    assert report.to_dict()["truncated_images"] == 1
    assert "limit of instances: 1" in " ".join(text_of(report).split())


def test_what_was_said_of_objects_is_held_against_their_iou(tmp_path: Path) -> None:
    """Found: an image exactly, one with all objects shifted by half a place, and nothing."""
    truths = [disks(9, seed=s) for s in range(3)]
    exact, empty = found_of(truths[0]), found_of(np.zeros_like(truths[0]))
    wrong = found_of(np.roll(truths[1], 8, axis=0))
    sure = np.full(9, 0.9, np.float32)
    found = [
        replace(exact, expected_iou=sure),
        replace(wrong, expected_iou=np.full(len(wrong), 0.2, np.float32)),
        replace(empty, expected_iou=np.zeros(0, np.float32)),
    ]
    report = run(found, Scenes(truths))
    said = report.reliability
    assert said is not None
    assert said.iou[:9].tolist() == [1] * 9
    assert (said.iou[9:] < 0.5).all()
    assert said.expected_iou is not None
    figures = report.to_dict()["reliability"]
    assert figures["objects"] == len(said.iou) == 9 + len(wrong)
    assert figures["expected_iou"]["auc_at_50"] == 1
    errors = [figures[key]["calibration_error"] for key in ("expected_iou", "score")]
    assert errors[0] < errors[1]
    assert sum(b["objects"] for b in figures["score"]["bins"]) == figures["objects"]
    report.write(tmp_path)
    page = (tmp_path / "worst.html").read_text()
    assert page.count("<circle") == len(figures["score"]["bins"]) * 2
    plain = run([exact, wrong, empty], Scenes(truths))
    assert "expected_iou" not in plain.to_dict()["reliability"]


def test_nothing_found_has_no_reliability(tmp_path: Path) -> None:
    truth = disks(4)
    report = run([found_of(np.zeros_like(truth))], Scenes([truth]))
    report.write(tmp_path)
    written = json.loads((tmp_path / "report.json").read_text())["reliability"]
    assert written["objects"] == 0
    assert written["score"]["calibration_error"] is None
    assert "<svg" not in (tmp_path / "worst.html").read_text()
