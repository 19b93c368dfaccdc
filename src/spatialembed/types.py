"""The vocabulary: every type that one part hands to another, each field with its shape.

Conventions used everywhere:

    array index   (row y, column x)            labels[y, x]
    coordinate    (x, y) in units              offset[:, 0] is x, offset[:, 1] is y
    unit          1024 px, both axes           pixel (y=512, x=256) stands at (0.25, 0.5)
    precision     1 / (2 sigma^2), 1/unit^2    exp(10 log_precision): 1 -> 22026, margin 5.7 px

This file imports no torch at run time, so that an exported model runs without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from pandas import DataFrame
    from PIL.Image import Image
    from torch import Tensor

UNIT = 1024
"""Pixels per coordinate unit."""
Network = str
"""Networks by name: erfnet, that of the paper; lite, a lighter one; timm:NAME, of timm."""
TIMM = "timm:"


def is_network(name: str) -> bool:
    """Whether a network could be called that; timm alone knows its own."""
    return name in {"erfnet", "lite"} or (name.startswith(TIMM) and name != TIMM)


class Embeddings(NamedTuple):
    """The network's prediction for each pixel, float32."""

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
    noise_floor: float = 0.0
    """The percentiles are at least so many times the noise of the image apart; 0: however near."""
    ceiling: float | None = None
    """Normalised values of kind "percentile" are cut above this; null: none are."""


@dataclass(frozen=True, repr=False)
class Instances:
    """The detections of one image: torch on the embeddings' device, numpy from ``Predictor``."""

    labels: Any  # (H, W) int32; instance i is labels == i + 1; 1..N without gaps, one owner a pixel
    scores: Any  # (N,) float32; descending as found, after indexing in the order of the index
    classes: Any  # (N,) int64
    class_names: tuple[str, ...] = field(default=())
    truncated: bool = False  # stopped at max_instances
    expected_iou: Any = None  # (N,) float32 in [0, 1]; None: the model is not calibrated

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        height, width = self.labels.shape
        more = ", truncated" if self.truncated else ""
        return f"Instances({len(self)} objects, {height} x {width} px{more})"

    def __getitem__(self, which: Any) -> Instances:
        """Some of the instances, numbered 1, 2, ... in the order of the index.

        ``found[found.areas > 50]``, ``found[np.argsort(-found.areas)]``, ``found[:10]``.

        Args:
            which: Mask (N,) bool; indices (M,), from -N to N - 1, each once; a slice; or one
                index, which gives ``Instances`` of one. An empty list selects nothing.

        Raises:
            IndexError: An index that is out of range, repeated or no whole number; a mask of
                another length.
        """
        chosen = self._indices(which)
        host = self.numpy()
        number = np.zeros(len(self) + 1, np.int32)
        number[chosen + 1] = np.arange(1, len(chosen) + 1)
        expected = host.expected_iou
        result = replace(
            host,
            labels=number[host.labels],
            scores=host.scores[chosen],
            classes=host.classes[chosen],
            expected_iou=None if expected is None else expected[chosen],
        )
        return result if host is self else result._each(lambda a, old: old.new_tensor(a), self)

    def _indices(self, which: Any) -> np.ndarray:
        """(M,) in [0, N), as numpy would select them from (N,)."""
        index = which if isinstance(which, slice) else _as_numpy(which)
        if isinstance(index, np.ndarray) and index.size == 0:  # a list without type is float64
            index = index.astype(np.int64)
        chosen = np.atleast_1d(np.arange(len(self))[index])
        if chosen.ndim != 1:
            raise IndexError(f"an index of {chosen.ndim} axes for {len(self)} instances")
        if len(chosen) > len(np.unique(chosen)):
            raise IndexError("an instance is indexed twice: a pixel has one owner")
        return chosen

    def mask(self, i: int) -> Any:
        """Mask (H, W) bool of instance ``i`` in [0, N)."""
        if not 0 <= i < len(self):
            raise IndexError(f"instance {i} of {len(self)}")
        return self.labels == i + 1

    @cached_property
    def boxes(self) -> np.ndarray:
        """(N, 4) int64, x1 y1 x2 y2 in px, x2 and y2 exclusive; read-only, made at first use."""
        from scipy.ndimage import find_objects

        slices = find_objects(_as_numpy(self.labels), len(self)) if len(self) else []
        nowhere = slice(0, 0), slice(0, 0)  # of an instance without a pixel
        places = (found or nowhere for found in slices)
        corners = [(x.start, y.start, x.stop, y.stop) for y, x in places]
        return _frozen(np.array(corners, np.int64).reshape(-1, 4))

    @cached_property
    def areas(self) -> np.ndarray:
        """(N,) int64, pixels of each instance; read-only, made at first use."""
        labels = _as_numpy(self.labels)
        return _frozen(np.bincount(labels.ravel(), minlength=len(self) + 1)[1:])

    def numpy(self) -> Instances:
        """The same with numpy arrays."""
        if isinstance(self.labels, np.ndarray):
            return self
        return self._each(lambda array, _: _as_numpy(array), self)

    def plot(self, image: Any) -> Image:
        """The instances in colour over their image, as a picture that a notebook shows.

        Small images are enlarged. ``.save("a.png")`` writes the picture, ``np.asarray`` makes an
        array (h, w, 3) uint8 of it, and ``imshow`` of matplotlib takes it.

        Args:
            image: As ``Predictor`` takes it: a path, a PIL image or an array of (H, W) pixels.

        Raises:
            SpatialEmbedError: As ``images.read.read_pixels``.
        """
        from spatialembed.results.overlay import picture_of

        return picture_of(image, self)

    def save(
        self,
        folder: str | Path,
        formats: str | Sequence[str] | None = None,
        *,
        image: Any = None,
        name: str | None = None,
    ) -> None:
        """Write the files of ``spatialembed predict --format``; those of that name are replaced.

        Args:
            folder: Made where it is missing.
            formats: Names of ``results.formats.FORMATS``, a sequence or one string with commas;
                None: labels, csv, coco, and with an image overlay.
            image: As ``Predictor`` takes it, for the overlay and the intensities in objects.csv.
            name: Of the image in the files; None: that of its path, else "image".

        Raises:
            SpatialEmbedError: As ``images.read.read_pixels`` and ``results.formats.check``;
                ``bad_setting`` for an overlay without an image (exit 2), ``disk_full`` (exit 5).
        """
        from spatialembed.results.folder import save

        save(self, folder, formats, image=image, name=name)

    def to_dataframe(
        self, image: Any = None, pixel_um: tuple[float, float] | None = None
    ) -> DataFrame:
        """A pandas table of the objects, by ``id``, with the known columns of ``objects.csv``.

        Args:
            image: As ``Predictor`` takes it, for the mean intensities.
            pixel_um: Width and height of a pixel in µm, for the physical sizes.

        Raises:
            SpatialEmbedError: ``missing_extra`` (exit 2); as ``images.read.read_pixels``.
        """
        from spatialembed.results.data_frames import to_dataframe

        return to_dataframe(self, image, pixel_um)

    def to_geopandas(
        self, image: Any = None, pixel_um: tuple[float, float] | None = None
    ) -> GeoDataFrame:
        """``to_dataframe`` with a ``geometry``: the outlines along the pixel edges, in px.

        (0, 0) is the outer corner of the first pixel, y points down; there is no ``crs``.

        Args:
            image: As ``Predictor`` takes it, for the mean intensities.
            pixel_um: Width and height of a pixel in µm, for the physical sizes.

        Raises:
            SpatialEmbedError: ``missing_extra`` (exit 2); as ``images.read.read_pixels``.
        """
        from spatialembed.results.data_frames import to_geopandas

        return to_geopandas(self, image, pixel_um)

    def _repr_html_(self) -> str:
        """What a notebook shows: a small picture of the objects, and how many there are."""
        from spatialembed.results.overlay import html_of

        return html_of(self)

    def _each(self, change: Callable[[Any, Any], Any], other: Instances) -> Instances:
        """The same with ``change(own, other's)`` in place of each array."""
        names = ("labels", "scores", "classes", "expected_iou")
        arrays = {n: getattr(self, n) for n in names if getattr(self, n) is not None}
        return replace(self, **{n: change(a, getattr(other, n)) for n, a in arrays.items()})


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def _as_numpy(array: Any) -> np.ndarray:
    """Array of a tensor on any device, a sequence, or an array as it is."""
    return np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)
