"""``predict --format``: every file where it belongs, and what cannot be written refused before."""

from __future__ import annotations

import json
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import roifile
import tifffile
from PIL import Image

from known_predictor import INFO, GreyLevels, known, scene
from spatialembed.command.main import main
from spatialembed.command.options import PredictOptions
from spatialembed.errors import SpatialEmbedError
from spatialembed.images.listing import RESULTS_MARKER
from spatialembed.inference.predict_folder import predict_folder
from spatialembed.inference.predictor import Predictor
from spatialembed.inference.tiling import TileOptions
from spatialembed.results.folder import ResultFolder
from spatialembed.results.formats import DEFAULT, FORMATS, chosen
from spatialembed.results.labels import write_labels
from tile_engines import NearCentres, info


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """An image in a folder, and one of another name below."""
    for i, name in enumerate(("in/a.png", "in/deep/b.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene(i)).save(tmp_path / name)
    return tmp_path / "in"


def predicted(inputs: Path, out: Path, *formats: str, **settings: float) -> set[str]:
    predict_folder(known(), [inputs], out, formats=formats, progress=False, **settings)
    files = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert RESULTS_MARKER in files
    return files - {RESULTS_MARKER}


@pytest.mark.parametrize(
    ("form", "files"),
    [
        ("labels", {"a_labels.png", "deep/b_labels.png"}),
        ("tiff", {"a_labels.tif", "deep/b_labels.tif"}),
        ("overlay", {"a_overlay.png", "deep/b_overlay.png"}),
        ("csv", {"objects.csv"}),
        ("coco", {"instances.json"}),
        ("geojson", {"a.geojson", "deep/b.geojson"}),
        ("imagej", {"a_rois.zip", "deep/b_rois.zip"}),
    ],
)
def test_each_format_writes_its_files_alone(
    inputs: Path, tmp_path: Path, form: str, files: set[str]
) -> None:
    assert predicted(inputs, tmp_path / "out", form) == files


def test_all_formats_tell_of_the_same_objects(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predicted(inputs, out, *(name for name in FORMATS if name != "cityscapes"), simplify=1.0)
    want = known()(scene(1)).labels
    np.testing.assert_array_equal(tifffile.imread(out / "deep/b_labels.tif"), want)
    features = json.loads((out / "deep/b.geojson").read_text())["features"]
    assert len(features) == len(roifile.roiread(out / "deep/b_rois.zip")) == want.max() == 3


def test_cityscapes_results_are_packed(tmp_path: Path) -> None:
    for i, name in enumerate(("ulm_000000_000019_leftImg8bit", "bonn_000001_000019_leftImg8bit")):
        path = tmp_path / "in" / name.split("_")[0] / f"{name}.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(scene(i)).save(path)
    predictor = known(replace(INFO, class_names=("car",)))
    out = tmp_path / "out"
    (out / "cityscapes").mkdir(parents=True)
    (out / "cityscapes" / "of_an_earlier_run.txt").write_text("masks/gone.png 26 0.5\n")
    predict_folder(predictor, [tmp_path / "in"], out, formats=["cityscapes"], progress=False)
    with zipfile.ZipFile(out / "cityscapes" / "upload.zip") as packed:
        names = packed.namelist()
    assert sum(name.endswith(".txt") for name in names) == 2
    assert sum(name.endswith(".png") for name in names) == 6
    Image.fromarray(scene(0)).save(tmp_path / "in" / "ulm" / "bonn_000001_000019_leftImg8bit.png")
    with pytest.raises(SpatialEmbedError, match="name_collision"):
        predict_folder(predictor, [tmp_path / "in"], out, formats=["cityscapes"], progress=False)


def test_labels_as_tiff_have_the_bits_they_need(tmp_path: Path) -> None:
    many = np.arange(1, 65_537, dtype=np.int32).reshape(256, 256)
    for labels, dtype in ((many - 1, np.uint16), (many, np.uint32)):
        path = write_labels(tmp_path / "a", labels, tiff=True)
        read = tifffile.imread(path)
        assert read.dtype == dtype
        np.testing.assert_array_equal(read, labels)
        assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "labels,geojsn"], "the nearest is geojson"),
        (["--format", ""], "there are labels, tiff"),
        (["--format", "cityscapes"], "unknown_class"),
        (["--format", "geojson", "--simplify", "-1"], "simplify is -1.0"),
    ],
)
def test_what_is_refused_before_the_work(
    inputs: Path, tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["predict", "--model", "shapes", str(inputs), "--out", str(out), *words]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("formats", [("lables",), (), "csv;coco"])
def test_formats_named_in_python_are_checked_too(
    inputs: Path, tmp_path: Path, formats: str | tuple[str, ...]
) -> None:
    with pytest.raises(SpatialEmbedError, match="bad_setting"):
        predict_folder(known(), [inputs], tmp_path / "out", formats=formats, progress=False)
    with pytest.raises(SpatialEmbedError, match="bad_setting"):
        ResultFolder(tmp_path / "out", ["cell"], formats=formats)
    assert not (tmp_path / "out").exists()


def test_default_is_as_the_settings_say() -> None:
    assert chosen(PredictOptions(["a"], "m", "o").format) == DEFAULT
    assert chosen(" csv,labels, csv") == ("csv", "labels")
    assert chosen(["coco"]) == ("coco",)


def test_outlines_of_tiled_images_are_said_to_be_missing(
    inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    engine = NearCentres()
    predictor = Predictor(engine, info(1, "percentile", engine.scale))  # type: ignore[arg-type]
    small = TileOptions(tile=32, context=8)
    predict_folder(
        predictor, [inputs], out, formats=["csv", "geojson"], tiles=small, progress=False
    )
    assert "no geojson for the 2 tiled images" in caplog.text
    assert (out / "objects.csv").exists()
    assert not (out / "instances.json").exists()
    assert not [*out.rglob("*.geojson")]


def test_two_runs_do_not_write_into_one_folder(inputs: Path, tmp_path: Path) -> None:
    """The second is refused while the first runs; afterwards the folder is free, and clean."""
    started, go_on = threading.Event(), threading.Event()

    class Waiting(GreyLevels):
        def __call__(self, images: object) -> object:  # type: ignore[override]
            started.set()
            go_on.wait(20)
            return super().__call__(images)  # type: ignore[arg-type]

    slow = Predictor(Waiting(), INFO)  # type: ignore[arg-type]
    out = tmp_path / "out"
    first = threading.Thread(
        target=predict_folder, args=(slow, [inputs], out), kwargs={"progress": False}
    )
    first.start()
    try:
        assert started.wait(20)
        with pytest.raises(SpatialEmbedError, match=r"run_locked.*--out") as caught:
            predict_folder(known(), [inputs], out, progress=False)
        assert caught.value.exit_code == 2
    finally:
        go_on.set()
        first.join(20)
    assert predict_folder(known(), [inputs], out, progress=False).images == 2
    assert not (out / ".lock").exists()
