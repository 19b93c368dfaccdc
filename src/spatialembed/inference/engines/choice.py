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
LITE_SHARE = 0.42
"""Of those seconds a megapixel that ``lite`` takes. By processor time on one thread of such a
machine, both networks in one process: torch 0.36 to 0.45 at 512 and 1024 px, OpenVINO 0.40 and 0.41
at 512 px, each in float32 and bfloat16. Assumed for the others."""
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
    length *= LITE_SHARE if network == "lite" else 1.0

    def seconds(name: str) -> float:
        return costs[name].start + costs[name].megapixel * length

    return min((name for name in costs if name in there), key=seconds, default="torch")
