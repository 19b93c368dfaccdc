"""How well the score and the expected IoU of objects predict their true IoU: figures and a plot.

The true IoU of a found object is the largest one with a true object of its class, 0 without any.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from spatialembed.method.calibration import (
    BINS,
    auc,
    calibration_error,
    equal_count_bins,
    rank_correlation,
)
from spatialembed.pictures.charts import unit_curves

NAMES = {"score": "score", "expected_iou": "expected IoU"}
"""Predictions by their field, which is the class of their colour on a page too."""


class Reliability(NamedTuple):
    """N found objects of all images."""

    score: np.ndarray  # (N,) in [0, 1]
    expected_iou: np.ndarray | None  # (N,) in [0, 1]; None of a model that is not calibrated
    iou: np.ndarray  # (N,) in [0, 1]

    def predictions(self) -> dict[str, np.ndarray]:
        """Those that there are, by key."""
        return {key: values for key in NAMES if (values := getattr(self, key)) is not None}

    def to_dict(self) -> dict[str, Any]:
        """Calibration error, rank correlation, AUC at IoU 0.5, bins of each; NaN undefined."""
        figures: dict[str, Any] = {"objects": len(self.iou)}
        for key, values in self.predictions().items():
            sizes = [len(b) for b in equal_count_bins(values, BINS)]
            figures[key] = {
                "calibration_error": calibration_error(values, self.iou),
                "rank_correlation": rank_correlation(values, self.iou),
                "auc_at_50": auc(values, self.iou >= 0.5),
                "bins": [
                    {"objects": size, "predicted": predicted, "iou": true}
                    for size, (predicted, true) in zip(sizes, self.points(values), strict=True)
                ],
            }
        return figures

    def points(self, predicted: np.ndarray) -> list[tuple[float, float]]:
        """Mean prediction and mean true IoU of equal-count bins."""
        bins = equal_count_bins(predicted, BINS)
        return [(float(np.mean(predicted[b])), float(np.mean(self.iou[b]))) for b in bins]

    def section(self) -> dict[str, Any]:
        """For a page: the plot and the figures of each prediction; empty without objects."""
        if not len(self.iou):
            return {}
        predictions = self.predictions()
        chart = unit_curves(
            {key: self.points(values) for key, values in predictions.items()},
            title="Are objects as good as predicted?",
            x_name="predicted",
            y_name="true IoU",
        )
        figures = [
            (key, NAMES[key], calibration_error(v, self.iou), rank_correlation(v, self.iou))
            for key, v in predictions.items()
        ]
        return {"chart": chart, "figures": figures}


def merged(parts: Sequence[Reliability]) -> Reliability:
    """The objects of all images."""
    scores, expected, ious = zip(*parts, strict=True)
    known = [values for values in expected if values is not None]
    return Reliability(
        np.concatenate(scores),
        np.concatenate(known) if len(known) == len(parts) else None,
        np.concatenate(ious),
    )
