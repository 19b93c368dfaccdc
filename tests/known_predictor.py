"""A predictor whose answer is known, for the tests of what is made of its answers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from spatialembed.inference.model_file import ModelInfo
from spatialembed.inference.predictor import Predictor
from spatialembed.method import geometry
from spatialembed.method.cluster import ClusterOptions
from spatialembed.types import Embeddings, Normalization

INFO = ModelInfo(("thing",), True, Normalization("none"), ClusterOptions(min_pixels=0))


class GreyLevels:
    """An engine whose answer is known: every grey level above 0 is an instance, brightest first."""

    name, precision = "known", "float32"
    device = torch.device("cpu")
    scale = 1.0

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, images: Tensor) -> Embeddings:
        self.batches.append(len(images))
        height, width = images.shape[-2:]
        at = geometry.coordinates(height, width, images)  # (2, H, W)
        offset = torch.zeros(len(images), 2, height, width)
        for b, grey in enumerate(images[:, 0]):
            for level in grey.unique():
                inside = grey == level
                offset[b][:, inside] = at[:, inside].mean(1, keepdim=True) - at[:, inside]
        seed = torch.where(images[:, :1] > 0, 0.9 + images[:, :1] / 20, images[:, :1])
        return Embeddings(offset, torch.ones(len(images), 2, height, width), seed)


def scene(seed: int, size: tuple[int, int] = (32, 40)) -> np.ndarray:
    """Grey uint8 image of three squares of different grey."""
    image = np.zeros(size, np.uint8)
    for i, (y, x) in enumerate(((2, 3), (18, 4), (6, 24))):
        image[y : y + 8, x : x + 5] = 60 + 50 * i + seed
    return image


def known(info: ModelInfo = INFO) -> Predictor:
    return Predictor(GreyLevels(), info)  # type: ignore[arg-type]
