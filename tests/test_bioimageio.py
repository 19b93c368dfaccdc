"""Packages of bioimage.io: the clustering in numpy, and what their own reader makes of them."""

from __future__ import annotations

import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from spatialembed.command.main import main
from spatialembed.errors import SpatialEmbedError
from spatialembed.export.bioimageio import export_bioimageio
from spatialembed.export.bioimageio_cluster import Clustering
from spatialembed.generated.nuclei_and_shapes import nuclei_field
from spatialembed.images.write import write_png
from spatialembed.inference.engine import torch_engine
from spatialembed.inference.model_file import ModelInfo
from spatialembed.inference.predictor import Predictor, load
from spatialembed.method.calibration import Calibration, with_expected_iou
from spatialembed.method.cluster import ClusterOptions
from spatialembed.method.kernels import cpu
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.types import Instances, Normalization

KNOWN = Calibration((0.5, 0.7, 0.9), (0.2, 0.6, 0.95), 300, 0.01, 0.1)
LOOSE = ClusterOptions(foreground=0.3, start=0.5, membership=0.4, min_pixels=2, min_free=0.4)


def blobs(seed: int, classes: int, bandwidths: int) -> tuple[np.ndarray, ...]:
    """Maps of one image with objects that overlap, and seeds with many ties."""
    random = np.random.default_rng(seed)
    height, width = 40, 57
    centers = random.uniform(0, (height, width), (12, 2))
    at = np.stack(np.mgrid[:height, :width], -1)[..., None, :].astype(float)
    nearest = ((at - centers) ** 2).sum(-1).argmin(-1)  # (H, W)
    pull = (centers[nearest] - at[..., 0, :]) + random.normal(0, 1.5, (height, width, 2))
    offset = np.stack([pull[..., 1], pull[..., 0]]) / 1024
    log_precision = random.uniform(0.85, 1.1, (bandwidths, height, width))
    seeds = np.round(random.uniform(0.2, 1, (classes, height, width)), 2)
    return tuple(maps.astype(np.float32) for maps in (offset, log_precision, seeds))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("bandwidths", [1, 2])
@pytest.mark.parametrize("most", [None, 3])
def test_clustering_equals_the_kernel(
    seed: int, classes: int, bandwidths: int, most: int | None
) -> None:
    offset, log_precision, seeds = blobs(seed, classes, bandwidths)
    options = replace(LOOSE, max_instances=most)
    wanted = cpu.cluster(offset, log_precision, seeds, options)
    assert len(wanted.scores) >= 3
    twice = log_precision if bandwidths == 2 else np.repeat(log_precision, 2, axis=0)
    maps = np.concatenate([offset, twice, seeds])[None]
    known = {"mean_seeds": KNOWN.mean_seeds, "ious": KNOWN.ious}
    labels, scores, of_class, expected, *kept = Clustering(**asdict(options), **known)(maps)[0]
    np.testing.assert_array_equal(labels, wanted.labels)
    np.testing.assert_array_equal(kept, seeds)
    owned = wanted.labels > 0
    index = wanted.labels[owned] - 1
    np.testing.assert_array_equal(scores[owned], wanted.scores[index])
    np.testing.assert_array_equal(of_class[owned], wanted.classes[index])
    names = tuple("abc"[:classes])
    found = Instances(wanted.labels, wanted.scores, wanted.classes, names)
    calibrated = with_expected_iou(found, seeds, KNOWN).expected_iou
    assert calibrated is not None
    np.testing.assert_allclose(expected[owned], calibrated[index], rtol=1e-6)
    for channel in (scores, of_class, expected):
        assert not channel[~owned].any()


def test_clustering_of_nothing_and_of_a_batch() -> None:
    clustering = Clustering(**asdict(LOOSE))
    nothing = np.zeros((1, 5, 4, 6), np.float32)
    np.testing.assert_array_equal(clustering(nothing), nothing)
    one, two = (np.concatenate(blobs(seed, 1, 2))[None] for seed in (5, 6))
    both = clustering(np.concatenate([one, two]))
    np.testing.assert_array_equal(both, np.concatenate([clustering(one), clustering(two)]))


def verdict(path: Path) -> str:
    """What the reader of bioimage.io says of a package, validated and run on its test image."""
    core = pytest.importorskip("bioimageio.core")
    summary = core.test_model(path, weight_format="onnx", determinism="seed_only")
    faults = [error.msg for detail in summary.details for error in detail.errors]
    return str(summary.status) if not faults else "; ".join(faults)


@pytest.mark.slow
def test_nuclei_finds_the_same_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The package, run by its own reader on an image of its own, against ``Predictor``."""
    core = pytest.importorskip("bioimageio.core")
    sample = write_png(tmp_path / "sample.png", nuclei_field(96, 96, seed=3).image)
    path = tmp_path / "nuclei.zip"
    words = ["export", "--model", "nuclei", "--format", "bioimageio", "--out", str(path)]
    assert main([*words, "--sample", str(sample)]) == 0
    assert "those of torch" in capsys.readouterr().out
    assert verdict(path) == "passed"

    other = nuclei_field(120, 150, seed=4).image
    image = np.repeat((other.astype(np.float32) / np.iinfo(other.dtype).max)[None, None], 3, 1)
    found = core.predict(model=path, inputs={"image": image}).members["objects"].to_numpy()
    predictor = load("nuclei", engine="torch", precision="float32", diameter="native")
    labels = predictor(other).labels
    assert labels.max() > 3
    np.testing.assert_array_equal(found[0, 0], labels)


@pytest.mark.slow
def test_circular_model_of_two_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = SpatialEmbeddingNet(2, False).eval()
    thresholds = ClusterOptions(foreground=0.1, start=0.2, min_pixels=1)
    info = ModelInfo(
        ("a", "b"), False, Normalization("fixed"), thresholds, training={"licence": "CC BY-NC 4.0"}
    )
    predictor = Predictor(torch_engine(net, device=torch.device("cpu"), scale=1.0), info)
    sample = write_png(tmp_path / "sample.png", nuclei_field(128, 128, seed=3).image[:40, :56])
    path = tmp_path / "own.zip"
    card = "# Mine\n\nCells of mine. More of it.\n"
    report = export_bioimageio(predictor, path, name="mine", card=card, sample=sample)
    assert report.licence == "CC BY-NC 4.0"
    with zipfile.ZipFile(path) as package:
        facts = yaml.safe_load(package.read("rdf.yaml"))
        assert package.read("README.md").decode().startswith(card)
        assert "import spatialembed" not in package.read("bioimageio_cluster.py").decode()
    assert facts["license"] == "CC-BY-NC-4.0"
    assert facts["description"] == "Cells of mine."
    assert facts["cite"][0]["doi"] == "10.1109/CVPR.2019.00904"
    assert verdict(path) == "passed"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--format", "bioimageio", "--out", "a.onnx"], "ends in .zip"),
        (["--format", "bioimageio", "--out", "a.zip", "--check"], "always checked"),
        (["--out", "a.onnx", "--sample", "b.png"], "--format bioimageio"),
    ],
)
def test_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], part: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["export", "--model", "shapes", *words]) == 2
    assert part in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_facts_that_the_format_refuses(tmp_path: Path) -> None:
    net = SpatialEmbeddingNet(1).eval()
    info = ModelInfo(
        ("a",), True, Normalization(), ClusterOptions(), training={"licence": "as I please"}
    )
    predictor = Predictor(torch_engine(net, device=torch.device("cpu"), scale=1.0), info)
    sample = write_png(tmp_path / "sample.png", nuclei_field(128, 128, seed=3).image[:40, :40])
    with pytest.raises(SpatialEmbedError, match="license") as caught:
        export_bioimageio(predictor, tmp_path / "own.zip", name="mine", sample=sample)
    assert caught.value.exit_code == 4
    assert not (tmp_path / "own.zip").exists()
