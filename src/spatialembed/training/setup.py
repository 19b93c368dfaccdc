"""What a run is made of, fixed before its first step."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spatialembed.data.dataset import FileDataset
from spatialembed.data.open import data_name
from spatialembed.data.split_record import SplitRecord
from spatialembed.inference import model_file
from spatialembed.inference.diameter import DIAMETERS
from spatialembed.inference.engine import Precision, TorchEngine
from spatialembed.inference.model_file import ModelInfo
from spatialembed.inference.tiled_engine import TiledEngine
from spatialembed.method.cluster import ClusterOptions
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.training.instance_index import InstanceIndex
from spatialembed.training.loader import CropPlan, Crops
from spatialembed.training.options import TrainOptions
from spatialembed.types import Normalization

ENCODER_WEIGHTS = "encoder_weights"
"""Name of the fact that says where the encoder's weights come from."""


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
        count = stage.crops or len(self.train)
        return CropPlan(
            stage.crop,
            self.options.scale,
            count,
            stage.batch,
            self.options.seed,
            epoch,
            stage.sampling,
        )

    def crops(self, plan: CropPlan) -> Crops:
        """The crops of a plan, cut from the training images."""
        return Crops(self.train, self.normalization, self.options.augment, plan, self.index)

    def engine(self, net: SpatialEmbeddingNet) -> TiledEngine:
        """The network as validation runs it, on the device and in the precision of the run."""
        scale = self.options.scale
        engine = TorchEngine(net, device=self.device, precision=self.precision, scale=scale)
        return TiledEngine(engine, stride=net.stride)

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
            return {ENCODER_WEIGHTS: "EfficientNet-Lite0, ImageNet, Apache-2.0"}
        if self.options.init is None:
            return {}
        facts = model_file.load(self.options.init)[1].training
        handed_on = {k: v for k, v in facts.items() if k == ENCODER_WEIGHTS}
        return {"init": Path(self.options.init).name} | handed_on

    def facts(self, ap: float | None, done: int, seconds: float) -> dict[str, Any]:
        """The model file's facts about its training; no path, no name of a person or machine."""
        return {
            "data": data_name(self.options.data),
            "images": len(self.train),
            "validation_images": len(self.val),
            "epochs": done,
            "hours": round(seconds / 3600, 2),
            "hardware": f"{self.device.type}, {platform.machine()}, {os.cpu_count()} cores",
            "torch": torch.__version__,
            **self._start(),
            DIAMETERS: self.diameters,
            "foreground_weight": self.foreground_weight,
            "validation_metric": self.options.val_metric,
            "validation_ap": ap,
        }
