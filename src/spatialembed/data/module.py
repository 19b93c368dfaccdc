"""Batches for training: Lightning's data module over any data set of ``Sample``."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spatialembed.errors import SpatialEmbedError
from spatialembed.transforms import AugmentOptions, training_crop
from spatialembed.types import Normalization, Sample, Target


class Images(Protocol):
    """What a data set is: samples by number, with names."""

    class_names: tuple[str, ...]

    @property
    def names(self) -> Sequence[str]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Sample: ...


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


Crop = tuple[Tensor, Target, str]
"""Image (3, size, size) float32 normalised, its truth, the name of the image it is cut from."""


class Crops(Dataset[Crop]):
    """The crops of one epoch. Crop i depends on (seed, epoch, i) alone."""

    def __init__(
        self, images: Images, how: Normalization, augment: AugmentOptions, plan: CropPlan
    ) -> None:
        self.images, self.how, self.augment, self.plan = images, how, augment, plan
        # Every image once before any comes twice.
        rng = np.random.default_rng((plan.seed, plan.epoch))
        rounds = -(-plan.count // len(images))
        self.order = np.concatenate([rng.permutation(len(images)) for _ in range(rounds)])

    def __len__(self) -> int:
        return self.plan.count

    def __getitem__(self, i: int) -> Crop:
        sample = self.images[int(self.order[i])]
        rng = np.random.default_rng((self.plan.seed, self.plan.epoch, i))
        crop = training_crop(sample, self.how, self.plan.size, self.plan.scale, self.augment, rng)
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
        if min(count, batch) < world:
            raise ValueError(f"{min(count, batch)} crops a batch for {world} processes")
        self.part = min(batch, count) // world
        self.batch, self.rank = self.part * world, rank
        self.batches = count // self.batch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self) * self.batch, self.batch):
            begin = start + self.rank * self.part
            yield list(range(begin, begin + self.part))


class CropModule(pl.LightningDataModule):
    """Crops for training.

    ``plan_of(epoch)`` says what the crops of an epoch are; loaders are made anew each epoch, so the
    stages of a training are nothing but different plans.
    """

    def __init__(
        self,
        images: Images,
        how: Normalization,
        augment: AugmentOptions,
        plan_of: Callable[[int], CropPlan],
        workers: int,
    ) -> None:
        super().__init__()
        self.images, self.how, self.augment = images, how, augment
        self.plan_of, self.workers = plan_of, workers

    def train_dataloader(self) -> DataLoader[Crop]:
        trainer = self.trainer
        assert trainer is not None
        plan = self.plan_of(trainer.current_epoch)
        return DataLoader(
            Crops(self.images, self.how, self.augment, plan),
            batch_sampler=Share(plan.count, plan.batch, trainer.global_rank, trainer.world_size),
            collate_fn=collate,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_leave_ctrl_c,
            # Of its own: each iterator draws a number, and the first epoch after a resume has one
            # iterator less. From the common generator the network would drop other channels.
            generator=torch.Generator(),
        )

    def transfer_batch_to_device(
        self, batch: Batch | SpatialEmbedError, device: torch.device, _: int
    ) -> Batch:
        if isinstance(batch, SpatialEmbedError):
            raise batch
        return batch.to(device)


def _leave_ctrl_c(_: int) -> None:
    """Ctrl-C reaches loaders too, but the training process alone says when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def collate(crops: Sequence[Crop] | SpatialEmbedError) -> Batch | SpatialEmbedError:
    """Crops (3, H, W) of one size with their truth and names -> a batch (B, 3, H, W)."""
    if isinstance(crops, SpatialEmbedError):
        return crops
    images, targets, names = zip(*crops, strict=True)
    return Batch(torch.stack(images), list(targets), list(names))
