"""70,000 instances in one image, through every part: none is lost, none is merged, none wraps."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from torch import Tensor

from spatialembed.data.folder import FolderDataset, open_folder
from spatialembed.evaluation.evaluate import evaluate
from spatialembed.inference.model_file import ModelInfo
from spatialembed.inference.predict_folder import predict_folder
from spatialembed.inference.predictor import Predictor
from spatialembed.method import geometry
from spatialembed.method.cluster import ClusterOptions
from spatialembed.method.loss import spatial_embedding_loss
from spatialembed.training.augment import AugmentOptions
from spatialembed.training.crops import training_crop
from spatialembed.types import Embeddings, Normalization

ROWS, COLUMNS = 280, 250
COUNT = ROWS * COLUMNS
MARGIN_PX = 0.9
"""Of every bandwidth: the centres are 3 px apart."""


def blocks() -> np.ndarray:
    """Ids (H, W) uint32 of COUNT squares of 2 x 2 px, one px apart: 10, 13, 16 and so on."""
    ids = np.zeros((3 * ROWS, 3 * COLUMNS), np.uint32)
    numbers = 10 + 3 * np.arange(COUNT, dtype=np.uint32).reshape(ROWS, COLUMNS)
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        ids[dy::3, dx::3] = numbers
    return ids


def perfect(labels: Tensor) -> Embeddings:
    """Maps (1, ., H, W) of labels (H, W): objects point at their centres, the rest far away."""
    flat = labels.ravel().long()
    at = geometry.coordinates(*labels.shape, torch.zeros(1)).double()  # (2, H, W)
    area = flat.bincount()
    centre = torch.stack([flat.bincount(axis.ravel()) / area for axis in at])
    offset = torch.where(labels > 0, centre[:, labels.long()] - at, -0.95)
    precision = np.log(2) / (MARGIN_PX / 1024) ** 2
    raw = torch.full((1, 2, *labels.shape), float(np.log(precision) / 10))
    seed = torch.where(labels > 0, 0.95, 0.0)
    return Embeddings(offset[None].float(), raw, seed[None, None].float())


class Perfect:
    """An engine that knows the one image it will see."""

    device = torch.device("cpu")
    scale = 1.0

    def __init__(self, maps: Embeddings) -> None:
        self.maps = maps

    def __call__(self, images: Tensor) -> Embeddings:
        assert images.shape[-2:] == self.maps.seed.shape[-2:]
        return self.maps


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> FolderDataset:
    root = tmp_path_factory.mktemp("many")
    ids = blocks()
    for name, pixels in (("images", np.uint8(200) * (ids > 0)), ("masks", ids)):
        (root / name).mkdir()
        tifffile.imwrite(root / name / "field.tif", pixels, compression="zlib")
    return open_folder(root)


@pytest.fixture(scope="module")
def predictor(data: FolderDataset) -> Predictor:
    info = ModelInfo(("cell",), True, Normalization("none"), ClusterOptions(min_pixels=3))
    return Predictor(Perfect(perfect(data[0].target.labels)), info)  # type: ignore[arg-type]


@pytest.mark.parametrize("fault", ["LBL-01 dataset and crop"])
def test_data_set(data: FolderDataset, fault: str) -> None:
    sample = data[0]
    assert sample.ids is not None
    assert np.array_equal(sample.ids, 10 + 3 * np.arange(COUNT))
    assert sample.target.labels.max() == len(sample.target.classes) == COUNT
    assert np.array_equal(np.append(0, sample.ids)[sample.target.labels], blocks())
    still = AugmentOptions(zoom=(1, 1), flip=False, rotate=False)
    side = max(sample.target.labels.shape)
    _, target = training_crop(
        sample, Normalization("none"), side, 1.0, still, np.random.default_rng(0)
    )
    assert target.labels.max() == len(target.classes) == COUNT


@pytest.mark.parametrize("fault", ["LBL-01 loss"])
def test_loss(data: FolderDataset, predictor: Predictor, fault: str) -> None:
    """All instances are alike: own pixels at the centre, 16 of others 3 px away, none nearer."""
    maps = Embeddings(*(m.clone().requires_grad_() for m in predictor.engine.maps))  # type: ignore[attr-defined]
    terms = spatial_embedding_loss(maps, [data[0].target], center="learnable")
    sum(terms).backward()
    error = 2 * 0.5 ** ((3 / MARGIN_PX) ** 2)
    assert terms.instance.item() == pytest.approx(error * (1 - 4 / 20), rel=0.01)
    assert terms.smoothness.item() == pytest.approx(0.0, abs=1e-9)
    assert all(m.grad is not None and m.grad.isfinite().all() for m in maps)


@pytest.mark.parametrize("fault", ["LBL-01 evaluator"])
def test_cluster_and_evaluator(data: FolderDataset, predictor: Predictor, fault: str) -> None:
    report = evaluate(predictor, data, progress=False)
    assert report.mean_ap == 1
    assert report.pooled[0].tp[0] == COUNT
    assert report.rows[0].missed == ()


@pytest.mark.parametrize("fault", ["LBL-01 results"])
def test_results(data: FolderDataset, predictor: Predictor, tmp_path: Path, fault: str) -> None:
    result = predict_folder(predictor, [data.image_path(0)], tmp_path, progress=False)
    assert (result.objects, result.failed) == (COUNT, [])
    labels = tifffile.imread(tmp_path / "field_labels.tif")
    assert labels.dtype == np.uint32
    pairs = np.unique(np.stack([labels.ravel(), blocks().ravel()]), axis=1)  # (2, COUNT + 1)
    assert pairs.shape == (2, COUNT + 1)
    assert np.array_equal(pairs[0], np.arange(COUNT + 1))
    with open(tmp_path / "objects.csv", encoding="utf-8", newline="") as file:
        assert [int(row["id"]) for row in csv.DictReader(file)] == [*range(1, COUNT + 1)]
    entries = json.loads((tmp_path / "instances.json").read_text())["annotations"]
    assert [entry["label"] for entry in entries] == [*range(1, COUNT + 1)]
    assert (tmp_path / "field_overlay.png").is_file()
