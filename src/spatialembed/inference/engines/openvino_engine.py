"""The network in OpenVINO, on the CPU."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import torch
from torch import Tensor

from spatialembed.errors import require
from spatialembed.inference.engines.folded import FoldedCore, Run
from spatialembed.types import Embeddings

_CORE: list[Any] = []  # of openvino.Core, one at most
_CORE_MADE = threading.Lock()


def the_core() -> Any:
    """The one ``openvino.Core`` of the process, made at the first call and never let go.

    On Linux its CPU plugin gives the thread that uses it first another alternate
    signal stack, and unmaps that when the last Core goes. Gone in another thread, it would leave
    the first one a stack that is not there, and the next signal would kill the process.
    """
    import openvino

    with _CORE_MADE:
        if not _CORE:
            _CORE.append(openvino.Core())
    return _CORE[0]


def openvino_run(core: FoldedCore, threads: int, *, bfloat16: bool) -> Run:
    """``core``, of float32, as a model of OpenVINO, which rounds to bfloat16 itself if asked.

    Raises SpatialEmbedError ``missing_extra`` (exit 2).
    """
    require("openvino", "openvino", "engine openvino")
    import openvino

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it traces the module in a way that torch will drop
        graph = openvino.convert_model(
            core,
            example_input=torch.rand(1, 3, 64, 96),
            input=[openvino.PartialShape([-1, 3, -1, -1])],
        )
    model = the_core().compile_model(
        graph,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        },
    )
    request = model.create_infer_request()
    free = threading.Lock()  # a request that runs refuses a second call

    def run(images: Tensor) -> Embeddings:
        with free:
            maps = request.infer([images.contiguous().numpy()], share_inputs=True)
        return Embeddings(*(torch.from_numpy(maps[i]) for i in range(3)))

    return run
