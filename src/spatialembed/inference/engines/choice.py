"""Which engine ends a job first: a start that costs once, and a pace that costs by the pixel."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from spatialembed.types import Network

ENGINES = ("torch", "compiled", "onnxruntime", "openvino")
UNKNOWN_MEGAPIXELS = 8.0
"""A job of unknown length is taken for this: a few photographs, and no long wait for the first."""


class Cost(NamedTuple):
    """What an engine costs, in seconds."""

    start: float  # once, until it is ready
    megapixel: float  # of the image as the network sees it


COSTS: dict[tuple[str, str], dict[str, Cost]] = {
    ("cpu", "bfloat16"): {
        "torch": Cost(0.0, 0.22),
        "compiled": Cost(15.0, 0.18),
        "openvino": Cost(3.0, 0.22),
    },
    ("cpu", "float32"): {
        "torch": Cost(0.0, 0.70),
        "compiled": Cost(15.0, 0.49),
        "onnxruntime": Cost(8.0, 0.39),
        "openvino": Cost(3.0, 0.39),
    },
    ("cuda", "bfloat16"): {"torch": Cost(0.0, 0.005), "compiled": Cost(45.0, 0.002)},
    ("cuda", "float32"): {"torch": Cost(0.0, 0.010), "compiled": Cost(45.0, 0.008)},
}
"""By kind of device and precision. Of the CPU: as ``benchmarks/engines.py`` prints them on two
cores with AVX-512 and its bfloat16. Of CUDA: assumed, not measured. On another machine both columns
grow or shrink, and what the choice depends on is their ratio alone."""
LITE = {
    ("cpu", "float32"): {"torch": 0.42, "openvino": 0.42, "onnxruntime": 0.42},
    ("cpu", "bfloat16"): {"torch": 0.43, "openvino": 0.42},
}
"""Share of ERFNet's seconds a megapixel that ``lite`` takes; where it was not measured, 0.42.

On one thread of such a machine, processor time at 512 x 512 px, both networks in one process.
"""
THREADS = 2
"""Of those measurements; the pace on the CPU grows with them, the start does not."""


def choose(
    kind: str,
    precision: str,
    there: Collection[str],
    megapixels: float | None,
    threads: int = THREADS,
    network: Network = "erfnet",
) -> str:
    """The engine of the least expected time.

    kind: of the device, "cpu", "cuda" or "mps". there: engines that can be built. megapixels: of
    all images of the job as the network sees them; None if nobody knows. threads: of the CPU.
    network: ERFNet's costs are those of COSTS.
    """
    costs = COSTS.get((kind, precision), {})
    length = UNKNOWN_MEGAPIXELS if megapixels is None else megapixels
    if kind == "cpu":
        length *= THREADS / threads
    shares = LITE.get((kind, precision), {}) if network == "lite" else dict.fromkeys(costs, 1.0)

    def seconds(name: str) -> float:
        return costs[name].start + costs[name].megapixel * shares.get(name, 0.42) * length

    return min((name for name in costs if name in there), key=seconds, default="torch")
