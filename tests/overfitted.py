"""Whether a method of the wing baselines learns four small images, from its maps to its masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from spatialembed.baselines.maps_net import MapsNet
from spatialembed.evaluation.label_metrics import label_ap
from spatialembed.generated.nuclei_and_shapes import nuclei_field
from spatialembed.method.networks.lite import LiteEncoder, load_imagenet
from spatialembed.types import Instances, Target

SIZE, COUNT, IMAGES = 48, 4, 4
STEPS, LR = 240, 6e-3


def four(size: int = SIZE, count: int = COUNT) -> tuple[Tensor, list[Target]]:
    """Images (4, 3, size, size) in [0, 1] with so many nuclei each, and their truth."""
    samples = [nuclei_field(size, size, seed=s, count=count) for s in range(IMAGES)]
    images = np.stack([s.image / s.image.max() for s in samples]).astype(np.float32)
    return torch.from_numpy(images)[:, None].repeat(1, 3, 1, 1), [s.target for s in samples]


def ap50(found: list[Instances], targets: list[Target]) -> float:
    """Mean over the images."""
    pairs = zip(found, targets, strict=True)
    return float(np.mean([label_ap(f.labels, t.labels.numpy(), [0.5])[0] for f, t in pairs]))


def overfitted(
    method: ModuleType,
    settings: Sequence[dict[str, float]] = ({},),
    size: int = SIZE,
    count: int = COUNT,
    turned: bool = False,
) -> float:
    """AP50 on the four images, with the best of the settings, as soon as that is 0.9.

    At the latest after ``STEPS`` steps on all four. turned: the images are turned over from step to
    step, so that a loss of some of the pixels sees others than in the step before.
    """
    torch.manual_seed(0)
    images, targets = four(size, count)
    if hasattr(method, "network"):
        net: nn.Module = method.network(1, "lite")
    else:
        net = MapsNet(method.channels(1), "lite")
    assert isinstance(net.encoder, LiteEncoder)
    load_imagenet(net.encoder)
    optimizer = torch.optim.Adam(net.parameters(), LR)
    net.train()
    best = 0.0
    for step in range(1, STEPS + 1):
        over = [axis for axis in (1, 2) if turned and step // axis % 2]
        truths = [
            Target(t.labels.flip([axis - 1 for axis in over]), t.classes, t.ignore) for t in targets
        ]
        optimizer.zero_grad()
        method.loss(net(images.flip([axis + 1 for axis in over])), truths).total().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()
        if step % 20 == 0:
            with torch.no_grad():  # in training mode: with the statistics of these very images
                maps = net(images)
            for values in settings:
                grouping = replace(method.Settings(), min_pixels=8, **values)
                best = max(best, ap50([method.group(m, grouping) for m in maps], targets))
            if best >= 0.9:
                break
    return best
