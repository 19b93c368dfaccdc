"""Random scenes for the methods of the wing baselines: truth, and ways to look at a result."""

from __future__ import annotations

import numpy as np
import torch

from spatialembed.types import Instances, Target


def scene(
    seed: int, size: int = 24, instances: int = 5, classes: int = 2, ignored: int = 3
) -> Target:
    """Boxes that touch and hide each other, one of a single pixel, and a few ignored pixels.

    ``ignored``: side of the ignored square in a corner; 0: none. Instances without any visible
    pixel are left out.
    """
    rng = np.random.default_rng(seed)
    labels = np.zeros((size, size), np.int64)
    for k in range(1, instances + 1):
        side = 1 if k == instances else int(rng.integers(3, max(4, size // 2)))
        y, x = rng.integers(0, size - side + 1, 2)
        labels[y : y + side, x : x + side] = k
    ids, number = np.unique(labels, return_inverse=True)
    offset = 0 if 0 in ids else 1
    labels = number.reshape(labels.shape) + offset
    ignore = np.zeros((size, size), bool)
    ignore[:ignored, :ignored] = True
    kind = rng.integers(0, classes, int(labels.max()))
    return Target(
        torch.from_numpy(labels).int(), torch.from_numpy(kind).long(), torch.from_numpy(ignore)
    )


def empty(size: int = 24) -> Target:
    """No instance; nothing is ignored."""
    no = torch.zeros((size, size))
    return Target(no.int(), torch.zeros(0, dtype=torch.int64), no.bool())


def class_logits(target: Target, classes: int, high: float = 9.0) -> torch.Tensor:
    """Logits (1 + classes, H, W) of the true class of each pixel, background first."""
    table = torch.cat((torch.zeros(1, dtype=torch.int64), target.classes + 1))
    truth = table[target.labels.long()]
    return high * torch.nn.functional.one_hot(truth, 1 + classes).permute(2, 0, 1).float()


def same(found: Instances, target: Target) -> bool:
    """Whether the very masks of the truth were found, each with its class."""
    truth = target.labels.numpy()
    own = {(m.tobytes(), int(c)) for m, c in zip(_masks(truth), target.classes, strict=True)}
    masks = _masks(np.asarray(found.labels))
    return len(found) == len(own) and own == {
        (m.tobytes(), int(c)) for m, c in zip(masks, found.classes, strict=True)
    }


def _masks(labels: np.ndarray) -> list[np.ndarray]:
    return [labels == k for k in range(1, int(labels.max(initial=0)) + 1)]
