"""The running mean of the weights: what a training with ``average`` validates and keeps."""

from __future__ import annotations

from copy import deepcopy

import torch

from spatialembed.method.model import SpatialEmbeddingNet


class WeightAverage:
    """Exponential mean of weights and batch-norm statistics over the steps (Polyak averaging).

        mean <- d mean + (1 - d) weights        d = min(decay, (1 + n) / (10 + n)) at step n

    so that the first steps, whose weights are poor, are soon forgotten.
    """

    def __init__(self, net: SpatialEmbeddingNet, decay: float) -> None:
        self.net = deepcopy(net).requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, net: SpatialEmbeddingNet) -> None:
        """Take in the weights after a step."""
        self.steps += 1
        keep = min(self.decay, (1 + self.steps) / (10 + self.steps))
        ours, theirs = self.net.state_dict(), net.state_dict()
        for name, mean in ours.items():
            if mean.is_floating_point():
                mean.lerp_(theirs[name].to(mean), 1 - keep)
            else:
                mean.copy_(theirs[name])

    def state_dict(self) -> dict[str, object]:
        """All of it, for a checkpoint."""
        return {"steps": self.steps, "net": self.net.state_dict()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from what ``state_dict`` gave."""
        self.steps = int(state["steps"])  # type: ignore[call-overload]
        self.net.load_state_dict(state["net"])  # type: ignore[arg-type]
