"""The vocabulary: every type that one part hands to another, each field with its shape.

Conventions used everywhere:

    array index   (row y, column x)            labels[y, x]
    coordinate    (x, y) in units              offset[:, 0] is x, offset[:, 1] is y
    unit          1024 px, both axes           pixel (y=512, x=256) stands at (0.25, 0.5)
    precision     1 / (2 sigma^2), 1/unit^2    exp(10 log_precision): 1 -> 22026, margin 5.7 px

This file imports no torch at run time, so that an exported model runs without it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

UNIT = 1024
"""Pixels per coordinate unit."""


class Embeddings(NamedTuple):
    """What the network says of each pixel, float32."""

    offset: Tensor  # (B, 2, H, W) (x, y) in units, in (-1, 1)
    log_precision: (
        Tensor  # (B, S, H, W) S = 1 circular, 2 elliptical (x, y); precision = exp(10 * it)
    )
    seed: Tensor  # (B, C, H, W) in (0, 1), one map per class


@dataclass(frozen=True)
class Target:
    """The truth of one image."""

    labels: Tensor  # (H, W) int32, 0 background, 1..K
    classes: Tensor  # (K,) int64 in [0, C), of instance k at index k - 1
    ignore: Tensor  # (H, W) bool, pixels without truth


@dataclass(frozen=True)
class Sample:
    """One image of a data set with its truth, as a layout reads it."""

    image: np.ndarray  # (H, W) or (H, W, 3) uint8, uint16 or float32
    target: Target
    name: str  # unique in its data set: the path below the image folder, without suffix
    ids: np.ndarray | None = None  # (K,) int64, id in the file of instance k at k - 1; None: k


@dataclass(frozen=True)
class Normalization:
    """How pixel values become network input; belongs to the model and travels in its file."""

    kind: Literal["none", "fixed", "percentile"] = "percentile"
    """none: integers to [0, 1] by the maximum of their type; fixed: that, then (x - mean) / std;
    percentile: by channel, percentile ``low`` to 0 and ``high`` to 1."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """RGB mean of kind "fixed", in [0, 1]."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """RGB standard deviation of kind "fixed", in [0, 1]."""
    low: float = 1.0
    """Percentile that becomes 0, of kind "percentile" (EmbedSeg: 1)."""
    high: float = 99.8
    """Percentile that becomes 1, of kind "percentile" (EmbedSeg: 99.8)."""


@dataclass(frozen=True, repr=False)
class Instances:
    """What was found in one image: torch on the embeddings' device, numpy from ``Predictor``."""

    labels: Any  # (H, W) int32; instance i is labels == i + 1; 1..N without gaps, one owner a pixel
    scores: Any  # (N,) float32, descending
    classes: Any  # (N,) int64
    class_names: tuple[str, ...] = field(default=())
    truncated: bool = False  # stopped at max_instances
    expected_iou: Any = None  # (N,) float32 in [0, 1]; None: the model is not calibrated

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        height, width = self.labels.shape
        more = ", truncated" if self.truncated else ""
        return f"Instances({len(self)} objects, {width} x {height} px{more})"

    def __getitem__(self, which: Any) -> Instances:
        """Select by boolean mask (N,) or index array; order is kept, labels are numbered anew."""
        host = self.numpy()
        index = _as_numpy(which)
        if index.dtype == bool:
            if index.shape != (len(self),):
                raise IndexError(f"mask of shape {index.shape} for {len(self)} instances")
            kept = np.flatnonzero(index)
        else:
            # An empty list arrives as float64: it selects nothing.
            kept = np.unique(np.arange(len(self))[index.astype(np.int64)])
        new_id = np.zeros(len(self) + 1, np.int32)
        new_id[kept + 1] = np.arange(1, len(kept) + 1)
        chosen = Instances(
            new_id[host.labels],
            host.scores[kept],
            host.classes[kept],
            self.class_names,
            self.truncated,
            None if host.expected_iou is None else host.expected_iou[kept],
        )
        return chosen if isinstance(self.labels, np.ndarray) else chosen._like(self)

    def mask(self, i: int) -> Any:
        """Mask (H, W) bool of instance ``i`` in [0, N)."""
        if not 0 <= i < len(self):
            raise IndexError(f"instance {i} of {len(self)}")
        return self.labels == i + 1

    @property
    def boxes(self) -> np.ndarray:
        """(N, 4) int64, x1 y1 x2 y2 in px, x2 and y2 exclusive."""
        labels = _as_numpy(self.labels)
        height, width = labels.shape
        ys, xs = np.nonzero(labels)
        i = labels[ys, xs] - 1
        boxes = np.empty((len(self), 4), np.int64)
        boxes[:, :2] = (width, height)
        boxes[:, 2:] = 0
        for column, values, extreme in (
            (0, xs, np.minimum),
            (1, ys, np.minimum),
            (2, xs + 1, np.maximum),
            (3, ys + 1, np.maximum),
        ):
            extreme.at(boxes[:, column], i, values)
        return boxes

    @property
    def areas(self) -> np.ndarray:
        """(N,) int64, pixels of each instance."""
        return np.bincount(_as_numpy(self.labels).ravel(), minlength=len(self) + 1)[1:]

    def numpy(self) -> Instances:
        """The same with numpy arrays."""
        if isinstance(self.labels, np.ndarray):
            return self
        return replace(
            self,
            labels=_as_numpy(self.labels),
            scores=_as_numpy(self.scores),
            classes=_as_numpy(self.classes),
            expected_iou=None if self.expected_iou is None else _as_numpy(self.expected_iou),
        )

    def _like(self, other: Instances) -> Instances:
        """These numpy arrays as tensors on the devices of ``other``."""

        def to(array: np.ndarray, tensor: Any) -> Any:
            return tensor.new_tensor(array)

        return replace(
            self,
            labels=to(self.labels, other.labels),
            scores=to(self.scores, other.scores),
            classes=to(self.classes, other.classes),
            expected_iou=None
            if self.expected_iou is None
            else to(self.expected_iou, other.expected_iou),
        )


def _as_numpy(array: Any) -> np.ndarray:
    """Array of a tensor on any device, a sequence, or an array as it is."""
    return np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)
