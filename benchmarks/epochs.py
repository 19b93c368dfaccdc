"""Maps of the network ``lite`` as training goes on, for the benchmarks of loss and clustering.

0      a fresh network
last   the bundled model nuclei
1, 10  between them: the maps of the last, with normal noise on the offsets and uniform noise mixed
       into the seeds, as much of each as gives the instance and the seed term that the training of
       nuclei had in that epoch (its metrics.csv). Noise from pixel to pixel is harder on loss and
       clustering than the errors of a network, which are smooth. Where the noise on the offsets
       alone makes the seed term higher, it stays so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from spatialembed.generated.nuclei_and_shapes import nuclei_field
from spatialembed.inference.predictor import Predictor, load
from spatialembed.method.loss import spatial_embedding_loss
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.method.normalization import network_input
from spatialembed.types import UNIT, Embeddings, Target

TERMS = {"1": (0.875, 0.196), "10": (0.509, 0.052)}
"""Instance and seed term of an epoch."""
RAW_NOISE = 0.03
"""Standard deviation of the noise on the log-precision; a tenth of its log."""


class Training:
    """A batch of generated fields of nuclei, and the maps of its images at four moments."""

    def __init__(self, side: int, batch: int = 1) -> None:
        samples = [nuclei_field(side, side, seed=i) for i in range(batch)]
        self.targets: list[Target] = [sample.target for sample in samples]
        self.predictor: Predictor = load("nuclei", device="cpu", engine="torch")
        how = self.predictor.info.normalization
        self.images: Tensor = torch.stack([network_input(s.image, how) for s in samples])

    @torch.no_grad()
    def maps(self) -> dict[str, Embeddings]:
        """Maps by epoch: "0", "1", "10" and "last"."""
        torch.manual_seed(0)
        fresh = SpatialEmbeddingNet(1, network="lite").eval()(self.images)
        last = Embeddings(*(m.float().clone() for m in self.predictor.engine(self.images)))
        between = {epoch: noisy(last, self.targets, *terms) for epoch, terms in TERMS.items()}
        return {"0": fresh, **between, "last": last}


def noisy(last: Embeddings, targets: Sequence[Target], instance: float, seed: float) -> Embeddings:
    """Maps with as much noise as gives these terms; without any they must be better."""
    rng = torch.Generator().manual_seed(0)
    offset, raw = (torch.randn(m.shape, generator=rng) for m in last[:2])
    other = torch.rand(last.seed.shape, generator=rng)

    def moved(px: float) -> Embeddings:
        maps = (last.offset + offset * px / UNIT, last.log_precision + RAW_NOISE * raw, last.seed)
        return Embeddings(*maps)

    def terms(maps: Embeddings) -> np.ndarray:
        found = spatial_embedding_loss(maps, targets, center="learnable")
        return np.array([found.instance, found.seed])

    by_offset = moved(bisected(lambda px: terms(moved(px))[0] - instance, 64.0))

    def mixed(share: float) -> Embeddings:
        return by_offset._replace(seed=(1 - share) * last.seed + share * other)

    return mixed(bisected(lambda share: terms(mixed(share))[1] - seed, 1.0))


def bisected(rises: Callable[[float], float], high: float) -> float:
    """Where a rising function is 0, in [0, high]; the nearer end if it is nowhere."""
    low = 0.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (low, middle) if rises(middle) > 0 else (middle, high)
    return (low + high) / 2
