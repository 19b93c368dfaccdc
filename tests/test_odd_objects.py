"""Rings, concentric pairs and objects of one pixel through loss, clustering and evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from spatialembed.data.folder import FolderDataset, open_folder
from spatialembed.evaluation.evaluate import evaluate
from spatialembed.evaluation.threshold_sweep import (
    Grid,
    areas_of,
    mean_ap,
    min_pixels_of,
    sweep,
)
from spatialembed.inference.model_file import ModelInfo
from spatialembed.inference.predictor import Predictor
from spatialembed.method import geometry
from spatialembed.method.ground_truth import cluster_with_truth
from spatialembed.method.loss import spatial_embedding_loss
from spatialembed.options import ClusterOptions
from spatialembed.types import Embeddings, Normalization, Target

HOW = Normalization("none")


def rings() -> np.ndarray:
    """A disc in a ring in a ring, all of one centroid, and a ring of its own, ids 1 to 4."""
    y, x = np.indices((64, 96))
    radius, other = np.hypot(y - 32, x - 32), np.hypot(y - 32, x - 78)
    ids = np.select([radius < 6, (radius > 10) & (radius < 16), (radius > 20) & (radius < 28)],
                    [1, 2, 3], 0)  # fmt: skip
    return np.where((other > 6) & (other < 12), 4, ids).astype(np.uint16)


def specks() -> np.ndarray:
    """Six squares each of 1, 2 x 2 and 6 x 6 px."""
    ids = np.zeros((48, 64), np.uint16)
    for i in range(18):
        side = (1, 2, 6)[i % 3]
        y, x = 2 + 14 * (i // 6), 2 + 10 * (i % 6)
        ids[y : y + side, x : x + side] = i + 1
    return ids


class Towards:
    """An engine that sends each object of one mask to a place: its centroid, or one of its own."""

    device = torch.device("cpu")
    scale = 1.0

    def __init__(self, ids: np.ndarray, place: Literal["centroid", "apart"]) -> None:
        labels = torch.from_numpy(ids.astype(np.int64))
        at = geometry.coordinates(*labels.shape, torch.zeros(1))  # (2, H, W)
        goal = at - 0.95  # background lies far away
        for k in range(1, int(labels.max()) + 1):
            inside = labels == k
            own = (
                at[:, inside].mean(1) if place == "centroid" else torch.tensor([32.0 * k, 0]) / 1024
            )
            goal[:, inside] = own[:, None]
        self.maps = Embeddings(
            (goal - at)[None],
            torch.ones(1, 2, *labels.shape),  # margin 5.7 px
            torch.where(labels > 0, 0.95, 0.0)[None, None],
        )

    def __call__(self, images: Tensor) -> Embeddings:
        return self.maps


def written(ids: np.ndarray, root: Path) -> FolderDataset:
    for name, pixels in (("images", np.uint8(200) * (ids > 0)), ("masks", ids)):
        (root / name).mkdir()
        Image.fromarray(pixels).save(root / name / "a.png")
    return open_folder(root)


def predictor(engine: Towards, min_pixels: int) -> Predictor:
    info = ModelInfo(("object",), True, HOW, ClusterOptions(min_pixels=min_pixels))
    return Predictor(engine, info)  # type: ignore[arg-type]


@pytest.mark.parametrize("center", ["centroid", "learnable", "medoid"])
@pytest.mark.parametrize("place", ["centroid", "apart"])
@pytest.mark.parametrize("fault", ["LBL-11 loss"])
def test_loss_of_rings(
    fault: str,
    place: Literal["centroid", "apart"],
    center: Literal["centroid", "learnable", "medoid"],
) -> None:
    """Finite, with gradients; 0 only where the objects are sent apart and the centre follows."""
    ids = rings()
    maps = Embeddings(*(m.clone().requires_grad_() for m in Towards(ids, place).maps))
    target = Target(
        torch.from_numpy(ids.astype(np.int32)),
        torch.zeros(4, dtype=torch.int64),
        torch.zeros(ids.shape, dtype=torch.bool),
    )
    terms = spatial_embedding_loss(maps, [target], center=center)
    sum(terms).backward()
    assert all(bool(term.isfinite()) for term in terms)
    assert all(m.grad is not None and bool(m.grad.isfinite().all()) for m in maps)
    apart = place == "apart" and center == "learnable"
    assert (terms.instance.item() < 0.3) == apart


@pytest.mark.parametrize(
    ("place", "found", "ap"),
    [
        pytest.param("apart", 4, 1.0, id="LBL-11 told apart"),
        # The three in one place are one detection, of IoU 0.58 with the outermost ring.
        pytest.param("centroid", 2, None, id="LBL-11 one centroid"),
    ],
)
def test_rings_are_found_and_scored(
    place: Literal["centroid", "apart"], found: int, ap: float | None, tmp_path: Path
) -> None:
    ids = rings()
    dataset = written(ids, tmp_path)
    model = predictor(Towards(ids, place), 3)
    result = model(dataset[0].image)
    assert len(result) == found
    assert np.array_equal(np.asarray(result.labels) > 0, ids > 0)
    report = evaluate(model, dataset, progress=False)
    areas = np.bincount(ids.ravel())[1:]
    together = areas[2] / areas[:3].sum()  # IoU of the outermost ring with what was found
    hits = 1 + (together >= np.arange(0.5, 0.95, 0.05) - 1e-9)
    expected = np.mean(hits / (4 + 2 - hits)) if ap is None else ap
    assert report.mean_ap == pytest.approx(expected)
    assert len(report.rows[0].missed) == (0 if ap else 2)


@pytest.mark.parametrize("fault", ["LBL-11 ground-truth sampling"])
def test_rings_with_the_true_centres(fault: str) -> None:
    ids = rings()
    target = Target(
        torch.from_numpy(ids.astype(np.int32)),
        torch.zeros(4, dtype=torch.int64),
        torch.zeros(ids.shape, dtype=torch.bool),
    )
    for place in ("centroid", "apart"):
        result = cluster_with_truth(Towards(ids, place).maps, [target])[0]  # type: ignore[arg-type]
        labels = result.labels.numpy()
        assert set(np.unique(labels)) <= set(range(5))
        assert (place == "apart") == bool((labels == ids).all())


@pytest.mark.parametrize("smallest", [0, 1, 3, 4, 35, 36])
@pytest.mark.parametrize("fault", ["LBL-12 min_pixels"])
def test_min_pixels_is_one_rule(fault: str, smallest: int, tmp_path: Path) -> None:
    """Training's validation, evaluation and prediction: an object of so many pixels is not found,
    and is missed in both, since the truth keeps every object, whatever its size."""
    ids = specks()
    dataset = written(ids, tmp_path)
    engine = Towards(ids, "centroid")
    model = predictor(engine, smallest)
    sizes = np.bincount(ids.ravel())[1:]
    expected = int((sizes > smallest).sum())

    options = ClusterOptions(min_pixels=smallest)
    base = sweep(engine, HOW, dataset, options, 1, grid=Grid.of_starts(options))
    report = evaluate(model, dataset, progress=False)
    found = model(dataset[0].image)
    assert len(found) == expected
    assert len(dataset[0].target.classes) == 18
    assert len(report.rows[0].missed) == 18 - expected
    ap = float(base.mean()[base.grid.cell(options)])
    assert ap == pytest.approx(mean_ap(found, dataset[0], 1))
    assert ap == pytest.approx(report.mean_ap) == pytest.approx(expected / 18)


@pytest.mark.parametrize("fault", ["LBL-12 usual min_pixels"])
def test_usual_min_pixels_drops_no_object_of_usual_size(fault: str, tmp_path: Path) -> None:
    dataset = written(specks(), tmp_path)
    truths = [s.target for s in dataset]
    assert min_pixels_of(areas_of(truths)) == 0  # half a pixel: objects of one pixel are found
