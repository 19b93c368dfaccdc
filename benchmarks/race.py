"""Training two contestants on the same crops in one process, scored along the way.

Whoever has trained for less time takes the next step, so that both have the same time behind them
at every moment and whatever else the machine does falls on both. Crop n is the same for both. The
clock stands still while crops are made, images are scored and files are written.

    curve   after each of the times ``Schedule.marks``: images seen, time, AP, AP50

On a CPU time is processor time of this process, all threads together: what other processes do does
not count. On a GPU it is the time until the GPU is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contestants import Contestant, Recipe, autocast
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from spatialembed.data.dataset import Dataset
from spatialembed.errors import SpatialEmbedError
from spatialembed.files import atomic_write
from spatialembed.training.augment import AugmentOptions
from spatialembed.training.crops import training_crop
from spatialembed.training.loader import Batch, collate

CLIP = 10.0
"""Largest norm of the gradient, of both."""
DROP = 0.1
"""What the learning rate is multiplied by for the last part of the training."""
RISE = 0.002
"""An AP that rises by less does not rise."""

Score = Callable[[Contestant], dict[str, float]]
"""Figures of a contestant on the validation images, "ap" and "ap50" among them."""


@dataclass(frozen=True)
class Schedule:
    """When both are scored, when their learning rate falls, and when they are done."""

    marks: tuple[float, ...]  # seconds, ascending; at the last one training ends
    drop: float  # seconds at which the learning rate falls
    patience: int | None  # scorings without a rise that make it fall sooner, and then end it
    warmup: int  # images over which the learning rate rises at the start
    crop: int
    batch: int
    augment: AugmentOptions
    workers: int = 0


@dataclass
class Standing:
    """How far a contestant has come."""

    images: int = 0
    seconds: float = 0.0
    skipped: int = 0  # steps whose loss was not finite
    dropped_at: int | None = None  # scorings before the learning rate fell
    done: bool = False
    curve: list[dict[str, float]] = field(default_factory=list)


class Stream(TorchDataset[Any]):
    """Crop n of an endless training: every image once before any comes twice."""

    def __init__(self, images: Dataset, recipe: Recipe, schedule: Schedule) -> None:
        self.images, self.recipe, self.schedule = images, recipe, schedule

    def __getitem__(self, n: int) -> Any:
        epoch, i = divmod(n, len(self.images))
        order = np.random.default_rng((0, epoch)).permutation(len(self.images))
        sample = self.images[int(order[i])]
        how, size = self.recipe.normalization, self.schedule.crop
        rng = np.random.default_rng((1, n))
        crop = training_crop(sample, how, size, 1.0, self.schedule.augment, rng)
        return *crop, sample.name

    def batches(self, start: int) -> Iterator[Batch]:
        """Batches from crop ``start`` on."""
        loader: DataLoader[Any] = DataLoader(
            self,
            sampler=range(start, 1 << 40),
            batch_size=self.schedule.batch,
            num_workers=self.schedule.workers,
            collate_fn=collate,
        )
        for batch in loader:
            if isinstance(batch, SpatialEmbedError):
                raise batch
            yield batch


def race(
    contestants: Sequence[Contestant],
    images: Dataset,
    recipe: Recipe,
    schedule: Schedule,
    score: Score,
    state: Path,
    device: torch.device,
) -> dict[str, Standing]:
    """Train all until they are done; returns how they came along, by name.

    state: file that is written after each scoring, and from which a run that ended early goes on.
    """
    progress = resumed(contestants, state, device)
    stream = Stream(images, recipe, schedule)
    batches = {c.name: stream.batches(progress[c.name].images) for c in contestants}
    with _bar() as bar:
        tasks = {c.name: bar.add_task(c.name, total=schedule.marks[-1], ap="") for c in contestants}
        while running := [c for c in contestants if not progress[c.name].done]:
            contestant = min(running, key=lambda c: progress[c.name].seconds)
            now = progress[contestant.name]
            step(contestant, next(batches[contestant.name]).to(device), now, schedule, recipe)
            bar.update(tasks[contestant.name], completed=now.seconds)
            if now.seconds >= schedule.marks[len(now.curve)]:
                note(now, score(contestant), schedule)
                save(contestants, progress, state)
                bar.update(tasks[contestant.name], ap=f"AP {now.curve[-1]['ap']:.3f}")
                bar.console.print(f"{contestant.name}: {_said(now)}")
    return progress


def _said(now: Standing) -> str:
    figures = " ".join(f"{k} {v:.3f}" for k, v in now.curve[-1].items() if k.startswith("ap"))
    return f"{now.images} images, {now.seconds / 60:.1f} minutes, {figures}"


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TextColumn("{task.fields[ap]}"),
        console=Console(stderr=True),
    )


# ---------------------------------------------------------------- one step


def step(
    contestant: Contestant, batch: Batch, now: Standing, schedule: Schedule, recipe: Recipe
) -> None:
    """Learn from a batch, and count it and its time."""
    warm = min(1.0, (now.images + len(batch.names)) / schedule.warmup)
    factor = warm * (DROP if now.dropped_at is not None or now.seconds >= schedule.drop else 1.0)
    for group in contestant.optimizer.param_groups:
        group["lr"] = contestant.lr * factor
    contestant.net.train()
    began = clock(batch.images.device)
    with autocast(batch.images.device, bfloat16=recipe.bfloat16):
        loss = contestant.loss(batch)
    contestant.optimizer.zero_grad()
    if _backward(contestant, loss):
        contestant.optimizer.step()
    else:
        now.skipped += 1
    now.seconds += clock(batch.images.device) - began
    now.images += len(batch.names)


def _backward(contestant: Contestant, loss: Tensor) -> bool:
    """Gradients of the loss, clipped; False if they are not finite."""
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(contestant.net.parameters(), CLIP)
    return bool(torch.isfinite(norm))


def clock(device: torch.device) -> float:
    """Seconds: of the processor on a CPU, of the wall, when all is done, on a GPU."""
    if device.type == "cpu":
        return time.process_time()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def note(now: Standing, figures: dict[str, float], schedule: Schedule) -> None:
    """Add a point to the curve, and see whether the learning rate falls or training ends."""
    now.curve.append({"images": now.images, "seconds": now.seconds, **figures})
    if len(now.curve) == len(schedule.marks):
        now.done = True
    elif schedule.patience is not None and _is_flat(now, schedule.patience):
        if now.dropped_at is None and now.seconds < schedule.drop:
            now.dropped_at = len(now.curve)
        else:
            now.done = True


def _is_flat(now: Standing, patience: int) -> bool:
    """Whether the last ``patience`` scorings brought nothing; counted anew after the fall."""
    recent = [point["ap"] for point in now.curve[now.dropped_at or 0 :]]
    if len(recent) <= patience:
        return False
    return max(recent[-patience:]) < max(recent[:-patience]) + RISE


# ---------------------------------------------------------------- going on


def save(contestants: Sequence[Contestant], progress: dict[str, Standing], path: Path) -> None:
    """Write where all stand."""
    state = {
        c.name: {
            "net": c.net.state_dict(),
            "optimizer": c.optimizer.state_dict(),
            "progress": asdict(progress[c.name]),
        }
        for c in contestants
    }
    with atomic_write(path) as temporary:
        torch.save(state, temporary)


def resumed(
    contestants: Sequence[Contestant], path: Path, device: torch.device
) -> dict[str, Standing]:
    """Where all stand, with their networks as they were; at the start if there is no file."""
    if not path.exists():
        return {c.name: Standing() for c in contestants}
    state = torch.load(path, map_location=device, weights_only=True)
    for contestant in contestants:
        contestant.net.load_state_dict(state[contestant.name]["net"])
        contestant.optimizer.load_state_dict(state[contestant.name]["optimizer"])
    return {c.name: Standing(**state[c.name]["progress"]) for c in contestants}
