"""An 8-bit network: calibrated on images, and its average precision beside that of the float one.

Convolutions are 8-bit, weights with a scale for each output channel, activations with one range
each, which the calibration images give. Transposed convolutions, and with them both output layers,
stay float32: onnxruntime has no 8-bit kernel of them, and offsets need more than 256 levels.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from spatialembed.data.folder import FolderDataset, open_folder
from spatialembed.errors import missing_extra
from spatialembed.evaluation.threshold_sweep import mean_ap
from spatialembed.export.frame import outside
from spatialembed.images.listing import list_images
from spatialembed.images.read import read_image
from spatialembed.inference.engine import resize
from spatialembed.inference.model_file import ModelInfo
from spatialembed.method.cluster import cluster
from spatialembed.method.normalization import network_input
from spatialembed.types import Embeddings, Sample

if TYPE_CHECKING:
    from onnx import ModelProto

Engine = Callable[[Tensor], Embeddings]
OPERATORS = ("Conv", "Relu", "Add", "Mul", "Concat", "MaxPool")
"""In 8 bits: all that stands between two convolutions, so that nothing is converted in between."""
CALIBRATION_IMAGES = 32
"""As many at most, spread over the folder; half of them where it is small."""
JUDGED_IMAGES = 100
"""So many of the others at most are scored, spread over the folder."""
CALIBRATION_PX = 512
"""Calibration sees the middle of larger images: activations of a few whole ones fill the memory."""


class Int8Images(NamedTuple):
    """A folder parted in two."""

    calibration: list[np.ndarray]  # (H, W) or (H, W, 3), as read
    judged: FolderDataset | None  # the others, if they have masks


class Accuracy(NamedTuple):
    """The 8-bit network beside the float one, on images that it was not calibrated on."""

    images: int
    ap_float: float  # mean AP over IoU .50 to .90 and over images
    ap_int8: float
    speedup: float  # time of the float network / time of the 8-bit one, one after the other


def open_int8_images(folder: str | Path) -> Int8Images:
    """Images to calibrate on and, where ``folder`` has images/ and masks/, to judge by.

    Raises SpatialEmbedError as the readers of folders and images do.
    """
    if (Path(folder) / "masks").is_dir():
        dataset = open_folder(folder)
        chosen = _spread(len(dataset), min(CALIBRATION_IMAGES, max(1, len(dataset) // 2)))
        others = sorted(set(range(len(dataset))) - set(chosen))
        judged = [others[i] for i in _spread(len(others), min(JUDGED_IMAGES, len(others)))]
        images = [read_image(dataset.image_path(i)) for i in chosen]
        return Int8Images(images, dataset.subset(judged) if judged else None)
    paths = [path for path, _ in list_images([folder])]
    chosen = _spread(len(paths), min(CALIBRATION_IMAGES, len(paths)))
    return Int8Images([read_image(paths[i]) for i in chosen], None)


def _spread(length: int, count: int) -> list[int]:
    """``count`` different indices in [0, length), at even distances."""
    return [i * length // count for i in range(count)]


def quantized(
    network: ModelProto,
    images: Sequence[np.ndarray],
    info: ModelInfo,
    progress: Callable[[], None] = lambda: None,
) -> ModelProto:
    """The graph of a network with 8-bit convolutions (QDQ form, opset as it was).

    network: one input (B, 3, H, W) float32, normalised. images: as read, at least one, each of
    which is normalised and scaled for the model. progress: called after each image.
    """
    try:
        import onnx
        from onnxruntime import quantization
    except ModuleNotFoundError as error:
        raise missing_extra(str(error.name), "export", "an 8-bit export") from error

    (entry,) = (value.name for value in network.graph.input)

    class Reader(quantization.CalibrationDataReader):
        feeds = ({entry: image.numpy()} for image in _fed(images, info, progress))

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    with TemporaryDirectory() as folder, _unadvised():
        path = Path(folder) / "network.onnx"
        copy = onnx.ModelProto()
        copy.CopyFrom(network)  # its weights are moved out to a temporary file
        quantization.quantize_static(
            copy,
            path,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(OPERATORS),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
        model = onnx.load(path)
    del model.metadata_props[:]
    return model


def _fed(
    images: Sequence[np.ndarray], info: ModelInfo, progress: Callable[[], None]
) -> Iterator[Tensor]:
    """Images as the network sees them, (1, 3, h, w) float32, at most CALIBRATION_PX a side."""
    for pixels in images:
        whole = network_input(pixels, info.normalization)[None]
        sides = [max(1, round(side * info.scale)) for side in whole.shape[-2:]]
        scaled = resize(whole, (sides[0], sides[1]))
        top, left = (max(0, (side - CALIBRATION_PX) // 2) for side in sides)
        yield scaled[..., top : top + CALIBRATION_PX, left : left + CALIBRATION_PX]
        progress()


@contextmanager
def _unadvised() -> Iterator[None]:
    """Without the advice to run onnxruntime's own preprocessing: the graph is folded already."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def judge(
    plain: Engine,
    eight_bit: Engine,
    dataset: Sequence[Sample] | FolderDataset,
    info: ModelInfo,
    progress: Callable[[], None] = lambda: None,
) -> Accuracy:
    """Both files on every image in turn: mean AP at the model's thresholds, and the time each took.

    plain, eight_bit: exported files. progress: called after each image.
    """
    scores: tuple[list[float], list[float]] = ([], [])
    seconds = [0.0, 0.0]
    how = outside(info.normalization)
    for i in range(len(dataset)):
        sample = dataset[i]
        image = network_input(sample.image, how)[None]
        for k, engine in enumerate((plain, eight_bit)):
            began = time.perf_counter()
            maps = engine(image)
            seconds[k] += time.perf_counter() - began
            found = cluster(maps, info.thresholds)[0].numpy()
            scores[k].append(mean_ap(found, sample, len(info.class_names)))
        progress()
    ap_float, ap_int8 = (_mean(s) for s in scores)
    return Accuracy(len(dataset), ap_float, ap_int8, seconds[0] / seconds[1])


def _mean(scores: list[float]) -> float:
    """Over the images that have one."""
    defined = [score for score in scores if not math.isnan(score)]
    return float(np.mean(defined)) if defined else math.nan
