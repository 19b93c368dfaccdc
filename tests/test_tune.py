"""Tuning: honest about what it chose, never worse, written where it may be."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from model_files import new_net, same_weights
from spatialembed.command import main
from spatialembed.errors import SpatialEmbedError
from spatialembed.evaluation import tune
from spatialembed.evaluation.threshold_sweep import Grid, Surface
from spatialembed.evaluation.tune import Tuning
from spatialembed.inference.model_file import ModelInfo, load, save
from spatialembed.method.calibration import LEAST_OBJECTS, Objects
from spatialembed.method.cluster import ClusterOptions
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.options import PartOptions
from spatialembed.types import Normalization

BASE = ClusterOptions(min_pixels=20)
GRID = Grid.around(BASE)
SHAPE = tuple(map(len, GRID))
BEFORE = GRID.cell(BASE)
BETTER = GRID.cell(ClusterOptions(start=0.8, membership=0.4, min_pixels=30))


def surface(ap: np.ndarray, objects: int = 0) -> Surface:
    """One class; ap (I, F, S, M, P). Objects of mean seed = IoU = score - .1."""
    rng = np.random.default_rng(0)
    iou = rng.uniform(0.5, 0.85, objects)
    group = rng.integers(0, len(ap), objects)
    some = Objects((iou + 0.1).astype(np.float32), iou, iou, group)
    f, m, p = (range(SHAPE[axis]) for axis in (0, 2, 3))
    return Surface(
        GRID,
        BASE,
        ap[:, None].astype(np.float32),
        {(i, j, k): some for i in f for j in m for k in p},
    )


def noise(images: int, seed: int = 0) -> np.ndarray:
    """AP (I, F, S, M, P) that depends on the image, and by chance on the cell; all cells alike."""
    rng = np.random.default_rng(seed)
    return rng.uniform(0.4, 0.8, (images, 1, 1, 1, 1)) + 0.05 * rng.standard_normal(
        (images, *SHAPE)
    )


def test_a_true_gain_is_taken() -> None:
    ap = noise(30)
    ap[(slice(None), *BETTER)] += 0.1
    tuning = Tuning(surface(ap), np.arange(30))
    assert tuning.best == BETTER
    assert tuning.chosen == GRID.options(BETTER, BASE)
    gain, error = tuning.gain
    assert gain == pytest.approx(0.1, abs=0.03)
    assert 0 < error < 0.03
    assert tuning.to_dict()["taken"]


@pytest.mark.parametrize("seed", [0, 1, 4])
def test_a_gain_by_chance_is_not(seed: int) -> None:
    """The best of a thousand equal cells looks better on the images that chose it, not on others.

    Of equal cells one in five is taken nevertheless, with gains above their error; not of these.
    """
    ap = noise(20, seed)
    ap[(slice(None), *BEFORE)] = ap.mean(axis=(1, 2, 3, 4))  # neither lucky nor unlucky
    tuning = Tuning(surface(ap), np.arange(20))
    said = tuning.to_dict()
    assert said["best"]["ap"] > said["before"]["ap"] + 0.02
    assert abs(said["gain"]) < 2 * said["gain_standard_error"]
    assert tuning.chosen == BASE


def test_an_image_has_no_say_in_the_cell_that_it_is_scored_at() -> None:
    """Each group is good at a cell of its own, which nobody else chooses."""
    groups = np.repeat(np.arange(5), 2)
    ap = np.full((10, *SHAPE), 0.5)
    for k in range(5):
        ap[groups == k, 0, 5 + k, 0, 0] = 1
    tuning = Tuning(surface(ap), groups)
    assert tuning.to_dict()["best"]["ap"] == pytest.approx(0.6)
    assert tuning.cross_validated[:, 0].tolist() == [0.5] * 10


def test_the_error_is_that_of_the_difference() -> None:
    """What all cells share of an image is no error of a gain; groups count as one."""
    rng = np.random.default_rng(1)
    ap = np.broadcast_to(rng.uniform(0.2, 0.9, (40, 1, 1, 1, 1)), (40, *SHAPE)).copy()
    gains = rng.normal(0.05, 0.02, 40)
    ap[(slice(None), *BETTER)] += gains
    single = Tuning(surface(ap), np.arange(40))
    difference, error = single.difference(single.at(BETTER), single.at(BEFORE))
    assert difference == pytest.approx(gains.mean(), abs=1e-6)
    assert error == pytest.approx(gains.std() / 40**0.5, rel=0.1)
    doubled = Tuning(surface(np.repeat(ap, 2, axis=0)), np.repeat(np.arange(40), 2))
    assert doubled.difference(doubled.at(BETTER), doubled.at(BEFORE))[1] == pytest.approx(error)


@pytest.mark.parametrize("images", [1, 2])
def test_too_few_images_change_nothing(images: int) -> None:
    ap = np.full((images, *SHAPE), 0.5)
    ap[(slice(None), *BETTER)] = 0.9
    tuning = Tuning(surface(ap), np.zeros(images, np.int64))  # of one group
    assert tuning.chosen == BASE
    said = tuning.to_dict()
    assert said["gain_standard_error"] is None
    json.dumps(said, allow_nan=False)
    tune.table(tuning)


def test_profile_says_how_flat_it_is() -> None:
    ap = noise(30, 2) * 0 + np.linspace(0.4, 0.8, 30)[:, None, None, None, None]
    f, s, m, p = BETTER
    ap[:, f, s, m, p] += 0.1
    ap[:, f, s + 1, m, p] += 0.1 - 0.02 * (-1) ** np.arange(30)  # the same but for noise
    tuning = Tuning(surface(ap), np.arange(30))
    good = {value: fine for value, _, fine in tuning.profile(1)}
    assert {value for value, fine in good.items() if fine} == {GRID.start[s], GRID.start[s + 1]}
    assert set(good) == set(GRID.start)
    assert tuning.to_dict()["best"]["as_good"]["start"] == list(GRID.start[s : s + 2])


def test_it_is_calibrated_even_where_nothing_changes() -> None:
    ap = np.full((20, *SHAPE), 0.5)
    tuning = Tuning(surface(ap, objects=LEAST_OBJECTS * 3), np.arange(20))
    assert tuning.chosen == BASE
    fitted = tuning.fitted  # start .9: the scores end at .95, and a third of them is seen
    assert fitted is None
    lower = ClusterOptions(start=0.6, min_pixels=20)
    low = Surface(
        Grid.around(lower), lower, tuning.surface.ap[:, :, :, :14], tuning.surface.objects
    )
    fitted = Tuning(low, np.arange(20)).fitted
    assert fitted is not None
    assert fitted.error < 0.01 < fitted.error_of_score


def test_the_picture_of_no_right_detection_shows_no_ap_below_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures, save = [], Figure.savefig

    def savefig(self: Figure, *args: Any, **kwargs: Any) -> None:
        figures.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    tune.write_report(Tuning(surface(np.zeros((3, *SHAPE))), np.arange(3)), tmp_path)
    pictures = [image for axes in figures[0].axes for image in axes.get_images()]
    assert [picture.get_clim() for picture in pictures] == [(0, 0.1)]


# ---------------------------------------------------------------- with a model and a folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of squares, four fields of three."""
    root = tmp_path_factory.mktemp("data")
    rows = ["id,field"]
    for i in range(12):
        mask = np.zeros((24, 24), np.uint16)
        mask[2:12, 2:12], mask[14:22, 10 + i % 3 : 18] = 1, 2
        for kind, array in (("images", (mask > 0) * np.uint8(200)), ("masks", mask)):
            (root / kind).mkdir(exist_ok=True)
            Image.fromarray(array).save(root / kind / f"{i:02}.png")
        rows.append(f"{i:02},{i // 3}")
    (root / "index.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def model(tmp_path: Path) -> Path:
    info = ModelInfo(("object",), True, Normalization("none"), BASE, training={"licence": "CC0"})
    return save(tmp_path / "model", fresh_net(), info)


def fresh_net() -> SpatialEmbeddingNet:
    torch.manual_seed(0)
    return SpatialEmbeddingNet(1, elliptical=True)


def run(*words: Any) -> int:
    return main.main(["tune", *map(str, words), "--device", "cpu", "--precision", "float32"])


def test_command_in_place(
    folder: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, weights = load(model)[1], (model / "model.safetensors").read_bytes()
    report = tmp_path / "report"
    words = ("--model", model, "--data", folder, "--report", report)
    assert run(*words, "--group-by", "field", "--val-fraction", "0.5") == 0
    net, info = load(model)
    assert same_weights(net, fresh_net())
    assert (model / "model.safetensors").read_bytes() == weights
    assert info.training["licence"] == "CC0"
    record = info.training["tuned"]
    assert (record["data"], record["images"], record["groups"]) == (folder.name, 6, 2)
    said = json.loads((report / "tuning.json").read_text())
    assert said | {"data": folder.name} == record | {"calibration": None}  # few objects
    # Random weights find nothing above the start of .9, and all fields are alike.
    assert record["taken"]
    assert info.thresholds == ClusterOptions(**record["best"]["thresholds"]) != before.thresholds
    with (report / "tuning.csv").open() as file:
        assert len(list(csv.DictReader(file))) == record["cells"]
    picture = Image.open(report / "tuning.png")
    assert min(picture.size) > 500
    assert f"{model}: thresholds written" in " ".join(capsys.readouterr().out.split())


def test_command_to_another_folder(folder: Path, model: Path, tmp_path: Path) -> None:
    facts = (model / "model.json").read_bytes()
    out = tmp_path / "tuned"
    words = ("--model", model / "model.json", "--data", folder, "--report", tmp_path / "r")
    assert run(*words, "--out", out) == 0
    assert (model / "model.json").read_bytes() == facts
    assert load(out)[1].training["tuned"]["images"] == 12


def test_min_pixels_of_another_scale_is_stored_for_the_model_s_own(
    model: Path, tmp_path: Path
) -> None:
    """Objects seen at half the scale have four times the pixels in the image, and are so tuned."""
    ap = noise(30)
    ap[(slice(None), *BETTER)] += 0.1
    tuning = Tuning(surface(ap), np.arange(30), scale=0.5)
    assert tuning.chosen.min_pixels == 30
    written = load(tune.save(tuning, model, tmp_path / "out", "d"))[1].thresholds
    assert (written.min_pixels, written.start) == (round(30 / 4), 0.8)
    still = Tuning(surface(np.full((4, *SHAPE), 0.5)), np.arange(4), scale=0.5)
    assert load(tune.save(still, model, tmp_path / "out", "d"))[1].thresholds == BASE


def refused(code: str, words: Sequence[Any], capsys: pytest.CaptureFixture[str]) -> str:
    assert run(*words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"error {code}: ")
    return lines[0]


def test_what_is_refused_before_the_work(
    folder: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused("bundled_model", ("--model", "nuclei", "--data", folder), capsys)
    assert "--out" in line
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "model"
    refused("not_writable", ("--model", model, "--data", folder, "--out", out), capsys)


@pytest.mark.parametrize("verb", ["evaluate", "tune"])
@pytest.mark.parametrize("fault", ["LBL-13"])
def test_a_set_without_any_object_is_an_error_by_code(
    fault: str, verb: str, folder: Path, model: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """False detections are counted and reported, but nothing is chosen by them."""
    data, facts = tmp_path / "data", (model / "model.json").read_bytes()
    shutil.copytree(folder, data)
    for mask in (data / "masks").iterdir():
        Image.fromarray(np.zeros((24, 24), np.uint8)).save(mask)
    where = ["--out", str(tmp_path / "out")] if verb == "evaluate" else ["--report", str(tmp_path)]
    words = [verb, "--model", str(model), "--data", str(data), "--device", "cpu", *where]
    assert main.main([*words, "--engine", "torch"]) == 3
    assert "error no_objects: " in capsys.readouterr().err
    assert (tmp_path / "out" / "report.json").exists() == (verb == "evaluate")
    assert (model / "model.json").read_bytes() == facts


def test_classes_of_others_are_refused(folder: Path, tmp_path: Path) -> None:
    from spatialembed.data.open import select
    from spatialembed.inference.predictor import load as load_predictor

    info = ModelInfo(("a", "b"), True, Normalization("none"), BASE)
    predictor = load_predictor(save(tmp_path / "two", new_net(classes=2), info), device="cpu")
    with pytest.raises(SpatialEmbedError, match="class_mismatch"):
        tune.tune(predictor, select(PartOptions(data=str(folder))), progress=False)
