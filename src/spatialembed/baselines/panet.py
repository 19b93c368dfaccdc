"""PANet's bottom-up path (Liu et al. 2018, arXiv 1803.01534) in Mask R-CNN.

A second way through the pyramid, from its finest map up, so that what is fine there reaches the
coarse maps by few layers; see ``detectors.Pyramid``. Of the paper's other two parts, adaptive
feature pooling and a fully connected branch of the masks, none is here, so that the row beside
``mask_rcnn`` shows what the path does.
"""

from __future__ import annotations

from torch import nn

from spatialembed.baselines import detectors, mask_rcnn
from spatialembed.types import Network

TITLE = "PANet's path (Liu 2018)"
TUNED = detectors.TUNED
Settings = detectors.Settings
loss = mask_rcnn.loss
predict = mask_rcnn.predict
group = mask_rcnn.group


def network(num_classes: int, name: Network) -> nn.Module:
    """``mask_rcnn.network`` with the second way up."""
    return mask_rcnn.built(num_classes, detectors.Backbone(name, bottom_up=True))
