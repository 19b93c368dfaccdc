"""A training step, taken apart: which share of it is not the network.

    python benchmarks/training_step.py

Data loading is counted as if no worker helped: files are read, cropped and augmented in the
process that trains. "rest" is the optimiser, its zeroing, and the copy of batch-norm statistics
that undoes a step without a finite loss. The loss has its own part of the backward pass, measured
by cutting the graph at the maps.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from epochs import Training
from report import Table, finish, percent
from torch import Tensor

from spatialembed.command.bench import in_turns
from spatialembed.data.folder import open_folder
from spatialembed.generated.nuclei_and_shapes import SyntheticDataset, write_folder
from spatialembed.inference.device import resolve_device, resolve_precision
from spatialembed.method.loss import spatial_embedding_loss
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.training.augment import AugmentOptions
from spatialembed.training.loader import Batch, CropPlan, Crops, collate
from spatialembed.types import Embeddings, Normalization, Target

CASES = ((512, 4), (1024, 2))
"""Side of the crops and crops a step, as the two published stages have them, fitted to a CPU."""


LITE = (256, 4)
"""The same for the network lite; its maps come from moments of a training: see ``epochs``."""


class Step:
    """The parts of a step on one batch, each to be run again and again."""

    def __init__(self, crops: Crops, device: torch.device, half: bool) -> None:
        self.crops, self.device, self.half = crops, device, half
        self.batch: Batch = self.load()
        self.net = SpatialEmbeddingNet(1).to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.net.parameters(), 5e-4, weight_decay=1e-4)
        self.loss()  # gradients for the other parts

    def load(self) -> Batch:
        batch = collate([self.crops[i] for i in range(self.crops.plan.batch)])
        assert isinstance(batch, Batch)
        return batch.to(self.device)

    def forward(self) -> Embeddings:
        images = self.batch.images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            return Embeddings(*self.net(images))

    def network(self) -> None:
        """Forward and backward, with gradients of the maps that are there."""
        torch.autograd.backward(list(self.forward()), [*self.gradients])

    def loss(self) -> Tensor:
        """Forward and backward from the maps."""
        if not hasattr(self, "maps"):
            self.maps = [m.detach().requires_grad_() for m in self.forward()]
        for m in self.maps:
            m.grad = None
        terms = spatial_embedding_loss(
            Embeddings(*self.maps), self.batch.targets, center="centroid"
        )
        terms.total().backward()
        self.gradients = [m.grad for m in self.maps]
        return terms.total().detach()

    def rest(self) -> None:
        _ = [buffer.clone() for buffer in self.net.buffers()]
        self.optimizer.step()
        for parameter in self.net.parameters():  # kept for the next round; zeroing is as long
            if parameter.grad is not None:
                parameter.grad.zero_()


def main() -> None:
    options = parsed()
    device = resolve_device(options.device)
    half = resolve_precision(options.precision, device) == "bfloat16"
    rows: list[list[str]] = []
    facts: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size, batch in CASES:
            where = Path(folder) / str(size)
            pictures = SyntheticDataset("nuclei", (size, 2 * size), 4)
            write_folder(pictures, where, progress=False)
            plan = CropPlan(size, 1.0, 4 * batch, batch, seed=0, epoch=0)
            crops = Crops(open_folder(where), Normalization(), AugmentOptions(), plan)
            step = Step(crops, device, half)
            jobs: dict[str, Callable[[], object]] = {
                "network": step.network,
                "loss": step.loss,
                "loading": partial(step.load),
                "rest": step.rest,
            }
            seconds = in_turns(jobs, options.rounds)
            rows.append(row(size, batch, seconds))
            facts[f"{size}x{batch}"] = seconds
    shares, facts["lite"] = in_training(options, device, half)
    precision = "bfloat16" if half else "float32"
    finish(
        f"training_step_{device.type}",
        [
            Table(
                f"A training step of erfnet, {device.type}, {precision}",
                ["crops", "network", "loss", "loading", "rest", "all but the network"],
                rows,
            ),
            Table(
                f"The loss on maps of lite in training, {LITE[1]} crops of {LITE[0]} px",
                ["epoch", "share of network and loss"],
                shares,
            ),
        ],
        facts={"seconds": facts},
    )


def in_training(
    options: argparse.Namespace, device: torch.device, half: bool
) -> tuple[list[list[str]], dict[str, list[float]]]:
    """Epoch and share of the loss in network and loss, forward and backward; and the seconds."""
    training = Training(*LITE)
    images = training.images.to(device, memory_format=torch.channels_last)
    targets = [Target(*(t.to(device) for t in vars(one).values())) for one in training.targets]
    net = SpatialEmbeddingNet(1, network="lite").to(device, memory_format=torch.channels_last)

    def network() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            maps = net(images)
        torch.autograd.backward(list(maps), [torch.ones_like(m) for m in maps])

    def loss(maps: Embeddings) -> None:
        leaves = Embeddings(*(m.detach().requires_grad_() for m in maps))
        spatial_embedding_loss(leaves, targets, center="learnable").total().backward()

    by_epoch = {e: Embeddings(*(m.to(device) for m in maps)) for e, maps in training.maps().items()}
    jobs: dict[str, Callable[[], object]] = {"network": network}
    jobs |= {epoch: partial(loss, maps) for epoch, maps in by_epoch.items()}
    seconds = in_turns(jobs, options.rounds)
    whole = {name: statistics.median(times) for name, times in seconds.items()}
    rows = [[e, percent(whole[e] / (whole[e] + whole["network"]))] for e in by_epoch]
    return rows, seconds


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def row(size: int, batch: int, seconds: dict[str, list[float]]) -> list[str]:
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    whole = sum(medians.values())
    shares = [value / whole for value in medians.values()]
    return [f"{batch} of {size} x {size}", *map(percent, [*shares, 1 - shares[0]])]


if __name__ == "__main__":
    main()
