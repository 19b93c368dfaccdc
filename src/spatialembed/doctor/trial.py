"""A recommendation tried out: the nearest bundled model, and the time that training takes."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from spatialembed.concurrency import usable
from spatialembed.data.dataset import Dataset
from spatialembed.doctor.objects import Objects
from spatialembed.doctor.probe import read_again
from spatialembed.doctor.recommend import Advice, Setting
from spatialembed.doctor.survey import Survey
from spatialembed.errors import SpatialEmbedError
from spatialembed.inference.bundled import bundled_models
from spatialembed.inference.device import resolve_device
from spatialembed.inference.engine import Engine, torch_engine
from spatialembed.inference.model_file import load
from spatialembed.method.loss import spatial_embedding_loss
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.method.normalization import network_input
from spatialembed.training.options import StageOptions, TrainOptions
from spatialembed.types import Normalization

SAMPLES = 4
"""Images that bundled models are tried on."""
SIDE = 256
"""Side of the part of them that the network sees, px."""
LIMIT_S = 20.0
"""Seconds for the trial of training steps."""
STEPS = 4
"""Steps that are timed at most; the first one, which compiles, is not."""
QUICK_MINUTES = 10


@dataclass(frozen=True)
class Timing:
    """How long training takes on this machine."""

    step_s: float  # one step, crops included
    validation_s: float  # one validation
    machine: str

    def minutes(self, advice: Advice) -> float:
        """Of a whole training; thresholds are tuned at the end, which validates once more."""
        validations = advice.epochs / TrainOptions(data="-").validate_every
        limit = 60 * next((s.value for s in advice.settings if s.key == "max_time"), math.inf)
        training = min(limit, advice.steps * self.step_s + validations * self.validation_s)
        return (training + self.validation_s) / 60

    def words(self, advice: Advice) -> str:
        """For the head of the settings and the page."""
        minutes = self.minutes(advice)
        told = f"{minutes / 60:.1f} h" if minutes > 90 else f"{max(1, minutes):.0f} min"
        return f"about {told} on this machine ({self.machine}; {self.step_s:.2g} s a step)"


# ---------------------------------------------------------------- the nearest model


def nearest_model(survey: Survey, scale: float) -> tuple[Setting, ...]:
    """The bundled model whose seed map follows the objects of some images best, to start from.

    Of models of as many classes as training would have, two bandwidths each; of those that follow
    them to within a tenth, the smallest. With its network and normalization; () where there is no
    such model, or no image to try it on.
    """
    usable = [(pair, mask.objects) for pair, mask in survey.labelled if len(mask.objects)]
    chosen = usable[:: max(1, len(usable) // SAMPLES)][:SAMPLES]
    parts = [_part(*read_again(pair, survey.reading), objects, scale) for pair, objects in chosen]
    wanted = (max(1, len(survey.classes_area())), TrainOptions(data="-").elliptical)
    fits: dict[str, float] = {}
    models = {name: load(name) for name in bundled_models()} if parts else {}
    for name, (net, info) in models.items():
        if (net.num_classes, net.elliptical) == wanted:
            engine = torch_engine(net, device=torch.device("cpu"), scale=scale)
            agreements = [_agreement(engine, info.normalization, part) for part in parts]
            fits[name] = float(np.mean(agreements))
    if not fits:
        return ()
    sizes = {name: sum(p.numel() for p in net.parameters()) for name, (net, _) in models.items()}
    name = max(fits, key=lambda name: (round(fits[name], 1), -sizes[name]))
    others = ", ".join(f"{other} {fits[other]:.2f}" for other in fits if other != name)
    told = f"its seeds follow the objects best, correlation {fits[name]:.2f}"
    told += f" ({others})" if others else ""
    net, info = models[name]
    theirs, ours = asdict(info.normalization), asdict(Normalization())
    return (
        Setting("init", name, told),
        Setting("network", net.network, "that of the model"),
        Setting("center", info.training.get("center", "learnable"), "that of the model"),
        *(
            Setting(f"normalization.{key}", value, "that of the model")
            for key, value in theirs.items()
            if value != ours[key]
        ),
    )


class _Part(NamedTuple):
    """A part of an image around its median object."""

    image: np.ndarray  # (H, W) or (H, W, 3), all of it
    window: tuple[slice, slice]
    inside: np.ndarray  # (h, w) bool, where objects are in the window


def _part(image: np.ndarray, ids: np.ndarray, objects: Objects, scale: float) -> _Part:
    x, y = objects.centroid_xy[np.argsort(objects.area)[len(objects) // 2]]
    side = math.ceil(SIDE / scale)
    starts = (
        int(np.clip(at - side // 2, 0, max(0, length - side)))
        for at, length in zip((y, x), ids.shape, strict=True)
    )
    rows, columns = (slice(start, start + side) for start in starts)
    return _Part(image, (rows, columns), ids[rows, columns] > 0)


def _agreement(engine: Engine, how: Normalization, part: _Part) -> float:
    """Correlation of the seed map of a model with the objects; 0 where one is constant."""
    rows, columns = part.window
    seed = engine(network_input(part.image, how)[None, :, rows, columns]).seed[0].amax(0).numpy()
    if part.inside.all() or not part.inside.any() or seed.std() < 1e-6:
        return 0.0
    return float(np.corrcoef(seed.ravel(), part.inside.ravel())[0, 1])


# ---------------------------------------------------------------- the time


def timed(survey: Survey, advice: Advice, limit_s: float = LIMIT_S) -> Timing | None:
    """Time some training steps of the recommendation; None without the extra ``train``, or where
    training refuses the data."""
    try:
        from spatialembed.training.setup import open_split
    except ImportError:
        return None
    options = _options(advice, str(survey.root))
    device = resolve_device(options.device)
    try:
        train_set, val_set = open_split(options)
        step = _step_seconds(options, device, train_set, limit_s)
    except SpatialEmbedError:
        return None
    area = np.mean([math.prod(mask.size_hw) for mask in survey.masks().values()])
    pixels = len(val_set) * float(area) * options.scale**2
    crops = options.stage1.batch * options.stage1.crop**2
    machine = f"{usable()} cores" if device.type == "cpu" else str(device)
    forward = step / 3  # backwards costs twice as much
    return Timing(step, forward * pixels / crops, machine)


def _options(advice: Advice, data: str) -> TrainOptions:
    """The settings as training takes them."""
    sections: dict[str, dict[str, Any]] = {"": {}, "stage1": {}, "normalization": {}}
    for setting in advice.settings:
        section, _, name = setting.key.rpartition(".")
        sections[section][name] = setting.value
    return TrainOptions(
        data=data,
        **sections[""],
        stage1=StageOptions(**sections["stage1"]),
        normalization=Normalization(**sections["normalization"]),
    )


def _step_seconds(
    options: TrainOptions, device: torch.device, images: Dataset, limit_s: float
) -> float:
    """Median seconds of a step, its crops included."""
    from spatialembed.training.loader import CropPlan, Crops, collate

    stage, start = options.stage1, time.monotonic()
    count = (STEPS + 1) * stage.batch
    plan = CropPlan(stage.crop, options.scale, count, stage.batch, options.seed, 0, stage.sampling)
    crops = Crops(images, options.normalization, options.augment, plan)
    network = options.network or "erfnet"
    net = SpatialEmbeddingNet(len(images.class_names), options.elliptical, network)
    net = net.to(device).to(memory_format=torch.channels_last)
    adam = torch.optim.Adam(net.parameters(), options.lr(0))
    weight = 10.0 if options.foreground_weight == "enet" else options.foreground_weight
    steps: list[float] = []
    for first in range(0, count, stage.batch):
        begin = time.monotonic()
        batch = collate(crops.__getitems__(range(first, first + stage.batch)))
        if isinstance(batch, SpatialEmbedError):
            raise batch
        loaded = time.monotonic()
        batch = batch.to(device)
        prediction = net(batch.images.contiguous(memory_format=torch.channels_last))
        terms = spatial_embedding_loss(
            prediction, batch.targets, center=options.center, foreground_weight=weight
        )
        adam.zero_grad()
        terms.total().backward()
        adam.step()
        adam.param_groups[0]["params"][0].sum().item()  # waits for the device
        end = time.monotonic()
        # On a processor loaders and steps share the cores; beside a GPU they overlap.
        overlap = (loaded - begin) / max(1, options.workers)
        steps.append(end - begin if device.type == "cpu" else max(end - loaded, overlap))
        if end - start + steps[-1] > limit_s:
            break
    return float(np.median(steps[1:] or steps))


def quick(advice: Advice, timing: Timing | None) -> Advice:
    """The recommendation cut to ``QUICK_MINUTES``: fewer epochs, down to ten, then fewer crops."""
    settings = {setting.key: setting for setting in advice.settings}
    limit = Setting("max_time", QUICK_MINUTES, "minutes, after which training stops in any case")
    if timing is not None and timing.minutes(advice) > QUICK_MINUTES:
        batch = settings["stage1.batch"].value
        room = 60 * QUICK_MINUTES * 0.9 - 3 * timing.validation_s
        steps = max(20, int(room / timing.step_s))
        an_epoch = min(advice.steps // advice.epochs, max(2, steps // 10))
        epochs = max(10, steps // an_epoch)
        settings["stage1.epochs"] = Setting("stage1.epochs", epochs, f"{epochs * an_epoch} steps")
        settings["stage1.crops"] = Setting("stage1.crops", an_epoch * batch, "an epoch")
        advice = replace(advice, steps=epochs * an_epoch, epochs=epochs)
    return replace(advice, settings=(limit, *settings.values()))
