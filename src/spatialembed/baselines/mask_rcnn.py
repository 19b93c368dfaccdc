"""Mask R-CNN (He et al. 2017, arXiv 1703.06870): torchvision's, on the encoder of the wing.

Its five losses have weight 1 each, as in the paper. Everything is torchvision's, its mask head
with half its channels, like the pyramid; see ``detectors``. With ResNet-50 and all channels it is
raced against ours by benchmarks/mask_rcnn.py.

Grouping gives each pixel to the best detection that covers it, since a label image has one owner a
pixel; detections whose larger part is owned by better ones are dropped.
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

TITLE = "Mask R-CNN (He 2017)"
TUNED = detectors.TUNED
Settings = detectors.Settings


class MaskRcnnTerms(NamedTuple):
    """Unweighted scalars, mean over the batch."""

    objectness: Tensor
    proposal_box: Tensor
    classification: Tensor
    box: Tensor
    mask: Tensor

    def total(self) -> Tensor:
        """All with weight 1."""
        return torch.stack(tuple(self)).sum()


def network(num_classes: int, name: Network) -> nn.Module:
    """torchvision's MaskRCNN with the encoder of that name."""
    return built(num_classes, detectors.Backbone(name))


def built(num_classes: int, backbone: detectors.Backbone) -> nn.Module:
    """torchvision's MaskRCNN on a backbone."""
    tv = torchvision()
    parts = tv.models.detection.mask_rcnn
    levels = [str(i) for i in range(backbone.pyramid.learned)]
    net = parts.MaskRCNN(
        backbone,
        mask_roi_pool=tv.ops.MultiScaleRoIAlign(levels, 14, 2),
        mask_head=parts.MaskRCNNHeads(detectors.WIDTH, (detectors.WIDTH,) * 4, 1),
        mask_predictor=parts.MaskRCNNPredictor(detectors.WIDTH, detectors.WIDTH, 1 + num_classes),
        **detectors.detector_settings(backbone, num_classes),
    )
    return detectors.as_float32(net)


def loss(net: nn.Module, images: Tensor, targets: Sequence[Target]) -> MaskRcnnTerms:
    """torchvision's losses; images (B, 3, H, W) normalised, net in training mode."""
    terms = detectors.losses(net, images, targets)
    return MaskRcnnTerms(
        terms["loss_objectness"],
        terms["loss_rpn_box_reg"],
        terms["loss_classifier"],
        terms["loss_box_reg"],
        terms["loss_mask"],
    )


def predict(net: nn.Module, images: Tensor) -> list[detectors.Detections]:
    """Detections of each image, net in evaluation mode."""
    paste = torchvision().models.detection.roi_heads.paste_masks_in_image
    size = images.shape[-2:]

    def masks(found: dict[str, Tensor]) -> Iterator[np.ndarray]:
        for mask, box in zip(found["masks"], found["boxes"], strict=True):
            yield (paste(mask[None], box[None], size)[0, 0] > 0.5).cpu().numpy()

    return detectors.detected(net, images, masks)


def group(found: detectors.Detections, settings: detectors.Settings) -> Instances:
    """Instances of the detections of one image; see ``detectors.group``."""
    return detectors.group(found, settings)
