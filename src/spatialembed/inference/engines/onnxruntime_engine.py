"""The network in onnxruntime, float32 on the CPU (it has no bfloat16 convolutions there)."""

from __future__ import annotations

import torch
from torch import Tensor

from spatialembed.errors import missing_extra
from spatialembed.inference.engines.folded import FoldedNet, Run
from spatialembed.inference.engines.onnx_graph import to_onnx
from spatialembed.types import Embeddings


def onnxruntime_run(net: FoldedNet, threads: int) -> Run:
    """``net``, of float32, as an onnxruntime session.

    Raises SpatialEmbedError ``missing_extra`` (exit 2).
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise missing_extra("onnxruntime", "export", "engine onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    graph = to_onnx(net, torch.rand(2, 3, 37, 50), outputs=Embeddings._fields)
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def run(images: Tensor) -> Embeddings:
        maps = session.run(None, {"images": images.contiguous().numpy()})
        return Embeddings(*(torch.from_numpy(m) for m in maps))

    return run
