"""Real-time, proposal-free instance segmentation by spatial embeddings (Neven et al. 2019)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spatialembed.errors import SpatialEmbedError
from spatialembed.options import ClusterOptions, DataOptions
from spatialembed.types import Embeddings, Instances, Normalization, Sample, Target

if TYPE_CHECKING:
    from spatialembed.data.open import open_data
    from spatialembed.evaluation.evaluate import evaluate
    from spatialembed.evaluation.label_metrics import label_ap
    from spatialembed.evaluation.tune import tune
    from spatialembed.export.export import export_onnx
    from spatialembed.inference.predictor import Predictor, load
    from spatialembed.method.cluster import cluster
    from spatialembed.method.loss import spatial_embedding_loss
    from spatialembed.method.model import SpatialEmbeddingNet
    from spatialembed.training.options import TrainOptions
    from spatialembed.training.train import train

__version__ = "0.1.0"
__all__ = [
    "ClusterOptions",
    "DataOptions",
    "Embeddings",
    "Instances",
    "Normalization",
    "Predictor",
    "Sample",
    "SpatialEmbedError",
    "SpatialEmbeddingNet",
    "Target",
    "TrainOptions",
    "cluster",
    "evaluate",
    "export_onnx",
    "label_ap",
    "load",
    "open_data",
    "spatial_embedding_loss",
    "train",
    "tune",
]
_LATE = {
    "Predictor": "inference.predictor",
    "SpatialEmbeddingNet": "method.model",
    "TrainOptions": "training.options",
    "cluster": "method.cluster",
    "evaluate": "evaluation.evaluate",
    "export_onnx": "export.export",
    "label_ap": "evaluation.label_metrics",
    "load": "inference.predictor",
    "open_data": "data.open",
    "spatial_embedding_loss": "method.loss",
    "train": "training.train",
    "tune": "evaluation.tune",
}
"""Where each name lives that is imported at first use, so that ``import spatialembed`` is quick."""


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return getattr(import_module(f"spatialembed.{_LATE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
