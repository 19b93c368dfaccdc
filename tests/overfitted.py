"""Whether a method of the wing baselines learns four small images, from its maps to its masks."""

from __future__ import annotations

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

SIZE, IMAGES = 48, 4
STEPS, LR = 150, 4e-3


def four() -> tuple[Tensor, list[Target]]:
    """Images (4, 3, 48, 48) in [0, 1] with a few nuclei each, and their truth."""
    samples = [nuclei_field(SIZE, SIZE, seed=s, count=4) for s in range(IMAGES)]
    images = np.stack([s.image / s.image.max() for s in samples]).astype(np.float32)
    return torch.from_numpy(images)[:, None].repeat(1, 3, 1, 1), [s.target for s in samples]


def ap50(found: list[Instances], targets: list[Target]) -> float:
    """Mean over the images."""
    pairs = zip(found, targets, strict=True)
    return float(np.mean([label_ap(f.labels, t.labels.numpy(), [0.5])[0] for f, t in pairs]))


def overfitted(method: ModuleType, steps: int = STEPS, lr: float = LR, **settings: float) -> float:
    """AP50 on the four images after so many steps on all of them."""
    torch.manual_seed(0)
    images, targets = four()
    if hasattr(method, "network"):
        net: nn.Module = method.network(1, "lite")
    else:
        net = MapsNet(method.channels(1), "lite")
    assert isinstance(net.encoder, LiteEncoder)
    load_imagenet(net.encoder)
    optimizer = torch.optim.Adam(net.parameters(), lr)
    net.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1.0, 2 * (1 - step / steps))
        optimizer.zero_grad()
        method.loss(net(images), targets).total().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()
    # In training mode: statistics of these very images, so that nothing is left to their average.
    with torch.no_grad():
        maps = net(images)
    grouping = replace(method.Settings(), min_pixels=10, **settings)
    return ap50([method.group(m, grouping) for m in maps], targets)
