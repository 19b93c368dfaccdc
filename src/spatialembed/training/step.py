"""One training step, the optimiser with its schedule, the running mean of the weights."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from spatialembed.errors import MODEL, SpatialEmbedError
from spatialembed.inference import model_file
from spatialembed.method.geometry import log_precision_of
from spatialembed.method.loss import SMOOTHNESS, LossTerms, hinge_loss, spatial_embedding_loss
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.training.loader import Batch, Crop, Share, loader
from spatialembed.training.run_folder import last_good_checkpoint
from spatialembed.training.setup import Setup
from spatialembed.types import Embeddings

logger = logging.getLogger("spatialembed")

MAX_BAD_STEPS = 5
"""Steps in a row with a loss that is not finite, after which the run stops."""


class WeightAverage:
    """Exponential mean of weights and batch-norm statistics over the steps (Polyak averaging).

        mean <- d mean + (1 - d) weights        d = min(decay, (1 + n) / (10 + n)) at step n

    so that the first steps, whose weights are poor, are soon forgotten.
    """

    def __init__(self, net: SpatialEmbeddingNet, decay: float) -> None:
        self.net = deepcopy(net).requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, net: SpatialEmbeddingNet) -> None:
        """Take in the weights after a step."""
        self.steps += 1
        keep = min(self.decay, (1 + self.steps) / (10 + self.steps))
        ours, theirs = self.net.state_dict(), net.state_dict()
        for name, mean in ours.items():
            if mean.is_floating_point():
                mean.lerp_(theirs[name].to(mean), 1 - keep)
            else:
                mean.copy_(theirs[name])

    def state_dict(self) -> dict[str, object]:
        """All of it, for a checkpoint."""
        return {"steps": self.steps, "net": self.net.state_dict()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from what ``state_dict`` gave."""
        self.steps = int(state["steps"])  # type: ignore[call-overload]
        self.net.load_state_dict(state["net"])  # type: ignore[arg-type]


class TrainingModule(pl.LightningModule):
    """One training step, and the optimiser with its schedule."""

    def __init__(self, setup: Setup, net: SpatialEmbeddingNet) -> None:
        super().__init__()
        self.setup_of_run = setup
        self.net = net.to(memory_format=torch.channels_last)
        self._keep_margin()
        decay = setup.options.average
        # No module, so not one of this one: Lightning would train it, other processes wait for it.
        self.average = WeightAverage(self.net, decay) if decay else None
        self.best_ap = -1.0  # below every AP: none yet
        self.bad_steps = 0  # in a row
        self.skipped = 0  # in this epoch
        self.started = time.monotonic()
        self.began = self.started, 0  # of this sitting: when, and at which epoch
        self.gone = 0.0  # share of the run that is over, where its time decides
        self.gone_before = 0.0  # in the sittings before
        self.lr = setup.options.lr(0)

    @property
    def kept(self) -> SpatialEmbeddingNet:
        """The network that is validated and saved: of averaged weights, where that is set."""
        return self.average.net if self.average else self.net

    @property
    def seconds(self) -> float:
        """Time spent on this run, including the part before a resume."""
        return time.monotonic() - self.started

    def train_dataloader(self) -> DataLoader[Crop]:
        """Made anew each epoch: the stages of a training are nothing but other crops."""
        setup = self.setup_of_run
        plan = setup.plan(self.current_epoch)
        share = Share(plan.count, plan.batch, self.global_rank, self.trainer.world_size)
        return loader(setup.crops(plan), share, setup.options.workers)

    def transfer_batch_to_device(
        self, batch: Batch | SpatialEmbedError, device: torch.device, _: int
    ) -> Batch:
        if isinstance(batch, SpatialEmbedError):
            raise batch
        return batch.to(device)

    def training_step(self, batch: Batch, _: int) -> Tensor | None:
        statistics = [buffer.clone() for buffer in self.net.buffers()]
        prediction = self.net(batch.images.contiguous(memory_format=torch.channels_last))
        terms = self._loss(prediction, batch)
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
            logger=False,  # Lightning counts in steps; ``EpochEnd`` logs by epoch
            batch_size=len(batch.names),
        )
        return loss

    def _loss(self, prediction: Embeddings, batch: Batch) -> LossTerms:
        options = self.setup_of_run.options
        weights = self.setup_of_run.foreground_weight
        if options.margin is not None:
            return hinge_loss(
                prediction,
                batch.targets,
                margin_px=options.margin,
                center=options.center,
                foreground_weight=weights,
            )
        return spatial_embedding_loss(
            prediction, batch.targets, center=options.center, foreground_weight=weights
        )

    def on_train_batch_end(self, *_: Any) -> None:
        self._keep_margin()
        if self.average:
            self.average.update(self.net)

    def _keep_margin(self) -> None:
        """Set a fixed bandwidth anew: weight decay would move it from step to step."""
        margin = self.setup_of_run.options.margin
        if margin is not None:
            self.net.fix_bandwidth(log_precision_of(margin))

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
            run = self.setup_of_run.run
            raise SpatialEmbedError(
                "diverged",
                f"{MAX_BAD_STEPS} steps in a row gave no finite loss",
                f"lower stage1.lr; the last good checkpoint is {last_good_checkpoint(run)}",
                MODEL,
            )
        return False

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
        # One clock for all processes, whose weights would part otherwise.
        self.gone = self.trainer.strategy.broadcast(self._gone())
        self.lr = options.lr(epoch, self.gone)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.lr
        self.skipped = 0
        self.net.train()
        if stage.freeze_batchnorm:
            for layer in self.net.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.eval()
        # Each process drops other channels; a resumed epoch drops the same ones again.
        rng = np.random.default_rng((options.seed, epoch, self.trainer.global_rank))
        torch.manual_seed(int(rng.integers(2**62)))

    def on_fit_start(self) -> None:
        if self.average:
            self.average.net.to(self.device)

    def on_train_start(self) -> None:
        self.began = time.monotonic(), self.current_epoch

    def _gone(self) -> float:
        """Share of the run that is over if ``max_time`` is its end, counted from where it began.

        What is left of a run that was resumed takes its time, or without a limit its epochs, so
        that the learning rate falls from where it stood.
        """
        options = self.setup_of_run.options
        began, first = self.began
        if options.max_time:
            passed = (time.monotonic() - began) / (60 * options.max_time)
        elif self.gone_before:
            passed = (self.current_epoch - first) / (options.epochs - first)
        else:
            return 0.0
        # Of two stages the time of each is that of its crops' pixels, roughly: not told apart here.
        before = max(self.gone_before, first / options.epochs)
        return min(1.0, before + (1 - before) * passed)

    def on_save_checkpoint(self, state: dict[str, Any]) -> None:
        state["best_ap"] = self.best_ap
        state["seconds"] = self.seconds
        state["gone"] = self.gone
        if self.average:
            state["average"] = self.average.state_dict()

    def on_load_checkpoint(self, state: dict[str, Any]) -> None:
        # After an epoch that was cut short the model may be better than the checkpoint knows.
        self.best_ap = max(state["best_ap"], _ap_of_model(self.setup_of_run.run))
        self.started = time.monotonic() - state["seconds"]
        self.gone = self.gone_before = state.get("gone", 0.0)  # none in checkpoints of before
        if self.average:
            self.average.load_state_dict(state["average"])


def _ap_of_model(run: Path) -> float:
    """Validation AP of the best model so far, below 0 where there is none."""
    ap = None
    with suppress(SpatialEmbedError):
        ap = model_file.load(run / "model")[1].training.get("validation_ap")
    return -1.0 if ap is None else float(ap)
