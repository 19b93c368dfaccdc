"""Batches for training, of any data set of ``Sample``."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from spatialembed.data.dataset import Dataset
from spatialembed.errors import SpatialEmbedError
from spatialembed.training.augment import AugmentOptions
from spatialembed.training.crops import training_crop
from spatialembed.training.instance_index import InstanceIndex, Sampling, in_rounds
from spatialembed.types import Normalization, Target


class Batch(NamedTuple):
    """Crops of one step."""

    images: Tensor  # (B, 3, size, size) float32 normalised
    targets: list[Target]
    names: list[str]

    def to(self, device: torch.device) -> Batch:
        targets = [
            Target(t.labels.to(device), t.classes.to(device), t.ignore.to(device))
            for t in self.targets
        ]
        return Batch(self.images.to(device), targets, self.names)


@dataclass(frozen=True)
class CropPlan:
    """What the crops of one epoch are: equal plans give equal crops, whatever loads them."""

    size: int
    scale: float
    count: int
    batch: int
    seed: int
    epoch: int
    sampling: Sampling = "image"


Crop = tuple[Tensor, Target, str]
"""Image (3, size, size) float32 normalised, its truth, the name of the image it is cut from."""


class Crops(TorchDataset[Crop]):
    """The crops of one epoch. Crop i depends on (seed, epoch, i) alone.

    image       every image once before any comes twice; ``object_centred`` is the share
                of crops that lie around a random object of theirs
    natural     every crop around an object, every object once before any comes twice
    balanced    the same, but every class as often as any other

    The last two need an index of the instances.
    """

    def __init__(
        self,
        images: Dataset,
        how: Normalization,
        augment: AugmentOptions,
        plan: CropPlan,
        index: InstanceIndex | None = None,
    ) -> None:
        self.images, self.how, self.augment, self.plan = images, how, augment, plan
        rng = np.random.default_rng((plan.seed, plan.epoch))
        self.labels: np.ndarray | None = None  # (count,) objects to cut around
        if plan.sampling == "image":
            self.order = in_rounds(np.arange(len(images)), plan.count, rng)  # (count,) images
        else:
            assert index is not None, "crops around objects need an index"
            rows = index.draw(plan.sampling, plan.count, rng)
            self.order, self.labels = index.image[rows], index.label[rows]

    def __len__(self) -> int:
        return self.plan.count

    def __getitem__(self, i: int) -> Crop:
        plan, sample = self.plan, self.images[int(self.order[i])]
        rng = np.random.default_rng((plan.seed, plan.epoch, i))
        label = None if self.labels is None else int(self.labels[i])
        crop = training_crop(sample, self.how, plan.size, plan.scale, self.augment, rng, label)
        return *crop, sample.name

    def __getitems__(self, numbers: Sequence[int]) -> list[Crop] | SpatialEmbedError:
        """The crops of a batch. A fault is handed over: raised in a loader it arrives as text."""
        try:
            return [self[i] for i in numbers]
        except SpatialEmbedError as error:
            return error


class Share:
    """Batches of crop numbers for one of several processes.

    A batch is cut into equal parts, so that the mean gradient over the processes is that of the
    whole batch in one process. The last crops that fill no batch are left out, unless they are all:
    then the batch is the largest of equal parts that they fill.
    """

    def __init__(self, count: int, batch: int, rank: int, world: int) -> None:
        self.part = min(batch, count) // world
        self.batch, self.rank = self.part * world, rank
        self.batches = count // self.batch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self) * self.batch, self.batch):
            begin = start + self.rank * self.part
            yield list(range(begin, begin + self.part))


def loader(crops: Crops, share: Share, workers: int) -> DataLoader[Crop]:
    """Batches of a process's share of the crops, cut by so many loader processes."""
    return DataLoader(
        crops,
        batch_sampler=share,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_ctrl_c,
        # Of its own: each iterator draws a number, and the first epoch after a resume has one
        # iterator less. From the common generator the network would drop other channels.
        generator=torch.Generator(),
    )


def _leave_ctrl_c(_: int) -> None:
    """Ctrl-C reaches loaders too, but the training process alone decides when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def collate(crops: Sequence[Crop] | SpatialEmbedError) -> Batch | SpatialEmbedError:
    """Crops (3, H, W) of one size with their truth and names -> a batch (B, 3, H, W)."""
    if isinstance(crops, SpatialEmbedError):
        return crops
    images, targets, names = zip(*crops, strict=True)
    return Batch(torch.stack(images), list(targets), list(names))
