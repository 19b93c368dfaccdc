"""What the methods with proposals share: torchvision's heads on the encoder of the wing.

    encoder        that of ``MapsNet``, so that detectors are compared and not networks
    pyramid        torchvision's FPN on its maps from stride 4 on, 128 channels, continued by
                   max-pooling to stride 64; for PANet with a second way up
    anchors        two sides a level, twice and three times its stride, at three ratios of the
                   sides: 8 to 192 px
    size           images stay at their size, nothing is enlarged before the network

Weights start from nothing, like those of all methods; torchvision's need a download. Ignored pixels
are background: torchvision's losses cannot leave pixels out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spatialembed.baselines.contract import Range
from spatialembed.method.model import parts_of
from spatialembed.training.augment import torchvision
from spatialembed.types import Instances, Network, Target

RATIOS = (0.5, 1.0, 2.0)
"""Heights of anchors by their widths."""
WIDTH = 128
"""Channels of the pyramid, half of torchvision's."""
FINEST, COARSEST = 4, 64
"""Strides of the pyramid."""
LEARNED = 3
"""Maps that the FPN works on, at least; coarser ones are max-pooled."""
DETECTIONS = 400
"""Most in an image; a field of nuclei has up to 375."""
ROIS = 128
"""Boxes of a crop that the heads learn from: a quarter of torchvision's, for crops of 256 px."""
LEAST_SCORE = 0.05
FEATURES = 1024
"""Of a box, as torchvision has it."""


@dataclass(frozen=True)
class Settings:
    """Of the grouping: from detections that overlap to one owner a pixel."""

    score: float = 0.5
    """Detections below it are dropped."""
    free: float = 0.5
    """Share of a detection, at least, that no better one owns."""
    min_pixels: int = 0
    """A smaller instance is dropped."""


TUNED = {"score": Range(LEAST_SCORE, 0.95), "free": Range(0.05, 0.9)}


@dataclass(frozen=True)
class Detections:
    """What was found in an image. Masks may overlap; they are kept as bits, since 400 are many."""

    bits: np.ndarray  # (N, H, ceil(W / 8)) uint8, eight pixels of a row a byte
    width: int
    scores: np.ndarray  # (N,) in [0, 1]
    classes: np.ndarray  # (N,) int64
    class_names: tuple[str, ...]

    def mask(self, k: int) -> np.ndarray:
        """Mask (H, W) bool of a detection."""
        return np.unpackbits(self.bits[k], axis=-1, count=self.width).astype(bool)


def packed(masks: Iterable[np.ndarray], height: int, width: int) -> np.ndarray:
    """Masks (height, width) bool, one after the other, as ``Detections`` keeps them."""
    rows = [np.packbits(mask, axis=-1) for mask in masks]
    return np.stack(rows) if rows else np.empty((0, height, -(-width // 8)), np.uint8)


class Pyramid(nn.Module):
    """Maps of an encoder -> maps of ``WIDTH`` channels at strides 4 (or the encoder's), ..., 64.

    Args:
        channels: Of the maps, finest first, strides doubling.
        stride: Of the first map. Where there are fewer than three maps, as of ERFNet, convolutions
            of stride 2 make the others.
        bottom_up: With the path of PANet (Liu et al. 2018, arXiv 1803.01534): N_2 = P_2, and
            N_{i+1} = ReLU conv (ReLU conv N_i at stride 2, plus P_{i+1}), both 3x3.

    Attribute ``strides``: those of the result.
    """

    def __init__(self, channels: Sequence[int], stride: int, *, bottom_up: bool = False) -> None:
        super().__init__()
        more = [channels[-1]] * (LEARNED - len(channels))
        self.more = nn.ModuleList(nn.Conv2d(c, c, 3, 2, 1) for c in more)
        self.learned = len(channels) + len(more)
        self.fpn = torchvision().ops.FeaturePyramidNetwork([*channels, *more], WIDTH)
        steps = self.learned - 1 if bottom_up else 0
        self.down = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, 2, 1) for _ in range(steps))
        self.smooth = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, 1, 1) for _ in range(steps))
        self.strides = [stride << i for i in range(self.learned)]
        while self.strides[-1] < COARSEST:
            self.strides.append(2 * self.strides[-1])

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        maps = list(maps)
        for more in self.more:
            maps.append(F.relu(more(maps[-1])))
        result = list(self.fpn(OrderedDict((str(i), m) for i, m in enumerate(maps))).values())
        for i, (down, smooth) in enumerate(zip(self.down, self.smooth, strict=True)):
            result[i + 1] = F.relu(smooth(F.relu(down(result[i])) + result[i + 1]))
        for _ in self.strides[self.learned :]:
            result.append(F.max_pool2d(result[-1], 1, 2))
        return OrderedDict((str(i), m) for i, m in enumerate(result))


class Backbone(nn.Module):
    """images (B, 3, H, W), sides multiples of the encoder's stride -> the maps of a ``Pyramid``."""

    out_channels = WIDTH

    def __init__(self, network: Network, *, bottom_up: bool = False) -> None:
        super().__init__()
        self.encoder = parts_of(network).encoder()
        self.pyramid = pyramid_of(self.encoder, bottom_up=bottom_up)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = self.pyramid(coarse(self.encoder(images), images.shape[-1]))
        return maps


def coarse(features: Tensor | Sequence[Tensor], width: int) -> list[Tensor]:
    """The maps of an encoder from stride 4 on, for images of this width."""
    maps = [features] if isinstance(features, Tensor) else features
    return [m for m in maps if m.shape[-1] * FINEST <= width]


@torch.no_grad()
def pyramid_of(encoder: nn.Module, *, bottom_up: bool = False) -> Pyramid:
    """A pyramid that fits on an encoder, whose maps are asked for once."""
    side, training = 2 * COARSEST, encoder.training
    maps = coarse(encoder.eval()(torch.zeros(1, 3, side, side)), side)
    encoder.train(training)
    return Pyramid([m.shape[1] for m in maps], side // maps[0].shape[-1], bottom_up=bottom_up)


# ---------------------------------------------------------------- torchvision's detectors


def detector_settings(backbone: Backbone, num_classes: int) -> dict[str, Any]:
    """Arguments that torchvision's FasterRCNN and MaskRCNN share here."""
    tv = torchvision()
    predictor = tv.models.detection.faster_rcnn.FastRCNNPredictor
    strides = backbone.pyramid.strides
    levels = [str(i) for i in range(backbone.pyramid.learned)]
    return {
        "image_mean": (0.0,) * 3,  # images come normalised
        "image_std": (1.0,) * 3,
        "rpn_anchor_generator": anchors([(2 * s, 3 * s) for s in strides]),
        "box_roi_pool": tv.ops.MultiScaleRoIAlign(levels, 7, 2),
        "box_predictor": predictor(FEATURES, 1 + num_classes),
        "box_score_thresh": LEAST_SCORE,
        "box_detections_per_img": DETECTIONS,
        "box_batch_size_per_image": ROIS,
    }


def anchors(sides: Sequence[Sequence[int]]) -> nn.Module:
    """Anchors of these sides, px, at each level, in three shapes."""
    generator = torchvision().models.detection.anchor_utils.AnchorGenerator
    made: nn.Module = generator(tuple(map(tuple, sides)), (RATIOS,) * len(sides))
    return made


def as_float32(net: Any) -> nn.Module:
    """The detector, whose heads give float32 under autocast too.

    Boxes are decoded in the type of these outputs, and bfloat16 knows every second pixel only
    beyond 256.
    """
    heads = net.roi_heads
    for part in (net.rpn.head, heads.box_predictor, heads.mask_predictor):
        if part is not None:
            part.register_forward_hook(lambda _, __, output: _float32(output))
    detector: nn.Module = net
    return detector


def _float32(output: Any) -> Any:
    """A tensor, or tensors in lists and tuples, as float32."""
    if isinstance(output, Tensor):
        return output.float()
    return type(output)(_float32(part) for part in output)


def at_size(net: Any, height: int, width: int) -> None:
    """Keep torchvision from resizing the images to 800 px."""
    net.transform.min_size = (min(height, width),)
    net.transform.max_size = max(height, width)


def losses(net: nn.Module, images: Tensor, targets: Sequence[Target]) -> Mapping[str, Tensor]:
    """torchvision's named losses of a batch; images (B, 3, H, W) normalised."""
    at_size(net, *images.shape[-2:])
    terms: Mapping[str, Tensor] = net(list(images), [detection_target(t) for t in targets])
    return terms


@torch.no_grad()
def detected(
    net: Any, images: Tensor, masks: Callable[[dict[str, Tensor]], Iterable[np.ndarray]]
) -> list[Detections]:
    """Detections in each image; images (B, 3, H, W) normalised, net in evaluation mode.

    torchvision's steps one by one: its forward pass would lay all masks of an image on it at once,
    in float32, 3 GB at 2048x1024.

    masks: masks (H, W) bool of what it found in an image: boxes, labels, scores, masks 28 x 28.
    """
    height, width = images.shape[-2:]
    at_size(net, height, width)
    batch, _ = net.transform(list(images))
    features = net.backbone(batch.tensors)
    proposals, _ = net.rpn(batch, features)
    found, _ = net.roi_heads(features, proposals, batch.image_sizes)
    classes = net.roi_heads.box_predictor.cls_score.out_features - 1
    return [
        Detections(
            packed(masks(one), height, width),
            width,
            one["scores"].cpu().numpy(),
            (one["labels"] - 1).cpu().numpy(),
            names(classes),
        )
        for one in found
    ]


def detection_target(target: Target) -> dict[str, Tensor]:
    """The truth of a crop as torchvision takes it.

    boxes (K, 4) float32 x1 y1 x2 y2 px, x2 and y2 exclusive, so that an object one pixel wide has
    a box; labels (K,) int64 from 1, 0 is background; masks (K, H, W) uint8. An instance without a
    valid pixel is not among them.
    """
    labels = target.labels.masked_fill(target.ignore, 0)
    height, width = labels.shape
    ids = labels.unique()
    ids = ids[ids > 0]
    masks = labels == ids[:, None, None]  # (K, H, W)
    columns, rows = masks.any(1), masks.any(2)  # (K, W), (K, H)
    corners = (_first(columns), _first(rows), width - _first(columns.flip(1)))
    boxes = torch.stack((*corners, height - _first(rows.flip(1))), dim=1)
    return {
        "boxes": boxes.float(),
        "labels": target.classes[ids.long() - 1] + 1,
        "masks": masks.byte(),
    }


def _first(there: Tensor) -> Tensor:
    """Index (K,) of the first true value of each row."""
    return there.byte().argmax(1)


# ---------------------------------------------------------------- one owner a pixel


def group(found: Detections, settings: Settings) -> Instances:
    """Instances of detections: a pixel belongs to the best one that covers it."""
    labels = np.zeros((found.bits.shape[1], found.width), np.int32)
    kept: list[int] = []
    for k in np.argsort(-found.scores, kind="stable").tolist():
        if found.scores[k] < settings.score:
            break
        mask = found.mask(k)
        own = mask & (labels == 0)
        pixels = int(own.sum())
        if pixels >= max(settings.min_pixels, 1) and pixels >= settings.free * mask.sum():
            kept.append(k)
            labels[own] = len(kept)
    return Instances(
        labels,
        found.scores[kept].astype(np.float32),
        found.classes[kept].astype(np.int64),
        found.class_names,
    )


def names(num_classes: int) -> tuple[str, ...]:
    """As ``contract.as_instances`` names them."""
    return tuple(f"class {c}" for c in range(num_classes))
