"""Faster R-CNN (Ren et al. 2015, arXiv 1506.01497), its boxes filled: a floor.

An object is its box, so that the row beside ``mask_rcnn`` shows what masks are worth.
torchvision's, on the encoder of the wing; see ``detectors``. A pixel is in a box if its middle is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from spatialembed.baselines import detectors
from spatialembed.training.augment import torchvision
from spatialembed.types import Instances, Network, Target

TITLE = "Faster R-CNN, boxes filled (Ren 2015)"
TUNED = detectors.TUNED
Settings = detectors.Settings


class FasterRcnnTerms(NamedTuple):
    """Unweighted scalars, mean over the batch."""

    objectness: Tensor
    proposal_box: Tensor
    classification: Tensor
    box: Tensor

    def total(self) -> Tensor:
        """All with weight 1."""
        return torch.stack(tuple(self)).sum()


def network(num_classes: int, name: Network) -> nn.Module:
    """torchvision's FasterRCNN with the encoder of that name."""
    backbone = detectors.Backbone(name)
    settings = detectors.detector_settings(backbone, num_classes)
    net = torchvision().models.detection.FasterRCNN(backbone, **settings)
    return detectors.as_float32(net)


def loss(net: nn.Module, images: Tensor, targets: Sequence[Target]) -> FasterRcnnTerms:
    """torchvision's losses; images (B, 3, H, W) normalised, net in training mode."""
    terms = detectors.losses(net, images, targets)
    return FasterRcnnTerms(
        terms["loss_objectness"],
        terms["loss_rpn_box_reg"],
        terms["loss_classifier"],
        terms["loss_box_reg"],
    )


def predict(net: nn.Module, images: Tensor) -> list[detectors.Detections]:
    """Detections of each image, filled boxes for masks; net in evaluation mode."""
    return detectors.detected(
        net, images, lambda found: filled(found["boxes"].cpu().numpy(), *images.shape[-2:])
    )


def filled(boxes: np.ndarray, height: int, width: int) -> Iterator[np.ndarray]:
    """Masks (height, width) bool of boxes (N, 4), x1 y1 x2 y2 px, one after the other."""
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    for x1, y1, x2, y2 in boxes:
        yield ((y1 <= y) & (y < y2))[:, None] & ((x1 <= x) & (x < x2))


def group(found: detectors.Detections, settings: detectors.Settings) -> Instances:
    """Instances of the filled boxes of one image; see ``detectors.group``."""
    return detectors.group(found, settings)
