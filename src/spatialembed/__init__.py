"""Real-time, proposal-free instance segmentation by spatial embeddings (Neven et al. 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spatialembed.errors import SpatialEmbedError
from spatialembed.types import Embeddings, Instances, Normalization, Sample, Target

if TYPE_CHECKING:
    from spatialembed.predict import Predictor, load

__version__ = "0.1.0"
__all__ = [
    "Embeddings",
    "Instances",
    "Normalization",
    "Predictor",
    "Sample",
    "SpatialEmbedError",
    "Target",
    "load",
]


def __getattr__(name: str) -> Any:
    """Import what needs torch at first use, so that ``import spatialembed`` stays quick."""
    if name in ("Predictor", "load"):
        from spatialembed import predict

        return getattr(predict, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
