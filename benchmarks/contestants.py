"""The two that are trained beside each other: torchvision's Mask R-CNN R50-FPN, and this method.

Both take the same batch of crops, in values around [0, 1], and both answer an image with masks that
have a score and a class, so that one loop trains them and one evaluator scores them.

From scratch Mask R-CNN has group normalisation, as He, Girshick and Dollar, "Rethinking ImageNet
Pre-training" (2019), have it: the statistics of a batch of two crops are too few for batch-norm,
and the frozen statistics that torchvision takes along with published weights do not exist then.
Of the truth it gets what torchvision's training can take: ignored pixels and groups are background.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from spatialembed.baselines import detectors
from spatialembed.method.cluster import ClusterOptions, cluster
from spatialembed.method.loss import spatial_embedding_loss
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.method.networks.lite import LiteEncoder, load_imagenet
from spatialembed.method.normalization import network_input
from spatialembed.training.loader import Batch
from spatialembed.types import Network, Normalization

Weights = Literal["none", "imagenet", "coco"]
RESNET = "resnet50"
LEAST_SCORE = 0.05
"""Mask R-CNN's detections below it are dropped, as torchvision has it."""
LEAST_SEED = 0.5
"""Where an object of ours may start. AP ranks by the score, so weak detections are welcome."""


@dataclass(frozen=True)
class Recipe:
    """What both are told of the data."""

    classes: tuple[str, ...]
    normalization: Normalization  # to about [0, 1]
    min_pixels: int  # an object has more, of both
    detections: int  # most that Mask R-CNN gives in an image
    rois: int  # boxes an image that its heads learn from
    anchors: tuple[int, ...]  # their sides, px, one for each of its five levels
    weights: Weights = "none"  # that Mask R-CNN starts from
    network: Network = "erfnet"  # of ours; lite starts from what ImageNet taught its encoder
    bfloat16: bool = True  # both: matrix products and convolutions


class Detections(NamedTuple):
    """What was found in an image."""

    masks: np.ndarray  # (N, H, W) bool; those of Mask R-CNN may overlap
    scores: np.ndarray  # (N,) in [0, 1]
    classes: np.ndarray  # (N,) int64


class Contestant(Protocol):
    """A network that learns from crops and detects objects in whole images."""

    name: str
    net: nn.Module
    optimizer: torch.optim.Optimizer
    lr: float

    def loss(self, batch: Batch) -> Tensor:
        """Scalar, of a batch of crops on the device of the network, in training mode."""

    def segment(self, image: np.ndarray) -> Any:
        """What prediction ends with, image (H, W) or (H, W, 3); this is what is timed."""

    def find(self, image: np.ndarray) -> Detections:
        """The same as masks."""


def autocast(device: torch.device, *, bfloat16: bool) -> AbstractContextManager[object]:
    return torch.autocast(device.type, torch.bfloat16) if bfloat16 else nullcontext()


# ---------------------------------------------------------------- this method


class Ours:
    """SpatialEmbeddingNet with the settings of ``spatialembed train``."""

    name = "ours"

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        torch.manual_seed(0)
        net = SpatialEmbeddingNet(len(recipe.classes), network=recipe.network)
        if isinstance(net.encoder, LiteEncoder):
            load_imagenet(net.encoder)
        self.lr = 1e-3 if recipe.network == "lite" else 5e-4  # as their configs have it
        self.net = net.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(self.net.parameters(), self.lr, weight_decay=1e-4)
        self.thresholds = ClusterOptions(start=LEAST_SEED, min_pixels=recipe.min_pixels)

    def loss(self, batch: Batch) -> Tensor:
        maps = self.net(batch.images.contiguous(memory_format=torch.channels_last))
        return spatial_embedding_loss(maps, batch.targets, center="learnable").total()

    @torch.inference_mode()
    def segment(self, image: np.ndarray) -> Any:
        images = network_input(image, self.recipe.normalization)[None].to(self.device)
        self.net.eval()
        with autocast(self.device, bfloat16=self.recipe.bfloat16):
            maps = self.net(images.contiguous(memory_format=torch.channels_last))
        floats = type(maps)(*(m.float() for m in maps))
        return cluster(floats, self.thresholds, self.recipe.classes)[0].numpy()

    def find(self, image: np.ndarray) -> Detections:
        found = self.segment(image)
        numbers = np.arange(1, len(found) + 1)[:, None, None]
        return Detections(found.labels == numbers, found.scores, found.classes)


# ---------------------------------------------------------------- Mask R-CNN


class MaskRcnn:
    """torchvision's, at the size of the image: nothing is enlarged before the network."""

    name = "Mask R-CNN"
    lr = 1e-4

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        torch.manual_seed(0)
        self.net = _mask_rcnn(recipe).to(device)
        # The transformer-era default, which needs no schedule of its own to start from nothing.
        learned = [p for p in self.net.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learned, self.lr, weight_decay=0.05)

    def loss(self, batch: Batch) -> Tensor:
        terms = detectors.losses(self.net, batch.images, batch.targets)
        return torch.stack(list(terms.values())).sum()

    @torch.inference_mode()
    def segment(self, image: np.ndarray) -> Any:
        images = network_input(image, self.recipe.normalization).to(self.device)
        detectors.at_size(self.net, *images.shape[-2:])
        self.net.eval()
        with autocast(self.device, bfloat16=self.recipe.bfloat16):
            found = self.net([images.contiguous()])[0]
        # A soft mask is the chance of being inside; torchvision pastes it at the image's size.
        found["masks"] = found["masks"][:, 0] > 0.5
        return found

    def find(self, image: np.ndarray) -> Detections:
        found = {name: value.cpu().numpy() for name, value in self.segment(image).items()}
        kept = found["masks"].sum((1, 2)) > self.recipe.min_pixels
        return Detections(found["masks"][kept], found["scores"][kept], found["labels"][kept] - 1)


def _mask_rcnn(recipe: Recipe) -> nn.Module:
    from torchvision.models import ResNet50_Weights
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops import FrozenBatchNorm2d

    ready = recipe.weights != "none"
    backbone = resnet_fpn_backbone(
        backbone_name=RESNET,
        weights=ResNet50_Weights.IMAGENET1K_V1 if recipe.weights == "imagenet" else None,
        norm_layer=FrozenBatchNorm2d if ready else partial(nn.GroupNorm, 32),
        trainable_layers=3 if ready else 5,
    )
    net = MaskRCNN(
        backbone,
        num_classes=len(recipe.classes) + 1,
        rpn_anchor_generator=detectors.anchors([(side,) for side in recipe.anchors]),
        box_score_thresh=LEAST_SCORE,
        box_detections_per_img=recipe.detections,
        box_batch_size_per_image=recipe.rois,
    )
    if recipe.weights == "coco":
        _load_coco(net)
    return detectors.as_float32(net)


def _load_coco(net: nn.Module) -> None:
    """The published weights, but for the last layers, which know the classes of COCO."""
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

    theirs = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.get_state_dict(check_hash=True)
    own = net.state_dict()
    net.load_state_dict({k: v if v.shape == own[k].shape else own[k] for k, v in theirs.items()})


# ---------------------------------------------------------------- one owner a pixel


def owned(detections: Detections, threshold: float) -> np.ndarray:
    """Labels (H, W) int32 of the detections from a score on; a pixel belongs to the better one."""
    labels = np.zeros(detections.masks.shape[1:], np.int32)
    for k in np.argsort(detections.scores, kind="stable"):
        if detections.scores[k] >= threshold:
            labels[detections.masks[k]] = k + 1
    return labels


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def contestants(recipe: Recipe, device: torch.device) -> list[Contestant]:
    return [MaskRcnn(recipe, device), Ours(recipe, device)]
