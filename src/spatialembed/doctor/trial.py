"""A recommendation tried out: the nearest bundled model, and the time that training takes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from spatialembed.concurrency import usable
from spatialembed.data.dataset import Dataset
from spatialembed.doctor.probe import Pair, read_again
from spatialembed.doctor.recommend import Advice, Setting
from spatialembed.doctor.survey import Survey
from spatialembed.errors import SpatialEmbedError
from spatialembed.inference.device import resolve_device
from spatialembed.inference.engine import resize
from spatialembed.inference.model_file import bundled_models, load
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
    them to within a tenth, the smallest. With its network; () where there is no such model, or no
    image to try it on.
    """
    masks = survey.masks()
    pairs = [pair for pair in survey.labelled if pair.image and len(masks[pair.name].objects)]
    chosen = pairs[:: max(1, len(pairs) // SAMPLES)][:SAMPLES]
    samples = [_window(survey, pair, scale) for pair in chosen]
    classes = max(1, len(survey.classes_area()))
    fits, nets = {}, {}
    for name in bundled_models() if samples else ():
        net, _ = load(name)
        if (net.num_classes, net.elliptical) == (classes, TrainOptions(data="-").elliptical):
            nets[name] = net
            fits[name] = float(np.mean([_agreement(net, *sample) for sample in samples]))
    if not fits:
        return ()
    sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
    name = max(fits, key=lambda name: (round(fits[name], 1), -sizes[name]))
    others = ", ".join(f"{other} {fits[other]:.2f}" for other in fits if other != name)
    told = f"its seeds follow the objects best, correlation {fits[name]:.2f}"
    init = Setting("init", name, told + (f" ({others})" if others else ""))
    return init, Setting("network", nets[name].network, "that of the model")


def _window(survey: Survey, pair: Pair, scale: float) -> tuple[torch.Tensor, np.ndarray]:
    """A part of an image around its median object as training sees it, (1, 3, h, w), and where
    objects are in it, (h, w) bool."""
    image, ids = read_again(pair, survey.reading)
    objects = survey.masks()[pair.name].objects
    x, y = objects.centroid_xy[np.argsort(objects.area)[len(objects) // 2]]
    whole = network_input(image, Normalization())
    side = math.ceil(SIDE / scale)
    top, left = (
        int(np.clip(at - side // 2, 0, max(0, length - side)))
        for at, length in zip((y, x), ids.shape, strict=True)
    )
    part = whole[None, :, top : top + side, left : left + side]
    inside = torch.from_numpy(ids[top : top + side, left : left + side] > 0)[None, None].float()
    size = (max(1, round(part.shape[2] * scale)), max(1, round(part.shape[3] * scale)))
    return resize(part, size), resize(inside, size)[0, 0].numpy() >= 0.5


@torch.inference_mode()
def _agreement(net: SpatialEmbeddingNet, image: torch.Tensor, inside: np.ndarray) -> float:
    """Correlation of the seed map of a model with the objects (h, w); 0 where one is constant."""
    seed = net(image).seed[0].amax(0).numpy()
    if inside.all() or not inside.any() or seed.std() < 1e-6:
        return 0.0
    return float(np.corrcoef(seed.ravel(), inside.ravel())[0, 1])


# ---------------------------------------------------------------- the time


def timed(survey: Survey, advice: Advice, limit_s: float = LIMIT_S) -> Timing | None:
    """Time some training steps of the recommendation; None without the extra ``train``, or where
    training refuses the data."""
    try:
        from spatialembed.training.train import open_split
    except ImportError:
        return None
    options = _options(advice, str(survey.root))
    try:
        train_set, val_set = open_split(options)
        step, forward = _seconds(options, train_set, limit_s)
    except SpatialEmbedError:
        return None
    area = np.mean([math.prod(mask.size_hw) for mask in survey.masks().values()])
    pixels = len(val_set) * float(area) * options.scale**2
    crops = options.stage1.batch * options.stage1.crop**2
    device = resolve_device(options.device)
    machine = f"{usable()} cores" if device.type == "cpu" else str(device)
    return Timing(step, forward * pixels / crops, machine)


def _options(advice: Advice, data: str) -> TrainOptions:
    """What training makes of the settings."""
    stage = {s.key.removeprefix("stage1."): s.value for s in advice.settings if "." in s.key}
    other = {s.key: s.value for s in advice.settings if "." not in s.key}
    return TrainOptions(data=data, **other, stage1=StageOptions(**stage))


def _seconds(options: TrainOptions, images: Dataset, limit_s: float) -> tuple[float, float]:
    """Median seconds of a step, its crops included, and of the network alone forwards."""
    from spatialembed.training.loader import CropPlan, Crops, collate

    start = time.monotonic()
    stage, device = options.stage1, resolve_device(options.device)
    count = (STEPS + 1) * stage.batch
    plan = CropPlan(stage.crop, options.scale, count, stage.batch, options.seed, 0, stage.sampling)
    crops = Crops(images, options.normalization, options.augment, plan)
    network = options.network or "erfnet"
    net = SpatialEmbeddingNet(len(images.class_names), options.elliptical, network)
    net = net.to(device).to(memory_format=torch.channels_last)
    adam = torch.optim.Adam(net.parameters(), options.lr(0))
    weight = 10.0 if options.foreground_weight == "enet" else options.foreground_weight
    steps, forwards = [], []
    for first in range(0, count, stage.batch):
        begin = time.monotonic()
        batch = collate(crops.__getitems__(range(first, first + stage.batch)))
        if isinstance(batch, SpatialEmbedError):
            raise batch
        loaded = time.monotonic()
        batch = batch.to(device)
        prediction = net(batch.images.contiguous(memory_format=torch.channels_last))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        forwards.append(time.monotonic() - loaded)
        terms = spatial_embedding_loss(
            prediction, batch.targets, center=options.center, foreground_weight=weight
        )
        adam.zero_grad()
        terms.total().backward()
        adam.step()
        adam.param_groups[0]["params"][0].sum().item()  # waits for the device
        end = time.monotonic()
        # On a processor loaders and steps share the cores; beside a GPU they overlap.
        loading = loaded - begin
        overlap = loading / max(1, options.workers)
        steps.append(end - begin if device.type == "cpu" else max(end - loaded, overlap))
        if end - start + steps[-1] > limit_s:
            break
    return float(np.median(steps[1:] or steps)), float(np.median(forwards[1:] or forwards))


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
    first = [setting for key, setting in settings.items() if "." not in key]
    last = [setting for key, setting in settings.items() if "." in key]
    return replace(advice, settings=(*first, limit, *last))
