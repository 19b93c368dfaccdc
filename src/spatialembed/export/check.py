"""An exported file at work in onnxruntime, and its answers held against torch's."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spatialembed.errors import SpatialEmbedError
from spatialembed.export.frame import outside
from spatialembed.generated.nuclei_and_shapes import nuclei_field, shapes_scene
from spatialembed.inference.device import first_line
from spatialembed.inference.engines.onnx import INPUT, maps_of, session
from spatialembed.inference.model_file import ModelInfo
from spatialembed.inference.model_json import bad_model
from spatialembed.method.cluster import ClusterOptions, cluster
from spatialembed.method.normalization import network_input, normalize
from spatialembed.types import UNIT, Embeddings, Normalization

SIZES = ((256, 256, 2), (129, 200, 2), (97, 61, 1), (40, 333, 2), (7, 5, 1))
"""Height, width and batch of what is compared; one side in two is no multiple of 8."""


class Limits(NamedTuple):
    """What may differ from torch."""

    offset_px: float  # largest difference of an offset, where a pixel takes part in the clustering
    log_precision: float  # largest difference there; 0.01 is 5 % of a margin
    seed: float  # largest difference
    pixels: float  # share of pixels with another owner


LIMITS = {
    "float32": Limits(offset_px=0.05, log_precision=1e-3, seed=1e-3, pixels=1e-3),
    "float16": Limits(offset_px=0.5, log_precision=0.02, seed=0.02, pixels=0.01),
}
"""By precision."""


class OnnxFile:
    """An exported file in onnxruntime on the CPU, an engine of ``Predictor``.

    What the graph does itself, the normalisation (but for percentiles) and the scale, is not to be
    done before it: ``outside(info.normalization)`` is the remaining part. model: the file or its
    contents. threads: None leaves them to onnxruntime.

    Raises SpatialEmbedError ``missing_extra`` (exit 2), ``bad_model`` (exit 4).
    """

    name = "onnxruntime, exported file"
    device = torch.device("cpu")
    scale = 1.0

    def __init__(self, model: str | Path | bytes, *, threads: int | None = None) -> None:
        where = "model" if isinstance(model, bytes) else str(model)
        try:
            self._session = session(
                model if isinstance(model, bytes) else where, threads, "running an exported file"
            )
            ends = self._session.get_inputs(), self._session.get_outputs()
            names = [tuple(value.name for value in values) for values in ends]
            entries = self._session.get_modelmeta().custom_metadata_map
        except SpatialEmbedError:
            raise
        except Exception as error:  # its faults share no class; text need not be UTF-8
            raise bad_model(where, first_line(error)) from error
        if names != [(INPUT,), Embeddings._fields] or ends[0][0].type != "tensor(float)":
            raise bad_model(where, f"from {names[0]} to {names[1]}: not exported by spatialembed")
        try:
            self.metadata = {key: json.loads(value) for key, value in entries.items()}
            self.precision = str(self.metadata["precision"])
            self.licence = str(self.metadata["licence"])
            self.network = str(self.metadata.get("network", "erfnet"))  # of older files
            self.diameter = str(self.metadata.get("diameter", "native"))
        except (ValueError, RecursionError, KeyError) as error:
            raise bad_model(where, f"metadata: {first_line(error)}") from error

    def __call__(self, images: Tensor) -> Embeddings:
        """images (B, 3, H, W) float32 as the file takes them -> Embeddings (B, ., H, W) float32."""
        return maps_of(self._session, images)


@dataclass(frozen=True)
class Comparison:
    """Maps and instances of one size against torch's."""

    height: int
    width: int
    batch: int
    offset_px: float  # largest difference where either seed is above the foreground threshold
    log_precision: float  # the same
    seed: float  # largest difference
    instances_torch: int  # of the whole batch
    instances: int
    pixels: float  # share of pixels whose owner differs

    def within(self, limits: Limits) -> bool:
        """Whether nothing differs by more."""
        return all(getattr(self, name) <= limit for name, limit in limits._asdict().items())


def compare(
    reference: Callable[[Tensor], Embeddings],
    exported: OnnxFile,
    info: ModelInfo,
    progress: Callable[[], None] = lambda: None,
) -> list[Comparison]:
    """Run both on generated scenes of each of SIZES and compare maps and instances.

    reference: normalised images (B, 3, H, W) to maps, as ``NetworkEngine``.
    """
    rows = []
    for i, (height, width, batch) in enumerate(SIZES):
        images = torch.stack([_scene(height, width, seed=(i, b)) for b in range(batch)])
        whole, left = (
            torch.stack([normalize(image, how) for image in images])
            for how in (info.normalization, outside(info.normalization))
        )
        rows.append(_compared(reference(whole), exported(left), info.thresholds))
        progress()
    return rows


def _scene(height: int, width: int, *, seed: tuple[int, int]) -> Tensor:
    """A window (3, height, width) in [0, 1] of a generated scene, nuclei and shapes by turns."""
    draw = (nuclei_field, shapes_scene)[sum(seed) % 2]
    whole = draw(max(height, 128), max(width, 128), seed=seed).image
    return network_input(whole[:height, :width], Normalization("none"))


def _compared(reference: Embeddings, maps: Embeddings, thresholds: ClusterOptions) -> Comparison:
    batch, _, height, width = maps.seed.shape
    part = (reference.seed > thresholds.foreground).any(dim=1, keepdim=True)  # (B, 1, H, W)
    part |= (maps.seed > thresholds.foreground).any(dim=1, keepdim=True)
    offset, log_precision = (
        float(((a - b).abs() * part).max()) for a, b in zip(reference[:2], maps[:2], strict=True)
    )
    seed = float((reference.seed - maps.seed).abs().max())
    wanted, found = cluster(reference, thresholds), cluster(maps, thresholds)
    moved = sum(
        _moved(a.numpy().labels, b.numpy().labels) for a, b in zip(found, wanted, strict=True)
    )
    return Comparison(
        height,
        width,
        batch,
        offset * UNIT,
        log_precision,
        seed,
        sum(map(len, wanted)),
        sum(map(len, found)),
        moved / (batch * height * width),
    )


def _moved(found: np.ndarray, wanted: np.ndarray) -> int:
    """Pixels with another owner, each found object named after the one it shares most with.

    Scores that differ in the last digit change the order of the labels, which is no difference.
    """
    shared = np.zeros((found.max() + 1, wanted.max() + 1), np.int64)
    np.add.at(shared, (found, wanted), 1)
    name = shared.argmax(1)
    name[0] = 0
    return int(np.count_nonzero(name[found] != wanted))
