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
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from datetime import timedelta
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy

from spatialembed.data.dataset import FileDataset
from spatialembed.data.label_checks import check_labels
from spatialembed.data.open import data_name, described
from spatialembed.errors import MODEL, USAGE, SpatialEmbedError
from spatialembed.files import locked
from spatialembed.inference import model_file
from spatialembed.training import run_folder
from spatialembed.training.callbacks import Bar, CheckpointIO, EpochEnd, Interrupted, Limits
from spatialembed.training.loader import Share
from spatialembed.training.options import TrainOptions
from spatialembed.training.run_folder import rank
from spatialembed.training.setup import Setup, initial_network, open_split, set_up
from spatialembed.training.step import TrainingModule
from spatialembed.training.validation import tune_best

MAY_CHANGE = ("data", "val_data", "device", "devices", "workers", "max_time")
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
        run = Path(os.environ[run_folder.RUN_VARIABLE])
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
        run = run_folder.new_run(Path(options.out), options.name, data_name(options.data))
    images = open_split(options)  # before there is a folder, which a mistyped path would leave
    check_labels(*images, refuse=not go_on)
    print(described(options.data, *images), flush=True)
    with locked(run, "wait for it, or choose another --name"), run_folder.announced(run):
        if not go_on:
            run_folder.write_settings(run, asdict(options))
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
    start = (
        run_folder.last_good_checkpoint(run) if go_on and run_folder.has_checkpoints(run) else None
    )
    setup = set_up(options, run, images, start)
    _fit(setup, TrainingModule(setup, initial_network(setup)))
    if rank() == 0:
        tune_best(setup)
    return run


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
    settings = run_folder.read_settings(run)
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


def _fit(setup: Setup, module: TrainingModule) -> None:
    options = setup.options
    plans = [setup.plan(epoch) for epoch in range(options.epochs)]
    bar = Bar([len(Share(plan.count, plan.batch, 0, options.devices)) for plan in plans])
    with run_folder.noted_signals() as signals, _quiet():
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
            fault = run_folder.memory_fault(error)
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
