"""Peak memory of scoring one large image, the network left out: an engine reads maps off the image.

    python tests/scored_memory.py evaluate|tune|validate SIDE

Prints the GB of the process before and at the peak, and the bytes that came, by pixel of the image.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spatialembed.evaluation import threshold_sweep
from spatialembed.evaluation.evaluate import evaluate
from spatialembed.evaluation.tune import tune
from spatialembed.inference.model_file import ModelInfo
from spatialembed.inference.predictor import Predictor
from spatialembed.inference.tiling import TiledEngine
from spatialembed.method.cluster import ClusterOptions
from spatialembed.training.validation import validate
from spatialembed.types import UNIT, Embeddings, Normalization, Sample, Target

TILE, DISC = 64, 12
INFO = ModelInfo(("disc",), True, Normalization("none"), ClusterOptions(min_pixels=10))


class ReadsMaps:
    """The channels of an image are the offset x and y, in 128 px about 0.5, and the seed."""

    name, device, precision, scale = "known", torch.device("cpu"), "float32", 2.0

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Embeddings:
        offset = (x[:, :2] - 0.5) * 128 / UNIT
        return Embeddings(offset, torch.full_like(offset, 0.9), x[:, 2:].clone())


class OneImage:
    """A field of discs, one in each square of ``TILE`` px."""

    class_names, names = ("disc",), ("a",)

    def __init__(self, side: int) -> None:
        y, x = np.mgrid[:TILE, :TILE] - (TILE - 1) / 2
        inside = x**2 + y**2 <= DISC**2
        maps = np.stack((0.5 - x * inside / 128, 0.5 - y * inside / 128, 0.97 * inside), axis=-1)
        n = side // TILE
        number = np.arange(1, n * n + 1, dtype=np.int32).reshape(n, n)
        labels = torch.from_numpy(np.kron(number, inside.astype(np.int32)))
        nothing = torch.zeros(labels.shape, dtype=torch.bool)
        self.target = Target(labels, torch.zeros(n * n, dtype=torch.int64), nothing)
        self.sample = Sample(np.tile(maps.astype(np.float32), (n, n, 1)), self.target, "a")

    def __len__(self) -> int:
        return 1

    def __getitem__(self, i: int) -> Sample:
        return self.sample

    def truth(self, i: int) -> Target:
        return self.target


def peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(verb: str, side: int) -> None:
    data: Any = OneImage(side)
    engine: Any = ReadsMaps()
    predictor = Predictor(TiledEngine(engine, "erfnet"), INFO)
    assert predictor.engine.takes_tiles(side, side)
    before = peak()
    if verb == "evaluate":
        ap = evaluate(predictor, data, progress=False).mean_ap
    elif verb == "tune":
        threshold_sweep.STARTS, threshold_sweep.MIN_PIXEL_FACTORS = (0.5, 0.9), (1.0,)
        threshold_sweep.FOREGROUNDS = threshold_sweep.MEMBERSHIPS = (0.5,)
        ap = tune(predictor, data, progress=False).to_dict()["before"]["ap"]
    else:
        setup: Any = SimpleNamespace(
            val=data,
            options=SimpleNamespace(val_metric="label"),
            run=Path(tempfile.mkdtemp()),
            engine=lambda _: predictor.engine,
            normalization=INFO.normalization,
            base=INFO.thresholds,
        )
        net: Any = SimpleNamespace(train=lambda: None)
        ap = validate(setup, net, 1, lambda _: None)["val_ap"]
    assert ap == 1, ap
    more = (peak() - before) / side**2
    print(f"{before / 1e9:.2f} {peak() / 1e9:.2f} {more:.0f}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
