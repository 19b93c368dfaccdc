"""Batches for training: what a crop depends on, who gets which, and faults in loader processes."""

from __future__ import annotations

import pickle
import signal
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from spatialembed.data.folder import open_folder
from spatialembed.errors import SpatialEmbedError
from spatialembed.generated.nuclei_and_shapes import SyntheticDataset, write_folder
from spatialembed.training.augment import AugmentOptions
from spatialembed.training.loader import Batch, CropPlan, Crops, Share, collate
from spatialembed.training.loader import loader as loader_of
from spatialembed.training.step import TrainingModule
from spatialembed.types import Normalization


def crops(images: Any, seed: int = 0, epoch: int = 4) -> Crops:
    plan = CropPlan(24, 1.0, 7, 2, seed, epoch)  # size, scale, count, batch
    return Crops(images, Normalization(), AugmentOptions(), plan)


def loader(images: Any, workers: int) -> Any:
    return loader_of(crops(images), Share(7, 2, 0, 1), workers)


def arrived(batch: Any) -> Batch:
    """A batch as the training step gets it."""
    return TrainingModule.transfer_batch_to_device(cast(Any, None), batch, torch.device("cpu"), 0)


def test_crops_depend_on_seed_epoch_and_number_alone() -> None:
    images = SyntheticDataset("shapes", (40, 40), 3, seed=0)
    one = [crops(images)[i][0] for i in (5, 0, 3)]
    two = [crops(images)[i][0] for i in (5, 0, 3)]
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(crops(images, epoch=5)[5][0], one[0])
    assert not torch.equal(crops(images, seed=1)[5][0], one[0])
    assert sorted(crops(images).order[:3]) == [0, 1, 2]


def test_an_iterator_leaves_the_common_generator_alone() -> None:
    """A resumed epoch makes one iterator less; its dropout must be that of an unbroken run."""
    batches = loader(SyntheticDataset("shapes", (40, 40), 3), workers=0)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    next(iter(batches))
    assert torch.equal(torch.get_rng_state(), before)


def test_crops_reach_a_process_that_is_spawned(tmp_path: Path) -> None:
    """Windows and macOS start loader processes so: all that they get is pickled."""
    write_folder(SyntheticDataset("shapes", (40, 40), 2), tmp_path, progress=False)
    batches = loader(open_folder(tmp_path), workers=0)
    there: Crops = pickle.loads(pickle.dumps(batches.dataset))
    assert torch.equal(there[3][0], batches.dataset[3][0])
    for function in (batches.collate_fn, batches.worker_init_fn):
        assert pickle.loads(pickle.dumps(function)) is function


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("fault", ["LBL-03"])
def test_a_fault_in_a_loader_is_the_fault_itself(fault: str, workers: int, tmp_path: Path) -> None:
    write_folder(SyntheticDataset("shapes", (40, 40), 2), tmp_path, progress=False)
    Image.fromarray(np.ones((40, 39), np.uint16)).save(tmp_path / "masks" / "shapes_00000.png")
    batches = loader(open_folder(tmp_path), workers)
    with pytest.raises(SpatialEmbedError, match=r"size_mismatch.*40x40.*40x39") as caught:
        list(map(arrived, batches))
    assert caught.value.exit_code == 3


def test_loaders_leave_ctrl_c_to_the_training() -> None:
    batches = loader(SyntheticDataset("shapes", (40, 40), 3), workers=0)
    before = signal.getsignal(signal.SIGINT)
    try:
        batches.worker_init_fn(0)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_collate() -> None:
    images = SyntheticDataset("shapes", (40, 40), 3)
    batch = collate([crops(images)[i] for i in (0, 1)])
    assert isinstance(batch, Batch)
    assert batch.images.shape == (2, 3, 24, 24)
    assert torch.equal(batch.images[1], crops(images)[1][0])
    assert [len(t.classes) for t in batch.targets] == [int(t.labels.max()) for t in batch.targets]


@pytest.mark.parametrize(
    ("count", "batch", "world", "size"),
    [(12, 4, 2, 4), (13, 6, 3, 6), (3, 8, 2, 2), (9, 1, 1, 1), (3, 8, 1, 3), (2, 2, 2, 2)],
)
def test_shares_make_up_the_batches(count: int, batch: int, world: int, size: int) -> None:
    """Equal parts, disjoint, in order, and as many batches as there are whole ones."""
    shares = [list(Share(count, batch, rank, world)) for rank in range(world)]
    assert [len(share) for share in shares] == [count // size] * world
    for number in range(count // size):
        parts = [share[number] for share in shares]
        assert {len(part) for part in parts} == {size // world}
        together = [i for part in parts for i in part]
        assert together == list(range(number * size, (number + 1) * size))
    assert len(Share(count, batch, 0, world)) == count // size
