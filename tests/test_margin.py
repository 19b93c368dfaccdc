"""A fixed bandwidth, the baseline of the paper: what is trained, and what its model says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spatialembed.errors import SpatialEmbedError
from spatialembed.generated.nuclei_and_shapes import SyntheticDataset, write_folder
from spatialembed.inference.predictor import load
from spatialembed.method.geometry import log_precision_of, margin_px
from spatialembed.method.loss import hinge_loss
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.training import step, train
from spatialembed.training.options import StageOptions, TrainOptions

MARGIN = 9.0


def options(data: Path, out: Path, **changes: Any) -> TrainOptions:
    settings = {
        "data": str(data),
        "out": str(out),
        "name": "run",
        "stage1": StageOptions(crop=32, epochs=1, batch=2, lr=1e-2),
        "center": "centroid",
        "margin": MARGIN,
        "weight_decay": 0.1,
        "device": "cpu",
        "precision": "float32",
        "workers": 0,
    }
    return TrainOptions(**(settings | changes))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_folder(SyntheticDataset("shapes", (48, 48), 6, seed=1), folder, progress=False)
    return folder


@pytest.mark.parametrize("elliptical", [False, True])
def test_the_model_clusters_with_exactly_this_margin(
    elliptical: bool, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    margins = []

    def seen(*args: Any, margin_px: float, **kwargs: Any) -> Any:
        margins.append(margin_px)
        return hinge_loss(*args, margin_px=margin_px, **kwargs)

    monkeypatch.setattr(step, "hinge_loss", seen)
    run = train.train(options(scenes, tmp_path, elliptical=elliptical))
    assert set(margins) == {MARGIN}  # it is the hinge that is trained
    predictor = load(run / "model", device="cpu", precision="float32")
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    maps = predictor.embeddings(image)
    assert maps.log_precision.shape[1] == 1 + elliptical
    assert torch.all(maps.log_precision == torch.tensor(log_precision_of(MARGIN)))
    assert margin_px(maps.log_precision).mean() == pytest.approx(MARGIN, rel=1e-5)
    assert maps.offset.std() > 0  # which did learn
    assert predictor(image).labels.shape == (40, 56)


def test_margin_and_log_precision_are_inverses() -> None:
    for margin in (0.5, 5.7, 200.0):
        raw = torch.tensor(log_precision_of(margin), dtype=torch.float64)
        assert float(margin_px(raw)) == pytest.approx(margin, rel=1e-12)


def test_fixing_leaves_the_offsets() -> None:
    net = SpatialEmbeddingNet(2)
    last = net.decoders[0].get_submodule("output_conv")
    assert isinstance(last, torch.nn.ConvTranspose2d)
    assert last.bias is not None
    torch.nn.init.normal_(last.weight)
    before = last.weight.detach().clone()
    net.fix_bandwidth(0.75)
    assert torch.equal(last.weight[:, :2], before[:, :2])
    assert torch.all(last.weight[:, 2:] == 0)
    assert last.bias.tolist() == [0, 0, 0.75, 0.75]


@pytest.mark.parametrize("changes", [{"margin": 0.0}, {"margin": -1.0}, {"center": "learnable"}])
def test_what_does_not_fit_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SpatialEmbedError) as error:
        options(tmp_path, tmp_path, **changes)
    assert error.value.code == "bad_setting"
    assert "margin" in str(error.value)
