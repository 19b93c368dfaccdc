"""Training: Lightning wiring around network, loss and data, without mathematics.

    open data -> crops of the epoch -> loss -> step     after each epoch: score by the real
              -> best model -> tune its thresholds      clustering, keep the best, checkpoint

All randomness starts afresh from (seed, epoch) at each epoch, so that a run that was killed goes on
from its last epoch with the same bits as one that was not.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import signal
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.plugins.io import TorchCheckpointIO
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from spatialembed import checkpoint
from spatialembed.calibration import fit
from spatialembed.checkpoint import ModelInfo
from spatialembed.cluster import ClusterOptions
from spatialembed.data.folder import duplicates, split_dataset, splits
from spatialembed.data.module import Batch, CropModule, CropPlan, Images, Share
from spatialembed.data.selection import data_name, open_data
from spatialembed.engine import Precision, TorchEngine, resolve_device, resolve_precision
from spatialembed.errors import INPUT, MODEL, USAGE, SpatialEmbedError
from spatialembed.loss import SMOOTHNESS, spatial_embedding_loss
from spatialembed.model import SpatialEmbeddingNet
from spatialembed.render import maps_panel, write_png
from spatialembed.runs import (
    RUN_VARIABLE,
    History,
    announced,
    checkpoint_path,
    has_checkpoints,
    last_good_checkpoint,
    locked,
    memory_fault,
    new_run,
    note_signals,
    noted_signals,
    rank,
    read_checkpoint,
    read_settings,
    save_checkpoint,
    write_settings,
)
from spatialembed.settings import TrainOptions
from spatialembed.thresholds import find_all, mean_ap, sweep, usual_min_pixels
from spatialembed.types import Normalization

logger = logging.getLogger("spatialembed")

MAX_BAD_STEPS = 5
"""Steps in a row with a loss that is not finite, after which the run stops."""
MAY_CHANGE = ("data", "device", "devices", "workers", "max_time")
"""Settings that a run may go on with otherwise than it began: where and how long, not what."""
SAMPLES_SHOWN = 3
"""Validation images of which pictures are drawn."""


class Interrupted(Exception):
    """SIGINT or SIGTERM came; the step is finished and the last epoch is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.exit_code = 128 + number


@dataclass(frozen=True)
class _Setup:
    """What a run is made of, fixed before its first step."""

    options: TrainOptions
    run: Path
    train: Images
    val: Images
    device: torch.device
    precision: Precision
    base: ClusterOptions  # thresholds of validation, before tuning
    start: Path | None  # checkpoint to go on from

    @property
    def normalization(self) -> Normalization:
        return self.options.normalization

    def plan(self, epoch: int) -> CropPlan:
        stage, _ = self.options.stage(epoch)
        count = stage.crops or len(self.train)
        return CropPlan(
            stage.crop, self.options.scale, count, stage.batch, self.options.seed, epoch
        )

    def engine(self, net: SpatialEmbeddingNet) -> TorchEngine:
        return TorchEngine(
            net, device=self.device, precision=self.precision, scale=self.options.scale
        )

    def info(self, thresholds: ClusterOptions, facts: dict[str, Any]) -> ModelInfo:
        return ModelInfo(
            class_names=tuple(self.train.class_names),
            elliptical=self.options.elliptical,
            normalization=self.normalization,
            thresholds=thresholds,
            scale=self.options.scale,
            training=facts,
        )


def train(options: TrainOptions) -> Path:
    """Train a model; returns the run folder, with the best model, its thresholds tuned, in model/.

    Raises SpatialEmbedError for bad settings, data or checkpoints, and ``Interrupted`` after a
    signal; then the run folder holds all but the unfinished epoch, for ``resume``.
    """
    go_on = bool(options.resume)
    if rank() != 0:  # a further process of --devices, started by the first one
        run = Path(os.environ[RUN_VARIABLE])
        stored = _settings_to_go_on(run, replace(options, name=None))
        try:
            return _run(stored, run, open_split(stored), go_on=go_on)
        except Interrupted:
            return run  # the first process says so; an exit code here would have it killed
    if options.resume:
        run = Path(options.resume)
        options = _settings_to_go_on(run, options)
    else:
        run = new_run(Path(options.out), options.name, data_name(options.data))
    images = open_split(options)  # before there is a folder, which a mistyped path would leave
    with locked(run), announced(run):
        if not go_on:
            write_settings(run, asdict(options))
        return _run(options, run, images, go_on=go_on)


def _run(options: TrainOptions, run: Path, images: tuple[Images, Images], *, go_on: bool) -> Path:
    """Both stages, then the best model with its thresholds tuned."""
    # A run that was killed before its first checkpoint goes on from the beginning.
    start = last_good_checkpoint(run) if go_on and has_checkpoints(run) else None
    setup = _set_up(options, run, *images, start)
    net = _initial_network(setup)
    module = _Module(setup, net)
    _fit(setup, module)
    if rank() == 0:
        _tune_best(setup)
    return run


def open_split(options: TrainOptions) -> tuple[Images, Images]:
    """Training and validation images: train/ and val/ of a folder, or a split of the whole."""
    opened = partial(
        open_data,
        options.data,
        allow_missing=options.allow_missing,
        split_components=options.split_components,
        plain_ids=options.plain_ids,
        max_pixels=options.max_pixels,
    )
    if {"train", "val"} <= set(splits(options.data)):
        train_set, val_set = opened(split="train"), opened(split="val")
    else:
        train_set, val_set = split_dataset(
            opened(),
            fraction=options.val_fraction,
            group_by=options.group_by,
            seed=options.seed,
        )
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
            "take back what was changed in it",
            MODEL,
        ) from error
    return stored


def _set_up(
    options: TrainOptions, run: Path, train_set: Images, val_set: Images, start: Path | None
) -> _Setup:
    device = resolve_device(options.device)
    _check_against_data(options, train_set)
    smallest = options.min_pixels
    if smallest is None:
        step = -(-len(train_set) // 200)  # two hundred images tell the sizes
        smallest = usual_min_pixels(train_set[i] for i in range(0, len(train_set), step))
    # A fault of a training image shows in the first epoch; one of these would after hours.
    if sum(len(sample.target.classes) for sample in _each(val_set)) == 0:
        logger.warning("no object in the validation images: the last model is kept, not the best")
    return _Setup(
        options,
        run,
        train_set,
        val_set,
        device,
        resolve_precision(options.precision, device),
        ClusterOptions(min_pixels=smallest),
        start,
    )


def _check_against_data(options: TrainOptions, train_set: Images) -> None:
    """Refuse, before the first step, what the settings alone did not show."""
    weights, classes = options.foreground_weight, train_set.class_names
    if not isinstance(weights, (int, float)) and len(weights) != len(classes):
        raise SpatialEmbedError(
            "bad_setting",
            f"{len(weights)} values of foreground_weight for {len(classes)} classes",
            f"give one, or one each for {', '.join(classes)}",
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


def _initial_network(setup: _Setup) -> SpatialEmbeddingNet:
    options = setup.options
    torch.manual_seed(options.seed)
    net = SpatialEmbeddingNet(len(setup.train.class_names), options.elliptical)
    if options.init and setup.start is None:
        source, info = checkpoint.load(options.init)
        if (source.num_classes, source.elliptical) != (net.num_classes, net.elliptical):
            raise SpatialEmbedError(
                "model_mismatch",
                f"{options.init}: {source.num_classes} classes, elliptical {source.elliptical}; "
                f"this training: {net.num_classes} classes, elliptical {net.elliptical}",
                "start from a model of the same network, or set elliptical as it has it",
                MODEL,
            )
        for name in ("normalization", "scale"):
            theirs, ours = getattr(info, name), getattr(options, name)
            if theirs != ours:
                logger.warning(
                    "%s of %s is %s, of this training %s (set %s as it has it, unless meant)",
                    name,
                    options.init,
                    theirs,
                    ours,
                    name,
                )
        net.load_state_dict(source.state_dict())
    return net


class _Module(pl.LightningModule):
    """One training step, and the optimiser with its schedule."""

    def __init__(self, setup: _Setup, net: SpatialEmbeddingNet) -> None:
        super().__init__()
        self.setup_of_run = setup
        self.net = net.to(memory_format=torch.channels_last)
        self.best_ap = -1.0  # below every AP: none yet
        self.bad_steps = 0  # in a row
        self.skipped = 0  # in this epoch
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time spent on this run, what was before a resume included."""
        return time.monotonic() - self.started

    def training_step(self, batch: Batch, _: int) -> Tensor | None:
        options = self.setup_of_run.options
        statistics = [buffer.clone() for buffer in self.net.buffers()]
        prediction = self.net(batch.images.contiguous(memory_format=torch.channels_last))
        terms = spatial_embedding_loss(
            prediction,
            batch.targets,
            center=options.center,
            foreground_weight=options.foreground_weight,
        )
        loss = terms.total()
        if not self._is_finite(loss, batch):
            # The forward pass has moved the batch-norm statistics, maybe to NaN for ever.
            for buffer, before in zip(self.net.buffers(), statistics, strict=True):
                buffer.copy_(before)
            return None
        weighted = terms._replace(smoothness=SMOOTHNESS * terms.smoothness)
        values = {"total": loss, **weighted._asdict()}
        self.log_dict(
            {k: v.detach() for k, v in values.items()},
            on_step=False,
            on_epoch=True,
            logger=False,  # Lightning counts in steps; ``_EpochEnd`` logs by epoch
            batch_size=len(batch.names),
        )
        return loss

    def _is_finite(self, loss: Tensor, batch: Batch) -> bool:
        """Whether the step counts; all processes skip it together, or they would wait for ever."""
        finite = torch.isfinite(loss.detach())
        if self.trainer.world_size > 1:
            finite = self.trainer.strategy.reduce(finite.float(), reduce_op="mean") == 1
        if finite:
            self.bad_steps = 0
            return True
        self.bad_steps += 1
        self.skipped += 1
        logger.warning("step skipped, loss is %s: %s", loss.item(), ", ".join(batch.names))
        if self.bad_steps >= MAX_BAD_STEPS:
            raise SpatialEmbedError(
                "diverged",
                f"{MAX_BAD_STEPS} steps in a row gave no finite loss",
                f"lower stage1.lr; the last good checkpoint is {self._last_checkpoint()}",
                MODEL,
            )
        return False

    def _last_checkpoint(self) -> str:
        try:
            return str(last_good_checkpoint(self.setup_of_run.run))
        except SpatialEmbedError:
            return "none yet"

    def configure_optimizers(self) -> torch.optim.Optimizer:
        options = self.setup_of_run.options
        return torch.optim.Adam(
            self.net.parameters(), options.lr(0), weight_decay=options.weight_decay
        )

    def on_train_epoch_start(self) -> None:
        options = self.setup_of_run.options
        epoch = self.current_epoch
        stage, within = options.stage(epoch)
        if within == 0:  # the second stage starts with a fresh Adam
            self.trainer.optimizers[0].state.clear()
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = options.lr(epoch)
        self.skipped = 0
        self.net.train()
        if stage.freeze_batchnorm:
            for layer in self.net.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.eval()
        # Each process drops other channels; a resumed epoch drops the same ones again.
        rng = np.random.default_rng((options.seed, epoch, self.trainer.global_rank))
        torch.manual_seed(int(rng.integers(2**62)))

    def on_save_checkpoint(self, state: dict[str, Any]) -> None:
        state["best_ap"] = self.best_ap
        state["seconds"] = self.seconds

    def on_load_checkpoint(self, state: dict[str, Any]) -> None:
        # After an epoch that was cut short the model may be better than the checkpoint knows.
        self.best_ap = max(state["best_ap"], _ap_of_model(self.setup_of_run.run))
        self.started = time.monotonic() - state["seconds"]


def _ap_of_model(run: Path) -> float:
    """Validation AP of the best model so far, below 0 where there is none."""
    try:
        _, info = checkpoint.load(run / "model")
    except SpatialEmbedError:
        return -1.0
    ap = info.training.get("validation_ap")
    return -1.0 if ap is None else float(ap)


class _CheckpointIO(TorchCheckpointIO):
    """Checkpoints as ``runs`` writes and reads them: atomic, hashed, without code."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        save_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: Any = None
    ) -> dict[str, Any]:
        return read_checkpoint(Path(path))


class _Bar(Callback):
    """One line over all epochs: losses, AP, time left; without a terminal, a line an epoch."""

    def __init__(self, steps: Sequence[int]) -> None:
        console = Console()
        self.steps = steps  # of each epoch
        self.live = console.is_terminal
        self.progress = Progress(
            TextColumn(f"epoch {{task.fields[epoch]}}/{len(steps)}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[losses]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not self.live or rank() != 0,
        )

    def note(self, text: str) -> None:
        """Say in place of the losses what lasts."""
        self.progress.update(self.task, losses=text)

    def on_train_start(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        self.task = self.progress.add_task(
            "",
            total=sum(self.steps),
            completed=sum(self.steps[: trainer.current_epoch]),
            epoch=trainer.current_epoch,
            losses="",
        )
        self.progress.start()

    def on_train_batch_end(self, trainer: pl.Trainer, _: Any, outputs: Any, *__: Any) -> None:
        loss = f"loss {float(outputs['loss']):.3f}" if outputs else "skipped"
        self.progress.update(self.task, advance=1, epoch=trainer.current_epoch + 1, losses=loss)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        values = {k: float(v) for k, v in trainer.callback_metrics.items()}
        losses = " ".join(f"{k} {v:.4f}" for k, v in values.items())
        best = f" best AP {module.best_ap:.3f}" if module.best_ap >= 0 else ""
        self.progress.update(self.task, losses=losses + best)
        if not self.live and trainer.is_global_zero:
            done = f"epoch {trainer.current_epoch + 1}/{len(self.steps)}"
            print(f"{done} {losses}{best}", flush=True)

    def on_exception(self, *_: Any) -> None:
        self.progress.stop()

    def on_train_end(self, *_: Any) -> None:
        self.progress.stop()


class _EpochEnd(Callback):
    """After each epoch: score, keep the best model, draw, write the row of metrics, checkpoint."""

    def __init__(self, setup: _Setup, bar: _Bar) -> None:
        self.setup_of_run = setup
        self.bar = bar
        self.history = History(setup.run)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.history.keep_until(trainer.current_epoch)
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(checkpoint_path(self.setup_of_run.run, 0))

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        setup = self.setup_of_run
        done = trainer.current_epoch + 1
        last = done == setup.options.epochs or trainer.should_stop
        row = {k: float(v) for k, v in trainer.callback_metrics.items()}
        row |= {"epoch": done, "lr": setup.options.lr(done - 1), "skipped": module.skipped}
        if trainer.is_global_zero:
            if last or done % setup.options.validate_every == 0:
                row |= self._validate(module, done)
            self.history.add(row)
            self.history.draw()
            for logger_ in trainer.loggers:
                logger_.log_metrics({k: v for k, v in row.items() if k != "epoch"}, done)
        if trainer.is_last_batch:  # an epoch that was cut short is not one to go on from
            trainer.save_checkpoint(checkpoint_path(setup.run, done))

    def _validate(self, module: Any, done: int) -> dict[str, float]:
        """``val_ap``, the mean AP of the validation images, or nothing where none is defined.

        The model is kept if it is the best so far. Of equal ones the later is, which has learned
        more where AP is still 0; so is the last where there is no AP to tell by.
        """
        setup = self.setup_of_run
        scores = []
        engine = setup.engine(module.net)
        for i, found in enumerate(
            find_all(engine, setup.normalization, _each(setup.val), setup.base)
        ):
            scores.append(mean_ap(found.instances, found.sample, len(setup.val.class_names)))
            self.bar.note(f"validating {i + 1}/{len(setup.val)}")
            if i < SAMPLES_SHOWN:
                _draw_sample(setup.run, found, done)
        module.net.train()
        defined = [s for s in scores if not np.isnan(s)]
        ap = float(np.mean(defined)) if defined else None
        if ap is None or ap >= module.best_ap:
            module.best_ap = module.best_ap if ap is None else ap
            facts = _facts(setup, ap, done, module.seconds)
            checkpoint.save(setup.run / "model", module.net, setup.info(setup.base, facts))
        return {} if ap is None else {"val_ap": ap}


class _Limits(Callback):
    """Ends the run between two steps: after a signal, or when its time is up.

    All processes agree on it at each step: one that left alone would leave the others waiting.
    """

    def __init__(self, minutes: float | None, signals: list[int]) -> None:
        self.deadline = time.monotonic() + 60 * minutes if minutes is not None else None
        self.signals = signals

    def on_train_start(self, *_: Any) -> None:
        # Lightning has put a handler of its own before ours; after a SIGTERM in validation that
        # one ends the run with exit code 0.
        note_signals(self.signals)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._leave_after_signal(trainer)
        late = self.deadline is not None and time.monotonic() > self.deadline
        if trainer.strategy.reduce_boolean_decision(late, all=False):
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._leave_after_signal(trainer)

    def _leave_after_signal(self, trainer: pl.Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(bool(self.signals), all=False):
            raise Interrupted(self.signals[0] if self.signals else signal.SIGTERM)


def _fit(setup: _Setup, module: _Module) -> None:
    options = setup.options
    data = CropModule(
        setup.train, setup.normalization, options.augment, setup.plan, options.workers
    )
    plans = [setup.plan(epoch) for epoch in range(options.epochs)]
    bar = _Bar([len(Share(plan.count, plan.batch, 0, options.devices)) for plan in plans])
    with noted_signals() as signals, _quiet():
        trainer = pl.Trainer(
            accelerator={"cuda": "gpu"}.get(setup.device.type, setup.device.type),
            devices=_devices(setup.device, options.devices),
            strategy="ddp" if options.devices > 1 else "auto",
            precision="bf16-mixed" if setup.precision == "bfloat16" else "32-true",
            max_epochs=options.epochs,
            gradient_clip_val=options.clip or None,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
            limit_val_batches=0,
            logger=TensorBoardLogger(setup.run, name=None, version="tensorboard"),
            # Always our own processes: under SLURM Lightning would wait for some from outside.
            plugins=[_CheckpointIO(), LightningEnvironment()],
            # Last the one that may leave, when all is saved.
            callbacks=[_EpochEnd(setup, bar), bar, _Limits(options.max_time, signals)],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
        )
        try:
            trainer.fit(module, data, ckpt_path=setup.start, weights_only=True)
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


def _tune_best(setup: _Setup) -> None:
    """Choose the best model's thresholds on the validation images, calibrate it, write both."""
    net, info = checkpoint.load(setup.run / "model")
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("tuning thresholds", total=len(setup.val))
        surface = sweep(
            setup.engine(net),
            setup.normalization,
            _each(setup.val),
            setup.base,
            len(info.class_names),
            progress=lambda: progress.advance(task),
        )
    best = surface.best()
    thresholds = surface.grid.options(best, setup.base)
    facts = info.training | {"validation_ap_tuned": float(surface.mean()[best])}
    calibration = fit(surface.objects_at(thresholds), thresholds.start)
    checkpoint.save_as(
        setup.run / "model",
        setup.run / "model",
        replace(info, thresholds=thresholds, calibration=calibration, training=facts),
    )


def _each(images: Images) -> Iterator[Any]:
    """Sequences by number; iterating them directly would need an end they need not have."""
    return (images[i] for i in range(len(images)))


def _draw_sample(run: Path, found: Any, done: int) -> None:
    offset, log_precision, seed = (m[0].cpu().numpy() for m in found.maps)
    picture = maps_panel(
        found.sample.image,
        offset,
        log_precision,
        seed,
        found.instances.labels,
        found.sample.target.labels.numpy(),
    )
    stem = found.sample.name.replace("/", "_")
    write_png(run / "samples" / f"{stem}_epoch{done:04d}.png", picture)


def _facts(setup: _Setup, ap: float | None, done: int, seconds: float) -> dict[str, Any]:
    """What the model file says of its training; no path, no name of a person or machine."""
    return {
        "data": data_name(setup.options.data),
        "images": len(setup.train),
        "validation_images": len(setup.val),
        "epochs": done,
        "hours": round(seconds / 3600, 2),
        "hardware": f"{setup.device.type}, {platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "validation_ap": ap,
    }


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
