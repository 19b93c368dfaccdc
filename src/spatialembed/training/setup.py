"""A run before its first step: its data opened and looked at, its network, what it is made of."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spatialembed.console import Stages, track
from spatialembed.data.cityscapes_ids import IDS
from spatialembed.data.dataset import FileDataset, Split
from spatialembed.data.open import (
    data_name,
    for_scoring,
    has_object,
    open_data,
    splits,
    with_classes_of,
)
from spatialembed.data.splitting import (
    MOST_IMAGES,
    SplitRecord,
    duplicates,
    split_dataset,
    split_record,
)
from spatialembed.errors import INPUT, MODEL, SpatialEmbedError, check
from spatialembed.evaluation.threshold_sweep import areas_of, diameters_of, min_pixels_of
from spatialembed.inference import model_file
from spatialembed.inference.device import Precision, resolve_device, resolve_precision
from spatialembed.inference.diameter import DIAMETERS
from spatialembed.inference.engine import torch_engine
from spatialembed.inference.hub import HUB
from spatialembed.inference.model_file import CHANNEL, ModelInfo
from spatialembed.inference.tiling import TiledEngine
from spatialembed.method.cluster import ClusterOptions
from spatialembed.method.loss import Center
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.method.networks.lite import LiteEncoder, load_imagenet
from spatialembed.method.networks.timm_encoder import TimmEncoder, weights_name
from spatialembed.training.instance_index import InstanceIndex, instance_index
from spatialembed.training.loader import CropPlan, Crops
from spatialembed.training.options import TrainOptions
from spatialembed.training.run_folder import rank
from spatialembed.types import Normalization, Sample

logger = logging.getLogger("spatialembed")

IMAGENET_WEIGHTS = "EfficientNet-Lite0, ImageNet, Apache-2.0"
ENCODER_WEIGHTS = "encoder_weights"
"""Name of the fact that says where the encoder's weights come from."""
SEED_OUTPUT = "decoders.1.output_conv."
"""The layer whose outputs are the classes."""


@dataclass(frozen=True)
class Setup:
    """What a run is made of, fixed before its first step."""

    options: TrainOptions
    run: Path
    train: FileDataset
    val: FileDataset
    device: torch.device
    precision: Precision
    base: ClusterOptions  # thresholds of validation, before tuning
    start: Path | None  # checkpoint to go on from
    index: InstanceIndex | None  # of the training images, where it is needed
    foreground_weight: float | list[float]  # of the seed term, as measured where it is
    diameters: dict[str, float]  # px of the training objects, by percentile; {} of none
    split: SplitRecord | None = None  # for the model file, in the process that writes it

    @property
    def normalization(self) -> Normalization:
        """How pixel values become network input."""
        return self.options.normalization

    def plan(self, epoch: int) -> CropPlan:
        """What the crops of an epoch in [0, epochs) are."""
        stage, _ = self.options.stage(epoch)
        count, scale, seed = stage.crops or len(self.train), self.options.scale, self.options.seed
        return CropPlan(stage.crop, scale, count, stage.batch, seed, epoch, stage.sampling)

    def crops(self, plan: CropPlan) -> Crops:
        """The crops of a plan, cut from the training images."""
        return Crops(self.train, self.normalization, self.options.augment, plan, self.index)

    def engine(self, net: SpatialEmbeddingNet) -> TiledEngine:
        """The network as validation runs it, on the device and in the precision of the run."""
        scale = self.options.scale
        engine = torch_engine(net, device=self.device, precision=self.precision, scale=scale)
        return TiledEngine(engine, net.network)

    def info(self, thresholds: ClusterOptions, facts: dict[str, Any]) -> ModelInfo:
        """All of the model file but the weights."""
        return ModelInfo(
            class_names=tuple(self.train.class_names),
            elliptical=self.options.elliptical,
            normalization=self.normalization,
            thresholds=thresholds,
            scale=self.options.scale,
            training=facts,
            split=self.split,
            network=self.options.network or "erfnet",
        )

    def _start(self) -> dict[str, Any]:
        """What the weights started from: the encoder's on ImageNet, maybe by way of a model."""
        if self.options.pretrained is not None:
            network = self.options.network or "lite"
            name = IMAGENET_WEIGHTS if network == "lite" else weights_name(network)
            return {ENCODER_WEIGHTS: name}
        if self.options.init is None:
            return {}
        facts = model_file.load(self.options.init)[1].training
        handed_on = {k: v for k, v in facts.items() if k == ENCODER_WEIGHTS}
        init = self.options.init
        return {"init": init if init.startswith(HUB) else Path(init).name} | handed_on

    def facts(self, ap: float | None, done: int, seconds: float) -> dict[str, Any]:
        """The model file's facts about its training; no path, no name of a person or machine."""
        return {
            "data": data_name(self.options.data),
            "images": len(self.train),
            "validation_images": len(self.val),
            "epochs": done,
            "hours": round(seconds / 3600, 2),
            "hardware": f"{self.device.type}, {platform.machine()}, {os.cpu_count()} cores",
            "torch": str(torch.__version__),
            **self._start(),
            DIAMETERS: self.diameters,
            **({} if self.options.channel is None else {CHANNEL: self.options.channel}),
            "center": self.options.center,
            "foreground_weight": self.foreground_weight,
            "validation_metric": self.options.val_metric,
            "validation_ap": ap,
        }


# ---------------------------------------------------------------- its data


def open_split(options: TrainOptions) -> tuple[FileDataset, FileDataset]:
    """Training and validation images: train/ and val/ of a folder, two sources, or a split."""

    def opened(split: Split | None = None, data: str = options.data) -> FileDataset:
        return open_data(
            data, split=split, classes=options.classes, groups=options.groups, reading=options
        )

    check(
        bool(options.val_fraction) or not _in_parts(options),
        f"val_fraction is 0, and {options.val_data or options.data} holds validation images",
        "leave it out, or put all images into one images/ and masks/",
    )
    if options.val_data is not None:
        train_part: Split | None = "train" if "train" in splits(options.data) else None
        val_part: Split | None = "val" if "val" in splits(options.val_data) else None
        train_set, val_set = opened(train_part), opened(val_part, options.val_data)
    elif _in_parts(options):
        train_set, val_set = opened("train"), opened("val")
    elif not options.val_fraction:
        train_set = opened()
        val_set = train_set.subset(())
    else:
        train_set, val_set = split_dataset(
            opened(), fraction=options.val_fraction, group_by=options.group_by, seed=options.seed
        )
    if not has_object(train_set):
        raise SpatialEmbedError(
            "no_objects",
            f"{options.data}: no object in the training images",
            "check the masks with spatialembed doctor",
        )
    val_set = for_scoring(with_classes_of(train_set.class_names, val_set))
    if train_set.class_names != val_set.class_names:
        raise SpatialEmbedError(
            "class_mismatch",
            f"{options.data}: classes {train_set.class_names} in training, "
            f"{val_set.class_names} in validation",
            "use one classes.csv, or categories, with the same names",
            INPUT,
        )
    for pair in duplicates(train_set, val_set):
        logger.warning("the same image in training and validation: %s = %s", *pair)
    return train_set, val_set


def _in_parts(options: TrainOptions) -> bool:
    """Whether the data set comes in train/ and val/ or as two, or is to be split."""
    return options.val_data is not None or {"train", "val"} <= set(splits(options.data))


def each(images: FileDataset) -> Iterator[Sample]:
    """Sequences by number; iterating them directly would need an end they need not have."""
    return (images[i] for i in range(len(images)))


def set_up(
    options: TrainOptions, run: Path, images: tuple[FileDataset, FileDataset], start: Path | None
) -> Setup:
    """Look at all data once; what is wrong with settings or truth is refused here.

    Raises SpatialEmbedError ``bad_setting`` (exit 2), and as reading a validation image does.
    """
    train_set, val_set = images
    device = resolve_device(options.device)
    _check_against_data(options, train_set)
    index = _index(options, train_set)
    step = -(-len(train_set) // 200)  # two hundred images show the sizes
    areas = areas_of(train_set.truth(i) for i in range(0, len(train_set), step))
    # A fault of a training image shows in the first epoch; one of these would after hours.
    checked = track(each(val_set), "validation images", total=len(val_set), shown=rank() == 0)
    if not sum(len(sample.target.classes) for sample in checked):
        none = "no object in the validation images" if len(val_set) else "no validation images"
        logger.warning("%s: the last model is kept, not the best", none)
    return Setup(
        options,
        run,
        train_set,
        val_set,
        device,
        resolve_precision(options.precision, device),
        _thresholds(options, val_set, areas),
        start,
        index,
        _foreground_weight(options, train_set, index),
        diameters_of(areas),
        _split(options, run, train_set, val_set) if rank() == 0 else None,
    )


def _thresholds(options: TrainOptions, val_set: FileDataset, areas: np.ndarray) -> ClusterOptions:
    """Those of the model to start from where there is nothing to tune them on, else defaults.

    areas: px (N,) of the training objects.
    """
    if options.init is None or len(val_set):
        start = ClusterOptions(min_pixels=min_pixels_of(areas))
    else:
        start = model_file.load(options.init)[1].thresholds
    return start if options.min_pixels is None else replace(start, min_pixels=options.min_pixels)


def _check_against_data(options: TrainOptions, train_set: FileDataset) -> None:
    """Refuse, before the first step, what the settings alone did not show."""
    weights, classes = options.foreground_weight, train_set.class_names
    check(
        not isinstance(weights, list) or len(weights) == len(classes),
        f"{np.size(weights)} values of foreground_weight for {len(classes)} classes",
        f"give one, or one each for {', '.join(classes)}",
    )
    if options.val_metric == "cityscapes":
        for name in classes:
            check(
                name in IDS,
                f"val_metric is cityscapes, but the data has the class {name!r}",
                f"set val_metric label; the benchmark knows {', '.join(IDS)}",
            )
    for stage in (options.stage1, options.stage2):
        crops = stage.crops or len(train_set)
        check(
            not stage.epochs or crops >= options.devices,
            f"{crops} crops an epoch for {options.devices} devices",
            "give fewer devices, or more crops",
        )


def _index(options: TrainOptions, images: FileDataset) -> InstanceIndex | None:
    """The index of the training images, where crops or weights need it."""
    stages = [stage for stage in (options.stage1, options.stage2) if stage.epochs]
    around = any(stage.sampling != "image" for stage in stages)
    if not (around or options.foreground_weight == "enet"):
        return None
    index = instance_index(images, progress=rank() == 0)
    absent = [name for name, n in zip(images.class_names, index.class_pixels, strict=True) if not n]
    if absent and rank() == 0:
        logger.warning("classes without object in the training images: %s", ", ".join(absent))
    return index


def _foreground_weight(
    options: TrainOptions, images: FileDataset, index: InstanceIndex | None
) -> float | list[float]:
    """The weights of the seed term, measured where the setting asks for it."""
    given = options.foreground_weight
    if given != "enet":
        return given
    assert index is not None
    weights = [round(w, 3) for w in index.enet_weights()]
    told = ", ".join(f"{n} {w:.1f}" for n, w in zip(images.class_names, weights, strict=True))
    if rank() == 0:
        logger.info("weights of the seed foreground: %s", told)
    return weights


def _split(
    options: TrainOptions, run: Path, train_set: FileDataset, val_set: FileDataset
) -> SplitRecord | None:
    """For the model file: the images that it has seen, those of the model it started from too."""
    in_parts = _in_parts(options)
    with Stages(True, "images") as stages:
        stages.begin("hashing", len(train_set) + len(val_set))
        record = split_record(
            train_set,
            val_set,
            val_fraction=None if in_parts else options.val_fraction or None,
            group_by=options.group_by if options.val_fraction and not in_parts else None,
            seed=options.seed,
            progress=lambda: stages.advance(1),
        )
    for earlier in (run / "model", options.init):  # the first, where this run is resumed
        with suppress(SpatialEmbedError):  # reported when the model is needed
            before = model_file.load(earlier)[1].split if earlier else None
            if before is not None:
                record = replace(record, trained=record.trained | before.trained)
    if len(record.trained) > MOST_IMAGES:
        logger.warning("more than %d images: the model keeps no record of them", MOST_IMAGES)
        return None
    return record


# ---------------------------------------------------------------- its network


def initial_network(setup: Setup) -> SpatialEmbeddingNet:
    """The network before the first step; one that is resumed gets its weights later."""
    options = setup.options
    torch.manual_seed(options.seed)
    network = options.network or "erfnet"  # of runs from before there was a choice
    net = SpatialEmbeddingNet(len(setup.train.class_names), options.elliptical, network)
    if setup.start is None and options.pretrained:
        if isinstance(net.encoder, LiteEncoder):
            load_imagenet(net.encoder)
        elif isinstance(net.encoder, TimmEncoder):
            net.encoder.load_pretrained()
    if setup.start is None and options.init:
        start_from(net, options.init, options.normalization, options.scale, options.center)
    return net


def start_from(
    net: SpatialEmbeddingNet,
    model: str,
    normalization: Normalization,
    scale: float,
    center: Center = "learnable",
) -> None:
    """Put the weights of ``model``, a bundled name or a folder, into ``net``, in place.

    The layer that tells classes stays as it is where their number differs. Warns where the model
    sees images otherwise than ``normalization`` and ``scale`` say.

    Raises SpatialEmbedError (exit 4) ``model_mismatch`` for a model of another network or another
    kind of centre, and those of ``model_file.load``.
    """
    source, info = model_file.load(model)
    if (source.network, source.elliptical) != (net.network, net.elliptical):
        raise SpatialEmbedError(
            "model_mismatch",
            f"{model}: network {source.network}, elliptical {source.elliptical}; "
            f"this training: network {net.network}, elliptical {net.elliptical}",
            "start from a model of the same network, or set network and elliptical as it has them",
            MODEL,
        )
    known = info.training.get("center", center)  # files from before it was written do not say
    if known != center:  # a learnable centre may lie far outside: the offsets would start afresh
        raise SpatialEmbedError(
            "model_mismatch",
            f"{model}: trained with center {known}, this training with {center}",
            f"set center {known}, or leave out init",
            MODEL,
        )
    ours = {f"normalization.{k}": v for k, v in asdict(normalization).items()} | {"scale": scale}
    theirs = {f"normalization.{k}": v for k, v in asdict(info.normalization).items()}
    for name, value in (theirs | {"scale": info.scale}).items():
        if value != ours[name]:
            logger.warning(
                "%s of %s is %s, of this training %s (--%s %s, unless meant)",
                name,
                model,
                value,
                ours[name],
                name,
                value,
            )
    state = source.state_dict()
    if source.num_classes != net.num_classes:
        logger.warning(
            "%s tells %d classes, this training %d: the layer that tells them starts anew",
            model,
            source.num_classes,
            net.num_classes,
        )
        own = net.state_dict()
        state |= {name: own[name] for name in own if name.startswith(SEED_OUTPUT)}
    net.load_state_dict(state)
