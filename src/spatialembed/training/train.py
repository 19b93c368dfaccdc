"""Training: Lightning wiring around network, loss and data, without mathematics.

    open data -> crops of the epoch -> loss -> step     after each epoch: score by the real
              -> best model -> tune its thresholds      clustering, keep the best, checkpoint

All randomness starts afresh from (seed, epoch) at each epoch, so that a killed run continues from
its last epoch with the same bits as one that was not.
"""

from __future__ import annotations

import argparse
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy

from spatialembed.console import Stages, track
from spatialembed.data.cityscapes_ids import IDS
from spatialembed.data.dataset import FileDataset
from spatialembed.data.label_checks import warn_of_labels
from spatialembed.data.open import (
    data_name,
    described,
    for_scoring,
    open_data,
    splits,
    with_classes_of,
)
from spatialembed.data.split_record import MOST_IMAGES, SplitRecord, split_record
from spatialembed.data.splitting import duplicates, split_dataset
from spatialembed.errors import INPUT, MODEL, USAGE, SpatialEmbedError
from spatialembed.evaluation.threshold_sweep import areas_of, diameters_of, min_pixels_of
from spatialembed.inference import model_file
from spatialembed.inference.engine import resolve_device, resolve_precision
from spatialembed.method.cluster import ClusterOptions
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.method.networks.lite import LiteEncoder, load_imagenet
from spatialembed.training.callbacks import Bar, CheckpointIO, EpochEnd, Interrupted, Limits
from spatialembed.training.init import start_from
from spatialembed.training.instance_index import InstanceIndex, instance_index
from spatialembed.training.loader import Share
from spatialembed.training.options import TrainOptions
from spatialembed.training.run_folder import (
    RUN_VARIABLE,
    announced,
    has_checkpoints,
    last_good_checkpoint,
    locked,
    memory_fault,
    new_run,
    noted_signals,
    rank,
    read_settings,
    write_settings,
)
from spatialembed.training.setup import Setup
from spatialembed.training.step import TrainingModule
from spatialembed.training.validation import each, tune_best

logger = logging.getLogger("spatialembed")

MAY_CHANGE = ("data", "device", "devices", "workers", "max_time")
"""Settings that may change when a run is resumed: where and how long, not what."""
PATIENCE = timedelta(days=7)
"""How long processes wait for each other: the first one validates alone, for hours maybe, where
torch gives up after 10 or 30 minutes. One that dies is noticed without it."""


def train(options: TrainOptions) -> Path:
    """Train a model.

    Args:
        options: All settings; ``options.resume`` names the run folder to continue.

    Returns:
        The run folder, with the best model, its thresholds tuned, in ``model/``.

    Raises:
        SpatialEmbedError: For bad settings (exit 2), data (exit 3), a checkpoint or divergence
            (exit 4), no disk space or memory (exit 5).
        Interrupted: After SIGINT or SIGTERM; the run folder then holds all but the unfinished
            epoch, for ``resume``.
    """
    go_on = bool(options.resume)
    if rank() != 0:  # a further process of --devices, started by the first one
        run = Path(os.environ[RUN_VARIABLE])
        stored = _settings_to_go_on(run, replace(options, name=None))
        try:
            return _run(stored, run, open_split(stored), go_on=go_on)
        except Interrupted:
            return run  # the first process reports it; an exit code here would have it killed
    if options.resume:
        run = Path(options.resume)
        options = _settings_to_go_on(run, options)
    else:
        options = _with_network(options)
        run = new_run(Path(options.out), options.name, data_name(options.data))
    images = open_split(options)  # before there is a folder, which a mistyped path would leave
    print(described(options.data, *images), flush=True)
    with locked(run), announced(run):
        if not go_on:
            write_settings(run, asdict(options))
        return _run(options, run, images, go_on=go_on)


def _with_network(options: TrainOptions) -> TrainOptions:
    """The settings with the network named: that of ``init`` if none is asked for, else erfnet."""
    if options.network is not None:
        return options
    of_init = model_file.load(options.init)[1].network if options.init else "erfnet"
    return replace(options, network=of_init)


def _run(
    options: TrainOptions, run: Path, images: tuple[FileDataset, FileDataset], *, go_on: bool
) -> Path:
    """Both stages, then the best model with its thresholds tuned."""
    # A run that was killed before its first checkpoint starts over.
    start = last_good_checkpoint(run) if go_on and has_checkpoints(run) else None
    setup = _set_up(options, run, *images, start)
    net = _initial_network(setup)
    module = TrainingModule(setup, net)
    _fit(setup, module)
    if rank() == 0:
        tune_best(setup)
    return run


def open_split(options: TrainOptions) -> tuple[FileDataset, FileDataset]:
    """Training and validation images: train/ and val/ of a folder, or a split of the whole."""
    opened = partial(
        open_data,
        options.data,
        classes=options.classes,
        groups=options.groups,
        reading=options,
    )
    if _in_parts(options):
        train_set, val_set = opened(split="train"), opened(split="val")
    else:
        train_set, val_set = split_dataset(
            opened(),
            fraction=options.val_fraction,
            group_by=options.group_by,
            seed=options.seed,
        )
    if not any(len(train_set.truth(i).classes) for i in range(len(train_set))):
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
            "use one classes.csv with the same names",
            INPUT,
        )
    for pair in duplicates(train_set, val_set):
        logger.warning("the same image in training and validation: %s = %s", *pair)
    return train_set, val_set


def _settings_to_go_on(run: Path, given: TrainOptions) -> TrainOptions:
    """The settings of a run, with those that may change as they are given now.

    Raises SpatialEmbedError: ``no_run``, ``bad_config`` (both exit 4); ``bad_setting`` (exit 2)
    for one that is given and is not the run's.
    """
    stored, default = _stored_settings(run), TrainOptions(resume=str(run))
    names = [f.name for f in fields(TrainOptions) if f.name != "resume"]
    given_now = [n for n in names if getattr(given, n) != getattr(default, n)]
    other = [n for n in given_now if getattr(given, n) != getattr(stored, n)]
    if refused := [n for n in other if n not in MAY_CHANGE]:
        raise SpatialEmbedError(
            "bad_setting",
            f"{run}: this run has another {', '.join(refused)}",
            f"leave it out, or start a new run from its model with --init {run}/model",
            USAGE,
        )
    renewed = {n: getattr(given, n) for n in given_now if n in MAY_CHANGE}
    return replace(stored, **(renewed | {"max_time": given.max_time, "workers": given.workers}))


def _stored_settings(run: Path) -> TrainOptions:
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainOptions, "run")
    settings = read_settings(run)
    try:
        stored: TrainOptions = parser.instantiate(parser.parse_object({"run": settings})).run
    except (ArgumentError, argparse.ArgumentError, SpatialEmbedError) as error:
        raise SpatialEmbedError(
            "bad_config",
            f"{run / 'config.yaml'}: {' '.join(str(error).split())}",
            "undo the changes in it",
            MODEL,
        ) from error
    return stored


def _set_up(
    options: TrainOptions,
    run: Path,
    train_set: FileDataset,
    val_set: FileDataset,
    start: Path | None,
) -> Setup:
    device = resolve_device(options.device)
    _check_against_data(options, train_set)
    if rank() == 0:
        warn_of_labels(train_set)
    index = _index(options, run, train_set)
    step = -(-len(train_set) // 200)  # two hundred images show the sizes
    areas = areas_of(train_set.truth(i) for i in range(0, len(train_set), step))
    smallest = min_pixels_of(areas) if options.min_pixels is None else options.min_pixels
    # A fault of a training image shows in the first epoch; one of these would after hours.
    checked = track(each(val_set), "validation images", total=len(val_set), shown=rank() == 0)
    objects = sum(len(sample.target.classes) for sample in checked)
    if objects == 0:
        logger.warning("no object in the validation images: the last model is kept, not the best")
    return Setup(
        options,
        run,
        train_set,
        val_set,
        device,
        resolve_precision(options.precision, device),
        ClusterOptions(min_pixels=smallest),
        start,
        index,
        _foreground_weight(options, train_set, index),
        diameters_of(areas),
        _split(options, run, train_set, val_set) if rank() == 0 else None,
    )


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
            val_fraction=None if in_parts else options.val_fraction,
            group_by=None if in_parts else options.group_by,
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


def _in_parts(options: TrainOptions) -> bool:
    """Whether the data set comes in train/ and val/, or is to be split."""
    return {"train", "val"} <= set(splits(options.data))


def _index(options: TrainOptions, run: Path, images: FileDataset) -> InstanceIndex | None:
    """The index of the training images, where crops or weights need it.

    It is kept beside the runs, since many learn from the same images.
    """
    stages = [stage for stage in (options.stage1, options.stage2) if stage.epochs]
    around = any(stage.sampling != "image" for stage in stages)
    if not (around or options.foreground_weight == "enet"):
        return None
    index = instance_index(images, run.parent / ".instances", progress=rank() == 0)
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


def _check_against_data(options: TrainOptions, train_set: FileDataset) -> None:
    """Refuse, before the first step, what the settings alone did not show."""
    weights, classes = options.foreground_weight, train_set.class_names
    if isinstance(weights, list) and len(weights) != len(classes):
        raise SpatialEmbedError(
            "bad_setting",
            f"{len(weights)} values of foreground_weight for {len(classes)} classes",
            f"give one, or one each for {', '.join(classes)}",
            USAGE,
        )
    if options.val_metric == "cityscapes" and (other := [c for c in classes if c not in IDS]):
        raise SpatialEmbedError(
            "bad_setting",
            f"val_metric is cityscapes, but the data has the class {other[0]!r}",
            f"set val_metric label; the benchmark knows {', '.join(IDS)}",
            USAGE,
        )
    for stage in (options.stage1, options.stage2):
        crops = stage.crops or len(train_set)
        if stage.epochs and crops < options.devices:
            raise SpatialEmbedError(
                "bad_setting",
                f"{crops} crops an epoch for {options.devices} devices",
                "give fewer devices, or more crops",
                USAGE,
            )


def _initial_network(setup: Setup) -> SpatialEmbeddingNet:
    options = setup.options
    torch.manual_seed(options.seed)
    network = options.network or "erfnet"  # of runs from before there was a choice
    net = SpatialEmbeddingNet(len(setup.train.class_names), options.elliptical, network)
    if setup.start is None:
        if options.pretrained:
            assert isinstance(net.encoder, LiteEncoder)
            load_imagenet(net.encoder)
        if options.init:
            start_from(net, options.init, options.normalization, options.scale)
    return net


def _fit(setup: Setup, module: TrainingModule) -> None:
    options = setup.options
    plans = [setup.plan(epoch) for epoch in range(options.epochs)]
    bar = Bar([len(Share(plan.count, plan.batch, 0, options.devices)) for plan in plans])
    with noted_signals() as signals, _quiet():
        trainer = pl.Trainer(
            accelerator={"cuda": "gpu"}.get(setup.device.type, setup.device.type),
            devices=_devices(setup.device, options.devices),
            strategy=DDPStrategy(timeout=PATIENCE) if options.devices > 1 else "auto",
            precision="bf16-mixed" if setup.precision == "bfloat16" else "32-true",
            max_epochs=options.epochs,
            gradient_clip_val=options.clip or None,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
            limit_val_batches=0,
            logger=TensorBoardLogger(setup.run, name=None, version="tensorboard"),
            # Always our own processes: under SLURM Lightning would wait for some from outside.
            plugins=[CheckpointIO(), LightningEnvironment()],
            # Last the one that may leave, when all is saved.
            callbacks=[EpochEnd(setup, bar), bar, Limits(options.max_time, signals)],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
        )
        try:
            trainer.fit(module, ckpt_path=setup.start, weights_only=True)
        except (RuntimeError, MemoryError) as error:
            if signals:  # `timeout` and others signal the loaders too, which die of it
                raise Interrupted(signals[0]) from error
            fault = memory_fault(error)
            if fault is None:
                raise
            raise fault from error


def _devices(device: torch.device, count: int) -> int | list[int]:
    """What Lightning calls ``count`` devices from this one on.

    Raises SpatialEmbedError ``no_device`` (exit 2) where there are not so many.
    """
    if device.type == "cpu":
        return count
    first = device.index or 0
    there = torch.cuda.device_count() if device.type == "cuda" else 1
    if first + count > there:
        raise SpatialEmbedError(
            "no_device",
            f"{count} devices from {device} on, of {there}",
            "give fewer devices, or device cpu",
            USAGE,
        )
    return list(range(first, first + count))


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's lines about hardware and about loader counts are not for our users."""
    loud = logging.getLogger("lightning.pytorch")
    level = loud.level
    loud.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        loud.setLevel(level)
