"""Box2Pix (Uhrig et al. 2018, IEEE IV): boxes, and pixels that point to the middle of theirs.

    offset          mean over the pixels of instances of |o_i - (m - x_i)|^2, m the middle of the
                    box of the instance that the pixel belongs to, in cells of ``CELL`` px
    classification  softmax of anchors, with three times as many hard negatives (SSD)
    box             smooth-L1 of the matched anchors (SSD)
    total           all, and the semantic term, with weight 1

Boxes are torchvision's SSD (Liu et al. 2016) on the pyramid and anchors of ``detectors``; offsets
and classes of pixels come from a decoder of the wing on the same encoder. The paper weighs its
tasks by learned uncertainties, and matches anchors by the relative change of their sides; here
weights are 1, and anchors are matched from an IoU of 0.5 on, as in SSD.

Grouping: boxes of a class that overlap are thinned out; each pixel of a class goes to the box of
that class whose middle is nearest to the point it points at, among those that contain it. A pixel
in no box belongs to no instance: the paper leaves that open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from spatialembed.baselines import detectors
from spatialembed.baselines.contract import (
    Range,
    as_instances,
    class_probabilities,
    images_of,
    mean_terms,
    semantic_term,
    within_classes,
)
from spatialembed.method.model import parts_of
from spatialembed.method.networks.erfnet import pad_to_stride
from spatialembed.training.augment import torchvision
from spatialembed.types import Instances, Network, Target

TITLE = "Box2Pix (Uhrig 2018)"
CELL = 32
"""px of the unit of offsets."""
CANDIDATES = 400
"""Boxes of a class at most, before they are thinned out."""


@dataclass(frozen=True)
class Settings:
    """Of the grouping."""

    score: float = 0.3
    """Boxes below it are dropped."""
    overlap: float = 0.45
    """IoU from which on the weaker of two boxes of a class is dropped."""
    min_pixels: int = 0
    """A smaller instance is dropped."""


TUNED = {"score": Range(detectors.LEAST_SCORE, 0.95), "overlap": Range(0.2, 0.7)}


class Box2PixTerms(NamedTuple):
    """Unweighted scalars, mean over the batch."""

    offset: Tensor
    semantic: Tensor
    classification: Tensor
    box: Tensor

    def total(self) -> Tensor:
        """All with weight 1."""
        return torch.stack(tuple(self)).sum()


class PixelTerms(NamedTuple):
    """Those of the maps."""

    offset: Tensor
    semantic: Tensor


class Found(NamedTuple):
    """What the network says of an image."""

    maps: Tensor  # (2 + 1 + classes, H, W): offset (x, y) in cells; logits
    boxes: np.ndarray  # (N, 4) float32 x1 y1 x2 y2 px, not thinned out
    scores: np.ndarray  # (N,)
    classes: np.ndarray  # (N,) int64


class Box2PixNet(nn.Module):
    """images (B, 3, H, W) -> maps (B, 2 + 1 + classes, H, W), and the pyramid for the boxes."""

    def __init__(self, num_classes: int, network: Network) -> None:
        super().__init__()
        ssd, parts = torchvision().models.detection.ssd, parts_of(network)
        self.stride = max(parts.stride, detectors.COARSEST)
        self.encoder, self.decoder = parts.encoder(), parts.decoder(3 + num_classes)
        self.pyramid = detectors.pyramid_of(self.encoder)
        strides = self.pyramid.strides
        anchors: Any = detectors.anchors([(2 * s, 3 * s) for s in strides])
        head = ssd.SSDHead(
            [detectors.WIDTH] * len(strides), anchors.num_anchors_per_location(), 1 + num_classes
        )
        self.ssd = ssd.SSD(  # for its losses; its forward pass is not used
            nn.Identity(),
            anchors,
            (1, 1),
            1 + num_classes,
            head=head,
            score_thresh=detectors.LEAST_SCORE,
            nms_thresh=1.0,
            detections_per_img=CANDIDATES * num_classes,
            topk_candidates=CANDIDATES,
        )

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
        """Maps; outputs of the head; anchors (N, 4) of each image."""
        height, width = images.shape[-2:]
        padded = pad_to_stride(images, self.stride)
        features = self.encoder(padded)
        maps = self.decoder(features)[..., :height, :width]
        pyramid = list(self.pyramid(detectors.coarse(features, padded.shape[-1])).values())
        outputs = {name: value.float() for name, value in self.ssd.head(pyramid).items()}
        sizes = [tuple(padded.shape[-2:])] * len(images)
        listed = torchvision().models.detection.image_list.ImageList(padded, sizes)
        return maps, outputs, self.ssd.anchor_generator(listed, pyramid)


def network(num_classes: int, name: Network) -> nn.Module:
    """``Box2PixNet`` with the encoder and a decoder of that name."""
    return Box2PixNet(num_classes, name)


def loss(net: nn.Module, images: Tensor, targets: Sequence[Target]) -> Box2PixTerms:
    """Terms of a batch; images (B, 3, H, W) normalised, net in training mode."""
    assert isinstance(net, Box2PixNet)
    maps, outputs, anchors = net(images)
    truths = [detectors.detection_target(target) for target in targets]
    iou = torchvision().ops.box_iou
    matched = [
        net.ssd.proposal_matcher(iou(truth["boxes"], own))
        if len(truth["boxes"])
        else torch.full((len(own),), -1, device=own.device)
        for truth, own in zip(truths, anchors, strict=True)
    ]
    boxes = net.ssd.compute_loss(truths, outputs, anchors, matched)
    terms = pixel_terms(maps, targets)
    return Box2PixTerms(*terms, boxes["classification"], boxes["bbox_regression"])


def pixel_terms(maps: Tensor, targets: Sequence[Target]) -> PixelTerms:
    """Offset and semantic term of maps (B, 2 + 1 + classes, H, W)."""
    return mean_terms(_pixel_terms(own, target) for own, target in images_of(maps, targets))


def _pixel_terms(maps: Tensor, target: Target) -> PixelTerms:
    truth = detectors.detection_target(target)
    middles = (truth["boxes"][:, :2] + truth["boxes"][:, 2:]) / 2  # (K, 2) x, y
    k, y, x = truth["masks"].nonzero(as_tuple=True)  # (M,) each
    here = torch.stack((x, y)) + 0.5  # the middle of a pixel
    goal = (middles[k].T - here).to(maps.dtype) / CELL  # (2, M)
    away = (maps[:2, y, x] - goal).square().sum()
    return PixelTerms(away / max(len(k), 1), semantic_term(maps[2:], target))


@torch.no_grad()
def predict(net: nn.Module, images: Tensor) -> list[Found]:
    """Maps and boxes of each image; images (B, 3, H, W) normalised, net in evaluation mode."""
    assert isinstance(net, Box2PixNet)
    maps, outputs, anchors = net(images)
    size = tuple(images.shape[-2:])
    found = net.ssd.postprocess_detections(outputs, anchors, [size] * len(images))
    return [
        Found(
            own,
            boxes["boxes"].cpu().numpy(),
            boxes["scores"].cpu().numpy(),
            boxes["labels"].cpu().numpy() - 1,
        )
        for own, boxes in zip(maps, found, strict=True)
    ]


def group(found: Found, settings: Settings) -> Instances:
    """Instances of one image: each pixel to a box of its class."""
    probabilities = class_probabilities(found.maps[2:])
    height, width = probabilities.shape[1:]
    offset = found.maps[:2].detach().float().cpu().numpy() * CELL
    points = offset + np.mgrid[:height, :width][::-1] + 0.5  # (2, H, W) x, y px
    kept = _thinned(found, settings)

    def assign(pixels: np.ndarray, c: int) -> np.ndarray:
        ids, nearest = np.full((height, width), -1), np.full((height, width), np.inf)
        for number, box in enumerate(found.boxes[kept[found.classes[kept] == c]].astype(float)):
            # Pixels whose middles lie in it; no pass over the image for each of 400 boxes.
            x1, y1 = np.ceil(box[:2] - 0.5).astype(int).clip(0)
            x2, y2 = np.floor(box[2:] + 0.5).astype(int).clip(0)
            middle = (box[:2] + box[2:])[:, None, None] / 2
            away = ((points[:, y1:y2, x1:x2] - middle) ** 2).sum(0)
            closer = away < nearest[y1:y2, x1:x2]
            ids[y1:y2, x1:x2][closer] = number
            nearest[y1:y2, x1:x2][closer] = away[closer]
        own = ids.ravel()[pixels]
        own[own >= 0] = np.unique(own[own >= 0], return_inverse=True)[1]
        return own

    labels = within_classes(probabilities, assign)
    return as_instances(labels, probabilities, settings.min_pixels)


def _thinned(found: Found, settings: Settings) -> np.ndarray:
    """Indices of the boxes that are left, by descending score."""
    strong = np.flatnonzero(found.scores >= settings.score)
    boxes, scores = (torch.from_numpy(a[strong]).float() for a in (found.boxes, found.scores))
    classes = torch.from_numpy(found.classes[strong])
    left = torchvision().ops.batched_nms(boxes, scores, classes, settings.overlap)
    return strong[left.numpy()]
