"""Batches for training: Lightning's data module over any data set of ``Sample``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

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


class Crops(Dataset[tuple[Tensor, Target, str]]):
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

    def __getitem__(self, i: int) -> tuple[Tensor, Target, str]:
        sample = self.images[int(self.order[i])]
        rng = np.random.default_rng((self.plan.seed, self.plan.epoch, i))
        crop = training_crop(sample, self.how, self.plan.size, self.plan.scale, self.augment, rng)
        return *crop, sample.name


class Share:
    """Batches of crop numbers for one of several processes.

    A batch is cut into equal parts, so that the mean gradient over the processes is that of the
    whole batch in one process. The last crops that fill no batch are left out, unless they are all.
    """

    def __init__(self, count: int, batch: int, rank: int, world: int) -> None:
        self.count, self.batch, self.rank, self.world = count, min(batch, count), rank, world

    def __len__(self) -> int:
        return self.count // self.batch

    def __iter__(self) -> Iterator[list[int]]:
        part = -(-self.batch // self.world)
        for start in range(0, len(self) * self.batch, self.batch):
            begin = start + self.rank * part
            yield list(range(begin, min(begin + part, start + self.batch)))


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

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Target, str]]:
        trainer = self.trainer
        assert trainer is not None
        plan = self.plan_of(trainer.current_epoch)
        return DataLoader(
            Crops(self.images, self.how, self.augment, plan),
            batch_sampler=Share(plan.count, plan.batch, trainer.global_rank, trainer.world_size),
            collate_fn=collate,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
        )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, _: int) -> Batch:
        return batch.to(device)


def collate(crops: Sequence[tuple[Tensor, Target, str]]) -> Batch:
    """Crops (3, H, W) of one size with their truth and names -> a batch (B, 3, H, W)."""
    images, targets, names = zip(*crops, strict=True)
    return Batch(torch.stack(images), list(targets), list(names))
