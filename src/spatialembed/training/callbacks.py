"""What follows a step and an epoch: progress, validation, checkpoint, and leaving in time."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO

from spatialembed.console import Stages, console
from spatialembed.inference import model_file
from spatialembed.training.run_folder import (
    History,
    checkpoint_path,
    note_signals,
    rank,
    read_checkpoint,
    save_checkpoint,
)
from spatialembed.training.setup import Setup
from spatialembed.training.step import TrainingModule
from spatialembed.training.validation import validate


class Interrupted(Exception):
    """SIGINT or SIGTERM came; the step is finished and the last epoch is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.exit_code = 128 + number


class CheckpointIO(TorchCheckpointIO):
    """Checkpoints as ``run_folder`` writes and reads them: atomic, hashed, without code."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        save_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: Any = None
    ) -> dict[str, Any]:
        return read_checkpoint(Path(path))


class Bar(Callback):
    """One line over all epochs: losses, AP, time left; without a terminal, a line an epoch."""

    def __init__(self, steps: Sequence[int]) -> None:
        self.steps = steps  # of each epoch
        self.live = console(stderr=False).is_terminal
        shown = self.live and rank() == 0
        self.stages = Stages(shown, "training", sum(steps), stderr=False)

    def on_train_start(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        self.stages.advance(sum(self.steps[: trainer.current_epoch]))
        self.stages.__enter__()

    def on_train_batch_end(self, trainer: pl.Trainer, _: Any, outputs: Any, *__: Any) -> None:
        loss = f"loss {float(outputs['loss']):.3f}" if outputs else "skipped"
        self.stages.advance()
        self.stages.note(f"{self._epoch(trainer)} {loss}")

    def _epoch(self, trainer: pl.Trainer) -> str:
        return f"epoch {trainer.current_epoch + 1}/{len(self.steps)}"

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        values = {k: float(v) for k, v in trainer.callback_metrics.items()}
        losses = " ".join(f"{k} {v:.4f}" for k, v in values.items())
        best = f" best AP {module.best_ap:.3f}" if module.best_ap >= 0 else ""
        text = f"{self._epoch(trainer)} {losses}{best}"
        self.stages.note(text)
        if not self.live and trainer.is_global_zero:
            print(text, flush=True)

    def on_exception(self, *_: Any) -> None:
        self.stages.__exit__()

    def on_train_end(self, *_: Any) -> None:
        self.stages.__exit__()


class EpochEnd(Callback):
    """After each epoch: score, keep the best model, draw, write the row of metrics, checkpoint."""

    def __init__(self, setup: Setup, bar: Bar) -> None:
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
        row |= {"epoch": done, "lr": module.lr, "skipped": module.skipped}
        if trainer.is_global_zero:
            if last or done % setup.options.validate_every == 0:
                row |= self._validate(module, done)
            self.history.add(row)
            self.history.draw()
            for logger_ in trainer.loggers:
                logger_.log_metrics({k: v for k, v in row.items() if k != "epoch"}, done)
        if trainer.is_last_batch:  # an epoch that was cut short cannot be resumed from
            trainer.save_checkpoint(checkpoint_path(setup.run, done))

    def _validate(self, module: TrainingModule, done: int) -> dict[str, float]:
        """The figures of the validation images; the model is kept if its ``val_ap`` is the best.

        Of equal ones the later is, which has learned more where AP is still 0; so is the last where
        there is no AP to compare.
        """
        setup = self.setup_of_run
        figures = validate(setup, module.kept, done, self.bar.stages.note)
        ap = figures.get("val_ap")
        if ap is None or ap >= module.best_ap:
            module.best_ap = module.best_ap if ap is None else ap
            facts = setup.facts(ap, done, module.seconds)
            model_file.save(setup.run / "model", module.kept, setup.info(setup.base, facts))
        return figures


class Limits(Callback):
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
