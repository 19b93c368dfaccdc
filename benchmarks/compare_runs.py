"""One run of the comparison: a method learns from crops, is tuned on training images, is scored.

    train   the network of the method, Adam, so many steps or so much processor time
    tune    TRIALS settings of its grouping on training images: the defaults, then random ones
    score   label-image AP (IoU .50 to .90) and AP50, mean over images of the classes' figures

All of it is the same for every method but the module of the method itself: data, crops, encoder and
start of it, optimizer, number of trials. Detectors bring a network of their own.
"""

from __future__ import annotations

import copy
import math
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from contestants import autocast
from race import clock
from race_data import Trial
from torch import Tensor, nn

from spatialembed.baselines.maps_net import MapsNet
from spatialembed.data.dataset import Dataset
from spatialembed.errors import SpatialEmbedError
from spatialembed.evaluation.label_metrics import counts_by_class, mean_over_images, overlaps
from spatialembed.files import atomic_write
from spatialembed.method.networks.lite import LiteEncoder, load_imagenet
from spatialembed.method.normalization import network_input
from spatialembed.training.loader import Batch, CropPlan, Crops, Share, loader
from spatialembed.types import Instances, Network, Sample

ROUND = 16
"""Steps between two looks at whether the run must be kept."""
CLIP = 10.0
SLOWEST = 2.0
"""Processor seconds of grouping a training image, at most."""
GIVEN_UP = 5.0
"""The same of a validation image, in which nothing is found otherwise."""
LR = 1e-3
"""Of Adam, for all methods; the configs of lite have it."""


@dataclass(frozen=True)
class Budget:
    """How long each method is trained: seconds as ``race.clock`` counts them, or steps."""

    seconds: float = math.inf
    steps: float = math.inf

    @classmethod
    def parse(cls, text: str) -> Budget:
        """12min, 90s or 300steps."""
        for ending, made in (
            ("min", lambda n: cls(seconds=60 * n)),
            ("steps", lambda n: cls(steps=int(n))),
            ("s", lambda n: cls(seconds=n)),
        ):
            if text.endswith(ending):
                return made(float(text.removesuffix(ending)))
        raise ValueError(f"budget {text!r} is not like 12min, 90s or 300steps")

    def __str__(self) -> str:
        return f"{self.steps:g}steps" if self.steps < math.inf else f"{self.seconds:g}s"

    def gone(self, seconds: float, steps: int) -> float:
        """The share that is over, in [0, 1]."""
        return min(1.0, max(seconds / self.seconds, steps / self.steps))


@dataclass(frozen=True)
class Plan:
    """What all runs of a comparison share."""

    budget: Budget
    network: Network
    crop: int
    batch: int
    tuning: int  # training images
    trials: int
    val: int  # validation images, at most
    device: torch.device


def method_of(name: str) -> ModuleType:
    return import_module(f"spatialembed.baselines.{name}")


def predicts_maps(method: ModuleType) -> bool:
    return hasattr(method, "channels")


def network_of(method: ModuleType, num_classes: int, name: Network, seed: int) -> nn.Module:
    """The network of a method as training starts; the encoder ``lite`` starts from ImageNet."""
    torch.manual_seed(seed)
    if hasattr(method, "network"):
        net: nn.Module = method.network(num_classes, name)
    else:
        net = MapsNet(method.channels(num_classes), name)
    for part in net.modules():
        if isinstance(part, LiteEncoder):
            load_imagenet(part)
    return net


# ---------------------------------------------------------------- training


@dataclass
class Progress:
    """How far a run has come."""

    steps: int = 0
    seconds: float = 0.0
    skipped: int = 0  # steps whose gradient was not finite


def trained(method: ModuleType, trial: Trial, plan: Plan, seed: int, state: Path) -> nn.Module:
    """The network after the budget. ``state``: file of a run that is under way, to go on from."""
    net = network_of(method, len(trial.recipe.classes), plan.network, seed).to(plan.device)
    learned = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learned, LR, weight_decay=1e-4)
    now = Progress()
    if state.exists():
        kept = torch.load(state, map_location=plan.device, weights_only=True)
        net.load_state_dict(kept["net"])
        optimizer.load_state_dict(kept["optimizer"])
        now = Progress(**kept["progress"])
    written = now.seconds
    first = next(iter(_crops(trial, plan, seed, epoch=0))).to(plan.device)
    spare = copy.deepcopy(net)  # what is compiled at first use is compiled before time counts
    step(method, spare, first, torch.optim.Adam(spare.parameters(), 0.0), Progress())
    while plan.budget.gone(now.seconds, now.steps) < 1:
        # Of each round: a run that goes on drops the channels that it would have dropped.
        torch.manual_seed(int(np.random.default_rng((seed, now.steps)).integers(2**62)))
        for batch in _crops(trial, plan, seed, epoch=now.steps // ROUND):
            gone = plan.budget.gone(now.seconds, now.steps)
            if gone == 1:
                break
            warm = min(1.0, (now.steps + 1) / ROUND)
            for group in optimizer.param_groups:
                group["lr"] = LR * warm * max(1 - gone, 0.01) ** 0.9
            step(method, net, batch.to(plan.device), optimizer, now)
        if now.seconds - written > 60 or plan.budget.gone(now.seconds, now.steps) == 1:
            written = now.seconds
            parts = {"net": net.state_dict(), "optimizer": optimizer.state_dict()}
            with atomic_write(state) as temporary:
                torch.save(parts | {"progress": vars(now)}, temporary)
    return net.eval()


def _crops(trial: Trial, plan: Plan, seed: int, epoch: int) -> Any:
    """The batches of one round; the same for every method."""
    how, augment = trial.recipe.normalization, trial.schedule.augment
    crops = CropPlan(plan.crop, 1.0, ROUND * plan.batch, plan.batch, seed, epoch)
    share = Share(crops.count, crops.batch, 0, 1)
    for batch in loader(Crops(trial.train, how, augment, crops), share, 0):
        if isinstance(batch, SpatialEmbedError):
            raise batch
        yield batch


def step(
    method: ModuleType,
    net: nn.Module,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    now: Progress,
) -> None:
    """Learn from a batch, and count it and its time."""
    device = batch.images.device
    net.train()
    began = clock(device)
    with autocast(device, bfloat16=device.type == "cuda"):
        terms = (
            method.loss(net(batch.images), batch.targets)
            if predicts_maps(method)
            else method.loss(net, batch.images, batch.targets)
        )
    optimizer.zero_grad()
    terms.total().backward()
    norm = torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP)
    if bool(torch.isfinite(norm)):
        optimizer.step()
    else:
        now.skipped += 1
    now.seconds += clock(device) - began
    now.steps += 1


# ---------------------------------------------------------------- prediction


@torch.inference_mode()
def predicted(method: ModuleType, net: nn.Module, image: Tensor) -> Any:
    """What the method groups, of an image (3, H, W) normalised on the device."""
    net.eval()
    if not predicts_maps(method):
        return method.predict(net, image[None])[0]
    with autocast(image.device, bfloat16=image.device.type == "cuda"):
        return net(image[None])[0].float()


def raw(method: ModuleType, net: nn.Module, sample: Sample, trial: Trial, plan: Plan) -> Any:
    image = network_input(sample.image, trial.recipe.normalization)
    return predicted(method, net, image.to(plan.device))


# ---------------------------------------------------------------- tuning and scoring


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in here after so many seconds of the processor; in the main thread, Unix.

    Some groupings, with some settings, would take hours on the maps of a network in training.
    """

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def drawn(method: ModuleType, trials: int, min_pixels: int, seed: int) -> list[Any]:
    """Settings to try: the defaults first, then so many at random from the stated ranges."""
    rng, base = np.random.default_rng(seed), method.Settings(min_pixels=min_pixels)
    every = [base]
    for _ in range(trials - 1):
        values = {}
        for name, tuned in method.TUNED.items():
            ends = np.log((tuned.low, tuned.high)) if tuned.log else (tuned.low, tuned.high)
            value = float(rng.uniform(*ends))
            values[name] = math.exp(value) if tuned.log else value
        every.append(replace(base, **values))
    return every


def tuned(method: ModuleType, net: nn.Module, trial: Trial, plan: Plan, seed: int) -> Any:
    """The settings of the highest AP on some training images; the earliest of equals.

    Those with which grouping takes more than ``SLOWEST`` an image count as 0.
    """
    samples = spread(trial.train, plan.tuning)
    candidates = drawn(method, plan.trials, trial.recipe.min_pixels, seed)
    maps = [raw(method, net, sample, trial, plan) for sample in samples]
    scores = []
    for settings in candidates:
        try:
            with at_most(len(maps) * SLOWEST):
                found = [method.group(m, settings) for m in maps]
            scores.append(ap(found, samples, trial)[0])
        except TimeoutError:
            scores.append(0.0)
    return candidates[int(np.argmax(scores))]


def grouped(method: ModuleType, maps: Any, settings: Any, sample: Sample) -> Instances:
    """The instances of an image; none if that takes more than ``GIVEN_UP`` seconds."""
    try:
        with at_most(GIVEN_UP):
            return method.group(maps, settings).numpy()  # type: ignore[no-any-return]
    except TimeoutError:
        return Instances(0 * sample.target.labels.numpy(), np.zeros(0), np.zeros(0, np.int64))


def spread(images: Dataset, most: int) -> list[Sample]:
    """At most so many samples, evenly over all."""
    which = np.linspace(0, len(images) - 1, min(most, len(images))).round().astype(int)
    return [images[i] for i in np.unique(which).tolist()]


def ap(found: Sequence[Instances], samples: Sequence[Sample], trial: Trial) -> tuple[float, float]:
    """AP (IoU .50 to .90) and AP50; 0 where nothing is defined."""
    rows = []
    for one, sample in zip(found, samples, strict=True):
        target = sample.target
        pairs = overlaps(one.labels, target.labels.numpy(), target.ignore.numpy())
        by_class = counts_by_class(
            pairs, one.classes, target.classes.numpy(), len(trial.recipe.classes)
        )
        rows.append([counts.ap for counts in by_class])
    figures = np.nan_to_num(mean_over_images(np.array(rows)))  # (T,)
    return float(figures.mean()), float(figures[0])


def one_run(
    name: str, trial: Trial, plan: Plan, seed: int, folder: Path
) -> tuple[dict[str, Any], nn.Module]:
    """Train, tune and score a method; the figures, and its network."""
    method = method_of(name)
    state = folder / f"{trial.name}_{name}_{seed}.pt"
    net = trained(method, trial, plan, seed, state)
    progress = torch.load(state, map_location="cpu", weights_only=True)["progress"]
    settings = tuned(method, net, trial, plan, seed)
    samples = spread(trial.val, plan.val)
    found = [grouped(method, raw(method, net, s, trial, plan), settings, s) for s in samples]
    mean, half = ap(found, samples, trial)
    figures = {
        "data": trial.name,
        "method": name,
        "title": method.TITLE,
        "seed": seed,
        "budget": str(plan.budget),
        "ap": mean,
        "ap50": half,
        "settings": vars(settings),
        "tuned": sorted(method.TUNED),
        "parameters": sum(p.numel() for p in net.parameters()),
        "objects": sum(len(s.target.classes) for s in samples),
        "found": sum(len(f) for f in found),
        "val_images": len(samples),
        **progress,
    }
    return figures, net
