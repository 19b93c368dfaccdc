"""The settings of a training: one typed tree behind Python, YAML and flags."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from spatialembed.errors import check
from spatialembed.method.loss import Center
from spatialembed.options import DataOptions
from spatialembed.training.augment import AugmentOptions
from spatialembed.types import Network, Normalization, is_network


@dataclass(frozen=True)
class StageOptions:
    """One stage of a training."""

    crop: int = 256
    """Side of the square crops in px, as the network sees them."""
    epochs: int = 200
    """Number of epochs."""
    batch: int = 8
    """Crops per step, over all devices together."""
    lr: float = 5e-4
    """Learning rate of Adam at the start; it falls by (1 - epoch / epochs)^0.9."""
    crops: int | None = None
    """Crops per epoch; null: one per image."""
    sampling: Literal["image", "natural", "balanced"] = "image"
    """How crops are drawn. image: from all images equally often, a share augment.object_centred
    of them around an object; natural: around all objects equally often; balanced: around objects
    of all classes equally often."""
    freeze_batchnorm: bool = False
    """Keep the batch-norm statistics fixed (the second stage of the paper)."""

    def __post_init__(self) -> None:
        check(self.crop >= 16, f"crop is {self.crop}", "give at least 16 px")
        check(self.batch >= 1, f"batch is {self.batch}", "give at least 1")
        check(self.epochs >= 0, f"epochs is {self.epochs}", "give at least 0")
        check(self.crops is None or self.crops >= 1, f"crops is {self.crops}", "give at least 1")
        check(self.lr > 0, f"lr is {self.lr}", "give a positive number")


@dataclass(frozen=True)
class TrainOptions(DataOptions):
    """Settings of ``spatialembed train``."""

    data: str = ""
    """Folder of images/ and masks/, flat or under train/ and val/; a file of COCO instances, .json,
    beside images/; or a Cityscapes root, with leftImg8bit/ and gtFine/."""
    val_data: str | None = None
    """Images to validate on, as --data takes them: the val.json of a train.json, or its part val/;
    null: those that are held out of data, or its part val/."""
    classes: str | None = None
    """Cityscapes only: the classes to learn, with commas between; null: all eight."""
    groups: Literal["ignore", "background"] = "ignore"
    """Cityscapes only: whether the loss ignores a group without single objects or takes it as
    background."""
    val_fraction: float = 0.2
    """Share held out for validation where there is no val/; 0: none, the last model is kept, with
    thresholds and calibration of ``init``."""
    group_by: str | None = None
    """Column of index.csv whose groups are held out whole (adjoining tiles of one field, for
    example)."""
    seed: int = 0
    """Seed of all randomness, including the split."""
    out: str = "runs/train"
    """Folder of runs."""
    name: str | None = None
    """Name of the run; null: the name of the data folder, numbered."""
    resume: str | None = None
    """Folder of a run to continue, with its own settings; data, device, devices, workers and
    max_time may change."""
    init: str | None = None
    """Model whose weights to start from: bundled name, model folder, or hf://OWNER/NAME@REVISION of
    the hub. If its classes differ, the layer of the classes starts at random."""
    network: Network | None = None
    """erfnet, the network of the paper; lite, which learns and predicts faster; or timm:NAME, an
    encoder of timm under the decoders of lite (extra timm); null: that of init, else erfnet."""
    pretrained: Literal["imagenet"] | None = None
    """Weights that the encoder starts from: of lite they come with the extra pretrained, of timm
    they are downloaded; null: random ones."""
    average: float = 0.0
    """Decay of a running mean of the weights, which is validated and kept; 0: the last weights."""
    elliptical: bool = True
    """One bandwidth per axis instead of one for both."""
    center: Center = "learnable"
    """Centre of an instance: mean of its embeddings (learnable), of its positions, or a medoid."""
    margin: float | None = None
    """Fixed bandwidth: the largest distance of an embedding from its centre, in px of the
    network's input, trained by the hinge loss (the baseline of the paper); null: bandwidths are
    learned."""
    foreground_weight: float | list[float] | Literal["enet"] = 10.0
    """Weight of instance pixels in the seed term, one for all classes or one each; enet: of each
    class 1 / ln(1.02 + p), p the share of its pixels in the training images."""
    normalization: Normalization = field(default_factory=Normalization)
    """How pixel values become network input."""
    scale: float = 1.0
    """Magnification at which the network sees images; above 1 where objects are a few px wide."""
    augment: AugmentOptions = field(default_factory=AugmentOptions)
    """Random changes of the crops."""
    stage1: StageOptions = field(default_factory=StageOptions)
    """Crops around objects (Neven et al.: 200 epochs)."""
    stage2: StageOptions = field(
        default_factory=lambda: StageOptions(
            crop=512, epochs=0, batch=2, lr=5e-5, freeze_batchnorm=True
        )
    )
    """Larger crops with batch-norm frozen (Neven et al.: 50 epochs); off by default."""
    warmup: int = 0
    """Epochs over which the learning rate rises to its start."""
    weight_decay: float = 1e-4
    """Weight decay of Adam."""
    clip: float = 10.0
    """Largest norm of the gradient; 0: no clipping."""
    validate_every: int = 5
    """Epochs between validations by the real clustering; the last epoch is always validated."""
    val_metric: Literal["label", "cityscapes"] = "label"
    """AP that chooses the best model: of label images, per image, at IoU .50 to .90; or that of the
    Cityscapes benchmark, for which thresholds are not tuned."""
    min_pixels: int | None = None
    """Smallest instance, before tuning; null: from the sizes of the training objects."""
    max_time: float | None = None
    """Minutes of training, after which a last validation and the tuning of thresholds follow;
    the learning rate falls to its end within that time, in a resumed run from where it stood."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    devices: int = 1
    """Processes that train together, one per device."""
    precision: str = "auto"
    """auto, float32 or bfloat16 (of the network; loss and clustering are always float32)."""
    workers: int = 2
    """Loader processes; the result does not depend on them."""

    def __post_init__(self) -> None:
        check(bool(self.data or self.resume), "no data", "give --data DIR, or --resume RUN")
        check(
            0 <= self.val_fraction < 1, f"val_fraction is {self.val_fraction}", "give 0 to below 1"
        )
        grouped = self.val_data is not None and self.group_by is not None
        check(not grouped, "val_data and group_by together", "give one of them")
        for one in ("resume", "pretrained"):
            both = getattr(self, one) and self.init
            check(not both, f"{one} and init together", "give one of them")
        named = self.network is None or is_network(self.network)
        check(named, f"network is {self.network!r}", "give erfnet, lite or timm:NAME")
        fits = self.pretrained is None or self.network not in {None, "erfnet"}
        check(fits, f"pretrained with network {self.network}", "set network lite")
        check(0 <= self.average < 1, f"average is {self.average}", "give 0 to below 1")
        for name in ("scale", "validate_every", "devices"):
            value = getattr(self, name)
            check(value > 0, f"{name} is {value}", "give a positive number")
        for name in ("warmup", "workers", "clip", "weight_decay", "seed"):
            value = getattr(self, name)
            check(value >= 0, f"{name} is {value}", "give 0 or more")
        if self.margin is not None:
            check(self.margin > 0, f"margin is {self.margin}", "give a positive number of px")
            fits, remedy = self.center == "centroid", "a fixed bandwidth goes with center centroid"
            check(fits, f"margin with center {self.center}", remedy)
        check(self.epochs > 0, "no epochs", "set stage1.epochs or stage2.epochs above 0")
        for stage in (self.stage1, self.stage2):
            whole = stage.epochs == 0 or stage.batch % self.devices == 0
            message = f"batch is {stage.batch} for {self.devices} devices"
            check(whole, message, "give a multiple of the devices")
            blurred = 0 <= math.ceil(3 * self.augment.blur) < stage.crop  # as wide as its kernel
            check(blurred, f"blur is {self.augment.blur}", "give 0 to a third of the crop")
        how = self.normalization
        rising = 0 <= how.low < how.high <= 100
        check(rising, f"percentiles {how.low} to {how.high}", "give 0 <= low < high <= 100")
        floor = how.noise_floor
        check(floor >= 0, f"normalization.noise_floor is {floor}", "give 0 or more")
        check(min(how.std) > 0, f"normalization.std is {how.std}", "give positive numbers")

    @property
    def epochs(self) -> int:
        """Epochs of both stages."""
        return self.stage1.epochs + self.stage2.epochs

    def stage(self, epoch: int) -> tuple[StageOptions, int]:
        """The stage of an epoch in [0, epochs), and the epoch within it."""
        first = self.stage1.epochs
        return (self.stage1, epoch) if epoch < first else (self.stage2, epoch - first)

    def lr(self, epoch: int, gone: float = 0.0) -> float:
        """Learning rate of an epoch: decay of power 0.9 in each stage, a warm-up in the first.

        gone: share of the time that has passed, where that ends before the epochs do.
        """
        within_first = epoch < self.stage1.epochs
        stage, epoch = self.stage(min(epoch, self.epochs - 1))
        rise = min(1.0, (epoch + 1) / (self.warmup + 1)) if within_first else 1.0
        return stage.lr * rise * (1 - max(epoch / stage.epochs, min(gone, 1.0))) ** 0.9
